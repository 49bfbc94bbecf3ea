"""Images and labels: converts accepted layouts to those of Dataset and refuses all others."""
import os
import pathlib
import unicodedata

import numpy as np

from diffusion.data.dataset import check, condition_vectors, Dataset
from diffusion.errors import InputError, shown


NEAR = .02      # share of the range by which the ends of float images may be off it
FEW_VALUES = 64  # the largest value of 8-bit images below which it is said that they are dark


def as_path(path, source):
  """The pathlib.Path of what the user wrote, with ~ expanded. Raises InputError for a number or anything else."""
  if not isinstance(path, (str, pathlib.PurePath)) or not str(path).strip():
    raise InputError(f"{source}({path!r}): expected a path; one that looks like a number needs quotes, as in "
                     f"{source}('{path}')")
  return pathlib.Path(os.path.expanduser(path))


def load_array(path, source, **options):
  """The array in a .npy file. Raises InputError as `load`, and for an archive of several arrays."""
  found = load(path, source, **options)
  if isinstance(found, np.ndarray):
    return found
  found.close()
  other = f'use npz({path})' if source == 'npy' else 'save the array alone with numpy.save'
  raise InputError(f'{path}: this is an .npz archive of several arrays, expected a single .npy array; {other}')


def load(path, source='npz', **options):
  """np.load without pickles. Raises InputError for a file that is missing, damaged or pickled."""
  path = as_path(path, source)
  if not path.is_file():
    raise InputError(f'{path}: no such file')
  try:
    return np.load(path, allow_pickle=False, **options)
  except Exception as error:  # NumPy's reader raises nearly anything on damaged headers
    why = 'it holds pickled objects' if 'allow_pickle' in str(error) else shown(' '.join(str(error).split())[:200])
    raise InputError(f'{path}: not a readable NumPy file without pickled objects ({why})') from error


def from_unit(x):
  """float [-1, 1] -> uint8 [0, 255], rounded and clipped; NumPy and JAX arrays."""
  return ((x + 1.0) * 127.5).round().clip(0, 255).astype('uint8')


def to_unit(images):
  """uint8 [0, 255] -> float32 [-1, 1]; NumPy and JAX arrays. The inverse of `from_unit` for all 256 values."""
  return images.astype('float32') / 127.5 - 1.0


def image_dataset(images, labels=None, classes=(), captions=(), attributes=()):
  """A Dataset of images.

  Args:
    images: uint8 [N, H, W, C], C from 1 to 4; or a Stream.
    labels: int32 [N] class indices, or float32 [N, K] context vectors; they count only with classes.
    classes: K names; () is unconditional.
    captions: N texts, or N lists of some texts each, or ().   attributes: N dicts, or ().
  """
  arrays = dict(images=images)
  if labels is not None and (len(classes) or np.any(labels)):
    arrays['labels'] = labels
  if len(captions):
    arrays['captions'] = _texts(captions)
  if len(attributes):
    arrays['attributes'] = np.array(attributes, object)
  return Dataset(arrays, dict(classes=tuple(classes)) if len(classes) else {})


def _texts(captions):
  """[N] of texts, or [N, most texts of an example] of lists, those that are missing ''."""
  valid = lambda text: text.encode('utf-8', 'replace').decode()  # half a character, as in JSON, is not UTF-8
  if all(isinstance(text, str) for text in captions):
    return np.array([valid(text) for text in captions], np.dtypes.StringDType())
  lists = [[text] if isinstance(text, str) else list(text) for text in captions]
  most = max(map(len, lists))
  return np.array([[valid(text) for text in each] + [''] * (most - len(each)) for each in lists],
                  np.dtypes.StringDType())


def images_batch(data, indices):
  """The images at `indices` (int [B]) as host arrays.

  Returns:
    {'images': uint8 [B, H, W, C]}, and 'cond': float32 [B, K] if there are classes.
  """
  batch = dict(images=data.arrays['images'][indices])
  if data.facts.get('classes'):
    batch['cond'] = condition_vectors(data.arrays['labels'][indices], data.facts['classes'])
  return batch


