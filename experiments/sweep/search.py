"""Which settings to try: every combination of some axes, random draws from them, or suggestions by Optuna."""
import itertools

import numpy as np

from diffusion.errors import check_seed, InputError
from diffusion.evaluation.metrics import record
from diffusion.system.log import read_metrics
from experiments.sweep.trials import finished, installed


def _point(names, values):
  """The overrides of one trial. A value that is a dict is merged; any other sets config.AXIS."""
  point = {}
  for name, value in zip(names, values):
    point |= value if isinstance(value, dict) else {f'config.{name}': value}
  return point


def _checked(axes):
  for name, values in axes.items():
    if not callable(values) and not (isinstance(values, (list, tuple)) and values):
      raise InputError(f'axis {name}={values!r}: expected a list of values, with at least one')
  return list(axes)


def grid_search(**axes):
  """Yields every combination of the values of some axes, the last axis fastest.

    grid_search(schedule=['linear', 'cosine'], predict=[{'config.predict': 'eps', 'config.loss_weight': 'one'}, 'v'])

  Args:
    axes: lists of values. A value that is a dict holds overrides, for settings that belong together or are in a
      section ({'config.sample.seed': 1}); any other is the value of config.AXIS.
  Raises:
    InputError: an axis without values.
  """
  names = _checked(axes)
  for values in itertools.product(*axes.values()):
    yield _point(names, values)


def random_search(n, seed, /, **axes):
  """Yields n distinct points drawn independently from some axes; fewer if the axes have fewer.

  Args:
    n: at least 1.
    seed: of the draws; the same seed draws the same points, and a larger n continues those of a smaller one.
    axes: lists of values as in grid_search, drawn uniformly, or functions of a numpy Generator:
      learning_rate=lambda rng: float(10 ** rng.uniform(-4, -2)).
  Raises:
    InputError: n below 1, a seed out of range, an axis without values.
  """
  check_seed('random_search: seed', seed)
  if n < 1:
    raise InputError(f'random_search(n={n}): expected at least 1 trial')
  names, rng, points = _checked(axes), np.random.default_rng(seed), []
  for _ in range(100 * n):  # repeated points are drawn again
    values = [axis(rng) if callable(axis) else axis[rng.integers(len(axis))] for axis in axes.values()]
    point = _point(names, values)
    if point not in points:
      points.append(point)
      yield point
    if len(points) == n:
      return


# ---- Optuna
def optuna_search(sweep, workdir, number, metric, make):
  """(ask, tell, watch) of a search by Optuna (TPE, with median pruning), stored in WORKDIR/optuna.journal; it resumes.

  A trial is pruned if its curve (PRUNE of the sweep file, default heldout_loss; '' for none) is worse than the median
  of earlier trials at the same step. Held-out losses are comparable only for the same target, schedule and loss
  weight; a space that varies these should set PRUNE = 'fd_infinity' and config.evaluate.every.

  Args:
    sweep: with a space(trial) -> overrides.
    workdir: of the sweep.
    number: of trials, including those of earlier runs.
    metric: to optimize.
    make: overrides -> Trial.
  Raises:
    InputError: Optuna is not installed, or the sweep has no space(trial).
  """
  installed('optuna', '--search=optuna', 'optuna')
  if not callable(sweep.space):
    raise InputError(f'sweep {sweep.file} has no function space(trial), from which --search=optuna gets the overrides')
  study, asked, parent = _study(workdir, metric), {}, workdir / 'trials'
  _enqueue_unfinished(study)
  spent = [False]  # the last round suggested nothing new, nor would the next before another trial has ended

  def tell(trial, status, reason):
    spent[0] = False
    _tell(study, asked.pop(trial.name), trial, status, metric, parent)

  def ask():
    if spent[0]:
      return None
    trial = _ask(study, sweep.space, make, number, asked, tell)
    spent[0] = trial is None
    return trial

  return ask, tell, _watch(asked, sweep.prune, -1 if metric in record.HIGHER else 1)


