"""Ranges, shapes and labels of arrays: told where they are clear, refused with the choice where they are not."""
import numpy as np
import pytest

from diffusion.data import series, sources
from diffusion.data.arrays import as_images
from diffusion.errors import InputError
from diffusion.tasks import image

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), np.uint8)
IMAGES[0, 0, 0] = 0
UNIT = IMAGES / 255


def save(tmp_path, name, array):
  np.save(tmp_path / name, array)
  return str(tmp_path / name)


# ---- ranges
@pytest.mark.parametrize('array', [
  np.where(np.arange(5)[:, None, None, None] == 3, np.maximum(UNIT, 0) - 1e-9, UNIT), UNIT + 1e-7, np.float16(UNIT),
  2 * UNIT - 1, (2 * UNIT - 1) * (1 + 1e-7)])
def test_a_rounding_error_does_not_change_the_range(array):
  assert np.array_equal(as_images(array, 'x'), IMAGES)


@pytest.mark.parametrize('array', [
  UNIT - .5, UNIT * .5 + .4, UNIT * 2 - .5, UNIT * 1.5, (UNIT - .5) / .3, (IMAGES > 99).astype(np.uint8),
  (IMAGES > 99).astype(np.int64), IMAGES.astype(np.uint16) * 257, IMAGES.astype(np.int64) - 1])
def test_ambiguous_ranges_are_refused_with_the_choice_and_follow_it(array):
  with pytest.raises(InputError, match=r'x: .*ambiguous.*values=\('):
    as_images(array, 'x')
  low, high = float(array.min()), float(array.max())
  made = as_images(array, 'x', (low, high))
  assert made.min() == 0 and made.max() == 255
  np.testing.assert_allclose(made, (array - low) / (high - low) * 255, atol=.51)


@pytest.mark.parametrize('values', [(1, 0), (0,), 'white', (0, np.nan), (0, True), (.5, 1)])
def test_wrong_values_are_refused(values):
  with pytest.raises(InputError, match='values='):
    as_images(UNIT, 'x', values)


def test_dark_images_are_said_and_arrays_that_are_not_read_too(tmp_path):
  from sklearn.datasets import load_digits
  digits = load_digits().images.astype(np.uint8)
  assert 'largest value is 16 of 255' in sources.npy(save(tmp_path, 'x.npy', digits)).notes[0]
  bright = sources.npy(save(tmp_path, 'x.npy', digits), values=(0, 16))
  assert bright.notes == () and bright.train.arrays['images'].max() == 255
  np.savez(tmp_path / 'a.npz', images=IMAGES, label=np.arange(5))
  assert sources.npz(str(tmp_path / 'a.npz'), heldout=0).notes == ('arrays that are not read: label',)


@pytest.mark.parametrize('shape', [(16, 16, 3), (16, 16, 4), (8, 8, 1), (9, 2, 2)])
def test_one_image_is_not_taken_for_many_grey_ones(shape):
  with pytest.raises(InputError, match='may be one image'):
    as_images(np.zeros(shape, np.uint8), 'x')


# ---- labels
def test_a_class_without_examples_is_said_and_drawn_only_if_asked_for(tmp_path):
  source = sources.npy(save(tmp_path, 'x.npy', IMAGES), save(tmp_path, 'y.npy', np.array([1, 2, 3, 4, 1])), heldout=0)
  assert source.train.facts == dict(classes=tuple('01234'), untrained=('0',))
  assert 'no examples to train on of 1 of 5 classes' in source.notes[0] and source.notes[0].endswith(': 0')
  ask = image.image(data=source.train).ask
  assert ask({}, np.arange(6), 0).labels == ['1', '2', '3', '4', '1', '2']
  assert ask(dict(classes='0'), np.arange(2), 0).labels == ['0', '0']


@pytest.mark.parametrize('labels', [[0, 1, 2, 3, 255], [9_000_000, 0, 0, 0, 0], [-1, 0, 1, 2, 3], [10, 11, 12, 13, 14],
                                    [2 ** 40, 0, 1, 2, 3]])
def test_labels_with_more_holes_than_classes_are_refused(tmp_path, labels):
  paths = save(tmp_path, 'x.npy', IMAGES), save(tmp_path, 'y.npy', np.array(labels))
  odd = min(labels) if min(labels) < 0 else max(labels)
  with pytest.raises(InputError, match='y.npy: label .* of 1 examples among . different labels.*name all classes'):
    sources.npy(*paths)
  if 0 < odd < 300:
    named = sources.npy(*paths, classes=tuple(map(str, range(odd + 1))), heldout=0)
    assert len(named.train.facts["untrained"]) == odd + 1 - len(labels)


@pytest.mark.parametrize('classes, message', [
  ('cat', 'list of names'), (('a', 'a'), 'named twice'), (5, 'list of names')])
def test_names_of_classes_are_a_list_without_repeats(tmp_path, classes, message):
  paths = save(tmp_path, 'x.npy', IMAGES), save(tmp_path, 'y.npy', np.array([0, 1, 1, 0, 1]))
  with pytest.raises(InputError, match=message):
    sources.npy(*paths, classes=classes)


# ---- paths and files
@pytest.mark.parametrize('source, given, message', [
  (sources.folder, 2024, "folder.2024.: expected a path.*folder..2024"),
  (sources.npy, 3.5, 'npy.3.5.: expected a path'),
  (sources.npz, None, 'npz.None.: expected a path'), (series.series, 7, 'series.7.: expected a path'),
  (sources.folder, '', 'expected a path')])
def test_a_path_that_is_none_is_refused_in_our_words(source, given, message):
  with pytest.raises(InputError, match=message):
    source(given)


def test_archives_and_arrays_are_told_apart(tmp_path):
  np.savez(tmp_path / 'z.npz', images=IMAGES)
  with pytest.raises(InputError, match='archive of several arrays.*use npz'):
    sources.npy(str(tmp_path / 'z.npz'))
  with pytest.raises(InputError, match='archive of several arrays.*alone'):
    series.series(str(tmp_path / 'z.npz'))
  (tmp_path / 'b.npy').write_bytes(b'\x93NUMPY\x01\x00v\x00{junk')
  with pytest.raises(InputError, match='b.npy: not a readable NumPy file'):
    sources.npy(str(tmp_path / 'b.npy'))
  np.savez(tmp_path / 'c.npz', images=IMAGES, captions=np.arange(5))
  with pytest.raises(InputError, match='captions must be an array of text'):
    sources.npz(str(tmp_path / 'c.npz'))


def test_home_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  save(tmp_path, 'x.npy', IMAGES)
  assert len(sources.npy('~/x.npy', heldout=0).train.arrays['images']) == 5


@pytest.mark.parametrize('options', [dict(seed=-1), dict(seed=2 ** 32), dict(seed=1.5), dict(seed=True),
                                     dict(heldout=-1), dict(heldout=1.), dict(heldout='half'), dict(heldout=6),
                                     dict(heldout=float('nan')), dict(heldout=True)])
def test_seeds_and_numbers_held_out_are_checked(tmp_path, options):
  with pytest.raises(InputError, match=next(iter(options))):
    sources.npy(save(tmp_path, 'x.npy', IMAGES), **options)
