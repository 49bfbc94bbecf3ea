"""Optuna's search resumes, repeats no finished trial, and prunes bad ones. Needs the extra [optuna]."""
import json

from etils import epath
import pytest

from diffusion.errors import InputError
from experiments.sweep import search, sweep_file, trials
from tests.sweep_program import record

pytest.importorskip('optuna')


def space(suggestion):
  batch = suggestion.suggest_int('batch', 1, 4)
  if batch == 4:
    raise InputError('4 does not fit')
  return {'config.batch': batch, 'config.learning_rate': suggestion.suggest_float('rate', .1, 1.)}


def opened(tmp_path, number, metric='fd_infinity', prune='heldout_loss', **other):
  space_function = other.get('space', space)
  sweep = sweep_file.Sweep('mine.py', '', 'base', 'train', metric, None, space_function, prune, None, 0, '')
  def make(point):
    name = '_'.join(map(str, point.values()))
    return trials.Trial(name, 'base', point, {}, [], epath.Path(tmp_path) / 'trials' / name)
  return search.optuna_search(sweep, epath.Path(tmp_path), number, metric, make)


def finish(trial, metric='fd_infinity', **options):
  (trial.folder / 'evaluation').mkdir(parents=True)
  value = (trial.overrides['config.learning_rate'] - .3) ** 2
  (trial.folder / 'evaluation' / 'evaluation.json').write_text(record(value, metric=metric, **options))


def reported(tmp_path):
  """The values in the study, by trial."""
  import optuna
  from optuna.storages import journal
  storage = optuna.storages.JournalStorage(journal.JournalFileBackend(str(tmp_path / 'optuna.journal')))
  done = optuna.load_study(study_name='sweep', storage=storage).get_trials(states=[optuna.trial.TrialState.COMPLETE])
  return {trial.user_attrs['trial']: trial.value for trial in done}


def test_values_measured_in_another_way_are_not_compared(tmp_path):
  ask, tell, _ = opened(tmp_path, 6, 'fd')
  made = [ask() for _ in range(4)]
  for trial, n in zip(made, (500, 100, 500)):
    finish(trial, 'fd', n=n)
    tell(trial, 'finished', '')
  assert list(reported(tmp_path)) == [made[0].name, made[2].name]
  ask, tell, _ = opened(tmp_path, 6, 'fd')  # a new runner knows how the other trials were measured
  trial = ask()
  while trial.name != made[3].name:
    trial = ask()
  finish(trial, 'fd', n=100)
  tell(trial, 'finished', '')
  assert list(reported(tmp_path)) == [made[0].name, made[2].name]


def test_a_search_that_has_no_more_to_suggest_waits(tmp_path):
  def four(suggestion):
    return {'config.batch': suggestion.suggest_int('batch', 1, 4), 'config.learning_rate': .5}
  ask, tell, _ = opened(tmp_path, 5, space=four)
  made = [ask() for _ in range(4)]
  assert ask() is None
  journal = (tmp_path / 'optuna.journal').stat().st_size
  assert [ask() for _ in range(50)] == [None] * 50  # as the runner asks, four times a second
  assert (tmp_path / 'optuna.journal').stat().st_size == journal
  finish(made[0])
  tell(made[0], 'finished', '')
  assert ask() is None and (tmp_path / 'optuna.journal').stat().st_size > journal  # tried once more


def test_a_search_resumes_and_repeats_nothing(tmp_path):
  ask, tell, _ = opened(tmp_path, 6)
  first = [ask() for _ in range(3)]
  finish(first[0])
  tell(first[0], 'finished', '')
  tell(first[1], 'failed', 'broke')
  # killed: the third is still running, and finishes by itself
  finish(first[2])
  ask, tell, _ = opened(tmp_path, 6)
  more = []
  while trial := ask():
    more.append(trial)
    finish(trial)
    tell(trial, 'finished', '')
  assert first[1].name in [trial.name for trial in more]  # the failed trial is tried again
  assert not {first[0].name, first[2].name} & {trial.name for trial in more}
  assert len({trial.name for trial in first + more}) == 6 == len(first) + len(more) - 1
  assert all(trial.overrides['config.batch'] < 4 for trial in more)
  assert opened(tmp_path, 6)[0]() is None


@pytest.mark.parametrize('metric, towards', [('fd_infinity', min), ('precision', max)])
def test_a_search_seeks_the_right_end(tmp_path, metric, towards):
  """The later half is closer to the optimum of (rate - 0.3)^2: 0.3, or 1 when maximizing."""
  ask, tell, _ = opened(tmp_path, 24, metric)
  rates = []
  while trial := ask():
    finish(trial, metric)
    tell(trial, 'finished', '')
    rates.append(trial.overrides['config.learning_rate'])
  goal = .3 if towards is min else 1.
  off = [abs(rate - goal) for rate in rates]
  assert len(rates) == 24 and sum(off[12:]) < .7 * sum(off[:12])


def test_a_bad_curve_is_pruned_and_a_good_one_is_not(tmp_path):
  for metric in ('fd_infinity', 'precision'):
    ask, tell, watch = opened(tmp_path / metric, 20, metric)
    def curve(trial, level):
      (trial.folder / 'run').mkdir(parents=True, exist_ok=True)
      points = [dict(step=step, heldout_loss=level / (1 + step)) for step in range(3)] + [dict(step=3, loss=1.)]
      (trial.folder / 'run' / 'metrics.jsonl').write_text(''.join(json.dumps(point) + '\n' for point in points))
      return watch(trial)
    for _ in range(6):
      trial = ask()
      assert curve(trial, 1.) == ''
      finish(trial, metric)
      tell(trial, 'finished', '')
    bad, good = ask(), ask()
    assert 'heldout_loss is worse than the median' in curve(bad, 2.) and curve(good, .5) == ''
    tell(bad, 'pruned', '')


def test_a_space_without_valid_points_is_reported(tmp_path):
  def none(suggestion):
    raise InputError(f'{suggestion.suggest_int("batch", 1, 9)} does not fit')
  with pytest.raises(InputError, match='does not fit'):
    opened(tmp_path, 3, space=none)[0]()


def test_a_small_space_is_tried_once(tmp_path):
  def four(suggestion):
    return {'config.batch': suggestion.suggest_int('batch', 1, 4), 'config.learning_rate': .5}
  ask, tell, _ = opened(tmp_path, 8, space=four)
  names = []
  while trial := ask():
    names.append(trial.name)
    finish(trial)
    tell(trial, 'finished', '')
  assert sorted(names) == ['1_0.5', '2_0.5', '3_0.5', '4_0.5']
