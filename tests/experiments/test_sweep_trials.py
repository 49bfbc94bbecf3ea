"""From sweep files to trials: which ones, their names, and all possible errors, reported before the first starts."""
import contextlib
import importlib.util
import itertools
import json
import shutil
import sys

from absl import flags
from etils import epath
from ml_collections import config_flags
import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.system import checkpoint
from experiments import run
from experiments.sweep import search, sweep_file, trials
from tests.sweep_program import record

RECIPE = 'configs/cosine_ddim.py'


def write(tmp_path, text, name='mine.py'):
  path = tmp_path / name
  path.write_text(text)
  return str(path)


def written(tmp_path, points, **constants):
  """The path of a sweep file with these points."""
  lines = [f'{name} = {value!r}' for name, value in constants.items()]
  return write(tmp_path, '\n'.join([f'"""Is it {len(points)}?"""', *lines, f'def sweep(): return {points!r}']))


def every(tmp_path, points, always=(), **constants):
  """The trials of a sweep with these points."""
  return trials.every(sweep_file.load(written(tmp_path, points, **constants)), tmp_path, always)


@pytest.fixture
def trained(monkeypatch):
  """Makes every work directory hold the main job's config at step 1800."""
  config = sweep_file.recipe_config(RECIPE)
  monkeypatch.setattr(sweep_file, 'trained_model', lambda workdir: (config, 1800, 'a1'))


# ---- what to try
def test_a_grid_is_every_combination_once():
  targets = [{'config.predict': 'eps', 'config.loss_weight': 'one'}, 'v']
  points = list(search.grid_search(schedule=['linear', 'cosine'], predict=targets, batch=[1, 2, 3]))
  expected = {(s, p, b) for s in ('linear', 'cosine') for p in ('eps', 'v') for b in (1, 2, 3)}
  assert {(p['config.schedule'], p['config.predict'], p['config.batch']) for p in points} == expected
  assert len(points) == 12
  assert all(('config.loss_weight' in p) == (p['config.predict'] == 'eps') for p in points)
  assert [p['config.batch'] for p in points] == [1, 2, 3] * 4


def test_random_points_are_distinct_reproducible_and_distributed_like_their_axes():
  axes = dict(batch=list(range(10)), learning_rate=lambda rng: float(10 ** rng.uniform(-4, -2)))
  points = list(search.random_search(400, 3, **axes))
  assert points[:50] == list(search.random_search(50, 3, **axes)) != list(search.random_search(50, 4, **axes))
  counts = np.bincount([p['config.batch'] for p in points], minlength=10)
  assert np.sum((counts - 40) ** 2 / 40) < 27.9  # chi-squared with 9 degrees of freedom, 0.1 %
  rates = np.log10([p['config.learning_rate'] for p in points])
  assert abs(np.mean(rates) + 3) < 4 * 2 / np.sqrt(12 * 400)
  few = list(search.random_search(50, 0, batch=[1, 2], seed=[1, 2, 3]))
  assert {tuple(p.values()) for p in few} == set(itertools.product([1, 2], [1, 2, 3])) and len(few) == 6


@pytest.mark.parametrize('call', [lambda: search.grid_search(a=[]), lambda: search.grid_search(a='linear'),
                                  lambda: search.random_search(0, 0, a=[1])])
def test_axes_without_values(call):
  with pytest.raises(InputError):
    list(call())


