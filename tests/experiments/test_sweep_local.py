"""Trials as processes: whatever happens to one, or to the runner, the others continue and nothing is done twice."""
import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from etils import epath
import pytest

from diffusion.errors import InputError
from experiments import run
from experiments.sweep import local, progress, trials
from tests.sweep_program import record

ROOT = Path(__file__).parents[2]
PROGRAM = str(Path(__file__).parents[1] / 'sweep_program.py')


def make(tmp_path, **behaviours):
  """Trials whose processes behave as named."""
  folder = epath.Path(tmp_path) / 'trials'
  def trial(name, behaviour):
    command = [sys.executable, '-S', PROGRAM, str(folder / name), behaviour, '1']
    return trials.Trial(name, 'base', {}, {'config.steps': 100}, command, folder / name)
  return [trial(f'{name}_0', behaviour) for name, behaviour in behaviours.items()]


def run_all(made, **options):
  """({name: (status, reason)}, signal or None) of local.run."""
  outcomes, queue = {}, iter(made)
  tell = lambda trial, *outcome: outcomes.update({trial.name[:-2]: outcome})
  return outcomes, local.run(lambda: next(queue, None), tell, tick=.02, **options)


def starts(trial):
  path = trial.folder / 'starts'
  return len(path.read_text()) if path.exists() else 0


def gone(pid):
  try:
    return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] == 'Z'
  except FileNotFoundError:
    return True


def eventually(condition, seconds=20):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, 'timed out'
    time.sleep(.02)


def test_a_trial_that_crashes_or_hangs_stops_no_other(tmp_path):
  made = make(tmp_path, first='ok', crash='crash', hang='hang', once='once', last='ok')
  outcomes, stopped = run_all(made, jobs=2, timeout=2, retries=1, grace=2)
  assert stopped is None
  assert {name: outcome[0] for name, outcome in outcomes.items()} == dict(
    first='finished', crash='failed', hang='failed', once='finished', last='finished')
  assert [starts(trial) for trial in made] == [1, 2, 2, 2, 1]
  assert outcomes['crash'][1] == 'exit code 1; its last line: error: the loss is not finite'
  assert 'took longer than' in outcomes['hang'][1]
  eventually(lambda: gone(int((made[2].folder / 'child').read_text())))  # its whole group
  assert not any(local.alive(trial.folder) for trial in made)
  again, _ = run_all(made[1:2], retries=0)
  assert again['crash'][0] == 'failed' and starts(made[1]) == 3
  assert local.state(made[3].folder)['attempts'] == 2


def test_a_trial_that_cannot_start_is_an_error_that_leaves_nothing_running(tmp_path):
  made = make(tmp_path, hang='hang', odd='ok')
  made[1] = made[1]._replace(command=['/no/such/program'])
  with pytest.raises(OSError):
    run_all(made, jobs=2, grace=2)
  assert not local.alive(made[0].folder)


def test_sigterm_stops_the_trials(tmp_path):
  made = make(tmp_path, hang='hang', next='ok')
  def stop():
    eventually((made[0].folder / 'child').exists)
    os.kill(os.getpid(), signal.SIGTERM)
  before = signal.getsignal(signal.SIGTERM)
  thread = threading.Thread(target=stop)
  thread.start()
  outcomes, stopped = run_all(made, grace=5)
  thread.join()
  assert stopped == signal.SIGTERM and outcomes == {} and starts(made[1]) == 0
  assert local.state(made[0].folder)['status'] == 'stopped' and not local.alive(made[0].folder)
  eventually(lambda: gone(int((made[0].folder / 'child').read_text())))  # a signal takes its time
  assert signal.getsignal(signal.SIGTERM) == before


def test_a_trial_may_be_given_up(tmp_path):
  made = make(tmp_path, hang='hang', ok='ok')
  watch = lambda trial: 'no good' if (trial.folder / 'child').exists() else ''
  outcomes, _ = run_all(made, watch=watch, grace=2)
  assert outcomes == dict(hang=('pruned', 'no good'), ok=('finished', ''))
  assert starts(made[0]) == 1  # a pruned trial is not retried


