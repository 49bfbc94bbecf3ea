"""Tables from CSV files: what is found in them against what was written, and what is refused."""
import numpy as np
import pytest

from diffusion.data import columns, tables
from diffusion.errors import InputError

N = 60
RNG = np.random.default_rng(0)
AGES, DOSES = RNG.integers(20, 90, N), np.round(RNG.normal(70, 9, N), 1)
STAGES, DAYS = RNG.choice(['I', 'II', 'III', ''], N), np.datetime64('2020-03-01') + RNG.integers(0, 900, N)
HEADER = ['patient_id', 'age', 'dose', 'visit', 'stage', 'country', 'nothing', 'outcome']


def lines(date='%Y-%m-%d', decimal='.', unit=' mg'):
  """The rows of a table as lists of texts."""
  return [[str(1000 + i), str(AGES[i]), f'{DOSES[i]}{unit}'.replace('.', decimal), DAYS[i].item().strftime(date),
           STAGES[i], 'DE', '', ('yes', 'no')[i % 2]] for i in range(N)]


def write(path, rows, separator=',', encoding='utf-8', header=HEADER):
  quote = lambda text: f'"{text}"' if separator in text else text
  text = '\r\n'.join(separator.join(map(quote, row)) for row in [header, *rows]) + '\r\n'
  path.write_bytes(text.encode(encoding))
  return str(path)


def whole(source):
  """(numbers, categories) of both sides, in an order that does not depend on the split."""
  both = [np.concatenate([side.arrays[name] for side in source[:2]]) for name in ('numbers', 'categories')]
  order = np.lexsort(both[0].T[::-1])
  return [array[order] for array in both]


def found(texts, **options):
  """The only column of interest of a table in memory, and its values."""
  path = options.pop('folder') / 'table.csv'
  rows = [[text, str(i % 7)] for i, text in enumerate(texts)]
  source = tables.csv(write(path, rows, options.pop('separator', ','), header=['x', 'other']), heldout=0, **options)
  column = next((c for c in source.train.facts['columns'] if c['name'] == 'x'), None)
  return column, column and source.train.arrays[column['kind'].replace('number', 'numbers').replace(
    'category', 'categories')][:, column['place']], source


@pytest.mark.parametrize('separator, encoding, decimal, date', [
  (',', 'utf-8', '.', '%Y-%m-%d'), (';', 'utf-8-sig', ',', '%d.%m.%Y'), ('\t', 'utf-16', '.', '%m/%d/%Y'),
  ('|', 'cp1252', ',', '%d/%m/%Y'), (',', 'utf-8', ',', '%Y-%m-%d')])
def test_what_was_written_is_found_in_any_common_form(tmp_path, separator, encoding, decimal, date):
  path = write(tmp_path / 'patients.csv', lines(date, decimal, ' µg'), separator, encoding)
  source = tables.csv(path, target='outcome')
  facts = source.train.facts
  assert [c['name'] for c in facts['columns']] == ['age', 'dose', 'visit', 'stage', 'outcome']
  assert [c['kind'] for c in facts['left_out']] == ['identifier', 'constant', 'empty']
  assert facts['columns'][1]['after'] == ' µg' and facts['columns'][1]['decimals'] == 1
  numbers, categories = whole(source)
  passed = (DAYS - np.datetime64('2020-01-01')).astype(int)
  truth = np.stack([AGES, DOSES, passed], 1)
  order = np.lexsort(truth.T[::-1])
  np.testing.assert_allclose(numbers, truth[order], rtol=1e-12)
  names = [np.array(c['categories']) for c in facts['columns'][3:]]
  np.testing.assert_array_equal(names[0][categories[:, 0]], STAGES[order])
  np.testing.assert_array_equal(names[1][categories[:, 1]], np.array(['yes', 'no'])[order % 2])
  assert len(source.heldout.arrays['numbers']) == N // 3
  assert any('Windows-1252' in note for note in source.notes) == (encoding == 'cp1252')


@pytest.mark.parametrize('texts, numbers, field', [
  (['12.5 mg', '3.25 mg', '-4 mg'], [12.5, 3.25, -4], dict(after=' mg', decimals=2, least=0)),
  (['€ 30', '€ 1,250', '€ 7'], [30, 1250, 7], dict(before='€ ', thousands=',', decimals=0)),
  (['45 %', '7 %', '100 %'], [45, 7, 100], dict(after=' %')),
  (['1,234.50', '12.25', '10,000.00'], [1234.5, 12.25, 1e4], dict(thousands=',', least=2)),
  (['0.25', '7.50', '-500000.50'], [0.2, 7.5, -500000.5], dict(cut=True, decimals=1, least=2)),
  (['1e-3', '2.5E2', '7'], [.001, 250, 7], dict(decimals=3)),
  (["1'200", '15', "2'000'000"], [1200, 15, 2e6], dict(thousands="'")),
  (['.5', '-.25', '+3.'], [.5, -.25, 3], dict(decimals=2)),
  (['3', 'N/A', '5', 'null', '?', '-', 'NaN', '8', 'none', ''], [3, np.nan, 5, *[np.nan] * 4, 8, np.nan, np.nan],
   dict(missing=True)),
  (['1700000000', '1700000350', '1700081234'], [0, 350, 81234], dict(origin=1.7e9)),
  (['170000000012', '-5', '31'], [170000000012, -5, 31], dict(cut=True)),
  (['16777216', '-5', '31'], [16777216, -5, 31], dict(cut=None)),
  (['8:05', '23:59', '0:10'], [485, 1439, 10], dict(form='date', per_day=1440)),
  (['2025-01-31T10:00:05', '2025-02-01T00:00:00', '2025-01-01T00:00:09'], [2628005, 2678400, 9], dict(per_day=86400)),
  (['2000-01-01 00:00:07', '2025-06-01 10:11:12', '2012-02-03 04:05:06'], [7, 802087872, 381557106], dict(cut=True)),
  (['3 May 2025', '12 Jan 2025', '31 Dec 2025'], [122, 11, 364], dict(form='date', padded=False)),
], ids=lambda value: value[0] if isinstance(value, list) and isinstance(value[0], str) else '')
def test_numbers_are_read_as_they_are_meant_and_written_as_they_were(tmp_path, texts, numbers, field):
  column, values, _ = found(texts * 5, folder=tmp_path)
  assert column['kind'] == 'number' and {name: column.get(name) for name in field} == field
  np.testing.assert_allclose(values, numbers * 5, rtol=1e-12)
  again = [columns.to_number(column, columns.to_text(column, value)) for value in values]
  np.testing.assert_array_equal(again, values)
  if not any(sign in ''.join(texts) for sign in ('e-', '-.', '8:')) and not column.get('cut'):  # other spellings
    written = [columns.to_text(column, value) for value in values[:len(texts)]]
    assert written == ['' if np.isnan(number) else text for text, number in zip(texts, numbers)]


