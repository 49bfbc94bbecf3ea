"""One run per work directory: a second one would remove the checkpoints that the first is writing.

Where the file system supports flock (local disks, NFS, most others) the kernel holds the lock and releases it however
the process ends, kill -9 included, so no stale lock is ever left.

On a bucket (a path with ://), and where flock is not supported, a file names the owner and the time of its last
heartbeat. A run that finds a heartbeat older than `STALE` seconds takes over, and the run that was taken over sends
itself SIGTERM, on which a training saves and stops. Limits: after a kill -9 the next run has to wait for that long;
the clocks of hosts must agree to about a minute; and of two runs that start at the same moment, one may notice only
after `SETTLE` seconds that its file was overwritten, which is how long each start waits before it checks. A store that
makes writes visible later than that can admit both.
"""
import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import threading
import time
import uuid

from absl import logging
from etils import epath

from diffusion.errors import InputError
from diffusion.system.files import writable

BEAT = 20.  # seconds between heartbeats
STALE = 120.  # seconds without a heartbeat after which an owner is considered dead
SETTLE = 2.  # seconds after which a write is assumed to be visible to all
_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK)


@contextlib.contextmanager
def hold(workdir):
  """Keeps every other run out of `workdir` inside the `with`; of several processes of a run, only the first calls it.

  A process that is forked from this one without executing another program holds the lock as well.

  Args:
    workdir: local or gs://; created if missing. The lock is the file `lock` in it, a JSON record of the owner: {host,
      pid, since, token}, and without flock `beat`, the time of the last heartbeat. With flock the file stays, and is
      empty when the run has ended; otherwise it is removed.
  Raises:
    InputError: another run holds it (the message names it), or the directory is not writable.
  """
  workdir = epath.Path(workdir)
  writable(workdir)
  keep = _heartbeat if '://' in str(workdir) else _flock
  with keep(workdir / 'lock', workdir):
    yield


@contextlib.contextmanager
def _flock(path, workdir):
  descriptor, failure = os.open(path, os.O_RDWR | os.O_CREAT, 0o666), None
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    failure, owner = error, os.read(descriptor, 4096)
    os.close(descriptor)
  if isinstance(failure, BlockingIOError):
    raise _refusal(workdir, _parsed(owner)) from failure
  if failure and failure.errno not in _UNSUPPORTED:
    raise InputError(f'cannot lock {path}: {failure.strerror}; use another work directory') from failure
  if failure:  # not in the `except`, where it would become the context of any error that ends the run
    with _heartbeat(path, workdir):
      yield
    return
  try:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(_owner()).encode())
    yield
  finally:
    with contextlib.suppress(OSError):
      os.ftruncate(descriptor, 0)
    os.close(descriptor)


@contextlib.contextmanager
def _heartbeat(path, workdir):
  owner, ended = _owner(), threading.Event()
  _claim(path, workdir, owner)
  thread = threading.Thread(target=_beat, args=(path, workdir, owner, ended), name='lock', daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()
    with contextlib.suppress(Exception):
      if _read(path).get('token') == owner['token']:
        path.unlink()


def _claim(path, workdir, owner):
  """Writes the lock file. Raises InputError if another owner is alive, or claims it at the same time."""
  other = _read(path)
  if 'token' not in other and path.exists():  # it may still be being written
    time.sleep(SETTLE)
    other = _read(path)
  if abs(time.time() - other.get('beat', 0)) < STALE:
    raise _refusal(workdir, other)
  _write(path, owner)
  time.sleep(SETTLE)
  other = _read(path)
  if other.get('token') != owner['token']:
    raise _refusal(workdir, other)


def _beat(path, workdir, owner, ended):
  """Refreshes the lock file until the event `ended`; stops the process by SIGTERM if another run has taken over."""
  while not ended.wait(BEAT):
    with contextlib.suppress(Exception):  # a store that does not respond is tried again at the next beat
      other = _read(path)
      if other.get('token', owner['token']) != owner['token']:
        logging.error('%s was taken over by %s, because this run gave no sign of life for %g s: this run stops',
                      workdir, _named(other), STALE)
        os.kill(os.getpid(), signal.SIGTERM)
        return
      _write(path, owner)


def _read(path) -> dict:
  try:
    return _parsed(path.read_bytes()) if path.exists() else {}
  except FileNotFoundError:  # its owner has just ended
    return {}


def _write(path, owner):
  # A store shows a write entirely or not at all. Elsewhere: a temporary file, whose name no other host uses.
  part = path if '://' in str(path) else path.parent / f'.{path.name}.{owner["token"]}.part'
  try:
    part.write_text(json.dumps(owner | {'beat': time.time()}))
    if part != path:
      part.replace(path)
  except BaseException:
    if part != path:
      part.unlink(missing_ok=True)
    raise


def _owner() -> dict:
  since = time.strftime('%Y-%m-%d %H:%M:%S %z')
  return {'host': socket.gethostname(), 'pid': os.getpid(), 'since': since, 'token': uuid.uuid4().hex}


def _parsed(data) -> dict:
  """The owner in the contents of a lock file; {} if there is none."""
  try:
    owner = json.loads(data)
  except ValueError:
    return {}
  return owner if isinstance(owner, dict) else {}


def _named(owner) -> str:
  if 'pid' not in owner:
    return 'another process'
  return f'process {owner["pid"]} on {owner["host"]} since {owner["since"]}'


def _refusal(workdir, owner) -> InputError:
  return InputError(f'{workdir} is in use by {_named(owner)}; wait for it, stop it, or use another --workdir')