def test_an_orphan_is_waited_for_and_can_time_out(tmp_path):
  made = make(tmp_path, slow='slow', hang='hang')
  for trial in made:
    left = local.start(trial)
    assert left.process is not None and local.alive(trial.folder)
  eventually((made[1].folder / 'child').exists)
  (made[0].folder / 'go').touch()
  outcomes, _ = run_all(made, jobs=2, timeout=3, retries=0, grace=2)
  assert outcomes['slow'] == ('finished', '') and outcomes['hang'][0] == 'failed'
  assert [starts(trial) for trial in made] == [1, 1]
  eventually(lambda: gone(int((made[1].folder / 'child').read_text())))


@pytest.mark.parametrize('lock', [
  '{{"pid": {}, "started": 0, "host": "elsewhere"}}', '{{"pid": {}, "started": 0}}', ''])
def test_a_process_not_known_to_be_ours_is_waited_for_and_never_killed(lock, tmp_path):
  [trial] = make(tmp_path, slow='slow')
  trials.describe(trial)
  bystander = subprocess.Popen(['sleep', '1000'], start_new_session=True)  # has the number in the lock
  hold = 'exec 9>>"$0"; flock 9; touch "$0.held"; exec sleep 1000'
  holder = subprocess.Popen(['bash', '-c', hold, trial.folder / 'lock'])
  try:
    eventually((trial.folder / 'lock.held').exists)
    (trial.folder / 'lock').write_text(lock.format(bystander.pid))
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    # The age of another's process does not count, and there is no waiting for a process that cannot be asked to stop.
    outcomes, stopped = run_all([trial], timeout=100, grace=100)
    assert (outcomes, stopped) == ({}, signal.SIGTERM)
    assert bystander.poll() is None and holder.poll() is None and local.state(trial.folder)['status'] == 'running'
    holder.kill()
    holder.wait()
    (trial.folder / 'go').touch()
    assert run_all([trial])[0] == dict(slow=('finished', ''))
  finally:
    for process in (bystander, holder):
      process.kill()
      process.wait()


def test_an_attempt_that_writes_nothing_has_failed_and_one_that_talks_has_not(tmp_path):
  made = make(tmp_path, hang='hang', talk='talk')
  outcomes, _ = run_all(made, jobs=2, idle=2, retries=0, grace=2)
  assert outcomes['talk'] == ('finished', '')
  assert outcomes['hang'][0] == 'failed' and 'wrote nothing for 0.0333' in outcomes['hang'][1]


def test_an_evaluation_of_another_step_does_not_count(tmp_path):
  [trial] = make(tmp_path, ok='ok')
  outcomes, _ = run_all([trial._replace(step=7)], retries=0)
  status, reason = outcomes['ok']
  assert status == 'failed' and 'exit code 0; the model was trained further' in reason and '7' in reason


def test_two_runners_do_not_share_a_work_directory(tmp_path):
  with local.only_runner(epath.Path(tmp_path)):
    with pytest.raises(InputError, match='another runner'):
      with local.only_runner(epath.Path(tmp_path)):
        pass
  with local.only_runner(epath.Path(tmp_path)):
    pass


# ---- the whole command
SWEEP = '''"""Which batch?"""
def sweep():
  for batch in (1, 2, 3, 4, 5):
    yield {'config.batch': batch}
'''
RUNNER = '''import sys
sys.path.insert(0, {root!r})
from experiments import run
def program(sweep, folder, overrides):
  batch = overrides['config.batch']
  behaviour, value = dict([(2, 'slow'), (5, 'crash')]).get(batch, 'ok'), str(10. * (batch - 3.2) ** 2)
  return [sys.executable, '-S', {program!r}, str(folder), behaviour, value]
if __name__ == '__main__':
  run.report = lambda *_: None  # its report is not needed
  sys.exit(run.main(program=program))
'''


def table(workdir):
  with open(workdir / 'report' / 'results.csv') as file:
    return [{key: value for key, value in row.items() if key != 'seconds'} for row in csv.DictReader(file)]


@contextlib.contextmanager
def background(function):
  """Runs a function in a thread, and waits for its end."""
  thread = threading.Thread(target=function)
  thread.start()
  yield
  thread.join()