# ---- trials
def test_a_trials_command_line_gives_the_config_that_was_checked(tmp_path, monkeypatch):
  """absl and ml_collections parse the words as diffusion.main would."""
  points = [{'config.schedule': "offset_cosine(min_signal=0.02, told='variance')", 'config.learning_rate': 1,
             'config.clip_x0': 'false', 'config.steps': 7, 'config.edit.shift': (1, 2),
             'config.sample.classes': 'hero, food'}]
  [trial] = every(tmp_path, points, {'config.batch': '8', 'config.sample.seed': '3'})
  monkeypatch.setattr(sys, 'argv', ['main', *trial.command[3:]])  # where config_flags looks for overrides
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', None, 'A recipe.', flag_values=values)
  flags.DEFINE_string('workdir', None, 'Where.', flag_values=values)
  values(sys.argv)
  parsed = trials.flat(values.config)
  assert values.workdir == str(trial.folder / 'run')
  own = {'config.evaluate.at_end': True, 'config.evaluate.folder': str(trial.folder / 'evaluation')}
  assert {key: parsed[key] for key in own} == own and parsed['config.evaluate.at_end'] is True
  assert {key: value for key, value in parsed.items() if key not in own} == {
    key: value for key, value in trial.config.items() if key not in own}
  assert parsed['config.batch'] == 8 and parsed['config.clip_x0'] is False and parsed['config.edit.shift'] == [1, 2]


def test_names_contain_what_varies_and_depend_only_on_the_settings(tmp_path):
  points = [{'config.schedule': 'cosine', 'config.steps': 5}, {'config.schedule': 'linear(T=500)', 'config.steps': 5}]
  first = every(tmp_path, points)
  assert [t.name.rpartition('_')[0] for t in first] == ['schedule-cosine', 'schedule-linear-T-500']
  turned = [dict(reversed(point.items())) for point in points] + [{'config.schedule': 'cosine', 'config.steps': 6}]
  more = every(tmp_path, turned)
  ends = [t.name.rpartition('_')[2] for t in more]
  assert ends[:2] == [t.name.rpartition('_')[2] for t in first] and len(set(ends)) == 3
  trials.describe(first[0])  # once it has a folder it keeps it, whatever name the sweep would give it now
  again = every(tmp_path, turned)
  assert again[0].folder == first[0].folder and again[1].name == more[1].name


def test_an_edited_recipe_makes_another_trial(tmp_path):
  text = 'from diffusion.setup.config import default\n'
  text += 'def get_config(name=""):\n  c = default()\n  c.steps = {}\n  return c\n'
  names = []
  for steps in (1800, 5, 5):  # the first is the default
    base = write(tmp_path, text.format(steps), 'recipe.py')
    [trial] = every(tmp_path, [{'config.batch': 4}], BASE=base)
    names.append(trial.name)
  assert names[0] != names[1] == names[2]


@pytest.mark.parametrize('name, number', [('schedules', 14), ('losses', 20), ('samplers', 40), ('guidance', 17)])
def test_the_sweeps_of_this_repository_fit_together(name, number, trained, tmp_path):
  model = 'runs/x' if name in ('samplers', 'guidance') else None
  sweep = sweep_file.load(f'experiments/{name}.py', model)
  assert len(trials.every(sweep, tmp_path)) == number
  assert sweep.title.endswith('?')


def test_some_of_the_trials(tmp_path):
  sweep = sweep_file.load('experiments/schedules.py')
  chosen = trials.every(sweep, tmp_path, only='schedule=linear|offset_cosine, predict=v|eps')
  assert {(t.overrides['config.schedule'], t.overrides['config.predict']) for t in chosen} == set(
    itertools.product(['linear', 'offset_cosine'], ['eps', 'v']))
  points = [{'config.grid': f'{name}({n})'} for name in ('trailing', 'leading') for n in (5, 10)]
  assert trials.chosen(points, 'grid=trailing') == points[:2]
  assert trials.chosen(points, 'grid=leading(10)|trailing(5)') == [points[0], points[3]]
  assert trials.chosen(points, '') == points