def _study(workdir, metric):
  """The study in WORKDIR/optuna.journal, new or continued."""
  import optuna
  from optuna.storages import journal
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  workdir.mkdir(parents=True, exist_ok=True)
  storage = optuna.storages.JournalStorage(journal.JournalFileBackend(str(workdir / 'optuna.journal')))
  study = optuna.create_study(study_name='sweep', storage=storage, load_if_exists=True,
                              direction='maximize' if metric in record.HIGHER else 'minimize')
  study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))  # other suggestions after a restart
  study.pruner = optuna.pruners.MedianPruner(n_startup_trials=4)
  return study


def _ask(study, space, make, number, asked, tell):
  """The next Trial; None if there are `number`, or if a round of suggestions had none that is valid and new."""
  from optuna.trial import TrialState
  refusal = None
  for _ in range(5 * number):  # some suggestions are invalid or repeated
    if len(_named(study)) >= number and not study.get_trials(states=[TrialState.WAITING]):
      return None
    suggestion = study.ask()
    try:
      trial = make(dict(space(suggestion)))
    except InputError as error:
      study.tell(suggestion, state=TrialState.FAIL)
      refusal = error
      continue
    if trial.name in asked:
      study.tell(suggestion, state=TrialState.FAIL)
      continue
    suggestion.set_user_attr('trial', trial.name)
    asked[trial.name] = suggestion
    if not finished(trial.folder):
      return trial
    tell(trial, 'finished', '')
  if refusal and not _named(study):
    raise refusal


def _tell(study, suggestion, trial, status, metric, parent):
  """Reports a trial to the study; as failed if it was measured in another way than those before it."""
  from optuna.trial import TrialState
  measured = finished(trial.folder) if status == 'finished' else None
  value = measured['metrics'].get(metric, {}).get('value') if measured else None
  names = [old.user_attrs['trial'] for old in study.get_trials(states=[TrialState.COMPLETE])]
  first = next(filter(None, (finished(parent / name) for name in names)), measured)
  if value is not None and not record.differences(first, measured, metric):
    study.tell(suggestion, value)
  else:
    study.tell(suggestion, state=TrialState.PRUNED if status == 'pruned' else TrialState.FAIL)


def _named(study):
  """{name of a trial: the suggestions that led to it}."""
  suggestions = {}
  for suggestion in study.trials:
    if 'trial' in suggestion.user_attrs:
      suggestions.setdefault(suggestion.user_attrs['trial'], []).append(suggestion)
  return suggestions


def _enqueue_unfinished(study):
  """Suggests again the trials that a killed runner left running, and those that failed."""
  from optuna.trial import TrialState
  for suggestion in study.get_trials(states=[TrialState.RUNNING]):
    study.tell(suggestion.number, state=TrialState.FAIL)
  for suggestions in _named(study).values():
    if all(suggestion.state == TrialState.FAIL for suggestion in suggestions):
      study.enqueue_trial(suggestions[-1].params)


def _watch(asked, column, sign):
  """trial -> why it should be given up, or ''. Reports the new points of its curve to Optuna."""
  progress = {}  # trial: (bytes of its curve, last step reported)

  def watch(trial):
    path, suggestion = trial.folder / 'run' / 'metrics.jsonl', asked[trial.name]
    if not column or not path.exists() or path.stat().length == progress.get(trial.name, (0, 0))[0]:
      return ''
    size, last = path.stat().length, progress.get(trial.name, (0, -1))[1]
    for line in read_metrics(path):
      if line['step'] > last and np.isfinite(line.get(column, np.nan)):
        suggestion.report(sign * line[column], line['step'])
        last = line['step']
    progress[trial.name] = size, last
    pruned = suggestion.should_prune()
    return f'{column} is worse than the median of earlier trials at step {last}' if pruned else ''
  return watch
