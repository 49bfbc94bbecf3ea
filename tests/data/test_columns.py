"""Named columns of any kind: texts, ragged and plain arrays stay together through splits, batches and workers."""
from functools import partial

import numpy as np
import pytest

from diffusion.data.dataset import check, Dataset, describe, read_batch, size, Source, take
from diffusion.data.holdout import split
from diffusion.data.prefetch import feed, used_columns
from diffusion.data.ragged import Ragged, ragged
from diffusion.errors import InputError

RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(1, 7, 40)
EXAMPLES = [RNG.normal(size=(n, 3)).astype(np.float32) + i for i, n in enumerate(LENGTHS)]
TEXT = np.dtypes.StringDType()
DATA = Dataset(dict(atoms=ragged(EXAMPLES), texts=np.array([f'molecule {i}' for i in range(40)], TEXT),
                    energy=np.arange(40.), kinds=np.arange(40, dtype=np.int32) % 3), dict(classes=('a', 'b', 'c')))


def same_rows(data, numbers):
  """Whether the i-th example of the data is the numbers[i]-th of DATA, in every column."""
  return all(np.array_equal(data.arrays['atoms'][i], EXAMPLES[n]) and data.arrays['texts'][i] == f'molecule {n}'
             and data.arrays['energy'][i] == n and data.arrays['kinds'][i] == n % 3 for i, n in enumerate(numbers))


def test_a_ragged_column_gives_the_examples_it_was_made_of():
  column = ragged(EXAMPLES)
  assert len(column) == 40 and np.array_equal(column[-1], EXAMPLES[-1])
  for key in (slice(3, 20, 4), np.array([5, 5, 0, 39]), LENGTHS == 2):
    chosen = [EXAMPLES[i] for i in np.arange(40)[key]]
    part = column[key]
    assert len(part) == len(chosen) and all(np.array_equal(part[i], b) for i, b in enumerate(chosen))
  assert len(column[:0]) == 0 and column[:0].values.shape == (0, 3)


def test_examples_without_values_are_kept_and_indices_out_of_range_are_not():
  column = ragged([EXAMPLES[0], EXAMPLES[0][:0], EXAMPLES[1]])
  again = column[np.array([1, 2, 1, 0])]
  assert again.lengths.tolist() == [0, LENGTHS[1], 0, LENGTHS[0]]
  assert np.array_equal(again[1], EXAMPLES[1]) and np.array_equal(again[3], EXAMPLES[0])
  for key in (3, np.array([0, 3])):
    with pytest.raises(IndexError):
      column[key]


def test_padding_adds_zeros_and_the_mask_says_where():
  values, mask = ragged(EXAMPLES).padded(9)
  assert values.shape == (40, 9, 3) and mask.sum() == LENGTHS.sum() and not values[~mask].any()
  np.testing.assert_array_equal(values[mask], np.concatenate(EXAMPLES))
  assert ragged(EXAMPLES).padded()[0].shape[1] == LENGTHS.max()
  with pytest.raises(InputError, match=f'{LENGTHS.max()} entries, more than the 3'):
    ragged(EXAMPLES).padded(3)


@pytest.mark.parametrize('offsets', [[0, 2, 1, 3], [1, 3], [0, 2], [0., 3.], []])
def test_offsets_that_do_not_fit_are_refused(offsets):
  with pytest.raises(InputError, match='offsets of a ragged column'):
    Ragged(np.zeros((3, 2)), np.array(offsets))


def test_all_columns_follow_their_examples_through_take_and_split():
  assert same_rows(take(DATA, np.array([7, 3, 3])), [7, 3, 3]) and same_rows(DATA, range(40))
  source = split(DATA, 10, 0, 'x')
  train, held = ([int(e) for e in side.arrays['energy']] for side in source[:2])
  assert sorted(train + held) == list(range(40)) and len(held) == 10
  assert same_rows(source.train, train) and same_rows(source.heldout, held) and source.train.facts == DATA.facts
  order = RNG.permutation(40)
  again = split(take(DATA, order), 10, 0, 'x')
  assert sorted(again.heldout.arrays['energy']) == sorted(held)  # decided by content


