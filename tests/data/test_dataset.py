"""Datasets, batches, scaling, splitting: identities that hold whatever the data."""
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.data.arrays import check_images, image_dataset, images_batch
from diffusion.data.dataset import batch_indices, condition_vectors, describe, padded_batches, size, Source, take
from diffusion.data.holdout import by_part, split
from diffusion.errors import InputError


def random_images(count, size=4, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def unlabelled(images):
  return image_dataset(images, np.zeros(len(images), np.int32))


@pytest.mark.parametrize('n,batch', [(10, 3), (7, 7), (5, 12), (1, 4), (64, 16)])
def test_batches_in_a_row_visit_every_example_once_per_epoch(n, batch):
  epochs = 6
  stream = np.concatenate([batch_indices(n, batch, 3, step) for step in range(-(-n * epochs // batch))])
  for epoch in stream[:n * epochs].reshape(epochs, n):
    assert sorted(epoch) == list(range(n))


def test_a_batch_depends_on_its_step_and_not_on_the_calls_before():
  forwards = {step: batch_indices(50, 8, 1, step) for step in range(40)}
  for step in reversed(range(40)):
    assert np.array_equal(batch_indices(50, 8, 1, step), forwards[step])
  assert forwards[0].dtype == np.int64


def test_the_stream_does_not_depend_on_the_batch_size():
  join = lambda batch: np.concatenate([batch_indices(30, batch, 5, step) for step in range(120 // batch)])
  assert np.array_equal(join(8), join(40))


def test_epochs_and_seeds_give_other_orders():
  orders = {tuple(batch_indices(100, 100, seed, epoch)) for seed in range(3) for epoch in range(4)}
  assert len(orders) == 12


def test_positions_of_a_permutation_are_uniform():
  # Chi-square of where example 0 comes, over 2,000 epochs: mean 9, standard deviation sqrt(18).
  places = [int(np.argmin(batch_indices(10, 10, 0, epoch))) for epoch in range(2000)]
  counts = np.bincount(places, minlength=10)
  assert ((counts - 200) ** 2 / 200).sum() < 9 + 5 * 18 ** .5


def test_a_far_step_costs_one_permutation():
  assert batch_indices(1000, 64, 0, 10**9).max() < 1000


@pytest.mark.parametrize('arguments', [(0, 4, 0, 0), (4, 0, 0, 0), (4, 4, -1, 0), (4, 4, 0, -1)])
def test_impossible_batches_are_refused(arguments):
  with pytest.raises(InputError, match='batch_indices'):
    batch_indices(*arguments)


@pytest.mark.parametrize('n, size', [(7, 3), (6, 3), (2, 5), (1, 1), (0, 4)])
def test_padded_batches_cover_every_index_once_and_are_filled_up_with_the_last(n, size):
  batches = list(padded_batches(n, size))
  assert [len(indices) for indices, _ in batches] == [size] * -(-n // size)
  assert np.concatenate([[], *(indices[:count] for indices, count in batches)]).tolist() == list(range(n))
  assert all((indices[count:] == n - 1).all() for indices, count in batches)


@pytest.mark.parametrize('xp', [np, jnp])
def test_context_of_class_indices_is_one_hot_and_vectors_pass(xp):
  rows = np.asarray(condition_vectors(xp.array([2, 0, 1]), ('a', 'b', 'c')))
  assert rows.dtype == np.float32
  assert np.array_equal(rows, np.eye(3)[[2, 0, 1]])
  mixed = np.array([[.5, .5, 0], [0, 2, -1]], np.float32)
  assert np.array_equal(condition_vectors(xp.array(mixed), ('a', 'b', 'c')), mixed)
  assert condition_vectors(xp.array([0, 0]), ()).shape == (2, 0)


def test_a_host_batch_has_the_images_at_its_indices_and_their_conditions():
  data = image_dataset(random_images(6), np.array([0, 1, 1, 0, 1, 0], np.int32), ('a', 'b'))
  batch = images_batch(data, np.array([3, 4]))
  assert np.array_equal(batch['images'], data.arrays['images'][[3, 4]])
  assert np.array_equal(batch['cond'], [[1, 0], [0, 1]])
  assert list(images_batch(unlabelled(random_images(2)), np.array([1]))) == ['images']


def test_copies_and_mirror_images_stay_on_one_side():
  base = random_images(60)
  images = np.concatenate([base, base[:30], base[30:, :, ::-1]])
  train, heldout, _ = split(unlabelled(images), .3, 0, 'x')
  assert size(train) + size(heldout) == 120 and size(heldout) == pytest.approx(36, abs=1)
  seen = {image.tobytes() for image in np.concatenate([train.arrays['images'], train.arrays['images'][:, :, ::-1]])}
  assert not any(image.tobytes() in seen for image in heldout.arrays['images'])


def test_the_split_depends_on_images_and_seed_but_not_on_order():
  images = random_images(50)

  def held(data, seed):
    return {image.tobytes() for image in split(unlabelled(data), 10, seed, 'x').heldout.arrays['images']}

  assert held(images, 0) == held(images[::-1], 0)
  assert len(held(images, 0)) == 10
  assert held(images, 0) != held(images, 1)


@pytest.mark.parametrize('seed, held', [(0, [0, 4, 17, 21, 31, 39]), (7, [13, 15, 17, 26, 29, 33])])
def test_the_images_held_out_are_those_of_earlier_versions(seed, held):
  # Recorded when a Dataset was of images only: a run that goes on must not train on what it had held out.
  number, row, column, channel = np.ogrid[:40, :3, :4, :3]
  images = (37 * number + 11 * row + 5 * column + channel).astype(np.uint8)
  data = image_dataset(images, np.arange(40, dtype=np.int32), tuple(map(str, range(40))))
  assert sorted(split(data, 6, seed, 'x').heldout.arrays['labels']) == held


def test_half_a_character_in_a_caption_is_replaced():
  data = image_dataset(random_images(2), captions=('a \ud83d', 'caf\u00e9 \U0001f600'))
  assert data.arrays['captions'].tolist() == ['a ?', 'caf\u00e9 \U0001f600']


def test_labels_captions_and_attributes_follow_their_images():
  images = random_images(20)
  names = {image.tobytes(): i for i, image in enumerate(images)}
  data = image_dataset(images, np.arange(20, dtype=np.int32), tuple(map(str, range(20))),
                       tuple(f'c{i}' for i in range(20)), tuple({'i': i} for i in range(20)))
  for side in split(data, 6, 0, 'x')[:2]:
    columns = (side.arrays[name] for name in ('images', 'labels', 'captions', 'attributes'))
    for image, label, caption, attributes in zip(*columns):
      i = names[image.tobytes()]
      assert (label, caption, attributes) == (i, f'c{i}', {'i': i})


def test_no_heldout_leaves_an_empty_set_of_the_same_shape():
  source = split(unlabelled(random_images(3)), 0, 0, 'x')
  assert source.heldout.arrays['images'].shape == (0, 4, 4, 3)


@pytest.mark.parametrize('heldout', [-1, 21, 1.0, 20])
def test_a_heldout_share_that_leaves_nothing_is_refused(heldout):
  with pytest.raises(InputError, match='heldout'):
    split(unlabelled(random_images(20)), heldout, 0, 'x')


def test_given_parts_are_kept_and_shared_images_reported():
  images = random_images(4)
  images[3] = images[0, :, ::-1]
  source = by_part(unlabelled(images), ['train', 'train', 'heldout', 'heldout'], 'x')
  assert np.array_equal(source.heldout.arrays['images'], images[2:])
  assert '1 of 2 held-out images' in source.notes[0]


GOOD = image_dataset(random_images(3), np.array([0, 1, 1], np.int32), ('a', 'b'))


@pytest.mark.parametrize('change,message', [
  (dict(images=random_images(3).astype(np.float32)), 'uint8.*float32'),
  (dict(images=random_images(3)[..., 0]), r'\[3, 4, 4\]'),
  (dict(images=np.zeros((3, 4, 4, 5), np.uint8)), 'channels'),
  (dict(images=np.zeros((3, 0, 4, 3), np.uint8)), '0x4'),
  (dict(labels=np.array([0, 1], np.int32)), '2 labels for 3 '),
  (dict(labels=np.array([0, 1, 2], np.int32)), 'label 2 of image 2 .*2 classes'),
  (dict(labels=np.array([0, -1, 1], np.int32)), 'label -1 of image 1'),
  (dict(labels=np.array([[0, 1], [1, np.nan], [0, 0]], np.float32)), 'row 1'),
  (dict(labels=np.zeros((3, 5), np.float32)), '5 entries, .*2 classes'),
  (dict(captions=('one',)), '1 captions for 3'),
])
def test_what_does_not_fit_together_is_refused_by_name(change, message):
  assert check_images(GOOD, 'mine') is GOOD
  with pytest.raises(InputError, match=f'mine.*{message}') as error:
    check_images(GOOD._replace(arrays=GOOD.arrays | change), 'mine')
  assert '\n' not in str(error.value)


def test_the_description_tells_counts_shape_range_classes_and_notes():
  images = np.full((3, 4, 6, 1), 7, np.uint8)
  images[0] = 250
  data = image_dataset(images, np.array([0, 1, 1], np.int32), ('cat', 'dog'), ('x', 'y', 'z'))
  text = describe(Source(data, take(data, [0]), ('2 unreadable images skipped: b.png',)))
  for part in ('3 for training', '1 held out', '4x6x1', '7 to 250', 'cat 1', 'dog 2', "'x'", '2 unreadable'):
    assert part in text
