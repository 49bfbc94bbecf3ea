"""Tables that are refused, each with one line; which rows are held out; tables that packages ship; wide tables."""
import collections
import importlib
import sys

import numpy as np
import pytest
from sklearn import datasets

from diffusion.data import tables
from diffusion.data.dataset import describe, fingerprint
from diffusion.errors import InputError

GOOD = 'a,b\n' + ''.join(f'{i % 7}.5,{"xyz"[i % 3]}\n' for i in range(30))


@pytest.mark.parametrize('content, options, message', [
  ('', {}, 'the file is empty'), ('a,b\n', {}, 'a header and no rows; expected at least 10'),
  ('a,b\n1,2\n3,4\n', {}, '2 rows; expected at least 10'),
  (GOOD + '1,2,3\n', {}, r"line 32: 3 fields, expected the 2 of the header \(separator ','\)"),
  (GOOD + '\n\n"1"\n', {}, 'line 34: 1 field, expected the 2'),
  (GOOD.replace('a,b', 'a,a'), {}, "line 1: columns 1 and 2 are both called 'a'"),
  (GOOD.replace('a,b', '1,2'), {}, 'line 1: 1, 2, ..: numbers where names'),
  (GOOD + '"1,x', {}, 'line 32: not readable as CSV'), ('hello\n' * 20, {}, 'one column found'),
  (b'PK\3\4\0\0\x81' * 40, {}, 'not a text file'),
  (GOOD.encode('utf-16')[2:], {}, 'not a text file, it holds zero bytes'),
  (GOOD, dict(target='outcome'), "target: unknown 'outcome'; valid: a, b"),
  (GOOD, dict(drop='bb'), "drop: unknown 'bb'; did you mean 'b'"), (GOOD, dict(drop=('a', 'b')), 'no column is left'),
  (GOOD, dict(categories='a', numbers='a'), "'a' is in categories= and in numbers="),
  (GOOD, dict(numbers='b'), 'numbers=b: no numbers in one format'),
  (GOOD.replace(',', ',k,'), dict(target='k'), "target='k' is the same in all rows"),
  ('id,b\n' + ''.join(f'{i},{i % 3}\n' for i in range(30)), dict(target='id'), "target='id' is different in nearly"),
  ('d,b\n' + ''.join(f'{1 + i % 12}/{1 + i % 11}/2025,{i % 3}\n' for i in range(30)), {},
   "column 'd': 12/1/2025 may be 2025-01-12 or 2025-12-01; write dates as 2025-12-31"),
  ('d,b\n' + ''.join(f'1e{300 + i},{i % 3}\n' for i in range(30)), {}, "column 'd': 1e309 is too large"),
  (GOOD, dict(heldout=30), 'leaves none'), (GOOD, dict(seed=-1), 'seed=-1'),
], ids=range(22))
def test_a_table_that_cannot_be_used_is_one_clear_line(tmp_path, content, options, message):
  path = tmp_path / 'table.csv'
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(InputError, match=message) as error:
    tables.csv(str(path), **options)
  assert '\n' not in str(error.value) and 'table.csv' in str(error.value)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(InputError, match='none.csv: no such file'):
    tables.csv(str(tmp_path / 'none.csv'))


def test_a_column_without_a_name_is_called_by_its_number(tmp_path):
  (tmp_path / 'a.csv').write_text(GOOD.replace('a,b', ',b'))
  source = tables.csv(str(tmp_path / 'a.csv'))
  assert source.train.facts['columns'][0]['name'] == 'column 1' and 'column 1' in source.notes[0]


def test_which_rows_are_held_out_is_a_matter_of_their_content(tmp_path):
  rows = [f'{i % 40 / 4},{"xyz"[i % 40 % 3]},{"" if i % 40 % 5 else i % 40}\n' for i in range(120)]  # each three times
  def split(order):
    (tmp_path / 'a.csv').write_text('a,b,c\n' + ''.join(rows[i] for i in order))
    sides = tables.csv(str(tmp_path / 'a.csv'))[:2]
    return [collections.Counter((*a, b) for a, b in zip(np.nan_to_num(side.arrays['numbers'], nan=-1).tolist(),
                                                        side.arrays['categories'][:, 0].tolist())) for side in sides]
  train, held = split(range(120))
  assert held.total() == 40 and train.total() == 80
  assert split(np.random.default_rng(0).permutation(120)) == [train, held]
  # Equal rows are split like others, or a table of few values would have no fair sample: with 80 of 120 rows to train
  # on, each of the three is with probability 2/3; all together are in 3 of 10 cases, and not in all.
  together = sum(count in (0, 3) for count in map(train.get, train | held))
  assert 4 <= together <= 24