@pytest.mark.parametrize('separator, other, expected', [
  (';', '1,5', 1234.), (';', '7', 1234.), (',', '1.5', 1.234), ('\t', '2,5', 1234.), (',', '7', 1.234)])
def test_a_point_before_three_digits_is_what_the_rest_of_the_file_says(tmp_path, separator, other, expected):
  rows = list(zip(['1.234', '5.678', '9.012', '4.444'] * 5, [other, '3', '4', '6', '8'] * 4))
  source = tables.csv(write(tmp_path / 'a.csv', rows, separator, header=['x', 'y']), heldout=0)
  assert source.train.arrays['numbers'][0, 0] == expected


@pytest.mark.parametrize('texts, expected', [
  (['0', '1'], ['0', '1']), (['true', 'FALSE'], ['FALSE', 'true']), (['+', '-'], ['+', '-']),
  (['none', 'mild', 'NA'], ['mild', 'none', '']), (['01067', '00501', '01067'], ['00501', '01067']),
  (['T1', 'T2', 'T3'], ['T1', 'T2', 'T3']), (['5 mg', '2 g', '1 g'], ['1 g', '2 g', '5 mg']),
  (['10', '9', ''], ['9', '10', ''])])
def test_texts_and_two_valued_columns_are_categories(tmp_path, texts, expected):
  column, values, _ = found(texts * 8, folder=tmp_path)
  assert column['kind'] == 'category' and column['categories'] == expected
  assert [column['categories'][k] for k in values] == ['' if text == 'NA' else text for text in texts * 8]


@pytest.mark.parametrize('texts, kind', [
  ([str(i) for i in range(5, 35)], 'identifier'), ([f'note {i * i}' for i in range(30)], 'identifier'),
  (['x'] * 30, 'constant'), (['7'] * 30, 'constant'), ([''] * 30, 'empty'), (['NA', 'n/a', '?'] * 10, 'empty')])
def test_what_says_nothing_of_a_row_is_left_out_and_named(tmp_path, texts, kind):
  column, _, source = found(texts, folder=tmp_path)
  assert column is None and source.train.facts['left_out'] == [
    dict(name='x', kind=kind, text=texts[0] if kind == 'constant' else '', at=0)]
  assert sum(': x' in note for note in source.notes) == 1


def test_whole_numbers_that_are_all_different_are_identifiers_by_their_name_alone(tmp_path):
  rows = [[str(7 * i * i), str(11 * i * i), str(i % 3)] for i in range(30)]
  source = tables.csv(write(tmp_path / 'a.csv', rows, header=['patientId', 'uric acid', 'z']))
  assert [c['name'] for c in source.train.facts['left_out']] == ['patientId']


def test_the_user_overrules_what_is_found(tmp_path):
  texts = [f'{i * 7.5}' for i in range(30)] + ['unknown']
  with pytest.raises(InputError, match=r"'x': nearly all values are numbers, but 'unknown' \(row 31\) is.*numbers="):
    found(texts, folder=tmp_path)
  column, values, _ = found(texts, folder=tmp_path, numbers='x')
  assert column['missing'] and np.isnan(values[-1]) and values[1] == 7.5
  column, values, _ = found([str(i % 5) for i in range(30)], folder=tmp_path, categories=('x',))
  assert column['categories'] == list('01234') and values[6] == 1
  column, _, source = found([str(i % 5) for i in range(30)], folder=tmp_path, categories='[x, other]')
  assert [c['kind'] for c in source.train.facts['columns']] == ['category'] * 2
  column, _, _ = found([f'note {i}' for i in range(30)], folder=tmp_path, categories='x')
  assert len(column['categories']) == 30
  with pytest.raises(InputError, match=r"'x': nearly all values are numbers in several units \( g or  mg\); mend"):
    found([f'{i} {"mg" if i % 2 else "g"}' for i in range(40)], folder=tmp_path)
  assert found([f'{i} Road {i}' for i in range(40)], folder=tmp_path)[0] is None  # addresses
  assert found(['1', '2'] * 15, folder=tmp_path, drop='x')[0] is None
  assert found(['1', '2'] * 15, folder=tmp_path, drop='x')[2].train.facts['left_out'] == []
