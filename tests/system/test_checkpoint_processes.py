"""Two real processes save and restore together: what happens to one of them, both agree about."""
import json
import pathlib
import socket
import subprocess

import numpy as np
import pytest

from diffusion.system.checksums import checksums
from tests.checkpoint_states import python

TWO = '''
import json, os, sys, time
import jax
root, port, me = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f'127.0.0.1:{port}', 2, me)
import numpy as np
from diffusion.system import checkpoint, checkpoint_reading, consensus, log, sharding
from diffusion.system.checksums import checksums
from diffusion.errors import InputError
log.quiet_orbax()
TOLD = {}

def tell(name, act):
  try:
    TOLD[name] = act()
  except Exception as error:
    TOLD[name] = f'{type(error).__name__}: {error}'

def only(process, target, name, error, act):
  """act(), while `name` raises in that process."""
  def fail(*_, **__):
    raise error
  before = getattr(target, name)
  if me == process:
    setattr(target, name, fail)
  try:
    return act()
  finally:
    setattr(target, name, before)

mesh = sharding.make_mesh(2)
wide = lambda step: np.random.default_rng(step).normal(size=(6, 40)).astype(np.float32)
host = {step: {'wide': wide(step), 'n': np.int32(step)} for step in range(9)}
places = sharding.by_shape(mesh, host[0])
def state(step):
  put = lambda a, place: jax.make_array_from_callback(np.shape(a), place, lambda i: np.asarray(a)[i])
  return jax.tree.map(put, host[step], places)
tree = jax.tree.map(lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), host[0], places)
def restored(out):
  found = out.restore(tree)
  for shard in found.state['wide'].addressable_shards:
    assert shard.data.size == 120 and np.array_equal(shard.data, host[found.step]['wide'][shard.index])
  return [found.step, len(found.notes)]

out = checkpoint.open_checkpoints(root + '/both', keep=9)
for step in (1, 2, 3):
  out.save(step, state(step), {'at': step})
out.wait()
tell('whole', lambda: restored(out))
tell('sums', lambda: checksums(state(3)))
new = lambda: checkpoint.open_checkpoints(root + '/both', keep=9)
handler = checkpoint_reading.ocp.StandardCheckpointHandler
fresh = lambda: restored(new())
tell('no access', lambda: only(1, handler, 'restore', PermissionError(13, 'Permission denied'), fresh))
tell('no memory', lambda: only(0, handler, 'restore', MemoryError(), fresh))
tell('meta', lambda: only(0, checkpoint_reading, 'seal', KeyError('x'), new().latest_meta))
tell('one reads damage', lambda: only(1, handler, 'restore', ValueError('DATA_LOSS: x'), fresh))
read_record, failures = checkpoint_reading.read_record, [ValueError('incomplete')] * me
def damaged_once(folder):
  if failures:
    raise failures.pop()
  return read_record(folder)
checkpoint_reading.read_record = damaged_once
tell('one finds damage', lambda: restored(out))
out.save(3, state(3), {})
out.wait()
tell('mended', lambda: restored(out))
tell('aside', lambda: (out.set_aside_after(1), out.steps(), restored(out)))
save = lambda: out.save(4, state(4), {})
tell('cannot write', lambda: only(1, checkpoint, 'try_writing', OSError(28, 'No space left on device'), save))
tell('mistake', lambda: only(1, checkpoint, 'try_writing', TypeError('wrong'), save))
out.save(5, state(5), {})
tell('goes on', lambda: (out.wait(), restored(out)))
out.close()
split = checkpoint.open_checkpoints(root + ('/both' if me else '/none'))
tell('no shared disk', lambda: split.restore(tree))
tell('no shared disk, meta', lambda: split.latest_meta())

time.sleep(2 * me)
before = time.monotonic()
tell('late', lambda: consensus.all_gather_text(seconds=.5))
tell('and after', lambda: consensus.all_gather_text())
TOLD['quick'] = time.monotonic() - before < 1.5
print('TOLD ' + json.dumps(TOLD), flush=True)
time.sleep(2.5 * (1 - me))  # the service stays until both have spoken
os._exit(0)
'''


@pytest.fixture(scope='module')
def told(tmp_path_factory):
  """(what process 0 was told, what process 1 was, the folder)."""
  root = tmp_path_factory.mktemp('two')
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]
  started = []
  for process in range(2):
    command, env = python(TWO, root, port, process)
    started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
  try:
    texts = [process.communicate(timeout=240)[0] for process in started]
  finally:
    for process in started:
      process.kill()
  lines = [[line for line in text.splitlines() if line.startswith('TOLD ')] for text in texts]
  assert all(lines), texts
  return *(json.loads(line[0][5:]) for line in lines), root


def both(told, name):
  assert told[0][name] == told[1][name]
  return told[0][name]


def test_a_divided_state_comes_back_and_its_checksums_are_those_of_one_process(told):
  assert both(told, 'whole') == [3, 0]
  whole = {'wide': np.random.default_rng(3).normal(size=(6, 40)).astype(np.float32), 'n': np.int32(3)}
  assert both(told, 'sums') == checksums(whole)


def test_what_one_process_cannot_reach_both_raise_and_no_older_step_is_used(told):
  assert 'both/3: [Errno 13] Permission denied; ' in both(told, 'no access')
  assert 'both/3: MemoryError; ' in both(told, 'no memory')
  assert both(told, 'no access').startswith('InputError: cannot read ')


def test_damage_that_one_process_finds_makes_both_step_back_and_the_step_can_be_saved_again(told):
  assert both(told, 'one finds damage') == [2, 1] and both(told, 'mended') == [3, 0]
  for name in ('one reads damage', 'meta'):  # at every step
    for text in told[:2]:
      assert 'no checkpoint in ' in text[name] and ': step 3' in text[name] and 'step 1' in text[name]
  assert 'process 1: DATA_LOSS' in told[0]['one reads damage'] and "process 0: 'x'" in told[1]['meta']


def test_steps_are_set_aside_once_and_both_see_it(told):
  assert both(told, 'aside') == [None, [1], [1, 0]]
  names = sorted(path.name.split('-')[0] for path in pathlib.Path(told[2] / 'both').iterdir())
  assert names == ['1', '2.superseded', '3.damaged', '3.superseded', '5']


def test_a_write_that_fails_in_one_process_fails_in_both_and_the_next_one_goes_well(told):
  texts = [text['cannot write'] for text in told[:2]]
  for text in texts:
    assert text.startswith('InputError: cannot save checkpoint 4') and 'No space left' in text
  assert told[1]['mistake'] == 'TypeError: wrong' and 'cannot save checkpoint 4' in told[0]['mistake']
  assert both(told, 'goes on') == [None, [5, 0]]


def test_processes_that_see_different_disks_are_told(told):
  for name in ('no shared disk', 'no shared disk, meta'):
    for text in told[:2]:
      assert 'the processes see different checkpoints in' in text[name] and 'that all hosts share' in text[name]


def test_a_process_that_comes_late_is_named_and_none_waits_for_ever(told):
  assert told[0]['late'].startswith('InputError: ') and 'process 1 of 2 did not come within 0.5 s' in told[0]['late']
  assert told[1]['late'].startswith('InputError: ') and 'process 1 of 2' in told[1]['late']
  for text in told[:2]:
    assert text['and after'] == text['late'] and text['quick'] and '\n' not in text['late']
