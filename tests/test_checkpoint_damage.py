"""Checkpoints are damaged, killed and starved here on purpose; what is restored must be what its step had."""
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import time

import jax
import jax.numpy as jnp
import pytest

from diffusion import checkpoint
from diffusion.checkpoint import differences, layout, open_checkpoints
from diffusion.errors import InputError
from tests.checkpoint_states import abstract, python, same_bits, state_at

# The threads of a read that failed may find their event loop closed; `quiet_orbax` is for that, in programs.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning', 'ignore:coroutine')


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A directory with the finished steps 1 and 2; tests that damage it copy it."""
  folder = tmp_path_factory.mktemp('saved')
  out = open_checkpoints(folder)
  for step in (1, 2):
    out.save(step, state_at(step), {'position': 10 * step})
  out.close()
  return folder


# ---- damage

def largest(folder):
  return max((f for f in pathlib.Path(folder).rglob('*') if f.is_file()), key=lambda f: f.stat().st_size)


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 16
  path.write_bytes(data)


def meta_file(step):
  return step / 'meta' / 'metadata'


DAMAGE = {
  'flipped bit in an array': lambda step: flip(largest(step / 'state')),
  'truncated arrays': lambda step: os.truncate(largest(step / 'state'), 1000),
  'missing arrays': lambda step: largest(step / 'state').unlink(),
  'truncated index': lambda step: os.truncate(step / 'state' / 'manifest.ocdbt', 20),
  'missing state': lambda step: shutil.rmtree(step / 'state'),
  'changed meta': lambda step: meta_file(step).write_text(meta_file(step).read_text().replace('20', '21', 1)),
  'truncated meta': lambda step: os.truncate(meta_file(step), 30),
  'missing meta': lambda step: shutil.rmtree(step / 'meta'),
  'empty folder': lambda step: (shutil.rmtree(step), step.mkdir()),
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_a_damaged_step_is_reported_the_one_before_used_and_saving_goes_on(kind, saved, tmp_path, caplog):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  DAMAGE[kind](tmp_path / '2')
  out = open_checkpoints(tmp_path)
  found = out.restore(abstract(state_at(0)))
  assert found.step == 1 and found.meta == {'position': 10} and same_bits(found.state, state_at(1))
  assert len(found.notes) == 1 and 'checkpoint 2 is damaged' in found.notes[0] and '\n' not in found.notes[0]
  warnings = [record for record in caplog.records if record.levelname == 'WARNING']
  assert len(warnings) == 1 and 'is damaged' in warnings[0].getMessage() and out.steps() == [1]
  out.save(2, state_at(2), {'position': 20})
  out.close()
  again = open_checkpoints(tmp_path).restore(abstract(state_at(0)))
  assert again.step == 2 and again.notes == [] and same_bits(again.state, state_at(2))


def test_without_the_checksum_flipped_bytes_would_be_restored(saved, tmp_path, monkeypatch):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  flip(largest(tmp_path / '2' / 'state'))
  assert 'checksum' in open_checkpoints(tmp_path).restore(abstract(state_at(0))).notes[0]
  wanted = json.loads((tmp_path / '2' / 'meta' / 'metadata').read_text())['checksums']
  monkeypatch.setattr(checkpoint, 'checksums', lambda tree: wanted)
  found = open_checkpoints(tmp_path).restore(abstract(state_at(0)))
  assert found.step == 2 and not same_bits(found.state, state_at(2))


def test_a_step_that_is_damaged_while_the_run_goes_on_can_be_saved_again(tmp_path):
  out = open_checkpoints(tmp_path)
  for step in (1, 2):
    out.save(step, state_at(step), {})
  out.wait()
  flip(largest(tmp_path / '2' / 'state'))
  assert out.restore(abstract(state_at(0))).step == 1
  out.save(2, state_at(2), {})
  out.wait()
  assert same_bits(out.restore(abstract(state_at(0))).state, state_at(2))
  out.close()


def test_a_program_that_asked_for_quiet_prints_one_line_for_a_damaged_step(saved, tmp_path):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  DAMAGE['truncated index'](tmp_path / '2')
  code = """
