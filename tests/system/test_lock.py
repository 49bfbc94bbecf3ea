"""Two runs in one work directory, as real processes: the second refuses while the first lives."""
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from diffusion.errors import InputError
from diffusion.system import lock
from diffusion.system.files import writable
from diffusion.system.lock import hold

# Holds its first argument, says so, and goes on holding it; how: 'flock', or 'beat' for a file system without flock.
HOLDER = '''
import errno, fcntl, sys, time
from diffusion.system import lock
from diffusion.errors import InputError
lock.BEAT, lock.STALE, lock.SETTLE = .1, 2., .2
def flock(*_):
  raise OSError(errno.ENOTSUP, 'not supported')
if sys.argv[2] == 'beat':
  fcntl.flock = flock
try:
  with lock.hold(sys.argv[1]):
    print('holds', flush=True)
    if sys.argv[3:] == ['leave']:
      sys.exit()
    time.sleep(60)
except InputError as error:
  print(error, flush=True)
'''


@pytest.fixture
def holder(tmp_path):
  """start(how, *more) -> (process, its first line); what still runs in the end is killed."""
  started = []
  def start(how, *more):
    process = subprocess.Popen([sys.executable, '-c', HOLDER, tmp_path, how, *more], stdout=subprocess.PIPE, text=True)
    started.append(process)
    return process, process.stdout.readline().strip()
  yield start
  for process in started:
    process.kill()
    process.communicate()


def quick(monkeypatch, how):
  """The same settings as in HOLDER, in this process."""
  for name, value in dict(BEAT=.1, STALE=2., SETTLE=.2).items():
    monkeypatch.setattr(lock, name, value)
  def flock(*_):
    raise OSError(errno.ENOTSUP, 'not supported')
  if how == 'beat':
    monkeypatch.setattr(lock.fcntl, 'flock', flock)


@pytest.mark.parametrize('how', ['flock', 'beat'])
def test_a_second_run_refuses_while_the_first_lives_and_starts_when_it_is_killed(how, holder, tmp_path, monkeypatch):
  quick(monkeypatch, how)
  first, line = holder(how)
  assert line == 'holds'
  time.sleep(2.5 if how == 'beat' else 0)  # longer than STALE: it is the heartbeat that keeps others out
  said = f'{tmp_path} is in use by process {first.pid} on {socket.gethostname()} since 20'
  with pytest.raises(InputError, match=said) as error:
    with hold(tmp_path):
      pass
  assert '\n' not in str(error.value)
  assert holder(how)[1] == str(error.value)  # a third one says the same
  first.send_signal(signal.SIGKILL)
  first.wait()
  if how == 'beat':
    with pytest.raises(InputError, match=f'in use by process {first.pid}'), hold(tmp_path):
      pass  # its last heartbeat is young
    time.sleep(2.1)
  with hold(tmp_path):
    assert holder(how)[1].startswith(f'{tmp_path} is in use by process {os.getpid()} on')
  assert holder(how, 'leave')[1] == 'holds'


@pytest.mark.parametrize('how', ['flock', 'beat'])
def test_it_is_free_again_after_the_with_whatever_ends_it(how, tmp_path, monkeypatch):
  quick(monkeypatch, how)
  for _ in range(2):
    with pytest.raises(KeyError), hold(tmp_path / 'new'):
      with pytest.raises(InputError, match=f'process {os.getpid()} '), hold(tmp_path / 'new'):
        pass
      raise KeyError
  assert 'lock' not in {thread.name for thread in threading.enumerate()}


