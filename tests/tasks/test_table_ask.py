"""Requests for rows of a table: given columns, and files whose empty cells are filled."""
import re

import jax
import numpy as np
import pytest

from diffusion.data import tables
from diffusion.data.csv_text import Texts
from diffusion.errors import InputError
from diffusion.tasks import table_text
from diffusion.tasks.table import table
from tests.tasks.test_table import DECODE, N, noise, TASK, TEXTS

AWKWARD = table(data=tables.from_texts(Texts(
  ['a, b', 'x=y', "Crohn's"], [('p / q', 'r, s') * 20, ('"', 'ü') * 20, tuple(f'{i % 9},5' for i in range(40))], [],
  ';'), heldout=0).train)
ASKED_OF = lambda text, ids=4: TASK.ask(dict(given=text), np.arange(ids) if isinstance(ids, int) else ids, 0)


def drawn(asked, seed=0):
  """Rows of texts by column, of a draw under this condition."""
  number = len(asked.cond['x_mask'])
  header, *rows = table_text.rows(TASK.facts, jax.device_get(DECODE(noise(number, seed), asked.cond))['table'])
  return dict(zip(header, zip(*rows)))


@pytest.mark.parametrize('text, expected', [
  ('outcome=malignant', dict(outcome=['malignant'] * 4)),
  ('outcome = malignant / benign, age=50', dict(outcome=['malignant', 'benign'] * 2, age=['50'] * 4)),
  ('"outcome"="benign",weight=70.5 kg', dict(outcome=['benign'] * 4, weight=['70.5 kg'] * 4)),
  ('weight=70.5', dict(weight=['70.5 kg'] * 4)), ('weight=, stage=NA', dict(weight=[''] * 4, stage=[''] * 4)),
  ('visit=31.12.2021 / 1.2.2022', dict(visit=['31.12.2021', '01.02.2022'] * 2)),
  ('age=30 / 40 / 50, ', dict(age=['30', '40', '50', '30']))])
def test_given_columns_have_the_given_values_and_alternatives_take_turns(text, expected):
  asked = ASKED_OF(text)
  rows = drawn(asked)
  assert {name: list(rows[name]) for name in expected} == expected
  assert np.sum(asked.cond['x_mask'] == 0) == 4 * (len(expected) + ('weight' in expected))
  assert all(re.sub(r'[" ]', '', label) in re.sub(r'[" ]', '', text) or ' / ' in text for label in asked.labels)


def test_a_request_depends_on_the_id_alone():
  text = 'outcome=malignant / benign, age=30 / 40 / 50'
  few, many = ASKED_OF(text, np.array([7, 2])), ASKED_OF(text, 12)
  assert few.labels == [many.labels[7], many.labels[2]] == ['outcome=benign, age=40', 'outcome=malignant, age=50']
  for name, array in few.cond.items():
    np.testing.assert_array_equal(array, many.cond[name][[7, 2]])


def test_names_and_values_with_signs_are_quoted():
  asked = AWKWARD.ask(dict(given='''"a, b"="p / q" / "r, s", 'x=y'=ü, Crohn's=3.5'''), np.arange(2), 0)
  rng = np.random.default_rng(0)
  x0 = dict(numbers=rng.normal(size=(2, 1)).astype(np.float32), categories=np.zeros((2, 2), np.int32))
  rows = table_text.rows(AWKWARD.facts, jax.jit(lambda x0, cond: AWKWARD.decode((), x0, cond))(x0, asked.cond)['table'])
  assert rows == [['a, b', 'x=y', "Crohn's"], ['p / q', 'ü', '3,5'], ['r, s', 'ü', '3,5']]


@pytest.mark.parametrize('text, message', [
  ('outcom=benign', "column: unknown 'outcom'; did you mean 'outcome'? Valid: age, weight"),
  ('outcome=cured', "outcome: unknown 'cured'; valid: benign, malignant"),
  ('outcome', 'expected column=value, .., such as stage=I'), ('age=50, =3', 'expected column=value'),
  ('age=120', 'age=120 is outside the range of the training data, 20 to 90'),
  ('weight=heavy', "weight: 'heavy' is not a number such as 12.5 kg"),
  ('visit=2021-12-31', "visit: '2021-12-31' is not a date such as 31.12.2025"),
  ('visit=31.12.2031', 'visit=31.12.2031 is outside the range'), ('age=', 'age has no missing values'),
  ('age=50.5', "age: '50.5' has more decimals than the training data, 0; round it, such as 50"),
  ('age=inf', "'inf' is not a number"), ('age=50, age=60', "'age' is given twice"),
  ('site=A 1', "'site' is not in the model: it was an identifier, the same in all rows")])
