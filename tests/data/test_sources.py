"""Sources from arrays and prepared data sets: the documented layouts, and an error for every invalid input."""
import inspect
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from diffusion.data import sources, tfds_reader
from diffusion.errors import InputError
from diffusion.system import cache

TFDS = pathlib.Path(__file__).parents[2] / '../shared/data/tfds'
EMOJI = pathlib.Path(__file__).parents[2] / '../shared/data/emoji/emoji_32x32.npz'
needs_tfds = pytest.mark.skipif(not TFDS.is_dir(), reason='no prepared Fashion-MNIST in ../shared/data')


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv('DIFFUSION_CACHE', str(tmp_path_factory.mktemp('cache')))


def noise(count, height=6, width=6, channels=3, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), np.uint8)


def together(source):
  return np.concatenate([source.train.arrays['images'], source.heldout.arrays['images']])


def test_the_public_functions_are_exactly_the_sources():
  public = [name for name, _ in inspect.getmembers(sources, inspect.isfunction) if not name.startswith('_')]
  assert sorted(public) == sorted(sources.__all__) == ['digits', 'folder', 'npy', 'npz', 'sprites', 'tfds']


# ---- digits

def test_digits_are_the_sixteen_grey_levels_spread_over_the_byte():
  from sklearn.datasets import load_digits
  source = sources.digits()
  assert (len(source.train.arrays['images']), len(source.heldout.arrays['images'])) == (1797 - 180, 180)
  images, labels = together(source), np.concatenate([source.train.arrays['labels'], source.heldout.arrays['labels']])
  raw = load_digits()
  assert (images.min(), images.max()) == (0, 255)
  # Each image with its label is one of the originals.
  original = {(image.tobytes(), int(label)) for image, label in zip(raw.images.astype(np.uint8), raw.target)}
  back = np.round(images[..., 0] * (16 / 255)).astype(np.uint8)
  assert {(image.tobytes(), int(label)) for image, label in zip(back, labels)} == original


def test_digits_grow_by_whole_pixels_with_nearest():
  small, large = sources.digits(heldout=0), sources.digits(size=16, resample='nearest', heldout=0)
  assert np.array_equal(large.train.arrays['images'][:, ::2, 1::2], small.train.arrays['images'])
  assert np.array_equal(large.train.arrays['images'], small.train.arrays['images'].repeat(2, 1).repeat(2, 2))


# ---- npy and npz

def save(folder, name, array):
  np.save(folder / name, array)
  return str(folder / name)


def test_one_hot_labels_of_the_sprites_course_become_classes(tmp_path):
  images, labels = noise(40, 16, 16), np.arange(40) % 5
  source = sources.npy(save(tmp_path, 'x.npy', images), save(tmp_path, 'y.npy', np.eye(5)[labels]),
                       classes=['hero', 'other', 'food', 'spell', 'side'])
  assert source.train.facts.get('classes', ()) == ('hero', 'other', 'food', 'spell', 'side')
  where = {image.tobytes(): label for image, label in zip(images, labels)}
  for image, label in zip(source.train.arrays['images'], source.train.arrays['labels']):
    assert where[image.tobytes()] == label


def test_real_context_vectors_stay_vectors(tmp_path):
  labels = np.random.default_rng(0).normal(size=(9, 3))
  source = sources.npy(save(tmp_path, 'x.npy', noise(9)), save(tmp_path, 'y.npy', labels), heldout=0)
  np.testing.assert_array_equal(source.train.arrays['labels'], labels.astype(np.float32))


@pytest.mark.parametrize('convert', [
  lambda x: x, lambda x: x.astype(np.int64), lambda x: x / 255, lambda x: np.float32(x / 127.5 - 1)])
def test_number_formats_of_the_same_images_agree(tmp_path, convert):
  images = noise(5)
  images[0, 0, 0] = 0
  source = sources.npy(save(tmp_path, 'x.npy', convert(images)), heldout=0)
  assert np.array_equal(source.train.arrays['images'], images)
  assert source.train.facts.get('classes', ()) == () and 'labels' not in source.train.arrays


def test_arrays_without_channels_are_grey(tmp_path):
  images = noise(5)[..., 0]
  assert np.array_equal(sources.npy(save(tmp_path, 'x.npy', images), heldout=0).train.arrays['images'][..., 0], images)