# ---- errors
EMPTY, SAME = [], [{'config.schedule': 'cosine'}, {'config.steps': 1800, 'config.schedule': 'cosine'}]
BAD = {
  'no such sweep': (None, [], ['nosuch.py', 'no such file']),
  'empty': (EMPTY, [], ['empty', 'sweep()']),
  'same settings': (SAME, [], ['same settings', "'config.steps': 1800"]),
  'unknown setting': ([{'config.schedul': 'cosine'}], [], ["'config.schedul'", "did you mean 'config.schedule'"]),
  'no prefix': ([{'schedule': 'cosine'}], [], ["'schedule'", 'config.schedule']),
  'a section': ([{'config.sample': 'cosine'}], [], ["'config.sample'"]),
  'wrong type': ([{'config.steps': 'many'}], [], ["config.steps='many'", 'expected a value such as 1800']),
  'bool for a number': ([{'config.steps': True}], [], ['config.steps=True']),
  'unknown part': ([{'config.schedule': 'cosin'}], [], ['cosin', 'did you mean']),
  'does not fit': ([{'config.schedule': 'flow', 'config.predict': 'eps'}], [],
                   ["{'config.schedule': 'flow', 'config.predict': 'eps'}", 'no signal']),
  'no value': ([{}], ['--set', 'config.steps'], ['--set config.steps', 'KEY=VALUE']),
  'unknown in --set': ([{}], ['--set', 'config.stepz=5'], ["'config.stepz'"]),
  'none chosen': ([{'config.batch': 1}, {'config.batch': 2}], ['--only', 'batch=3'], ['batch=3', 'valid: 1, 2']),
  'unknown choice': ([{'config.batch': 1}], ['--only', 'steps=3'], ['steps=3', 'batch=..']),
  'unknown metric': ([{}], ['--metric=fid'], ["'fid'", 'did you mean']),
  'unknown engine': ([{}], ['--engine=slorm'], ["--engine='slorm'", "did you mean 'slurm'"]),
  'unknown argument of an engine': ([{}], ['--engine=slurm(gpu=1)'], ["'gpu'", 'gpus=0']),
  'no topology': ([{}], ['--engine=jobset(image=a, bucket=gs://b/c, topology=3x)'], ["topology='3x'"]),
  'several hosts': ([{}], ['--engine=jobset(image=a, bucket=gs://b/c, topology=4x4)'], ["topology='4x4'", 'one host']),
  'jobs': ([{}], ['--jobs=0'], ['--jobs=0']),
  'idle': ([{}], ['--idle=-1'], ['--idle=-1']),
  'evaluation': ([{'config.evaluate.parts': 'fd'}], [], ['config.evaluate.parts', "'fd'"]),
  'no model': ([{}], ['--model=runs/none'], ['--model=runs/none']),
  'bucket': ([{}], ['--workdir=gs://a/b'], ['gs://a/b', 'jobset']),
  'search without a space': ([{}], ['--search=optuna'], ['space(trial)']),
  'search by files': ([{}], ['--search=optuna', '--engine=slurm'], ['slurm', 'ray']),
}


@pytest.mark.parametrize('case', BAD, ids=list(BAD))
def test_bad_input_is_one_line_before_the_first_trial(case, tmp_path, capsys, monkeypatch):
  points, words, expected = BAD[case]
  path = 'nosuch.py' if points is None else written(tmp_path, points)
  monkeypatch.setattr(trials, 'installed', lambda *_: None)
  monkeypatch.setattr(search, 'installed', lambda *_: None)
  assert run.main([path, f'--workdir={tmp_path / "w"}', *words], program=lambda *_: ['false']) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ') and error.count('\n') == 1, error
  assert all(word in error for word in expected), error
  assert not (tmp_path / 'w' / 'trials').exists()


@pytest.mark.parametrize('text, expected', [
  ('def sweep(:', 'SyntaxError'), ('import nosuchmodule', 'ModuleNotFoundError'), ('x = 1', 'no function sweep()'),
  ('def sweep():\n  yield {}\n  raise KeyError("k")', 'KeyError'),
  ('MODE = "sample"\ndef sweep(): return [{}]', "MODE='sample'"),
  ('METRIC = "fid"\ndef sweep(): return [{}]', "'fid'"),
  ('BASE = "configs/none.py"\ndef sweep(): return [{}]', 'configs/none.py'),
  ('MODE = "evaluate"\ndef sweep(): return [{}]', '--model=')])
