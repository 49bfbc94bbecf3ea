"""The evaluation of tables finds leaks, alarms about nothing else, takes tables of any columns, writes its pages."""
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from diffusion.data.dataset import Dataset, Source
from diffusion.evaluation import EVALUATORS, report, table_pages, tables
from diffusion.evaluation.metrics import record
from diffusion.evaluation.metrics.table_baselines import gaussian_copula
from diffusion.evaluation.metrics.tables import take
from diffusion.setup.build import Weights
from diffusion.system import sharding
from tests.evaluation.made_tables import breast_cancer, mixed, table, thirds


def warned(found):
  return [note for note in found.notes if note.startswith('WARNING')]


@pytest.fixture(scope='module')
def cancer():
  return thirds(breast_cancer())


@pytest.fixture(scope='module')
def real_for_drawn(cancer):
  """Real rows that neither side knows, in place of drawn ones: as good as it gets."""
  losses = np.random.default_rng(3).normal(size=(2, 189))
  return tables.compare(*cancer, losses, 'diagnosis', 0)


def test_new_real_rows_are_useful_alike_and_alarm_about_nothing(real_for_drawn):
  sides = real_for_drawn.sides
  assert not warned(real_for_drawn)
  ours, real = sides['ours'], sides['real']
  assert ours['tstr_ratio'].low < 1 < ours['tstr_ratio'].high and ours['two_sample_auc'].low < .5
  for name in ('column_distance', 'worst_column_distance', 'pair_distance'):
    assert ours[name].low < real[name].value < ours[name].high
  assert ours['copied_rows'].value == real['copied_rows'].value == 0
  assert ours['attack_auc'].low < .5 < ours['attack_auc'].high
  assert any('no proof' in note and 'not tested' in note for note in real_for_drawn.notes)


def test_simple_models_lie_where_they_must(real_for_drawn):
  sides = real_for_drawn.sides
  alone, copula, real = sides['independent'], sides['copula'], sides['real']
  assert alone['two_sample_auc'].value > .95 > copula['two_sample_auc'].value > real['two_sample_auc'].value
  assert alone['pair_distance'].low > 2 * copula['pair_distance'].high
  assert alone['tstr_ratio'].high < .9 < copula['tstr_ratio'].low and real['tstr_ratio'][:1] == (1.,)
  assert all(record.is_metric(name) for side in sides.values() for name in side)
  assert 'attack_auc' not in alone and set(alone) == set(real) == set(sides['ours']) - {'attack_auc', 'attack_tpr'}


def test_training_rows_in_place_of_drawn_ones_are_found_by_all_three(cancer):
  train, heldout, _ = cancer
  rng = np.random.default_rng(0)
  found = tables.compare(train, heldout, train, (rng.normal(size=189), rng.normal(size=189) + 1), 'diagnosis', 0)
  copies, near, attack = warned(found)
  assert '189 of 189' in copies and '100.0%' in near and '50.0% are expected' in near and 'attack_auc' in attack
  assert found.sides['ours']['tstr_ratio'].value == 1


def only(kind, t):
  """The columns of a kind alone."""
  columns = tuple(c for c in t.columns if c['kind'] == kind)
  gone = dict(categories=t.categories[:, :0]) if kind == 'number' else dict(numbers=t.numbers[:, :0])
  return t._replace(columns=columns, **gone)


@pytest.mark.parametrize('shape, target, left_out', [
  (lambda t: only('number', t), 'x2', {'rare_categories'}),
  (lambda t: only('category', t), 'c2', {'missing_distance'}),
  (lambda t: table(t.numbers[:, :1] * np.pi), 'x0', {'tstr', 'tstr_ratio', 'pair_distance', 'missing_distance',
                                             'rare_categories'}),
  (lambda t: t._replace(numbers=t.numbers * np.nan), 'x0', {'tstr', 'tstr_ratio'}),
], ids=['numbers', 'categories', 'one column', 'all numbers missing'])
def test_tables_of_any_columns_are_measured_without_what_has_no_meaning(tmp_path, shape, target, left_out):
  train, heldout, drawn = (shape(mixed(n, k)) for k, n in enumerate((200, 100, 190)))
  found = tables.compare(train, heldout, drawn, None, target, 0)
  full = {'column_distance', 'worst_column_distance', 'missing_distance', 'pair_distance', 'two_sample_auc', 'tstr',
          'tstr_ratio', 'copied_rows', 'rare_categories', 'nearer_to_train'}
  assert set(found.sides['ours']) == full - left_out
  assert np.isfinite([e for side in found.sides.values() for e in side.values()]).all()
  assert any('tstr left out' in note for note in found.notes) == ('tstr' in left_out)
  assert any('not tested: a membership attack' in note for note in found.notes) and not warned(found)
  tables.write_pages(tmp_path, train, heldout, drawn, None, found, 0)


