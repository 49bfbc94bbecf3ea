"""Checkpoints are damaged, killed and starved here on purpose; what is restored must be what its step had."""
import json
import os
import pathlib
import shutil
import subprocess

import jax
import jax.numpy as jnp
import pytest

from diffusion.errors import InputError
from diffusion.system import checkpoint_reading
from diffusion.system.checkpoint import open_checkpoints
from diffusion.system.checkpoint_reading import FORMAT
from diffusion.system.checksums import differences, layout
from tests.checkpoint_states import abstract, python, said, same_bits, state_at

# The threads of a read that failed may find their event loop closed; `quiet_orbax` is for that, in programs.
pytestmark = [pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning', 'ignore:coroutine'),
              pytest.mark.usefixtures('swept')]


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


def half(path):
  os.truncate(path, path.stat().st_size // 2)


def remove(path):
  shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize('harm', [remove, half, flip])
def test_harm_to_any_file_or_folder_of_a_step_costs_at_most_that_step(harm, saved, tmp_path):
  found = sorted((saved / '2').rglob('*'))
  parts = [path.relative_to(saved) for path in found if harm == remove or path.is_file() and path.stat().st_size]
  assert len(parts) > 8
  lost = []
  for i, part in enumerate(parts):
    folder = tmp_path / str(i)
    shutil.copytree(saved, folder)
    harm(folder / part)
    found = open_checkpoints(folder).restore(abstract(state_at(0)))
    assert same_bits(found.state, state_at(found.step)) and found.meta == {'position': 10 * found.step}, part
    assert [f'checkpoint {step} is' for step in range(2, found.step, -1)] == [note[:15] for note in found.notes], part
    lost += [part] * (found.step == 1)
  assert len(lost) > 2


def test_without_the_checksum_flipped_bytes_would_be_restored(saved, tmp_path, monkeypatch):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  flip(largest(tmp_path / '2' / 'state'))
  assert 'checksum' in open_checkpoints(tmp_path).restore(abstract(state_at(0))).notes[0]
  wanted = json.loads((tmp_path / '2' / 'meta' / 'metadata').read_text())['checksums']
  monkeypatch.setattr(checkpoint_reading, 'checksums', lambda tree: wanted)
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
import json, sys, jax
from diffusion.system import checkpoint, log
log.quiet_orbax()
out = checkpoint.open_checkpoints(sys.argv[1])
meta = json.load(open(sys.argv[1] + '/1/meta/metadata'))
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
  message = rf'no checkpoint in {tmp_path} .*step 2 \(.*checksum.*\), step 1 \(.*\)'
  with pytest.raises(InputError, match=message) as error:
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


NO_DAMAGE = [MemoryError(), PermissionError(13, 'Permission denied'), TimeoutError('too late'),
             ConnectionResetError('reset'), OSError(24, 'Too many open files'),
             ValueError('UNAVAILABLE: Error reading gs://bucket/x [source]'),
             jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes')]


@pytest.mark.parametrize('error', NO_DAMAGE, ids=lambda error: type(error).__name__)
def test_what_is_no_damage_is_an_error_and_no_older_step_is_used(error, saved, monkeypatch):
  def fail(*_, **__):
    raise error
  monkeypatch.setattr(checkpoint_reading.ocp.StandardCheckpointHandler, 'restore', fail)
  out = open_checkpoints(saved)
  reason = 'MemoryError' if isinstance(error, MemoryError) else str(error).split(' [source')[0].split('] ')[-1]
  with pytest.raises(InputError, match=rf'^cannot read {saved}/2: .*{reason}.*;'):
    out.restore(abstract(state_at(0)))
  monkeypatch.undo()
  assert out.steps() == [1, 2] and out.restore(abstract(state_at(0))).step == 2


# ---- going back

def test_steps_of_a_course_that_was_given_up_are_set_aside_and_their_numbers_are_free(tmp_path, caplog):
  out = open_checkpoints(tmp_path, keep=9)
  for step in (1, 2, 3, 5):
    out.save(step, state_at(step), {'course': 1})
  out.set_aside_after(2)  # the last one is still being written
  assert out.steps() == [1, 2] and len(said(caplog)) == 2
  for step in (2, 3):
    out.save(step, state_at(step + 10), {'course': 2})
  out.close()
  assert out.latest_meta() == (3, {'course': 2}) and same_bits(out.restore(abstract(state_at(0))).state, state_at(13))
  assert same_bits(out.restore(abstract(state_at(0)), 2).state, state_at(2))
  aside = sorted(path.name.split('-')[0] for path in tmp_path.iterdir() if not path.name.isdigit())
  assert aside == ['3.superseded', '5.superseded']


def test_a_reader_that_sets_aside_clears_nothing_else_away(saved, tmp_path):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  (tmp_path / '9.orbax-checkpoint-tmp').mkdir()
  open_checkpoints(tmp_path).set_aside_after(1)
  open_checkpoints(tmp_path / 'none').set_aside_after(1)
  names = {path.name.split('-')[0] for path in tmp_path.iterdir()}
  assert names == {'1', '2.superseded', '9.orbax'}


# ---- formats

def rewrite(step, **changes):
  """The record of a step as another version would have written it."""
  record = json.loads(meta_file(step).read_text())
  del record['crc32']
  record = {key: value for key, value in {**record, **changes}.items() if value is not None}
  meta_file(step).write_text(json.dumps(checkpoint_reading.seal(record)))


def test_a_newer_format_is_an_error_that_says_upgrade_and_no_older_step_is_used(saved, tmp_path, caplog):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  rewrite(tmp_path / '2', format=FORMAT + 1, checksums=None, arrays='of another kind')
  out = open_checkpoints(tmp_path)
  message = rf'^{tmp_path}/2 .*format {FORMAT + 1}, this one reads up to {FORMAT}\): upgrade'
  for read in (lambda: out.restore(abstract(state_at(0))), out.latest_meta):
    with pytest.raises(InputError, match=message) as error:
      read()
    assert '\n' not in str(error.value)
  assert out.steps() == [1, 2] and not caplog.records  # nobody called it damaged


def test_a_record_from_before_there_were_numbers_is_read(saved, tmp_path):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  rewrite(tmp_path / '2', format=None)
  found = open_checkpoints(tmp_path).restore(abstract(state_at(0)))
  assert found.step == 2 and found.notes == [] and same_bits(found.state, state_at(2))


def test_a_number_that_was_damaged_is_damage_and_no_newer_format(saved, tmp_path):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  path, now = meta_file(tmp_path / '2'), f'"format": {FORMAT}'
  assert path.read_text().count(now) == 1
  path.write_text(path.read_text().replace(now, f'"format": {FORMAT + 2}'))
  assert open_checkpoints(tmp_path).restore(abstract(state_at(0))).step == 1


# ---- interruption

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
