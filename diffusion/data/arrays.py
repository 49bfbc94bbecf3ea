"""Images and labels: converts accepted layouts to those of Dataset and refuses all others."""
import pathlib
import zipfile

import numpy as np

from diffusion.data.dataset import check, condition_vectors, Dataset
from diffusion.errors import InputError


def load(path, **options):
  """np.load without pickles. Raises InputError for a file that is missing, damaged or pickled."""
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise InputError(f'{path}: no such file')
  try:
    return np.load(path, allow_pickle=False, **options)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise InputError(f'{path}: not a readable NumPy file without pickled objects ({error})') from error


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
    captions: N texts, or ().   attributes: N dicts, or ().
  """
  arrays = dict(images=images)
  if labels is not None and (len(classes) or np.any(labels)):
    arrays['labels'] = labels
  if len(captions):
    # Half a character, which JSON and file names may contain, has no place in UTF-8.
    valid = [text.encode('utf-8', 'replace').decode() for text in captions]
    arrays['captions'] = np.array(valid, np.dtypes.StringDType())
  if len(attributes):
    arrays['attributes'] = np.array(attributes, object)
  return Dataset(arrays, dict(classes=tuple(classes)) if len(classes) else {})


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


def as_images(array, name):
  """[N, H, W, C] or [N, H, W] (grey) -> uint8 [N, H, W, C].

  Accepts uint8, other integers in 0..255, and floats in [0, 1], or in [-1, 1] if any is negative. Raises InputError,
  which starts with `name`, for everything else; integers that are all 0 or 1 and floats beyond 1 are ambiguous.
  """
  if array.ndim not in (3, 4):
    raise InputError(f'{name}: images must be [N, height, width, channels], got shape {list(array.shape)}')
  if array.dtype.kind not in 'uif':
    raise InputError(f'{name}: images must be numbers (uint8), got {array.dtype}')
  if array.ndim == 3:
    array = array[..., None]
  if array.shape[-1] not in (1, 2, 3, 4):
    hint = '; channels must come last' if array.shape[1] in (1, 3, 4) else ''
    raise InputError(f'{name}: images must have 1 to 4 channels, got shape {list(array.shape)}{hint}')
  if array.dtype == np.uint8 or array.size == 0:
    return array.astype(np.uint8, copy=False)
  low, high = array.min(), array.max()
  values = f'{array.dtype} values from {low} to {high}'
  if not (np.isfinite(low) and np.isfinite(high)):
    raise InputError(f'{name}: images must be finite, got {values}')
  if array.dtype.kind in 'ui':
    if low < 0 or high > 255 or high <= 1:
      raise InputError(f'{name}: {values} are ambiguous as images; save uint8 from 0 to 255')
    return array.astype(np.uint8)
  if low < -1 or high > 1:
    raise InputError(f'{name}: {values} are ambiguous as images; '
                     'save uint8 0 to 255, or floats in [0, 1] or [-1, 1]')
  return from_unit(np.asarray(array) if low < 0 else np.asarray(array) * 2 - 1)


def as_labels(array, classes, name):
  """(labels, classes) as in Dataset: int32 [N] class indices, or float32 [N, K] vectors if not all rows are one-hot.

  Args:
    array: integers [N] or [N, 1], class names [N], or numbers [N, K].
    classes: names, or () for '0', '1', ...
    name: of the file, for error messages.
  Raises:
    InputError: labels of another kind or not finite, names that are not among the classes.
  """
  if array.ndim == 2 and array.shape[1] == 1:
    array = array[:, 0]
  if array.ndim == 1 and array.dtype.kind == 'U':
    return _named(array, classes, name)
  if array.ndim not in (1, 2) or array.dtype.kind not in 'buif':
    raise InputError(f'{name}: labels must be integers [N], names [N] or vectors [N, K], '
                     f'got {array.dtype} {list(array.shape)}')
  finite = np.isfinite(array.reshape(len(array), -1)).all(1)
  if not finite.all():
    raise InputError(f'{name}: labels must be finite; number {finite.argmin()} is not')
  if array.ndim == 2:
    classes = classes or tuple(str(k) for k in range(array.shape[1]))
    one_hot = np.isin(array, (0, 1)).all() and (array.sum(1) == 1).all()
    return (array.argmax(1).astype(np.int32) if one_hot else array.astype(np.float32)), classes
  if (array != np.round(array)).any():
    raise InputError(f'{name}: class labels must be integers, got {array[array != np.round(array)][0]}')
  count = int(array.max()) + 1 if len(array) else 0
  return array.astype(np.int32), classes or tuple(str(k) for k in range(count))


def _named(array, classes, name):
  classes = classes or tuple(str(text) for text in np.unique(array))
  unknown = sorted(set(array.tolist()) - set(classes))
  if unknown:
    raise InputError(f'{name}: label {unknown[0]!r} is not among the classes {", ".join(classes)}')
  index = {text: k for k, text in enumerate(classes)}
  return np.array([index[text] for text in array.tolist()], np.int32), classes