def test_broken_sweep_files(text, expected, tmp_path, capsys):
  assert run.main([write(tmp_path, text), f'--workdir={tmp_path / "w"}']) == 2
  error = capsys.readouterr().err
  assert expected in error and error.count('\n') == 1


@pytest.mark.parametrize('words, expected', [
  ('--engine=ray', 'diffusion-jax[ray]'), ('--search=optuna', 'diffusion-jax[optuna]')])
def test_engines_that_are_not_installed(words, expected, tmp_path, capsys, monkeypatch):
  find = importlib.util.find_spec
  without = lambda name, *rest: None if name in ('ray', 'optuna') else find(name, *rest)
  monkeypatch.setattr(importlib.util, 'find_spec', without)
  assert run.main(['experiments/losses.py', f'--workdir={tmp_path}', words]) == 2
  error = capsys.readouterr().err
  assert expected in error and error.count('\n') == 1


def test_a_model_keeps_the_meaning_of_its_weights(trained, tmp_path):
  sweep = sweep_file.load(written(tmp_path, [{'config.predict': 'v'}], MODE='evaluate'), 'runs/x')
  with pytest.raises(InputError, match='config.predict cannot change in a trained model'):
    trials.every(sweep, tmp_path)


def test_a_model_is_identified_by_its_weights(tmp_path):
  """Trained again to the same step it is another model; copied to another place it is the same."""
  sweep = written(tmp_path, [{'config.guide': 'cfg(2)'}], MODE='evaluate')
  config = json.loads(sweep_file.recipe_config(RECIPE).to_json())
  def name(model, weight=None, step=3):
    if weight is not None:
      with contextlib.closing(checkpoint.open_checkpoints(tmp_path / model / 'checkpoints')) as opened:
        opened.save(step, {'w': np.float32([weight, 1.])}, dict(config=config))
    [trial] = trials.every(sweep_file.load(sweep, str(tmp_path / model)), tmp_path)
    assert trial.step == step
    return trial.name
  first = name('model', .5)
  shutil.copytree(tmp_path / 'model', tmp_path / 'copy')
  assert name('copy') == name('model') == first
  shutil.rmtree(tmp_path / 'model')
  assert name('model', .6) != first
  assert name('model', .5, step=4) != first


def test_an_evaluation_counts_only_for_the_checkpoint_of_its_trial(tmp_path):
  folder = epath.Path(tmp_path)
  trials.describe(trials.Trial('a', 'base', {}, {}, [], folder, step=7))
  (folder / 'evaluation').mkdir()
  for step in (8, 7):
    text = json.dumps(json.loads(record(1.)) | dict(subject=dict(step=step)))
    (folder / 'evaluation' / 'evaluation.json').write_text(text)
    assert bool(trials.finished(folder)) == (step == 7) == (trials.moved(folder) == '')


def test_settings_added_later_do_not_change_the_hash(monkeypatch, tmp_path):
  sweep = sweep_file.load(written(tmp_path, [{'config.batch': 4}]))
  [before] = trials.every(sweep, tmp_path)
  longer = trials.default()
  with longer.unlocked(), sweep.config.unlocked():
    longer.sample.newer = sweep.config.sample.newer = 3
  monkeypatch.setattr(trials, 'default', lambda: longer)
  [after] = trials.every(sweep, tmp_path)
  assert before.name == after.name and after.config['config.sample.newer'] == 3


def test_an_unreadable_evaluation_is_unfinished(tmp_path):
  folder = epath.Path(tmp_path)
  assert trials.finished(folder) is None
  (folder / 'evaluation').mkdir()
  for text in ('', '{"format": 1, "prot', '[]', json.dumps(dict(format=0))):
    (folder / 'evaluation' / 'evaluation.json').write_text(text)
    assert trials.finished(folder) is None