def test_classes_and_categories_that_were_never_drawn_are_named():
  train, heldout, drawn = (mixed(120, k) for k in range(3))
  drawn = take(drawn, np.flatnonzero(drawn.categories[:, 1] > 0))
  found = tables.compare(train, heldout, drawn, None, 'c1', 0)
  assert any("never drawn: c1 = '0'" in note for note in found.notes)
  assert any('no row drawn has c1 = 0' in note for note in found.notes)
  assert found.sides['ours']['rare_categories'].value == 9 / 10 and found.sides['ours']['tstr'].value < .9


def test_a_target_that_nothing_predicts_has_no_ratio():
  rng = np.random.default_rng(0)
  parts = [table(rng.normal(size=(80, 2)), rng.integers(0, 2, (80, 1))) for _ in range(3)]
  found = tables.compare(*parts, None, 'c0', 0)
  assert 'tstr' in found.sides['ours'] and 'tstr_ratio' not in found.sides['ours']
  assert any('real rows do not predict c0' in note for note in found.notes)


def test_a_split_by_content_of_few_categories_is_called_unfair():
  rows = np.random.default_rng(0).integers(0, 2, (300, 3))
  held = rows[:, 0] & rows[:, 1] == 1
  found = tables.compare(*(table(categories=x, sizes=[2] * 3) for x in (rows[~held], rows[held], rows)), None, '', 0)
  assert any('no fair sample' in note for note in found.notes)
  fair = tables.compare(*(table(categories=x, sizes=[2] * 3) for x in (rows[:200], rows[200:], rows)), None, '', 0)
  assert not any('no fair sample' in note for note in fair.notes) and not warned(fair)


# ---- the evaluator, of a model that is not trained
class Drawn:
  """An Experiment that draws given rows; the loss of a row is its first number plus noise."""
  def __init__(self, rows, batch):
    self.config = SimpleNamespace(evaluate=SimpleNamespace(num_samples=len(rows.numbers), seed=0),
                                  sample=SimpleNamespace(batch=16), sampler='ddim', grid='trailing(10)')
    self.plan, self.mesh = SimpleNamespace(batch=batch, steps=10), sharding.make_mesh(devices=jax.devices()[:1])
    self.task = SimpleNamespace(batch=lambda data, index: dict(x=data.arrays['numbers'][index]), gives='rows')
    self.encode = lambda frozen, key, batch: (batch['x'], None)
    self.objective, self.draws = SimpleNamespace(loss=self.loss, name='mixed'), True
    self.weights = Weights((), (), {})

  @staticmethod
  def loss(key, params, x0, cond, **unused):
    each = x0[:, 0] + jax.random.normal(key, x0.shape[:1])
    return each.mean(), dict(each=each)


def dataset(t, target=''):
  return Dataset(dict(numbers=t.numbers, categories=t.categories), dict(columns=list(t.columns), target=target))


def test_rows_of_both_sides_get_the_same_noise_and_every_row_its_own():
  sides, run = [mixed(n, k) for k, n in enumerate((30, 26))], Drawn(mixed(5, 5), 8)
  rows = np.arange(26)[::-1]
  noise = [tables.row_losses(run, run.weights, dataset(t), rows, 0) - t.numbers[rows, 0] for t in sides]
  np.testing.assert_allclose(*noise, atol=1e-5)
  assert len(np.unique(np.round(noise[0], 4))) == 26 and abs(np.std(noise[0]) - 1 / 4) < .12  # of 16 draws
  run.objective.loss = lambda key, params, x0, cond, **unused: (jnp.zeros(()), {})
  assert tables.row_losses(run, run.weights, dataset(sides[0]), rows, 0) is None