@pytest.mark.parametrize('more', [dict(), dict(labels=np.arange(40, dtype=np.int32) // 20)], ids=['alone', 'labelled'])
def test_equal_examples_stay_on_one_side_whatever_their_label(more):
  columns = dict(atoms=ragged(EXAMPLES[:20] * 2), texts=np.array([f't{i % 20}' for i in range(40)], TEXT))
  source = split(Dataset(columns | more, dict(classes=('a', 'b'))), 12, 3, 'x')
  trained, held = (set(side.arrays['texts']) for side in source[:2])
  assert held and not trained & held


def held_numbers(**columns):
  """The numbers of the examples that are held out, by a column that takes no part in the decision."""
  count = len(next(iter(columns.values())))
  numbers = np.arange(count, dtype=np.int32)
  data = Dataset(columns | dict(labels=numbers), dict(classes=tuple(map(str, range(count)))))
  return set(split(data, count // 2, 1, 'x').heldout.arrays['labels'].tolist())


def test_what_differs_in_one_place_only_is_told_apart():
  """Examples that were taken for equal would all be on one side, and none would be left to train on."""
  texts = np.full((8, 1500), 'a', TEXT)  # so many that NumPy abbreviates them in print
  texts[np.arange(8), 700 + np.arange(8)] = 'b'
  assert len(held_numbers(texts=texts)) == 4
  assert len(held_numbers(values=(texts == 'b').astype(np.float32))) == 4
  zeros = np.zeros(8, np.float32)
  assert len(held_numbers(atoms=ragged([zeros[:n] for n in range(8)]))) == 4  # by lengths alone


def test_where_one_text_ends_and_the_next_begins_counts():
  firsts, seconds = zip(*[('a' * n, 'a' * (8 - n)) for n in range(8)])
  assert len(held_numbers(one=np.array(firsts, TEXT), other=np.array(seconds, TEXT))) == 4


def test_columns_of_different_lengths_are_named():
  with pytest.raises(InputError, match='mine: 39 energy for 40 atoms; give one for each'):
    check(DATA._replace(arrays=DATA.arrays | dict(energy=np.arange(39))), 'mine')


@pytest.mark.parametrize('data, message', [
  (Dataset({}), 'without columns'),
  (Dataset(dict(x=np.arange(2)), dict(mean=np.float32(1))), 'the fact mean=.* JSON'),
  (Dataset(dict(x=np.arange(2)), dict(scale=[1., np.nan])), 'the fact scale=.* JSON'),
  (Dataset(dict(x=np.arange(2), labels=np.array([0, 2])), dict(classes=('a', 'b'))),
   'label 2 of example 1 .*2 classes')])
def test_what_is_no_data_set_is_refused_by_name(data, message):
  with pytest.raises(InputError, match=f'mine: .*{message}'):
    check(data, 'mine')


def test_the_description_fits_any_data():
  text = describe(Source(DATA, take(DATA, slice(4))))
  low, high = np.concatenate(EXAMPLES).min(), np.concatenate(EXAMPLES).max()
  assert text.splitlines()[0] == f'atoms     40 for training, 4 held out, 3 float32, values {low:.3g} to {high:.3g}'
  texts = describe(Source(Dataset(dict(texts=DATA.arrays['texts'])), take(DATA, slice(0))))
  assert texts.startswith('texts     40 for training, 0 held out, texts')
  long = Dataset(dict(trajectories=np.zeros((3, 2))))
  assert describe(Source(long, long)).startswith('trajectories 3 for training')


def batch_of(data, indices):
  atoms, mask = data.arrays['atoms'][indices].padded(8)
  return dict(atoms=atoms, mask=mask, energy=data.arrays['energy'][indices])


def test_a_batch_reads_only_the_columns_it_needs():
  assert used_columns(batch_of, DATA) == {'atoms', 'energy'}


@pytest.mark.parametrize('every', [
  lambda data, i: {name: column[i] for name, column in data.arrays.items()},
  lambda data, i: {name: data.arrays[name][i] for name in data.arrays},
  lambda data, i: dict(**data.arrays),
  lambda data, i: take(data, i).arrays])
def test_no_way_of_reading_all_columns_goes_unnoticed(every):
  assert used_columns(every, DATA) == set(DATA.arrays)


def test_a_column_that_is_read_only_if_it_is_there_is_noticed():
  optional = lambda data, i: data.arrays['energy'][i] if 'energy' in data.arrays else data.arrays.get('none')
  assert used_columns(optional, DATA) == {'atoms', 'energy'}
  assert used_columns(optional, take(DATA, slice(3))._replace(arrays=dict(texts=DATA.arrays['texts']))) == {'texts'}


def test_batches_read_ahead_are_those_of_the_task():
  source = feed(partial(read_batch, batch_of, DATA, 16, 5, np.arange(16)), 0, 4, lambda batch: batch)
  for step in range(4):
    batch = source.next()
    for name, values in read_batch(batch_of, DATA, 16, 5, np.arange(16), step).items():
      np.testing.assert_array_equal(batch[name], values)
  source.close()
  assert size(DATA) == 40