@pytest.mark.parametrize('array,message', [
  (noise(4).astype(np.float32), 'x.npy: .* save uint8'),
  (noise(4).astype(np.int32) - 300, 'x.npy: .* save uint8'),
  ((noise(4) > 100).astype(np.int32), 'x.npy: .* save uint8'),
  (noise(4).transpose(0, 3, 1, 2), 'channels must come last'),
  (noise(4).reshape(4, -1), r'got shape \[4, 108\]'),
  (noise(4) + 1j, 'complex128'),
  (np.where(noise(4) > 9, .5, np.nan), 'finite'),
  (noise(0), 'no images found'),
  (np.array(['a', None], object), 'without pickled'),
])
def test_arrays_that_are_not_clearly_images_are_refused(tmp_path, array, message):
  path = tmp_path / 'x.npy'
  np.save(path, array, allow_pickle=True)
  with pytest.raises(InputError, match=message) as error:
    sources.npy(str(path))
  assert 'x.npy' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('labels,message', [
  (np.arange(3), '3 labels for 4 '), (np.array([0, 1, 7, 1]), 'label 7 of image 2 '),
  (np.array([0, -2, 1, 1]), 'label -2'), (np.array([0, .5, 1, 1]), 'integers, got 0.5'),
  (np.array([0, 1, np.inf, 1]), 'finite; number 2 '), (np.full((4, 2), np.nan), 'finite; number 0 '),
  (np.zeros((4, 2, 2)), 'vectors'), (np.ones((4, 3)), '3 entries, .*2 classes'),
  (np.array(['cat', 'dog', 'cow', 'cat']), "'cow' is not among the classes")])
def test_labels_that_do_not_fit_are_refused(tmp_path, labels, message):
  with pytest.raises(InputError, match=message):
    sources.npy(save(tmp_path, 'x.npy', noise(4)), save(tmp_path, 'y.npy', labels), classes=('cat', 'dog'))


def test_missing_and_damaged_files_are_named(tmp_path):
  with pytest.raises(InputError, match='gone.npy: no such file'):
    sources.npy(str(tmp_path / 'gone.npy'))
  (tmp_path / 'bad.npz').write_bytes(b'PK\x03\x04 nothing')
  with pytest.raises(InputError, match='bad.npz'):
    sources.npz(str(tmp_path / 'bad.npz'))


def test_npz_takes_labels_names_and_captions(tmp_path):
  images = noise(6)
  more = dict(labels=[0, 1, 2] * 2, names=list('xyz'), captions=list('abcdef'))
  np.savez(tmp_path / 'a.npz', images=images, **more)
  source = sources.npz(str(tmp_path / 'a.npz'), heldout=0)
  assert source.train.facts['classes'] == ('x', 'y', 'z')
  assert tuple(source.train.arrays['captions']) == tuple('abcdef')
  assert np.array_equal(source.train.arrays['labels'], [0, 1, 2, 0, 1, 2])
  np.savez(tmp_path / 'b.npz', images)
  assert np.array_equal(sources.npz(str(tmp_path / 'b.npz'), heldout=0).train.arrays['images'], images)


def test_npz_without_images_or_with_pickles_is_refused(tmp_path):
  np.savez(tmp_path / 'a.npz', pixels=noise(2))
  with pytest.raises(InputError, match='only pixels'):
    sources.npz(str(tmp_path / 'a.npz'))
  with pytest.raises(InputError, match='use npy'):
    sources.npz(save(tmp_path, 'x.npy', noise(2)))
  np.savez(tmp_path / 'b.npz', images=noise(2), labels=np.array([{}, 1], object))
  with pytest.raises(InputError, match='plain arrays'):
    sources.npz(str(tmp_path / 'b.npz'))


@pytest.mark.skipif(not EMOJI.is_file(), reason='no emoji in ../shared/data')
def test_the_emoji_file_is_read_whole():
  source = sources.npz(str(EMOJI))
  assert len(together(source)) == 3491 and len(source.train.facts.get('classes', ())) == 10
  assert 'grinning face' in [*source.train.arrays['captions'], *source.heldout.arrays['captions']]


# ---- tfds

@needs_tfds
def test_fashion_mnist_is_read_without_tensorflow_and_padded_exactly():
  program = f"""
import sys
import numpy as np
from diffusion.data import sources
splits = dict(data_dir={str(TFDS)!r}, train='test[:500]', test='train[:300]')
plain = sources.tfds('fashion_mnist', **splits)
padded = sources.tfds('fashion_mnist', **splits, size=32, fit='pad')
assert plain.train.arrays['images'].shape == (500, 28, 28, 1) and len(plain.heldout.arrays['images']) == 300
images = plain.train.arrays['images']
assert np.array_equal(padded.train.arrays['images'], np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0))))
assert plain.train.facts['classes'][0] == 'T-shirt/top' and len(plain.train.facts.get('classes', ())) == 10
import tensorflow_datasets as tfds
first = tfds.data_source('fashion_mnist', split='test', data_dir={str(TFDS)!r}, download=False)[0]
assert np.array_equal(first['image'], images[0]) and first['label'] == plain.train.arrays['labels'][0]
assert 'tensorflow' not in sys.modules
print('fine')
"""
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                        cwd=pathlib.Path(__file__).parents[2])
  assert done.stdout == 'fine\n', done.stderr


