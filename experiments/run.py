r"""Runs a sweep: many trials of diffusion.main that differ in a few settings, and a report of their results.

  python -m experiments.run experiments/schedules.py --workdir=runs/schedules
  python -m experiments.run experiments/schedules.py --workdir=runs/schedules        again: finished trials are skipped
  python -m experiments.run experiments/schedules.py --workdir=runs/schedules --set config.steps=600 \
    --only 'schedule=linear|cosine, predict=eps|v'
  python -m experiments.run experiments/samplers.py --model=runs/cosine_ddim --workdir=runs/samplers
  python -m experiments.run experiments/losses.py --workdir=runs/search --search=optuna --trials=20
  python -m experiments.run experiments/schedules.py --workdir=/shared/schedules \
    --engine='slurm(partition=gpu, gpus=1)'
  python -m experiments.report --workdir=runs/schedules                              only the report, at any time

Each trial is a process of its own in WORKDIR/trials/NAME, and is finished when its evaluation exists. Ctrl-C stops the
trials, which save first; the same command resumes them. Engines: local, ray(cpus=, gpus=), and slurm(..) and
jobset(..), which write job files (sweep/cluster.py). The report in WORKDIR/report is kept up to date.
"""
import argparse
import json
import sys
import time


from diffusion.errors import InputError
from diffusion.system.files import user_path, write_atomic
from experiments.report import report
from experiments.sweep import cluster, local, sweep_file, trials
from experiments.sweep.progress import Line
from experiments.sweep.search import optuna_search