def test_a_sweep_killed_and_restarted_ends_like_an_undisturbed_one(tmp_path, capsys):
  (tmp_path / 'runner.py').write_text(RUNNER.format(root=str(ROOT), program=PROGRAM))
  (tmp_path / 'which.py').write_text(SWEEP)
  first, second = tmp_path / 'killed', tmp_path / 'undisturbed'
  words = lambda workdir: [str(tmp_path / 'which.py'), f'--workdir={workdir}', '--retries=0']
  command = [sys.executable, str(tmp_path / 'runner.py'), *words(first)]
  runner = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
  find = lambda workdir, batch: next((workdir / 'trials').glob(f'batch-{batch}_*'))
  eventually(lambda: list(first.glob('trials/batch-2_*/run/metrics.jsonl')), 60)
  slow = epath.Path(find(first, 2))
  runner.kill()
  runner.communicate()
  assert trials.finished(epath.Path(find(first, 1))) and not trials.finished(slow)
  assert local.alive(slow)  # an orphan

  sys.path.insert(0, str(tmp_path))
  program = __import__('runner').program
  modified = os.stat(slow / 'state.json').st_mtime_ns
  def release():  # when the new runner has adopted it
    eventually(lambda: os.stat(slow / 'state.json').st_mtime_ns != modified, 60)
    (slow / 'go').touch()
  with background(release):
    assert run.main(words(first), program) == 1  # one crashes
  assert '1 of 5 trials are finished already' in capsys.readouterr().err
  def release_second():
    eventually(lambda: list(second.glob('trials/batch-2_*')))
    (find(second, 2) / 'go').touch()
  with background(release_second):
    assert run.main(words(second), program) == 1
  for batch in (1, 2, 3, 4, 5):
    assert (find(first, batch) / 'starts').read_text() == 'x', batch
  assert table(first) == table(second)
  assert [row['batch'] for row in table(first)] == ['3', '4', '2', '1', '5']
  assert (first / 'report' / 'report.html').exists()

  capsys.readouterr()
  assert run.main(words(first), lambda *_: ['true']) == 1  # again: only the failed trial is retried
  assert [len((find(first, batch) / 'starts').read_text()) for batch in (1, 2, 3, 4)] == [1] * 4


def test_a_hang_ends_by_itself(tmp_path, capsys):
  (tmp_path / 'which.py').write_text('def sweep(): return [{}]')
  program = lambda sweep, folder, overrides: [sys.executable, '-S', PROGRAM, str(folder), 'hang', '1']
  words = [str(tmp_path / 'which.py'), f'--workdir={tmp_path / "w"}', '--retries=0']
  assert run.arguments(words).idle == 30
  assert run.main([*words, '--idle=.03'], program) == 1
  assert 'wrote nothing for 0.03 minutes' in capsys.readouterr().err


def test_the_best_so_far_is_among_those_measured_in_the_same_way():
  text = progress.best({f'{name}_0': json.loads(record(value, metric='fd', n=n)) for name, value, n in (
    ('a', 9., 500), ('b', 7., 500), ('c', 1., 5000), ('d', 8., 500))}, 'fd')
  assert text == 'best so far fd 7 [6, 8] of b (1 measured in another way)'


def test_the_progress_line(tmp_path):
  made = make(tmp_path, one='ok', two='hang', three='crash', four='ok')
  run_all(made[:1])
  line = progress.Line(4, 1, 'fd_infinity', [made[0].folder], stream=open(os.devnull, 'w'))
  running = local.Running(made[1], None, 0, time.time() - 45, 2)
  line.ended(made[2], 'failed', 'why')
  path = made[1].folder / 'run' / 'metrics.jsonl'
  path.parent.mkdir(parents=True)
  now = time.time()
  curve = ''.join(f'{{"step": {step}, "time": {now - 40 + step}}}\n' for step in (0, 20, 40))
  path.write_text(curve)  # one second per step, 60 steps left
  text = line.text([running])
  assert '1/4 done' in text and '1 failed' in text and 'two step 40/100, 1:00 left (attempt 2)' in text
  assert 'best so far fd_infinity 1 [0, 2] of one' in text
  path.unlink()
  assert 'two for 0:45' in line.text([running])