def test_an_evaluation_gives_a_record_and_pages(tmp_path, monkeypatch):
  train, heldout, drawn = mixed(90, 0), mixed(60, 1), mixed(70, 2)
  run, given = Drawn(drawn, 32), dict(table=dict(numbers=drawn.numbers.astype(np.float32),
                                                 categories=drawn.categories))
  monkeypatch.setattr(tables.requests, 'of_config', lambda run: {})
  monkeypatch.setattr(tables.requests, 'ask', lambda run, request, ids, seed: SimpleNamespace(cond=None))
  monkeypatch.setattr(tables.sampling, 'make_draw', lambda *args: lambda weights, ids, cond: (given, None))
  data = Source(dataset(train, 'c2'), dataset(heldout, 'c2'))
  assert EVALUATORS['tables'].needs(run, data) == ''
  measured = EVALUATORS['tables'].measure(run, run.weights, data, tmp_path, lambda label, text: None)
  expected = tables.compare(train, heldout, drawn, None, 'c2', 0).sides
  assert {k: e for k, e in measured.metrics.items() if not k.startswith('attack')} == expected['ours']
  assert set(measured.metrics) - set(expected['ours']) == {'attack_auc'}  # too few rows held out for attack_tpr
  assert measured.heldout['tstr'] == expected['real']['tstr'] and measured.heldout['tstr'].value > .6
  made = report._record([measured], {}, ())
  json.dumps(made, allow_nan=False)
  text = report.table(made)
  assert '| nearer_to_train | lower |' in text and '| tstr_ratio | higher |' in text and 'no proof' in text
  assert record.differences(made, made, 'tstr') == []
  for name in ('columns', 'pairs', 'privacy'):
    assert np.asarray(Image.open(tmp_path / f'{name}.png').convert('L')).std() > 10
  rows = (tmp_path / 'baselines.md').read_text().splitlines()
  assert rows[0] == '| figure | better | ours | independent | copula | real |'
  assert f'| tstr | higher | {expected["ours"]["tstr"].value:.3f}' in '\n'.join(rows)


def test_what_cannot_be_measured_is_left_out_with_its_reason():
  run, data = Drawn(mixed(5, 0), 8), Source(dataset(mixed(40, 0)), dataset(mixed(19, 1)))
  needs = EVALUATORS['tables'].needs
  assert needs(run, data) == 'it needs at least 20 held-out rows'
  run.task.gives = 'points'
  assert 'the samples are points, not tables' in needs(run, data)
  run.draws = False
  assert 'mixed draws nothing' in needs(run, data)


def test_dates_are_dates_under_their_axis():
  from matplotlib.figure import Figure
  axes, column = Figure().subplots(), dict(form='date', origin='2021-01-01T00:00:00', per_day=1, padded=True,
                                           date='%d.%m.%Y', kind='number')
  table_pages._numbers(axes, np.arange(1., 32.), np.arange(1., 32.), column | dict(name='visit'))
  assert [label.get_text() for label in axes.get_xticklabels()] == ['02.01.2021', '01.02.2021']


def test_names_of_columns_are_written_as_they_are():
  assert table_pages.short('cost in $ and $', 30) == r'cost in \$ and \$'
  assert table_pages.short('a long name\nof a column', 12) == 'a long name…'
  names = ['$x_', 'a\nb', '日本', '^$']
  t = table(np.random.default_rng(0).normal(size=(30, 4)))
  t = t._replace(columns=tuple(c | dict(name=name) for c, name in zip(t.columns, names)))
  drawn = gaussian_copula(t, 30, np.random.default_rng(0))
  assert table_pages.columns(drawn, t, dict.fromkeys(names, 0.)).startswith(b'\x89PNG')
  assert table_pages.pairs(drawn, t).startswith(b'\x89PNG')