def check_images(data, name):
  """Returns data. Raises InputError, starting with `name`, if it is no consistent data set of images."""
  images = data.arrays['images']
  if images.ndim != 4 or not 1 <= images.shape[-1] <= 4 or images.dtype != np.uint8:
    raise InputError(f'{name}: images must be uint8 [N, height, width, channels] with 1 to 4 channels, '
                     f'channels last; got {images.dtype} {list(images.shape)}')
  if 0 in images.shape[1:]:
    raise InputError(f'{name}: images of size {images.shape[1]}x{images.shape[2]} have no pixels')
  return check(data, name)


def as_images(array, name, values=None):
  """[N, H, W, C] or [N, H, W] (grey) -> uint8 [N, H, W, C].

  Args:
    array: uint8, other integers in 0..255, or floats that fill [0, 1] or [-1, 1] to its lower end.
    name: of the file, for error messages.
    values: (black, white), the values that become 0 and 255; None: as the array is.
  Raises:
    InputError: starts with `name`; a shape or values that are none of these, or could be several.
  """
  if array.ndim not in (3, 4):
    raise InputError(f'{name}: images must be [N, height, width, channels], got shape {list(array.shape)}')
  if array.dtype.kind == 'b':  # black and white
    array, values = array.astype(np.uint8), values or (0, 1)
  if array.dtype.kind not in 'uif':
    raise InputError(f'{name}: images must be numbers (uint8), got {array.dtype}; save them as uint8 from 0 to 255')
  if array.ndim == 3:
    if array.shape[-1] <= 4 and array.size:
      one = list(array.shape)
      raise InputError(f'{name}: {one} may be one image of {one[2]} channels or {one[0]} grey ones of '
                       f'{one[1]}x{one[2]}; save it as {[1, *one]} or {[*one, 1]}')
    array = array[..., None]
  if array.shape[-1] not in (1, 2, 3, 4):
    hint = '; channels must come last' if array.shape[1] in (1, 3, 4) else ''
    raise InputError(f'{name}: images must have 1 to 4 channels, got shape {list(array.shape)}{hint}')
  if array.size == 0:
    return array.astype(np.uint8)
  low, high = array.min(), array.max()
  if not (np.isfinite(low) and np.isfinite(high)):
    raise InputError(f'{name}: images must be finite, got {array.dtype} values from {low} to {high}')
  black, white = _checked_range(values, low, high, name) if values is not None else _range(array.dtype, low, high, name)
  if (black, white) == (0, 255) and array.dtype == np.uint8:
    return array
  return ((np.asarray(array, np.float32) - black) * (255 / (white - black))).round().clip(0, 255).astype(np.uint8)


def _checked_range(values, low, high, name):
  """(black, white) as the user gave them."""
  numbers = isinstance(values, (tuple, list)) and len(values) == 2 and all(type(v) in (int, float) for v in values)
  if not numbers or not np.all(np.isfinite(values)) or not values[0] < values[1]:
    raise InputError(f'{name}: values={values!r}: expected the values of black and of white, such as (0, 1)')
  room = NEAR * (values[1] - values[0])
  if low < values[0] - room or high > values[1] + room:
    raise InputError(f'{name}: values={values!r}, but it holds {low} to {high}; give the range of all')
  return tuple(values)


def _range(dtype, low, high, name):
  """(black, white) where they are clear."""
  unclear = f'{name}: {dtype} values from {low} to {high} are ambiguous as images; '
  if dtype.kind in 'ui':
    if low < 0 or high > 255 or high <= 1 and low != high:
      raise InputError(unclear + f'say what black and white are, such as values=(0, {max(high, 1)}) or '
                       'values=(0, 255), or save uint8 from 0 to 255')
    return 0, 255
  if -NEAR < low < 5 * NEAR and high < 1 + NEAR:
    return 0, 1
  if -1 - NEAR < low < -1 + 5 * NEAR and high < 1 + NEAR:
    return -1, 1
  raise InputError(unclear + 'say what black and white are, such as values=(0, 1), values=(-1, 1) or '
                   f'values=({low:.3g}, {high:.3g}), or save uint8 0 to 255')


