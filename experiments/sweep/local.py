"""Trials on this machine, N at a time, each in its own process group, so that a crash or hang of one stops no other.

The process of a trial holds a lock on the trial's folder while it is alive. A runner that is killed leaves its trials
running; the next runner sees the locks, waits for those trials as if it had started them, and starts none twice.
"""
import collections
import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import time
from typing import Any, NamedTuple

from diffusion.errors import InputError
from diffusion.system.files import write_atomic
from experiments.sweep.trials import describe, finished, moved

GRACE = 60.  # seconds that a trial has for saving when it is asked to stop


class Running(NamedTuple):
  """A running trial."""
  trial: Any
  process: Any    # None: not started by this runner
  pid: int        # of its process group; 0: unknown, or on another machine
  started: float  # Unix seconds
  attempt: int


# ---- locks
@contextlib.contextmanager
def only_runner(workdir):
  """Locks the work directory, since two runners would start every trial twice.

  Raises:
    InputError: another runner uses it.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  with open(workdir / 'lock', 'a') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise InputError(f'--workdir={workdir}: another runner is using it; wait for it, stop it, or use another '
                       '--workdir') from None
    yield


def alive(folder):
  """Whether a process of a trial is alive: it inherits the lock from the runner."""
  try:
    with open(folder / 'lock') as file:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except FileNotFoundError:
    return False
  except BlockingIOError:
    return True
  return False


# ---- one trial
def start(trial, attempt=1):
  """Starts a trial, or adopts the process left by a killed runner; one on another machine can only be waited for."""
  describe(trial)
  if alive(trial.folder):
    left = {}  # the runner was killed before it could write this, or it is a Slurm job
    with contextlib.suppress(ValueError):
      left = json.loads((trial.folder / 'lock').read_text())
    ours = left.get('host') == socket.gethostname()  # otherwise the number may be that of an unrelated process
    return Running(trial, None, left['pid'] if ours else 0, left['started'] if ours else time.time(), attempt)
  started = time.time()
  with open(trial.folder / 'lock', 'w') as lock, open(trial.folder / 'log.txt', 'ab') as log:
    fcntl.flock(lock, fcntl.LOCK_EX)
    log.write(f'\n==== {time.strftime("%F %T")}: {" ".join(trial.command)}\n'.encode())
    log.flush()
    process = subprocess.Popen(trial.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                               start_new_session=True, pass_fds=[lock.fileno()])
    json.dump(dict(pid=process.pid, started=started, host=socket.gethostname()), lock)
  return Running(trial, process, process.pid, started, attempt)


def ended(running):
  """Whether the process of a trial has ended."""
  return not alive(running.trial.folder) if running.process is None else running.process.poll() is not None


def kill(runnings, grace=GRACE, hurry=lambda: False):
  """Ends process groups: SIGTERM, then up to `grace` seconds for all together (or until `hurry()`), then SIGKILL."""
  runnings = [running for running in runnings if running.pid]
  _signal(runnings, signal.SIGTERM)
  deadline = time.monotonic() + grace
  while not all(map(ended, runnings)) and time.monotonic() < deadline and not hurry():
    time.sleep(.05)
  _signal(runnings, signal.SIGKILL)
  for running in runnings:
    if running.process:
      running.process.wait()


def _signal(runnings, number):
  for running in runnings:
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(running.pid, number)


def last_line(folder):
  """The last line printed by a trial."""
  with contextlib.suppress(OSError), open(folder / 'log.txt', 'rb') as file:
    file.seek(max(0, os.fstat(file.fileno()).st_size - 4000))
    text = file.read().decode(errors='replace').replace('\r', '\n')
    lines = [line.strip() for line in text.split('\n') if line.strip()]
    return lines[-1][:300] if lines and not lines[-1].startswith('==== ') else 'it printed nothing'
  return 'it printed nothing'


def why_unfinished(folder):
  """Why a trial has ended without a valid evaluation, as far as known."""
  return moved(folder) or f'its last line: {last_line(folder)}'


def note(trial, status, attempt, started, reason=''):
  """Writes state.json: waiting, running, finished, failed, pruned or stopped."""
  seconds = round(time.time() - started, 1)
  values = dict(status=status, attempts=attempt, seconds=seconds, started=started, reason=reason)
  write_atomic(trial.folder / 'state.json', json.dumps(values).encode())


def state(folder):
  """What `note` wrote, or {}."""
  with contextlib.suppress(OSError, ValueError):
    return json.loads((folder / 'state.json').read_text())
  return {}


# ---- many trials
@contextlib.contextmanager
def stop_requests():
  """A list to which SIGINT and SIGTERM are appended."""
  received, old = [], {}
  for number in (signal.SIGINT, signal.SIGTERM):
    old[number] = signal.signal(number, lambda number, frame: received.append(number))
  try:
    yield received
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)


def run(ask, tell, *, jobs=None, timeout=None, idle=None, retries=1, watch=lambda trial: '',
        show=lambda running: None, grace=GRACE, tick=.25):
  """Runs trials until there are no more.

  Args:
    ask: () -> the next Trial, or None if there is none at the moment.
    tell: (trial, status, reason), called after each trial with status finished, failed or pruned.
    jobs: trials at a time; None: one.
    timeout: time limit of an attempt in seconds; None: none.
    idle: seconds in which an attempt must write something; None: no limit.
    retries: how often a failed trial is tried again.
    watch: trial -> why it should be given up, or ''.
    show: called with the list of Running about `1 / tick` times a second.
    grace: see `kill`.
    tick: seconds between two checks.
  Returns:
    The signal that stopped it, or None.
  """
  at_work, again, late = [], collections.deque(), overdue(timeout, idle)
  with stop_requests() as stopped:
    try:
      while not stopped:
        while len(at_work) < (jobs or 1) and (item := again.popleft() if again else (ask(), 1))[0]:
          at_work.append(start(*item))
          note(item[0], 'running', item[1], at_work[-1].started)
        if not at_work:
          return None
        for running in list(at_work):
          if outcome := _look(running, late, watch, grace):
            at_work.remove(running)
            _settle(running, outcome, again, tell, retries)
        show(at_work)
        time.sleep(tick)
    finally:  # a signal, or an error of this program: leave nothing running
      _stop(at_work, grace, hurry=lambda: len(stopped) > 1)  # a second Ctrl-C does not wait
  return stopped[0]


def _settle(running, outcome, again, tell, retries):
  """After an attempt: tries again, or ends the trial."""
  note(running.trial, outcome[0], running.attempt, running.started, outcome[1])
  if outcome[0] == 'failed' and running.attempt <= retries:
    again.append((running.trial, running.attempt + 1))
  else:
    tell(running.trial, *outcome)


def _stop(at_work, grace, hurry=lambda: False):
  """Ends the trials that run on this machine."""
  kill(at_work, grace, hurry)
  for running in at_work:
    if running.pid:
      note(running.trial, 'stopped', running.attempt, running.started, 'the runner was stopped')


def attempts(trial, timeout, idle, retries, grace=GRACE):
  """Runs one trial to its end, for a worker of a cluster: (status, reason)."""
  late = overdue(timeout, idle)
  for attempt in range(1, retries + 2):
    if finished(trial.folder):
      return 'finished', ''
    running = start(trial, attempt)
    note(trial, 'running', attempt, running.started)
    try:
      while not (outcome := _look(running, late, lambda trial: '', grace)):
        time.sleep(.25)
    except BaseException:  # the task was cancelled
      _stop([running], grace)
      raise
    note(trial, outcome[0], attempt, running.started, outcome[1])
    if outcome[0] == 'finished':
      break
  return outcome


def overdue(timeout, idle):
  """Running -> why it has taken too long, or ''. Args: see `run`."""
  def late(running):
    now, files = time.time(), (running.trial.folder / 'log.txt', running.trial.folder / 'run' / 'metrics.jsonl')
    if timeout and now - running.started > timeout:
      return f'took longer than {timeout / 60:g} minutes'
    if idle and now - max([running.started] + [os.path.getmtime(path) for path in files if path.exists()]) > idle:
      return f'wrote nothing for {idle / 60:g} minutes (--idle)'
    return ''
  return late


def _look(running, late, watch, grace):
  """(status, reason) of a trial that has ended or must be ended, or None."""
  folder, why = running.trial.folder, ''
  if not ended(running):
    if why := late(running):
      status = 'failed'
    elif why := watch(running.trial):
      status = 'pruned'
    else:
      return None
  kill([running], grace if why else 0)  # after its end, whatever is left of its group
  if finished(folder):
    return 'finished', ''
  if why:
    return status, f'{why}; {why_unfinished(folder)}' if status == 'failed' else why
  code, how = running.process.returncode if running.process else None, 'ended'
  if code is not None:
    how = f'killed by signal {-code}' if code < 0 else f'exit code {code}'
  return 'failed', f'{how}; {why_unfinished(folder)}'
