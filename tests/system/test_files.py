"""Trial files of killed processes go, and folders of results belong to one process and to work that was done."""
import multiprocessing
import os
import signal
import subprocess
import sys

from etils import epath
import pytest

from diffusion.errors import InputError
from diffusion.system import files
from diffusion.system.files import try_writing

KILLED = '''
import os, signal, sys
from etils import epath
from diffusion.system.files import try_writing
type(epath.Path('.')).unlink = lambda self, **options: os.kill(os.getpid(), signal.SIGKILL)
try_writing(sys.argv[1])
'''


def test_trying_to_write_leaves_nothing_of_a_process_that_was_killed_while_it_tried(tmp_path):
  for _ in range(2):
    done = subprocess.run([sys.executable, '-c', KILLED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
  assert len(os.listdir(tmp_path)) == 1
  try_writing(tmp_path)
  assert not os.listdir(tmp_path)


def _claim(parent, number):
  for _ in range(number):
    with files.numbered_folder(epath.Path(parent), 5) as folder:
      (folder / 'mine').write_text(str(os.getpid()))


def test_processes_that_claim_folders_at_a_time_get_folders_of_their_own(tmp_path):
  start = multiprocessing.get_context('spawn').Process
  workers = [start(target=_claim, args=(tmp_path / 'samples', 20)) for _ in range(4)]
  for worker in workers:
    worker.start()
  for worker in workers:
    worker.join()
    assert worker.exitcode == 0
  names = sorted(path.name for path in (tmp_path / 'samples').iterdir())
  assert names == [f'{k:03d}_step_5' for k in range(1, 81)]
  owners = [(tmp_path / 'samples' / name / 'mine').read_text() for name in names]
  assert {owners.count(str(worker.pid)) for worker in workers} == {20}


def test_a_folder_stays_if_something_was_written_and_goes_if_not(tmp_path):
  for written in (False, True):
    with pytest.raises(ZeroDivisionError):
      with files.numbered_folder(epath.Path(tmp_path) / 'a', 1) as folder:
        (folder / 'x').write_text('x') if written else None
        1 / 0
    assert len(list((tmp_path / 'a').iterdir())) == written


def test_no_place_no_work(tmp_path):
  (tmp_path / 'samples').write_text('a file')
  with pytest.raises(InputError, match='samples'):
    with files.numbered_folder(epath.Path(tmp_path) / 'samples', 1):
      raise AssertionError('the work has begun')