def test_of_two_that_start_together_without_flock_one_gets_in(tmp_path, monkeypatch):
  quick(monkeypatch, 'beat')
  results, together, done = [], threading.Barrier(2), threading.Barrier(2)
  def run():
    together.wait()
    try:
      with hold(tmp_path):
        results.append('holds')
        done.wait(10)
    except InputError:
      results.append('refused')
      done.wait(10)
  threads = [threading.Thread(target=run) for _ in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(results) == ['holds', 'refused']


def test_a_run_that_was_taken_over_says_so_stops_and_leaves_the_lock_to_the_other(tmp_path, monkeypatch, caplog):
  quick(monkeypatch, 'beat')
  told = []
  before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
  other = json.dumps({'host': 'far', 'pid': 7, 'since': 'today', 'token': 'x', 'beat': time.time() + 1000})
  with hold(tmp_path):
    (tmp_path / 'lock').write_text(other)
    time.sleep(.4)
  signal.signal(signal.SIGTERM, before)
  assert told == [signal.SIGTERM]
  assert f'{tmp_path} was taken over by process 7 on far since today' in caplog.text
  assert (tmp_path / 'lock').read_text() == other


@pytest.mark.parametrize('content', [b'', b'{"pid": 1', b'[1, 2]', b'\xff\xfe'])
def test_a_lock_file_that_says_nothing_keeps_no_one_out(content, tmp_path, monkeypatch):
  quick(monkeypatch, 'beat')
  (tmp_path / 'lock').write_bytes(content)
  with hold(tmp_path):
    assert json.loads((tmp_path / 'lock').read_text())['pid'] == os.getpid()


def owner(beat):
  return json.dumps({'host': 'far', 'pid': 7, 'since': 'today', 'token': 'x', 'beat': beat})


def test_a_lock_file_that_is_still_being_written_keeps_others_out(tmp_path, monkeypatch):
  quick(monkeypatch, 'beat')
  (tmp_path / 'lock').write_text('')
  later = threading.Timer(.1, lambda: (tmp_path / 'lock').write_text(owner(time.time())))
  later.start()
  with pytest.raises(InputError, match='in use by process 7 on far'), hold(tmp_path):
    pass
  later.join()


def test_a_heartbeat_from_a_far_future_is_no_sign_of_life_and_one_from_a_near_one_is(tmp_path, monkeypatch):
  quick(monkeypatch, 'beat')
  (tmp_path / 'lock').write_text(owner(time.time() + 1))
  with pytest.raises(InputError, match='in use by process 7 on far'), hold(tmp_path):
    pass
  (tmp_path / 'lock').write_text(owner(time.time() + 1000))
  with hold(tmp_path):
    assert json.loads((tmp_path / 'lock').read_text())['pid'] == os.getpid()


def test_a_reader_never_sees_half_a_heartbeat(tmp_path, monkeypatch):
  quick(monkeypatch, 'beat')
  monkeypatch.setattr(lock, 'BEAT', .001)
  with hold(tmp_path):
    until = time.monotonic() + .5
    while time.monotonic() < until:
      assert json.loads((tmp_path / 'lock').read_bytes())['pid'] == os.getpid()
  assert not list(tmp_path.iterdir())


def test_an_error_of_the_run_does_not_have_the_missing_flock_as_its_context(tmp_path, monkeypatch):
  quick(monkeypatch, 'beat')
  with pytest.raises(KeyError) as error, hold(tmp_path):
    raise KeyError
  assert error.value.__context__ is None


# ---- a directory that cannot be written

def test_writable_leaves_nothing_behind_and_makes_the_directory(tmp_path):
  writable(tmp_path / 'a' / 'b')
  assert list((tmp_path / 'a' / 'b').iterdir()) == []


def test_what_is_no_directory_and_a_file_system_that_refuses_are_one_line(tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  for path in (tmp_path / 'file', tmp_path / 'file' / 'below'):
    with pytest.raises(InputError, match=f'^cannot write in {path}: (File exists|Not a directory);') as error:
      writable(path)
    assert '\n' not in str(error.value)
  # Root is not bound by permission bits, so a read-only file system is played.
  from diffusion.system import files
  class ReadOnly(type(files.epath.Path(tmp_path))):
    def write_bytes(self, data):
      raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
  monkeypatch.setattr(files.epath, 'Path', ReadOnly)
  with pytest.raises(InputError, match=f'^cannot write in {tmp_path}: Read-only file system;'), hold(tmp_path):
    pass