@pytest.mark.parametrize('name, load, target', [
  ('breast_cancer', datasets.load_breast_cancer, 'diagnosis'),
  ('diabetes', lambda: datasets.load_diabetes(scaled=False), 'progression')])
def test_shipped_tables_are_those_of_the_package(name, load, target):
  source, truth = tables.patients(name), load()
  by_name = dict(zip(truth.feature_names, truth.data.T)) | {target: truth.target}
  for column in source.train.facts['columns']:
    values = np.concatenate([side.arrays['numbers' if column['kind'] == 'number' else 'categories'][:, column['place']]
                             for side in source[:2]])
    if column['kind'] == 'number':
      np.testing.assert_allclose(np.sort(values), np.sort(by_name[column['name']]), rtol=1e-6)
    elif column['name'] == 'diagnosis':
      assert column['categories'] == ['benign', 'malignant'] and np.sum(values == 1) == np.sum(truth.target == 0) == 212
  assert source.train.facts['target'] == target and len(source.train.facts['columns']) == truth.data.shape[1] + 1
  assert fingerprint(tables.patients(name)) == fingerprint(source)


def test_the_file_of_a_package_is_read_without_running_it(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, 'path', [str(tmp_path)])
  monkeypatch.delitem(sys.modules, 'lifelines', raising=False)
  with pytest.raises(InputError, match='pip install lifelines'):
    tables.patients('gbsg2')
  (tmp_path / 'lifelines' / 'datasets').mkdir(parents=True)
  (tmp_path / 'lifelines' / '__init__.py').write_text('raise RuntimeError("imported")')
  rows = ''.join(f'{"yes" if i % 3 else "no"},{30 + i % 50},{"I" * (1 + i % 3)},{i % 2}\n' for i in range(200))
  (tmp_path / 'lifelines' / 'datasets' / 'gbsg2.csv').write_text('horTh,age,tgrade,cens\n' + rows)
  importlib.invalidate_caches()
  source = tables.patients('gbsg2')
  assert [c['kind'] for c in source.train.facts['columns']] == ['category', 'number', 'category', 'category']
  with pytest.raises(InputError, match=r"name='gbsg'\): expected one of breast_cancer, diabetes, gbsg2"):
    tables.patients('gbsg')


@pytest.mark.parametrize('make, count', [
  (lambda rng, n: rng.integers(0, 2, (n, 1000)), (0, 1000)), (lambda rng, n: rng.normal(size=(n, 5)).round(3), (5, 0)),
  (lambda rng, n: rng.choice(['a', 'b', 'c'], (n, 4)), (0, 4))], ids=['1000 binary', 'numbers', 'categories'])
def test_wide_tables_and_tables_of_one_kind(tmp_path, make, count):
  values = make(np.random.default_rng(0), 200)
  text = '\n'.join(','.join(map(str, row)) for row in [[f'c{i}' for i in range(values.shape[1])], *values.tolist()])
  (tmp_path / 'a.csv').write_text(text)
  source = tables.csv(str(tmp_path / 'a.csv'), heldout=0)
  kind = 'numbers' if count[0] else 'categories'
  assert (source.train.arrays['numbers'].shape[1], source.train.arrays['categories'].shape[1]) == count
  decoded = source.train.arrays[kind]
  if not count[0]:
    decoded = np.array([c['categories'] for c in source.train.facts['columns']])[np.arange(count[1]), decoded]
  np.testing.assert_array_equal(decoded, values.astype(float if count[0] else str))
  assert any('repeats them' in note for note in source.notes) == (count[1] == 1000)
  lines = describe(source).splitlines()
  assert len(lines) < 6 and max(map(len, lines)) < 260 and f'{sum(count)} columns' in lines[0]


@pytest.mark.parametrize('target', ['rare', 'x'])
def test_each_value_of_the_target_is_held_out_in_the_same_share(tmp_path, target):
  rng = np.random.default_rng(0)
  lines = [f'{x:.3f},{"yes" if i % 50 == 0 else "no"}' for i, x in enumerate(rng.normal(size=600))]
  (tmp_path / 'a.csv').write_text('\n'.join(['x,rare', *lines, '']))
  train, held = tables.csv(str(tmp_path / 'a.csv'), target=target, heldout=.25)[:2]
  assert len(held.arrays['numbers']) == 150
  if target == 'rare':
    yes = train.facts['columns'][1]['categories'].index('yes')
    assert [int((side.arrays['categories'] == yes).sum()) for side in (train, held)] == [9, 3]
  else:  # a random quarter would have medians that differ by .09
    assert abs(np.median(train.arrays['numbers']) - np.median(held.arrays['numbers'])) < .05