import sys, jax
from diffusion import checkpoint
checkpoint.quiet_orbax()
out = checkpoint.open_checkpoints(sys.argv[1])
meta = checkpoint.json.load(open(sys.argv[1] + '/1/meta/metadata'))
tree = {path: jax.ShapeDtypeStruct(shape, dtype) for path, (shape, dtype) in meta['layout'].items()}
assert out.restore(tree).step == 1
"""
  command, env = python(code, tmp_path)
  result = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
  line, = result.stderr.splitlines()
  assert 'is damaged, trying the one before' in line


def test_where_no_step_is_whole_the_error_says_what_was_tried(saved, tmp_path):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  flip(largest(tmp_path / '2' / 'state'))
  shutil.rmtree(tmp_path / '1' / 'meta')
  said = r'no checkpoint .* is whole: step 2 \(.*checksum.*\), step 1 \(.*\)'
  with pytest.raises(InputError, match=said) as error:
    open_checkpoints(tmp_path).restore(abstract(state_at(0)))
  assert '\n' not in str(error.value)


def test_another_models_checkpoint_is_an_error_that_shows_what_differs(saved):
  state = state_at(0)
  other = state._replace(params={**state.params, 'conv_in': {'kernel': jnp.zeros((3, 3, 1, 64))}})
  with pytest.raises(InputError) as error:
    open_checkpoints(saved).restore(abstract(other))
  assert ('params/conv_in/kernel: (3, 3, 1, 64) float32 here, (3, 3, 4, 64) float32 in the checkpoint'
          in str(error.value)) and '\n' not in str(error.value)


def test_differences_name_what_is_absent_on_either_side_and_other_dtypes():
  here = layout({'a': jnp.ones(2), 'b': jnp.int32(1)})
  saved = layout({'a': jnp.ones(2, jnp.bfloat16), 'c': jnp.ones((1, 2))})
  assert differences(saved, here) == [
    'a: (2) float32 here, (2) bfloat16 in the checkpoint', 'b: () int32 here, absent in the checkpoint',
    'c: absent here, (1, 2) float32 in the checkpoint']
  assert differences(here, json.loads(json.dumps(here))) == []


# ---- interruption

SAVING = '''
import sys, itertools, jax, numpy as np
from diffusion.checkpoint import open_checkpoints
def state_at(step):
  draws = [np.random.default_rng([step, k]).normal(size=(60, 60)) for k in range(6)]
  return {str(k): jax.numpy.asarray(draw, 'float32') for k, draw in enumerate(draws)}
out = open_checkpoints(sys.argv[1])
tree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state_at(0))
found = out.restore(tree)
first = 0
if found:
  first = found.step
  assert found.meta == {'step': first} and found.notes == [], found
  assert all(np.array_equal(found.state[k], x) for k, x in state_at(first).items())
print(first, flush=True)
for step in itertools.count(first + 1):
  out.save(step, state_at(step), {'step': step})
  if sys.argv[2:] == ['once']:
    out.close()
    break
  print(step, flush=True)
'''


def test_kill_9_while_saving_leaves_the_newest_finished_step_whole_and_nothing_unfinished_stays(tmp_path):
  clock = random.Random(0)
  starts = []
  for _ in range(3):
    command, env = python(SAVING, tmp_path)
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as child:
      starts.append(int(child.stdout.readline()))
      saving = int(child.stdout.readline())
      time.sleep(clock.uniform(0.1, 0.6))
      child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL and saving == starts[-1] + 1
  assert starts == sorted(starts) and starts[-1] > 0
  command, env = python(SAVING, tmp_path, 'once')
  last = int(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)
  assert last >= starts[-1]
  assert all(folder.name.isdigit() for folder in tmp_path.iterdir()) and (tmp_path / str(last + 1)).exists()


def test_a_reader_leaves_an_unfinished_folder_alone_and_a_writer_clears_it_away(saved, tmp_path):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  unfinished = tmp_path / '9.orbax-checkpoint-tmp'
  shutil.copytree(tmp_path / '2', unfinished)
  reader = open_checkpoints(tmp_path)
  assert reader.restore(abstract(state_at(0))).step == 2 and reader.latest_meta()[0] == 2
  assert reader.steps() == [1, 2]
  reader.close()
  assert unfinished.exists()
  writer = open_checkpoints(tmp_path)
  writer.save(3, state_at(3), {})
  writer.close()
  assert not unfinished.exists() and writer.steps() == [2, 3]


def test_a_full_disk_is_one_line_and_the_older_step_is_kept_even_if_one_is_all_that_is_kept(tmp_path):
  out = open_checkpoints(tmp_path, keep=1)
  out.save(1, state_at(1), {})
  out.wait()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  # A larger file cannot be written, as on a full disk.
  resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
  try:
    with pytest.raises(InputError, match=r'cannot save .*finished steps \[1\] are kept') as error:
      out.save(2, state_at(2), {})
      out.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert '\n' not in str(error.value) and str(tmp_path) in str(error.value)
  again = open_checkpoints(tmp_path, keep=1)
  found = again.restore(abstract(state_at(0)))
  assert found.step == 1 and found.notes == [] and same_bits(found.state, state_at(1))
  again.save(2, state_at(2), {})
  again.close()
  assert again.steps() == [2]
