"""The task of tables: rows to x0 and back, what is given in training, files, and what is kept of the data."""
import csv
import json

from etils import epath
import jax
import numpy as np
import pytest

from diffusion.data import tables
from diffusion.data.csv_text import Texts
from diffusion.data.dataset import Dataset, take
from diffusion.errors import InputError
from diffusion.system import tensors
from diffusion.tasks import table_page, table_text
from diffusion.tasks.quantiles import ends
from diffusion.tasks.table import table

N = 400
RNG = np.random.default_rng(0)
TEXTS = dict(
  number=[str(i) for i in range(7, 7 + N)], age=[str(a) for a in RNG.integers(20, 91, N)],
  site=['A 1'] * N, weight=[f'{w:.1f} kg' if k else '' for w, k in zip(RNG.normal(70, 12, N), RNG.random(N) > .2)],
  visit=[(np.datetime64('2021-03-05') + np.timedelta64(int(k), 'D')).item().strftime('%d.%m.%Y')
         for k in RNG.integers(0, 700, N)],
  stage=RNG.choice(['I', 'II', 'III', ''], N).tolist(), note=[''] * N,
  lab=[f'{v:.3f}' for v in RNG.lognormal(0, 1, N)], outcome=RNG.choice(['malignant', 'benign'], N).tolist())
SOURCE = tables.from_texts(Texts(list(TEXTS), list(map(tuple, TEXTS.values())), [], ';', 'utf-8-sig'), 'outcome',
                           heldout=0)
TRAIN, TASK = SOURCE.train, table(data=SOURCE.train)
EVERY = TASK.batch(TRAIN, np.arange(N))
ENCODE = jax.jit(lambda key, batch: TASK.encode((), key, batch))
PLAIN = jax.jit(lambda batch: TASK.encode((), None, batch))
DECODE = jax.jit(lambda x0, cond: TASK.decode((), x0, cond))


def noise(n, seed=0):
  """An x0 that knows nothing: N(0, 1) and even categories."""
  rng = np.random.default_rng(seed)
  return dict(numbers=rng.normal(size=(n, 4)).astype(np.float32),
              categories=np.stack([rng.integers(0, size, n) for size in TASK.categories], 1).astype(np.int32))


@pytest.mark.parametrize('key', [None, 0, 1], ids=['no randomness', 'drawn', 'drawn again'])
def test_rows_come_back_as_they_were_and_stored_facts_are_enough(key):
  x0, cond = PLAIN(EVERY) if key is None else ENCODE(jax.random.key(key), EVERY)
  assert jax.tree.map(lambda a: (a.shape, str(a.dtype)), x0) == dict(
    numbers=((N, 4), 'float32'), categories=((N, 3), 'int32'))
  assert TASK.categories == (4, 2, 2)  # stage with missing, outcome, the flag of weight
  stored = table(facts=json.loads(json.dumps(TASK.facts)), fitted=tensors.from_text(tensors.to_text(TASK.fitted)))
  for decode in (DECODE, jax.jit(lambda x0, cond: stored.decode((), x0, cond))):
    out = decode(x0, cond)['table']
    np.testing.assert_allclose(out['numbers'], TRAIN.arrays['numbers'], rtol=1e-6)
    np.testing.assert_array_equal(out['categories'], TRAIN.arrays['categories'])
  np.testing.assert_array_equal(x0['categories'][:, 2], np.isnan(TRAIN.arrays['numbers'][:, 1]))


def test_a_missing_number_is_fresh_noise_in_training_and_0_without_randomness():
  gone = np.isnan(TRAIN.arrays['numbers'][:, 1])
  assert np.all(np.asarray(PLAIN(EVERY)[0]['numbers'])[gone, 1] == 0)
  a, b = (np.asarray(ENCODE(jax.random.key(k), EVERY)[0]['numbers'])[gone, 1] for k in (0, 1))
  assert abs(a.mean()) < .5 and abs(a.std() - 1) < .3 and abs(np.corrcoef(a, b)[0, 1]) < .4