def range_notes(images, option='values=(black, white)'):
  """Notes on images uint8 that are all nearly black, as those of fewer bits are. option: what makes them brighter."""
  high = images.max(initial=0)
  return [f'the largest value is {high} of 255, nearly black; if it should be white, say {option}'
          ] * bool(high < FEW_VALUES and images.size)


def as_labels(array, classes, name):
  """(labels, classes) as in Dataset: int32 [N] class indices, or float32 [N, K] vectors if not all rows are one-hot.

  Args:
    array: integers [N] or [N, 1], class names [N], or numbers [N, K].
    classes: names, or () for '0', '1', ...
    name: of the file, for error messages.
  Raises:
    InputError: labels of another kind or not finite, names that are not among the classes, numbers of which most have
      no example.
  """
  classes = as_classes(classes, name)
  if array.ndim == 2 and array.shape[1] == 1:
    array = array[:, 0]
  if array.ndim == 1 and array.dtype.kind == 'U':
    return _named(array, classes, name)
  if array.ndim not in (1, 2) or array.dtype.kind not in 'buif':
    hint = '; save names as text, with .astype(str)' if array.dtype.kind == 'S' else ''
    raise InputError(f'{name}: labels must be integers [N], names [N] or vectors [N, K], '
                     f'got {array.dtype} {list(array.shape)}{hint}')
  finite = np.isfinite(array.reshape(len(array), -1)).all(1)
  if not finite.all():
    raise InputError(f'{name}: labels must be finite; number {finite.argmin()} is not')
  if array.ndim == 2:
    classes = classes or tuple(str(k) for k in range(array.shape[1]))
    one_hot = np.isin(array, (0, 1)).all() and (array.sum(1) == 1).all()
    return (array.argmax(1).astype(np.int32) if one_hot else array.astype(np.float32)), classes
  if (array != np.round(array)).any():
    raise InputError(f'{name}: class labels must be integers, got {array[array != np.round(array)][0]}')
  return _numbered(array, classes, name)


def as_classes(classes, name):
  """Names of classes as a tuple of texts. Raises InputError for one text, or a name that is there twice."""
  if not isinstance(classes, (tuple, list)) or not all(isinstance(c, (str, int)) for c in classes):
    raise InputError(f"{name}: classes={classes!r}: expected a list of names, such as ('cat', 'dog')")
  classes = tuple(unicodedata.normalize('NFC', str(c)) for c in classes)
  twice = [c for i, c in enumerate(classes) if c in classes[:i]]
  if twice:
    raise InputError(f'{name}: class {twice[0]!r} is named twice; give each class one name')
  return classes


def _numbered(array, classes, name):
  """(labels, classes) of whole numbers [N]; without names every number up to the largest is a class."""
  found, counts = np.unique(array, return_counts=True)
  if not len(found):
    return array.astype(np.int32), classes
  odd = found[0] if found[0] < 0 else found[-1]
  of = f'{name}: label {odd:g} of {counts[found == odd][0]} examples '
  if not 0 <= odd < 2 * len(found) and not (classes and abs(odd) < 2 ** 31):
    raise InputError(of + f'among {len(found)} different labels: classes count from 0; renumber them, or name all '
                     'classes with classes=(..)')
  return array.astype(np.int32), classes or tuple(str(k) for k in range(int(odd) + 1))


def _named(array, classes, name):
  names = [unicodedata.normalize('NFC', text) for text in array.tolist()]  # two forms of é are one name
  classes = classes or tuple(sorted(set(names)))
  unknown = sorted(set(names) - set(classes))
  if unknown:
    raise InputError(f'{name}: label {unknown[0]!r} is not among the classes {", ".join(classes)}')
  index = {text: k for k, text in enumerate(classes)}
  return np.array([index[text] for text in names], np.int32), classes
