"""Checkpoints that cannot be written: the disk is full, the directory gone. What was saved before must stay."""
import contextlib
import os
import resource
import threading
import time

import pytest

from diffusion.errors import InputError
from diffusion.system.checkpoint import open_checkpoints
from tests.checkpoint_states import abstract, said, same_bits, state_at

# The threads of a write that failed leave warnings behind; `quiet_orbax` is for that, in programs.
pytestmark = [pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning', 'ignore:coroutine'),
              pytest.mark.usefixtures('swept')]


@contextlib.contextmanager
def full_disk():
  """A file of more than a few blocks cannot be written."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_the_older_step_is_kept_even_if_one_is_all_that_is_kept(tmp_path):
  out = open_checkpoints(tmp_path, keep=1)
  out.save(1, state_at(1), {})
  out.wait()
  with full_disk(), pytest.raises(InputError, match=r'cannot save .*finished steps \[1\] are kept') as error:
    out.save(2, state_at(2), {})
    out.wait()
  assert '\n' not in str(error.value) and str(tmp_path) in str(error.value)
  again = open_checkpoints(tmp_path, keep=1)
  found = again.restore(abstract(state_at(0)))
  assert found.step == 1 and found.notes == [] and same_bits(found.state, state_at(1))
  again.save(2, state_at(2), {})
  again.close()
  assert again.steps() == [2]


def open_things():
  return len(os.listdir('/proc/self/fd')), threading.active_count()


def test_a_run_that_shall_go_on_says_what_failed_frees_the_space_and_saves_again_when_it_can(tmp_path, caplog):
  out = open_checkpoints(tmp_path, keep=1, on_failure='continue')
  out.save(1, state_at(1), {})
  out.wait()
  before = open_things()
  with full_disk():
    for step in (2, 3, 4, 5):
      out.save(step, state_at(step), {})  # says what became of the one before
    out.wait()
    told = said(caplog)
    assert len(told) == 4 and not any('\n' in line for line in told)
    for step, line in zip((2, 3, 4, 5), told):
      assert line.startswith(f'cannot save checkpoint {step} in {tmp_path}: ')
      assert 'steps [1] are kept; training continues' in line
  deadline = time.monotonic() + 20
  while len(list(tmp_path.iterdir())) > 1 and time.monotonic() < deadline:
    time.sleep(.05)  # it is cleared away in the background
  assert [path.name for path in tmp_path.iterdir()] == ['1']
  assert same_bits(open_checkpoints(tmp_path).restore(abstract(state_at(0))).state, state_at(1))
  out.save(6, state_at(6), {})
  out.wait()
  after = open_things()
  assert out.steps() == [6]
  assert after[0] <= before[0] + 2 and after[1] <= before[1] + 2  # four failures left nothing open
  out.close()
  assert same_bits(open_checkpoints(tmp_path).restore(abstract(state_at(0))).state, state_at(6))
  assert len(said(caplog)) == 4


@pytest.mark.parametrize('on_failure', ['stop', 'continue'])
def test_a_directory_that_is_taken_away_is_one_line_and_no_thread_waits_for_it(on_failure, tmp_path, caplog):
  folder, before = tmp_path / 'checkpoints', open_things()
  folder.write_text('a file stands where the directory was')
  out = open_checkpoints(folder, on_failure=on_failure)
  for step in (1, 2):
    if on_failure == 'stop':
      with pytest.raises(InputError, match=rf'cannot save checkpoint {step} in {folder}: .*File exists') as error:
        out.save(step, state_at(step), {})
      assert '\n' not in str(error.value)
    else:
      out.save(step, state_at(step), {})
  assert len(said(caplog)) == 2 * (on_failure == 'continue') and open_things() == before
  folder.unlink()
  out.save(3, state_at(3), {})
  out.close()
  assert open_checkpoints(folder).latest_meta() == (3, {})


def test_another_word_for_what_to_do_about_a_failure_is_refused(tmp_path):
  with pytest.raises(InputError, match="'stop' or 'continue', got 'ignore'"):
    open_checkpoints(tmp_path, on_failure='ignore')