def prepared(folder, **info):
  (folder / 'mine/1.0.0').mkdir(parents=True)
  (folder / 'mine/1.0.0/dataset_info.json').write_text(json.dumps(dict(name='mine', **info)))


def test_a_data_set_that_is_not_prepared_is_answered_with_the_command(tmp_path):
  with pytest.raises(InputError, match=f"'cifar10' is not prepared in {tmp_path}.*tfds build cifar10"):
    sources.tfds('cifar10', str(tmp_path))
  prepared(tmp_path, fileFormat='tfrecord')
  with pytest.raises(InputError, match='tfrecord.*tfds build mine --file_format=array_record'):
    sources.tfds('mine', str(tmp_path))
  with pytest.raises(InputError, match="'mine:2.0.0' is not prepared"):
    sources.tfds('mine:2.0.0', str(tmp_path))


def test_the_newest_version_is_taken_and_several_configurations_are_not_guessed_at(tmp_path):
  for version in '1.9.0', '1.10.0':
    (tmp_path / 'mine/small' / version).mkdir(parents=True)
    (tmp_path / 'mine/small' / version / 'dataset_info.json').write_text('{"fileFormat": "array_record"}')
  assert tfds_reader.find('mine', str(tmp_path))[0].name == '1.10.0'
  assert tfds_reader.find('mine/small:1.9.0', str(tmp_path))[0].name == '1.9.0'
  (tmp_path / 'mine/large/1.0.0').mkdir(parents=True)
  (tmp_path / 'mine/large/1.0.0/dataset_info.json').write_text('{"fileFormat": "array_record"}')
  with pytest.raises(InputError, match="'mine'.*mine/large .*large, small"):
    tfds_reader.find('mine', str(tmp_path))
  assert tfds_reader.find('mine/large', str(tmp_path))[0].parent.name == 'large'


def test_an_unknown_split_is_answered_with_the_known_ones(tmp_path):
  prepared(tmp_path, fileFormat='array_record', splits=[dict(name='train'), dict(name='test')])
  with pytest.raises(InputError, match="no split 'tain'; choose from train, test"):
    sources.tfds('mine', str(tmp_path), train='tain')


# ---- cache

def test_a_damaged_cache_file_is_made_again():
  calls = []
  def make():
    calls.append(1)
    return dict(x=np.arange(1000))
  assert np.array_equal(cache.cached('t', ['k'], make)['x'], np.arange(1000))
  assert np.array_equal(cache.cached('t', ['k'], make)['x'], np.arange(1000))
  assert len(calls) == 1
  path, = cache.cache_dir().glob('t-*.npz')
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 255
  path.write_bytes(data)
  with pytest.warns(UserWarning, match='damaged'):
    assert np.array_equal(cache.cached('t', ['k'], make)['x'], np.arange(1000))
  path.write_bytes(b'')
  with pytest.warns(UserWarning, match='damaged'):
    cache.cached('t', ['k'], make)
  cache.cached('t', ['k'], make)
  assert len(calls) == 3
  cache.cached('t', ['other'], make)
  assert len(calls) == 4


def test_a_cache_that_cannot_be_written_costs_a_warning_and_leaves_nothing(tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('DIFFUSION_CACHE', str(tmp_path / 'file'))
  with pytest.warns(UserWarning, match='set DIFFUSION_CACHE'):
    assert cache.cached('t', [], lambda: dict(x=np.ones(2)))['x'].sum() == 2


def test_quick_results_are_not_kept():
  cache.cached('t', [], lambda: dict(x=np.ones(2)), min_seconds=60)
  assert not cache.cache_dir().exists() or not list(cache.cache_dir().iterdir())


def test_the_cache_stays_within_its_limit_by_dropping_what_was_used_longest_ago(monkeypatch):
  monkeypatch.setenv('DIFFUSION_CACHE_GB', '0.00005')  # 50 kB, of files of 16
  make = lambda: dict(x=np.zeros(2000))
  for key, used in (('a', 10), ('b', 20), ('c', 30)):
    cache.cached(key, [key], make)
    path, = cache.cache_dir().glob(f'{key}-*.npz')
    os.utime(path, (used, path.stat().st_mtime))
  cache.cached('a', ['a'], make)  # used again
  with pytest.warns(UserWarning, match=f'{cache.cache_dir()} was above 5e-05 GB .*removed b-'):
    cache.cached('d', ['d'], make)
  assert sorted(path.name[0] for path in cache.cache_dir().glob('*.npz')) == ['a', 'c', 'd']
  with pytest.warns(UserWarning, match='alone is'):
    cache.cached('e', ['e'], lambda: dict(x=np.zeros(20000)))
  monkeypatch.setenv('DIFFUSION_CACHE_GB', 'much')
  with pytest.raises(InputError, match='DIFFUSION_CACHE_GB=.much.'):
    cache.cached('f', ['f'], make)