def test_a_request_and_its_rows_are_exported_for_any_number_of_rows():
  x0, (cond, _) = noise(5), TASK.ask(dict(given='age=50, outcome=benign'), np.arange(5), 0)[:2]
  batch, = jax.export.symbolic_shape('batch')
  shape = lambda a: jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype)
  exported = jax.export.export(DECODE)(jax.tree.map(shape, x0), jax.tree.map(shape, cond))
  jax.tree.map(np.testing.assert_array_equal, exported.call(x0, cond), DECODE(x0, cond))


def test_without_randomness_and_by_null_nothing_is_given():
  for cond in (PLAIN(EVERY)[1], TASK.null(ENCODE(jax.random.key(0), EVERY)[1]), TASK.ask({}, np.arange(3), 0).cond):
    assert not np.any(cond['cond']) and np.all(np.asarray(cond['x_mask']) == 1)
  assert TASK.null(None) is None and TASK.ask({}, np.arange(3), 0).labels is None


def test_training_gives_columns_at_random_the_target_alone_in_a_quarter_and_features_are_theirs():
  many = jax.tree.map(lambda a: np.tile(a, (25, 1)), EVERY)
  x0, cond = jax.device_get(ENCODE(jax.random.key(3), many))
  given, gone = cond['x_mask'] == 0, np.tile(np.isnan(TRAIN.arrays['numbers']), (25, 1))
  columns = given[:, :6]
  alone = (columns == (np.arange(6) == 5)).all(1)  # the outcome, the second of the categories after four numbers
  # alone by chance: the integral of u (1 - u)^5 is 1/42; all by chance, 1/7, becomes none
  assert alone.mean() == pytest.approx(.25 + .75 / 42, abs=.02)
  expected = .75 * (1 / 2 - 1 / 7) + .25 * (np.arange(6) == 5)
  np.testing.assert_allclose(columns.mean(0), expected, atol=.02)
  assert not columns.all(1).any()
  flag = given[:, 6]
  assert flag[columns[:, 1]].all()                       # a number and its flag are given together
  assert not (flag & ~columns[:, 1])[gone[:, 1]].any()   # and only of those that are there, a flag alone
  assert .05 < (flag & ~columns[:, 1]).mean() < .3
  z, present, one_hot = np.split(cond['cond'], [4, 8], 1)
  np.testing.assert_array_equal(present, given[:, :4] & ~gone)
  np.testing.assert_array_equal(z, np.where(present > 0, x0['numbers'], 0))
  start = 0
  for k, size in enumerate(TASK.categories):
    truth = np.eye(size)[x0['categories'][:, k]] * given[:, 4 + k, None]
    np.testing.assert_array_equal(one_hot[:, start:start + size], truth)
    start += size


def test_what_is_given_is_kept_whatever_is_drawn_beside_it():
  x0, cond = jax.device_get(ENCODE(jax.random.key(5), EVERY))
  out, free = (jax.device_get(DECODE(noise(N), c))['table'] for c in (cond, TASK.null(cond)))
  given = cond['x_mask'] == 0
  np.testing.assert_allclose(out['numbers'][given[:, :4]], TRAIN.arrays['numbers'][given[:, :4]], rtol=1e-6)
  np.testing.assert_array_equal(out['categories'][given[:, 4:6]], TRAIN.arrays['categories'][given[:, 4:6]])
  for d in (0, 2, 3):
    np.testing.assert_array_equal(out['numbers'][~given[:, d], d], free['numbers'][~given[:, d], d])
  np.testing.assert_array_equal(out['categories'][~given[:, 4:6]], free['categories'][~given[:, 4:6]])


def test_a_column_that_is_given_changes_nothing_else_in_the_condition():
  """The entries of two different rows agree wherever the same columns with the same values are given."""
  one, other = (TASK.ask({'given': text}, np.arange(1), 0).cond for text in ('age=50', 'age=50, outcome=benign'))
  differ = np.flatnonzero(one['cond'][0] != other['cond'][0])
  assert list(differ) == [8 + 4 + TRAIN.facts['columns'][-1]['categories'].index('benign')]
  assert np.flatnonzero(one['x_mask'][0] != other['x_mask'][0]).tolist() == [5]


