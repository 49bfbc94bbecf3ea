"""Images streamed from disk: the same as in memory, read only on access, and what happens to damaged ones."""
import os
import pathlib

import cloudpickle
import numpy as np
import pytest
from PIL import Image

from diffusion.data import sources
from diffusion.data.dataset import describe, in_memory, size, take
from diffusion.errors import InputError

TFDS = pathlib.Path(__file__).parents[2] / '../shared/data/tfds'


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv('DIFFUSION_CACHE', str(tmp_path_factory.mktemp('cache')))


def write(path, value=None, size=(8, 8), seed=0):
  """An image of noise, or of one value, so that it can be recognised."""
  path.parent.mkdir(parents=True, exist_ok=True)
  noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
  Image.fromarray(noise if value is None else np.full((*size, 3), value, np.uint8)).save(path)


def named(folder, count, **options):
  """Images 000.png, 001.png, .. of the values 0, 1, .. -> the source that streams them."""
  for i in range(count):
    write(folder / f'{i:03}.png', i)
  return sources.folder(str(folder), stream=True, **options)


def values(images):
  return images[:, 0, 0, 0].tolist()


def test_a_streamed_folder_is_the_folder_in_memory(tmp_path):
  for i in range(30):
    kind, size = ('png', 'jpg', 'webp')[i % 3], (9 + i, 40 - i)
    write(tmp_path / f'{"cat" if i % 2 else "dog"}/{i}.{kind}', size=size, seed=i)
    (tmp_path / f'{"cat" if i % 2 else "dog"}/{i}.txt').write_text(f'number {i}')
  options = dict(size=(12, 16), fit='pad', channels=4, resample='bicubic', heldout=0)
  memory = sources.folder(str(tmp_path), **options).train
  stream = sources.folder(str(tmp_path), stream=True, **options).train
  assert in_memory(memory) and not in_memory(stream)
  images = stream.arrays['images']
  assert (images.shape, images.dtype, images.ndim) == (memory.arrays['images'].shape, np.uint8, 4)
  assert stream.facts == memory.facts and list(stream.arrays['captions']) == list(memory.arrays['captions'])
  assert np.array_equal(stream.arrays['labels'], memory.arrays['labels'])
  for key in (slice(None), slice(20, 3, -4), [5, 5, -1, 0], np.arange(30)[::-1], [], np.arange(30) % 7 == 0):
    assert np.array_equal(stream.arrays['images'][key], memory.arrays['images'][key]), key
  assert np.array_equal(stream.arrays['images'][-3], memory.arrays['images'][-3])
  with pytest.raises(IndexError):
    stream.arrays['images'][30]


def test_the_parts_of_a_folder_stay(tmp_path):
  for i in range(9):
    write(tmp_path / f'{"test" if i < 3 else "train"}/{i}.png', i)
  memory, stream = (sources.folder(str(tmp_path), stream=flag) for flag in (False, True))
  for side in ('train', 'heldout'):
    assert np.array_equal(getattr(stream, side).arrays['images'][:], getattr(memory, side).arrays['images'])
  assert stream.notes[-1].startswith('not checked')


@pytest.mark.skipif(not TFDS.is_dir(), reason='no prepared Fashion-MNIST in ../shared/data')
def test_a_streamed_prepared_data_set_is_the_one_in_memory():
  options = dict(data_dir=str(TFDS), train='train[100:400]', test='test[:70]', size=32, fit='pad')
  memory, stream = (sources.tfds('fashion_mnist', stream=flag, **options) for flag in (False, True))
  for side in ('train', 'heldout'):
    ours, theirs = getattr(stream, side), getattr(memory, side)
    assert ours.facts == theirs.facts and np.array_equal(ours.arrays['labels'], theirs.arrays['labels'])
    there = cloudpickle.loads(cloudpickle.dumps(ours.arrays['images']))  # as a worker process has it
    for images in (ours.arrays['images'], there):
      for key in (slice(None), [60, 3, 60]):
        assert np.array_equal(images[key], theirs.arrays['images'][key])
  held = sources.tfds('fashion_mnist', stream=True, heldout=40, **options | dict(train='test[:200]', test=''))
  assert (size(held.train), size(held.heldout)) == (160, 40) and 'duplicates' in held.notes[0]
  both = np.concatenate([held.train.arrays['images'][:], held.heldout.arrays['images'][:]])
  options |= dict(train='test[:200]', test='', heldout=0)
  everything = sources.tfds('fashion_mnist', **options).train.arrays['images']
  assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in everything)


def test_names_decide_what_is_held_out(tmp_path):
  sides = named(tmp_path, 40, heldout=10)
  assert len(sides.heldout.arrays['images']) == 10 and 'held out by name' in sides.notes[0]
  held = values(sides.heldout.arrays['images'][:])
  assert sorted(held + values(sides.train.arrays['images'][:])) == list(range(40))
  for i in range(40):
    write(tmp_path / f'{i:03}.png', 100 + i)  # other content
  def again(seed):
    held = sources.folder(str(tmp_path), stream=True, heldout=10, seed=seed).heldout
    return values(held.arrays['images'][:])
  assert again(0) == [100 + i for i in held] != again(1)


