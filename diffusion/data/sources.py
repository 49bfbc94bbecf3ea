"""Where images come from: every public function is a data source that a config may name.

A source returns `Source(train, heldout, notes)` with all images as uint8: in memory, or with stream=True on disk, from
which they are read during training. To add one, write a function that creates a `Dataset` and ends with `split(...)`,
and list it in data/__init__.py.

`heldout` is always a number of images (int) or a fraction of them (float). Which ones are held out depends on the
images and on `seed` alone, and duplicates and mirror images are never split between the two sides. Streamed images are
split by name or number instead of content, and duplicates are not noticed.
"""
import numpy as np

from diffusion import errors
from diffusion.data import (arrays, dataset, decode_images, folder as folders, holdout as splitting,
                            sprites as art, stream as streams, tfds_reader)
from diffusion.errors import InputError
from diffusion.system import cache

__all__ = ['digits', 'folder', 'npy', 'npz', 'sprites', 'tfds']


def sprites(size=16, n=20000, heldout=1000, seed=0, low=0):
  """Generated game sprites on white, RGB, in six classes, with attributes and captions; no download.

  No held-out combination of attributes and no held-out image, mirrored or not, occurs in training.

  Args:
    size: 16, 32 or 64 pixels.
    n, heldout: number of images to train on and to hold out.
    seed: other seeds give other images.
    low: pixels of a column `low` with the same sprites smaller, for up-samplers; 0: none.
  """
  if size not in (16, 32, 64):
    raise InputError(f'sprites: size={size!r} is not available; choose 16, 32 or 64')
  if low not in (0, 16, 32) or low >= size:
    raise InputError(f'sprites: low={low!r} is not available; choose 16 or 32, below size={size}')
  for argument, value, least in (('n', n, 1), ('heldout', heldout, 0), ('seed', seed, 0)):
    if type(value) is not int or value < least:
      raise InputError(f'sprites: {argument}={value!r} must be an integer of at least {least}')

  def make():
    train, held = art.generate(n, heldout, seed)
    texts = cache.pack_text([[side.arrays['captions'].tolist(), side.arrays['attributes'].tolist()]
                             if dataset.size(side) else [[], []] for side in (train, held)])
    columns = {prefix + name: side.arrays[name] for prefix, side in (('', train), ('held_', held))
               for name in ('images', 'labels')}
    return columns | dict(texts=texts)

  stored = cache.cached('sprites', [art.source_hash(), n, heldout, seed], make)
  texts = cache.unpack_text(stored['texts'])
  sides = [arrays.image_dataset(art.enlarge(stored[prefix + 'images'], size), stored[prefix + 'labels'], art.CLASSES,
                                captions, attributes)
           for prefix, (captions, attributes) in zip(('', 'held_'), texts)]
  if low:
    sides = [side._replace(arrays=side.arrays | dict(low=art.enlarge(stored[prefix + 'images'], low)))
             for prefix, side in zip(('', 'held_'), sides)]
  return splitting.sides(*sides)


def digits(size=8, resample='bilinear', heldout=0.1, seed=0):
  """1,797 real handwritten digits, 8x8 grey (UCI, in scikit-learn), scaled from 0..16 to 0..255; no download.

  size: pixels to resize to, or (height, width). resample: 'nearest', 'bilinear', ...; see decode_images.decoder.
  """
  try:
    from sklearn.datasets import load_digits
  except ImportError as error:
    raise InputError('digits: scikit-learn is not installed; pip install scikit-learn') from error
  from PIL import Image
  height, width = decode_images.as_shape(size)
  method = decode_images.as_method(resample)
  bunch = load_digits()
  images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
  if (height, width) != (8, 8):
    images = np.stack([np.array(Image.fromarray(image[..., 0]).resize((width, height), method))
                       for image in images])[..., None]
  captions = tuple(f'a handwritten {digit}' for digit in bunch.target)
  data = arrays.image_dataset(images, bunch.target.astype(np.int32), tuple('0123456789'), captions)
  return splitting.split(data, heldout, seed, 'digits')