def test_files_have_the_columns_and_formats_of_the_source(tmp_path):
  out = jax.device_get(DECODE(*PLAIN(EVERY)))
  TASK.save(epath.Path(tmp_path), out, None, None)
  content = (tmp_path / 'table.csv').read_bytes()
  assert content.startswith('\ufeffnumber;age;site;weight;visit'.encode())
  rows = list(csv.reader(content.decode('utf-8-sig').splitlines(), delimiter=';'))
  truth = dict(TEXTS, number=[str(i + 1) for i in range(N)])  # identifiers are numbered anew
  assert rows[0] == list(truth)
  for name, column in zip(rows[0], zip(*rows[1:])):
    assert [text.replace('.0 kg', ' kg') for text in column] == [text.replace('.0 kg', ' kg') for text in truth[name]]
  again = tables.csv(str(tmp_path / 'table.csv'), 'outcome', heldout=0)
  assert again.train.facts == TRAIN.facts
  np.testing.assert_array_equal(again.train.arrays['numbers'], TRAIN.arrays['numbers'])
  with np.load(tmp_path / 'samples.npz') as arrays:
    assert arrays['numbers'].dtype == np.float32 and arrays['categories'].shape == (N, 2)
  found = table_text.as_columns(TASK.facts, out['table'])
  assert found['visit'].astype(str)[0][:10] == '-'.join(TEXTS['visit'][0].split('.')[::-1])
  np.testing.assert_array_equal(found['lab'], np.array(TEXTS['lab'], float))
  assert found['outcome'].tolist() == TEXTS['outcome'] and np.isnan(found['weight']).sum() == TEXTS['weight'].count('')


def test_no_row_is_in_what_a_checkpoint_keeps_and_no_number_of_a_row_in_the_facts():
  stored = tensors.to_text(TASK.fitted)
  text = json.dumps(dict(facts=TASK.facts, fitted=stored))
  assert not any(value in text for name in ('lab', 'visit') for value in set(TEXTS[name]) if len(value) > 4)
  assert not any(value.split()[0] in json.dumps(TASK.facts) for value in TEXTS['weight'] if value)
  knots = TASK.fitted['x']
  assert knots.shape == (4, 200)
  kept = np.concatenate([a.ravel() for a in TASK.fitted.values()]).astype(np.float64)
  values = TRAIN.arrays['numbers']
  for kind in (np.float64, np.float32):  # no two numbers of a row side by side, in the bytes as they are stored
    binary = kept.astype(kind).tobytes()
    assert not any(row[k:k + 2].astype(kind).tobytes() in binary for row in values for k in range(3))
  # a knot lies beside a patient's own number, one of 3 decimals that few share, no more often than by chance
  own, places = np.rint(values[:, 3] * 1000), np.rint(np.unique(knots[3]) * 1000 - .5)
  beside = lambda shift: np.mean(np.isin(places, own + shift) | np.isin(places + 1, own + shift))
  assert beside(0) < np.mean([beside(shift) for shift in range(-15, 16) if shift]) + .1


def test_the_outline_of_the_page_is_the_histogram_of_the_training_data():
  for d in range(4):
    x, z, step = (TASK.fitted[name][d] for name in ('x', 'z', 'step'))
    edges = table_page.edges_of(x, z, step)
    values = TRAIN.arrays['numbers'][:, d]
    values = values[~np.isnan(values)].clip(edges[0] + step / 4, edges[-1] - step / 4)
    truth = np.histogram(values, edges)[0] / len(values)
    assert truth.sum() == pytest.approx(1) and np.abs(table_page.shares(x, z, edges) - truth).max() < .02
    low, high = ends(TASK.fitted, d)
    assert edges[0] >= low - step and edges[-1] <= high + step * np.ceil((high - low) / step / 24 + 1)