def test_only_the_first_images_are_read_at_the_start(tmp_path):
  named(tmp_path, 70)
  for i in range(64, 70):
    (tmp_path / f'{i:03}.png').write_bytes(b'damaged')
  source = sources.folder(str(tmp_path), stream=True, unreadable='stop', heldout=0)
  assert 'values 0 to 63 in the first 64' in describe(source)
  part = take(source.train, np.arange(70) > 60)  # reads nothing
  assert values(part.arrays['images'][:3]) == [61, 62, 63]
  with pytest.raises(InputError, match='cannot read 064.png'):
    part.arrays['images'][3]
  with pytest.raises(InputError, match='leave out stream=True'):
    np.asarray(source.train.arrays['images'])


def test_reading_and_pickling_leave_no_file_open(tmp_path):
  images = named(tmp_path, 50, heldout=0).train.arrays['images']
  before = sorted(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else None
  copy = cloudpickle.loads(cloudpickle.dumps(images))
  assert values(copy[:]) == values(copy.single_threaded()[:]) == values(images[:]) == list(range(50))
  if before is not None:
    assert sorted(os.listdir('/proc/self/fd')) == before


def test_the_next_of_its_class_takes_the_place_of_a_damaged_image(tmp_path):
  for i in range(12):
    write(tmp_path / f'{"abc"[i // 4]}/{i:02}.png', i)
  for name in ('a/03', 'b/05', 'b/06'):
    (tmp_path / f'{name}.png').write_bytes((tmp_path / f'{name}.png').read_bytes()[:50])
  train = sources.folder(str(tmp_path), stream=True, heldout=0).train
  with pytest.warns(UserWarning, match='a/03.png .*; replaced by a/00.png'):
    assert values(train.arrays['images'][:]) == [0, 1, 2, 0, 4, 7, 7, 7, 8, 9, 10, 11]  # classes stay as they were
  with pytest.warns(UserWarning, match='b/05.png .*; replaced by b/07.png'):
    assert values(train.arrays['images'][[5, 6]]) == [7, 7]  # however they are asked for
  with pytest.warns(UserWarning, match='; replaced by b/04.png'):
    assert values(take(train, [4, 5]).arrays['images'][:]) == [4, 4]  # never one of the other side
  with pytest.raises(InputError, match='cannot read b/05.png .*nor the'):
    take(train, [0, 5, 6]).arrays['images'][:]


def test_images_that_go_or_differ_stop_with_their_name(tmp_path):
  images = named(tmp_path, 70, heldout=0).train.arrays['images']
  (tmp_path / '007.png').unlink()
  with pytest.raises(InputError, match='007.png cannot be opened'):
    images[:20]
  write(tmp_path / '066.png', size=(8, 9))
  with pytest.raises(InputError, match='8x8, 066.png is 8x9; give size='):
    images[60:]
  write(tmp_path / '007.png', size=(4, 4))
  with pytest.raises(InputError, match='007.png is 4x4; give size='):
    sources.folder(str(tmp_path), stream=True)
  with pytest.raises(InputError, match='unreadable'):
    sources.folder(str(tmp_path), stream=True, size=4, unreadable='maybe')


def test_the_identity_tells_data_apart_without_reading_them(tmp_path):
  source = named(tmp_path, 20, heldout=5)
  again = sources.folder(str(tmp_path), stream=True, heldout=5)
  same = lambda a, b: np.array_equal(a.arrays['images'].identity, b.arrays['images'].identity)
  assert same(source.train, again.train) and same(source.heldout, again.heldout)
  assert not same(source.train, source.heldout)
  write(tmp_path / '003.png', 99)
  assert not same(source.train, sources.folder(str(tmp_path), stream=True, heldout=5).train)


def test_the_identity_is_of_all_images_and_not_of_those_that_are_looked_at(tmp_path):
  identity = lambda: sources.folder(str(tmp_path), stream=True, heldout=0).train.arrays['images'].identity.tobytes()
  named(tmp_path, 70)
  first = identity()
  (tmp_path / '068.png').rename(tmp_path / '068b.png')  # in the same place of the order
  assert identity() != first
  (tmp_path / '068b.png').rename(tmp_path / '068.png')
  assert identity() == first
  (tmp_path / '068.png').rename(tmp_path / os.fsdecode(b'068\xff.png'))  # a name that is no text
  assert identity() != first


@pytest.mark.skipif(not TFDS.is_dir(), reason='no prepared Fashion-MNIST in ../shared/data')
def test_the_identity_of_prepared_data_tells_splits_and_copies_apart(tmp_path):
  def identity(split, where=TFDS):
    options = dict(data_dir=str(where), train=split, test='test[:10]', stream=True)
    return sources.tfds('fashion_mnist', **options).train.arrays['images'].identity.tobytes()
  (tmp_path / 'link').symlink_to(TFDS.resolve())
  assert identity('train[:100]') == identity('train[:100]') == identity('train[:100]', tmp_path / 'link')
  splits = 'train[:100]', 'train[:99]', 'train[:50]+train[50:64]+train[70:106]'
  assert len({identity(split) for split in splits}) == 3