def npy(images, labels=None, classes=(), values=None, heldout=0.05, seed=0):
  """NumPy files.

  Args:
    images: path of [N, H, W, C] or grey [N, H, W], uint8, or floats in [0, 1] or [-1, 1].
    values: (black, white), such as (0, 1) or (0, 4095), where the numbers do not tell; None: they do.
    labels: path of class indices [N], one-hot rows or any context vectors [N, K]; None: unconditional.
    classes: K names; (): '0', '1', ...
  """
  array = arrays.as_images(arrays.load_array(images, 'npy', mmap_mode='r'), images, values)
  if labels is None and classes:
    raise errors.InputError(f'{images}: classes={classes!r} without labels; give the labels, or leave out the classes')
  if labels is None:
    data = arrays.image_dataset(array)
  else:
    data = arrays.image_dataset(array, *arrays.as_labels(arrays.load_array(labels, 'npy'), classes, labels))
  return splitting.split(data, heldout, seed, images, arrays.range_notes(array))


def npz(path, values=None, heldout=0.05, seed=0):
  """One .npz file with images (or arr_0) and optionally labels, names (or classes) and captions; see npy."""
  file = arrays.load(path)
  if isinstance(file, np.ndarray):
    raise InputError(f'{path}: this is a single array, not an .npz file; use npy({path})')
  with file:
    key = next((key for key in ('images', 'arr_0') if key in file.files), None)
    if key is None:
      raise InputError(f'{path}: no array "images" or "arr_0" inside, only {", ".join(file.files)}')
    stored = _without_pickles(file, path)
  images = arrays.as_images(stored[key], path, values)
  classes = _texts(stored, 'names' if 'names' in stored else 'classes', path)
  captions = _texts(stored, 'captions', path)
  if 'labels' in stored:
    labels, classes = arrays.as_labels(stored['labels'], classes, path)
  else:
    labels, classes = np.zeros(len(images), np.int32), ()
  used = {key, 'captions'} | ({'labels', 'names' if 'names' in stored else 'classes'} if 'labels' in stored else set())
  unread = sorted(set(stored) - used)
  notes = [f'arrays that are not read: {", ".join(map(errors.shown, unread))}'] if unread else []
  data = arrays.image_dataset(images, labels, classes, captions)
  return splitting.split(data, heldout, seed, path, notes + arrays.range_notes(images))


def _texts(stored, key, path):
  """The texts of an array of an archive, or lists of several captions, () without it."""
  texts, most = stored.get(key, np.zeros(0, str)), 2 if key == 'captions' else 1
  if not 1 <= texts.ndim <= most or len(texts) and texts.dtype.kind != 'U':
    raise InputError(f'{path}: {key} must be an array of text [N]{", or [N, several]" if most > 1 else ""}, got '
                     f'{texts.dtype} {list(texts.shape)}')
  return tuple(texts.tolist())


def _without_pickles(file, path):
  try:
    return dict(file)
  except Exception as error:  # NumPy's reader raises nearly anything on damaged archives
    why = errors.shown(' '.join(str(error).split())[:200])
    raise InputError(f'{path}: {why}; save plain arrays, and text as a unicode array') from error


def folder(path, size=None, channels=3, background='white', fit='crop', resample='lanczos', unreadable='skip',
           labelled=True, heldout=0.05, seed=0, stream=False, white=None):
  """Image files of any format below a folder, in sorted order; links are followed, hidden files left out.

  Captions come from metadata.jsonl (`file_name`, `text`) or from a .txt file beside each image.

  Args:
    path: the folder. Sub-folders are classes; sub-folders train and test are the two sides of the split.
    size, channels, background, fit, resample, white: see decode_images.decoder.
    unreadable: 'skip' or 'stop' at images that cannot be read.
    labelled: False ignores the sub-folders.
    stream: leave the images on disk and read them during training, for data that do not fit into memory; `size` may be
      None if all are of one size. Unreadable images are found in training only: 'skip' replaces one by the next of its
      class.
  """
  decode = decode_images.decoder(size, channels, background, fit, resample, white)
  root = arrays.as_path(path, 'folder')
  listed = folders.listing(root, labelled)
  if stream:
    return _streamed_folder(root, listed, decode, unreadable, heldout, seed)

  def make():
    images, good, notes = decode_images.read_all(decode, listed.names, lambda i: root / listed.names[i], unreadable)
    notes += arrays.range_notes(images, 'white=4095 (the value that is white) if the files have more than 8 bits')
    return dict(images=images, good=good, notes=cache.pack_text(notes))

  options = [str(root.resolve()), size, channels, background, fit, resample, unreadable, white]
  stamps = [(name, folders.stamp(root / name)) for name in listed.names]
  stored = cache.cached('folder', [options, stamps], make, min_seconds=5)
  good = stored['good']
  keep = lambda values: tuple(values[i] for i in good) if values else ()
  labels, classes = _classes(listed)
  data = arrays.image_dataset(stored['images'], labels[good], classes, keep(listed.captions), keep(listed.attributes))
  notes = tuple(listed.notes + cache.unpack_text(stored['notes']))
  if listed.part[0] is None:
    return splitting.split(data, heldout, seed, str(path), notes)
  return splitting.by_part(data, keep(listed.part), str(path), notes)