def test_the_page_shows_samples_of_any_size_and_more_columns_than_it_holds():
  out = jax.device_get(DECODE(noise(30), None))
  labels = ['outcome=benign', 'outcome=malignant'] * 15
  plain, coloured = (np.asarray(TASK.show(out, some, 'Größe 你')) for some in (None, labels))
  colours = [len(np.unique(picture.reshape(-1, 3), axis=0)) for picture in (plain, coloured)]
  assert plain.shape[2] == 3 and colours[1] > colours[0]
  assert TASK.show(jax.tree.map(lambda a: a[:1], out), None, '').size[0] > 300


def test_huge_numbers_are_short_under_their_axis():
  from matplotlib.figure import Figure
  texts = tuple(f'{k}{"0" * 17}' for k in range(1, 41))
  source = tables.from_texts(Texts(['dose', 'big'], [tuple('31415' * 8), texts], []), heldout=0)
  task, axes = table(data=source.train), Figure().subplots()
  column = task.facts['columns'][1]
  table_page._histogram(axes, task.facts, task.fitted, column, source.train.arrays, [np.ones(40, bool)])
  labels = [label.get_text() for label in axes.get_xticklabels()]
  np.testing.assert_allclose(list(map(float, labels)), axes.get_xticks(), rtol=.01)
  assert max(map(len, labels)) < 12


@pytest.mark.parametrize('columns', [['age', 'lab'], ['stage', 'outcome']], ids=['numbers alone', 'categories alone'])
def test_tables_of_one_kind_of_column(columns):
  source = tables.from_texts(Texts(columns, [tuple(TEXTS[name]) for name in columns], []), heldout=0)
  task = table(data=source.train)
  batch = task.batch(source.train, np.arange(N))
  x0, cond = jax.jit(lambda batch: task.encode((), jax.random.key(0), batch))(batch)
  out = jax.device_get(jax.jit(lambda x0, cond: task.decode((), x0, cond))(x0, cond))
  for name, array in source.train.arrays.items():
    np.testing.assert_allclose(out['table'][name], array, rtol=1e-6)
  assert [row for row in zip(*table_text.rows(task.facts, out['table'])[1:])][1] == tuple(TEXTS[columns[1]])
  assert task.show(out, None, 'one kind').size[0] > 300


def test_a_thousand_binary_columns():
  values = np.random.default_rng(0).integers(0, 2, (64, 1000))
  source = tables.from_texts(Texts([f'c{i}' for i in range(1000)], [tuple(map(str, v)) for v in values.T.tolist()], []),
                             heldout=0)
  task = table(data=source.train)
  x0, cond = jax.jit(lambda batch: task.encode((), jax.random.key(0), batch))(task.batch(source.train, np.arange(64)))
  assert task.categories == (2,) * 1000 and cond['cond'].shape == (64, 2000)
  out = jax.device_get(jax.jit(lambda x0, cond: task.decode((), x0, cond))(
    dict(x0, categories=1 - x0['categories']), cond))['table']['categories']
  np.testing.assert_array_equal(out, np.where(np.asarray(cond['x_mask']) == 0, values, 1 - values))
  np.testing.assert_allclose(task.fitted['frequencies'].reshape(1000, 2)[:, 1], values.mean(0))


def test_data_that_are_no_table_and_other_fitted_numbers_are_refused():
  table()  # only checks its arguments
  with pytest.raises(InputError, match='needs the column numbers and categories'):
    table(data=Dataset(dict(points=np.zeros((5, 2)))))
  with pytest.raises(InputError, match='facts of columns'):
    table(data=Dataset(dict(numbers=np.zeros((5, 2)), categories=np.zeros((5, 0), np.int32))))
  other = table(data=take(tables.patients('diabetes').train, np.arange(50)))
  with pytest.raises(InputError, match='those of another table, not of one with 6 columns such as age'):
    table(data=TRAIN, fitted=other.fitted)
