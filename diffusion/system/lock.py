"""One run in a work directory: a second one would clear away the checkpoints that the first is writing.

Where the file system has flock (local disks, NFS, most others) the kernel keeps the lock, and lets go of it
whatever the end of the process, kill -9 included: nothing is left that is stale.

On a bucket (a path with ://), and where flock is not supported, a file names the owner and carries the time of
its last heartbeat. Whoever finds it further than `STALE` seconds away takes over, and a run that was taken over
sends itself SIGTERM, at which a training saves and stops. Its limits: after a kill -9 the next run has to wait
until then; clocks of hosts must agree to about a minute; and of two runs that start in the same moment one may
see that it was overwritten only after `SETTLE` seconds, which is how long each start waits and looks again. A
store that shows writes later than that can let both in.
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

BEAT = 20.    # seconds between heartbeats
STALE = 120.  # seconds after which an owner that gave none is taken for dead
SETTLE = 2.   # seconds after which a write is taken to be seen by all
_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK)


@contextlib.contextmanager
def hold(workdir):
  """Keeps every other run out of `workdir` inside the `with`; several processes of one run: the first alone calls it.

  A process that this one forks, and does not replace by another program, holds the lock as well.

  Args:
    workdir: local or gs://; it is made where it is missing. The lock is the file `lock` in it, which says in JSON who
      holds it: {host, pid, since, token}, and `beat`, the time of the last heartbeat, where flock does not keep
      it. Under flock the file stays, and is empty when the run has ended; the other is taken away.
  Raises:
    InputError: another run holds it (the message names it), or nothing can be written there.
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
  if failure:  # not in the `except`, or it would be the context of whatever ends the run
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
  mine, over = _owner(), threading.Event()

  def read():
    try:
      return _parsed(path.read_bytes()) if path.exists() else {}
    except FileNotFoundError:  # its owner has just gone
      return {}

  def write():
    # A store shows it whole or not at all. Elsewhere a neighbour, by a name that no process of another host has.
    part = path if '://' in str(path) else path.parent / f'.{path.name}.{mine["token"]}.part'
    try:
      part.write_text(json.dumps(mine | {'beat': time.time()}))
      if part != path:
        part.replace(path)
    except BaseException:
      if part != path:
        part.unlink(missing_ok=True)
      raise

  def beats():
    while not over.wait(BEAT):
      with contextlib.suppress(Exception):  # a store that does not answer is asked again at the next beat
        other = read()
        if other.get('token', mine['token']) != mine['token']:
          logging.error('%s was taken over by %s, because this run gave no sign of life for %g s: this run stops',
                        workdir, _named(other), STALE)
          os.kill(os.getpid(), signal.SIGTERM)
          return
        write()

  other = read()
  if 'token' not in other and path.exists():  # perhaps it is being written
    time.sleep(SETTLE)
    other = read()
  if abs(time.time() - other.get('beat', 0)) < STALE:
    raise _refusal(workdir, other)
  write()
  time.sleep(SETTLE)
  other = read()
  if other.get('token') != mine['token']:
    raise _refusal(workdir, other)
  thread = threading.Thread(target=beats, name='lock', daemon=True)
  thread.start()
  try:
    yield
  finally:
    over.set()
    thread.join()
    with contextlib.suppress(Exception):
      if read().get('token') == mine['token']:
        path.unlink()


def _owner() -> dict:
  since = time.strftime('%Y-%m-%d %H:%M:%S %z')
  return {'host': socket.gethostname(), 'pid': os.getpid(), 'since': since, 'token': uuid.uuid4().hex}


def _parsed(data) -> dict:
  """The owner that a lock file names; {} where it names none."""
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