def _classes(listed):
  """(labels int32 [N], class names) of a Listing."""
  classes = tuple(sorted(set(listed.labels)))
  index = {name: k for k, name in enumerate(classes)}
  return np.array([index[name] for name in listed.labels] or np.zeros(len(listed.names)), np.int32), classes


def _streamed_folder(root, listed, decode, unreadable, heldout, seed):
  decode_images.one_of('unreadable', unreadable, ('skip', 'stop'))
  names, (labels, classes) = listed.names, _classes(listed)
  sizes = [(folders.stamp(root / name) or '?')[0] for name in names]
  contents = folders.contents(root, [names[i] for i in np.unique(np.linspace(0, len(names) - 1, 1000).astype(int))])
  fetch = lambda numbers: [(names[i], root / names[i]) for i in numbers]
  groups = labels if unreadable == 'skip' else None
  images = streams.open_stream(fetch, decode, len(names),
                               '\0'.join([contents, *(f'{n}\0{b}' for n, b in zip(names, sizes))]), groups)
  data = arrays.image_dataset(images, labels, classes, tuple(listed.captions), tuple(listed.attributes))
  if listed.part[0] is None:
    return splitting.split(data, heldout, seed, str(root), listed.notes, names)
  return splitting.by_part(data, listed.part, str(root), listed.notes)


def tfds(name, data_dir=None, size=None, channels=None, background='black', fit='crop', resample='lanczos',
         train='train', test=None, heldout=0.05, seed=0, stream=False):
  """A data set prepared by TFDS as array_record; read without TensorFlow, and nothing is downloaded.

  Args:
    name: in TFDS, such as 'cifar10' or 'name/config:1.0.0'.
    data_dir: None is $TFDS_DATA_DIR or ~/tensorflow_datasets.
    size, channels, background, fit, resample: see decode_images.decoder; size=32, fit='pad' adds a border to 28x28
      images. channels None: as stored.
    train, test: its splits; test None is 'test' or 'validation' if available, otherwise `heldout` of train.
    stream: leave the images on disk and read them during training; their labels are read once, in one pass over the
      records, and cached.
  """
  decode_options = dict(size=size, channels=channels, background=background, fit=fit, resample=resample)
  decode_images.decoder(**{**decode_options, 'channels': channels or 3})  # refuses invalid options at once
  where, info = tfds_reader.find(name, data_dir)
  train, test = tfds_reader.pick_splits(info, train, test)

  def load(split):
    if stream:
      stored = cache.cached(f'tfds-labels-{info["name"]}', [str(where.resolve()), split],
                            lambda: tfds_reader.read_labels(where, split), min_seconds=1)
      images = tfds_reader.open_stream(where, split, decode_options)
      return arrays.image_dataset(images, stored['labels'], tuple(stored['classes'].tolist()))
    stored = cache.cached(f'tfds-{info["name"]}', [str(where.resolve()), split, decode_options],
                          lambda: tfds_reader.read(where, split, decode_options), min_seconds=1)
    return arrays.image_dataset(stored['images'], stored['labels'], tuple(stored['classes'].tolist()))

  if not test:
    data = load(train)
    names = [f'{train} {i}' for i in range(dataset.size(data))] if stream else None
    return splitting.split(data, heldout, seed, name, names=names)
  return splitting.sides(*(arrays.check_images(load(split), name) for split in (train, test)))