def arguments(argv=None):
  parser = argparse.ArgumentParser(prog='python -m experiments.run', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('sweep', help='a sweep file, such as experiments/schedules.py')
  add('--workdir', required=True, help='work directory of the sweep')
  add('--model', help='work directory of the trained model, for sweeps that evaluate one')
  add('--engine', default='local', help='local, ray, slurm or jobset, with arguments as in a config (default: local)')
  add('--jobs', type=int,
      help='trials at a time (default: 1, because on CPU one takes all cores; with ray, as many as its nodes hold)')
  add('--set', nargs='+', action='extend', default=[], metavar='config.KEY=VALUE',
      help='settings of every trial, overriding the sweep file')
  add('--only', default='', help="some of the trials: 'schedule=linear|cosine, predict=eps'")
  add('--timeout', type=float, help='time limit of an attempt in minutes (default: none)')
  add('--idle', type=float, default=30., metavar='MINUTES',
      help='an attempt that prints and logs nothing for so long has failed; 0: never (default: 30)')
  add('--retries', type=int, default=1, help='how often a failed trial is tried again (default: 1)')
  add('--metric', help='metric of the report (default: that of the sweep)')
  add('--search', choices=('optuna',), help='let Optuna suggest the trials, from the space(trial) of the sweep file')
  add('--trials', type=int, default=20, help='number of trials with --search (default: 20)')
  return parser.parse_args(argv)


def settings(words):
  """['config.steps=600'] -> {'config.steps': '600'}."""
  overrides = {}
  for word in words:
    key, equals, value = word.lstrip('-').partition('=')
    if not equals:
      raise InputError(f'--set {word}: expected config.KEY=VALUE')
    overrides[key] = value
  return overrides


def checked(options, engine):
  """Raises InputError for options that are out of range or cannot be combined."""
  for name, least in (('jobs', 1), ('retries', 0), ('trials', 1), ('timeout', 1e-9), ('idle', 0)):
    value = getattr(options, name)
    if value is not None and not value >= least:
      raise InputError(f'--{name}={value:g}: expected at least {least:g}')
  if '://' in options.workdir:
    raise InputError(f'--workdir={options.workdir}: expected a local folder; '
                     "for trials in a bucket use --engine='jobset(bucket=gs://..)'")
  if engine.remote and options.model and not options.model.startswith('gs://'):
    raise InputError(f'--model={options.model} is a local folder, which --engine={engine.name} cannot access; '
                     'copy it to a bucket and give --model=gs://NAME/FOLDER')
  if options.search and engine.write:
    raise InputError(f'--search={options.search} depends on the results of earlier trials, which '
                     f'--engine={engine.name} cannot report; use local or ray')
  if options.search and options.only:
    raise InputError(f'--only={options.only} selects from sweep(), which --search={options.search} does not use; '
                     'leave out one of them')


def grid(planned):
  """(ask, tell, watch) of a list of trials: those left running by a killed runner first, without the finished ones."""
  unfinished = [trial for trial in planned if not trials.finished(trial.folder)]
  queue = iter(sorted(unfinished, key=lambda trial: not local.alive(trial.folder)))
  return lambda: next(queue, None), lambda *_: None, lambda trial: ''


def reporter(workdir, metric, say):
  """(now=False) -> path of the report, or None; reports are written seldom enough to take 5 % of the time."""
  until = [0.]

  def write(now=False):
    if time.monotonic() < until[0] and not now:
      return None
    begun = time.monotonic()
    try:
      return report(workdir, metric)
    except Exception as error:  # a failed report must not stop the trials
      say(f'note: the report could not be written: {type(error).__name__}: {error}')
    finally:
      until[0] = time.monotonic() + 20 * (time.monotonic() - begun)
  return write


def work(run, options, planned, search, workdir, metric):
  """Runs the trials that are not finished. run: as local.run. Returns the exit code."""
  total, folders = len(planned), [trial.folder for trial in planned]
  if search:
    total, folders = options.trials, (workdir / 'trials').glob('*')
  done = [folder for folder in folders if trials.finished(folder)]
  line = Line(total, options.jobs or 1, metric, done)
  write, (ask, tell_search, watch) = reporter(workdir, metric, line.say), search or grid(planned)
  if done:
    line.say(f'{len(done)} of {total} trials are finished already')

  def tell(trial, status, reason):
    tell_search(trial, status, reason)
    line.ended(trial, status, reason)
    write()

  stopped = run(ask, tell, watch=watch, show=line.show, jobs=options.jobs,
                timeout=options.timeout and 60 * options.timeout, idle=60 * options.idle, retries=options.retries)
  line.show([], now=True)
  if stopped:
    line.say('stopped; the same command resumes')
  if path := write(now=True):
    line.say(f'report: {path}')
  return 128 + stopped if stopped else 1 if line.others['failed'] else 0


def hand_over(engine, planned, workdir, jobs):
  """Writes the job files of trials that are neither finished nor running; returns instructions."""
  left = [trial for trial in planned if not trials.finished(trial.folder) and not local.alive(trial.folder)]
  return engine.write(left, workdir, jobs) if left else 'every trial is finished or running'


def start(options, program):
  """Checks everything, then runs it. Returns the exit code."""
  engine = cluster.engine(options.engine)
  checked(options, engine)
  sweep, always = sweep_file.load(options.sweep, options.model), settings(options.set)
  workdir, metric = user_path(options.workdir), sweep_file.known_metric(options.metric or sweep.metric)
  suggested = lambda point: trials.trial(sweep, workdir, point | always, trials.telling(sweep, point), program)
  planned = [] if options.search else trials.every(sweep, workdir, always, options.only, program)
  with local.only_runner(workdir):
    search = optuna_search(sweep, workdir, options.trials, metric, suggested) if options.search else None
    about = dict(file=sweep.file, title=sweep.title, base=sweep.base, mode=sweep.mode, metric=metric,
                 command=sys.argv[1:])
    write_atomic(workdir / 'sweep.json', json.dumps(about, indent=1).encode())
    for trial in planned:
      trials.describe(trial)
    if engine.write:
      print(hand_over(engine, planned, workdir, options.jobs))
      return 0
    return work(engine.run, options, planned, search, workdir, metric)


def main(argv=None, program=trials.command):
  """Returns the exit code. program: what a trial runs instead of diffusion.main, for tests (see trials.trial)."""
  options = arguments(argv)
  import jax
  jax.config.update('jax_platforms', 'cpu')  # leaves the accelerators to the trials
  try:
    return start(options, program)
  except (InputError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2


if __name__ == '__main__':
  sys.exit(main())