def test_what_cannot_be_given_is_named(text, message):
  with pytest.raises(InputError, match=re.escape(message)):
    ASKED_OF(text)


def test_requests_are_texts_and_one_of_two():
  with pytest.raises(InputError, match='given=3: expected text'):
    TASK.ask(dict(given=3), np.arange(2), 0)
  with pytest.raises(InputError, match='use one of them'):
    TASK.ask(dict(given='age=50', impute='a.csv'), np.arange(2), 0)


def write(path, header, rows):
  path.write_text('\n'.join(';'.join(row) for row in [header, *rows]) + '\n')
  return str(path)


def test_known_cells_come_back_and_empty_ones_are_drawn(tmp_path):
  rng = np.random.default_rng(1)
  kept = {name: [text if rng.random() < .6 else '' for text in texts] for name, texts in TEXTS.items()}
  header = ['number', 'outcome', 'age', 'visit', 'weight', 'lab', 'stage']  # in another order, and not all
  path = write(tmp_path / 'holes.csv', header, list(zip(*(kept[name] for name in header))))
  asked = TASK.ask(dict(impute=path), np.arange(N), 0)
  one, other = drawn(asked, 0), drawn(asked, 1)
  for name in header[1:]:
    known = [k for k, text in enumerate(kept[name]) if text]
    same = lambda text: text.replace('.0 kg', ' kg')
    assert [same(one[name][k]) for k in known] == [same(kept[name][k]) for k in known]
    free = [k for k in range(N) if not kept[name][k]]
    assert np.mean([one[name][k] != other[name][k] for k in free]) > .3
  assert '' not in one['weight']  # a number to fill is not left missing
  assert asked.labels[:2] == ['row 1', 'row 2']
  again = TASK.ask(dict(impute=path), np.array([N + 3]), 0)
  for name, array in again.cond.items():
    np.testing.assert_array_equal(array[0], asked.cond[name][3])


def test_rows_of_others_may_lie_a_little_beyond_the_range(tmp_path):
  path = write(tmp_path / 'old.csv', ['age'], [['104'], ['3'], ['90']])  # a table of one column
  assert drawn(TASK.ask(dict(impute=path), np.arange(3), 0))['age'] == ('104', '3', '90')


@pytest.mark.parametrize('header, rows, message', [
  (['age', 'colour'], [['50', 'red']], "column: unknown 'colour'; valid: age, weight"),
  (['age', 'stage'], [['50', 'I'], ['50', 'IV']],
   "line 3: stage: unknown 'IV'; did you mean 'I'? Valid: I, II, III, (empty)"),
  (['age', 'stage'], [['50', 'I'], ['', ''], ['fifty', 'I']], "line 4: age: 'fifty' is not a number such as 12"),
  (['age', 'stage'], [['900', 'I']], 'line 2: age=900 is far outside the range of the training data, 20 to 90'),
  (['age', 'stage'], [['50', 'I', '3']], 'line 2: 3 fields, expected the 2'),
  (['age', 'stage'], [['NA', '']], 'nothing in it is known'), (['age', 'stage'], [], 'a header and no rows'),
  (['age', 'age'], [['50', '50']], "both called 'age'"),
  (['visit'], [['2021-01-01']], 'is not a date such as 31.12.2025')])
def test_a_file_that_does_not_fit_is_refused_by_its_line(tmp_path, header, rows, message):
  path = write(tmp_path / 'holes.csv', header, rows)
  with pytest.raises(InputError, match=re.escape(message)) as error:
    TASK.ask(dict(impute=path), np.arange(2), 0)
  assert 'holes.csv' in str(error.value) and '\n' not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
  with pytest.raises(InputError, match='none.csv: no such file'):
    TASK.ask(dict(impute=str(tmp_path / 'none.csv')), np.arange(2), 0)
