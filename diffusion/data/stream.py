"""Images that stay on disk and are read on access: for data that do not fit into memory.

A Stream takes the place of an array of images in a Dataset. It offers only what batches need: len, shape, dtype, ndim,
take, and [slice | integers | integer], which reads and decodes. The same indices always give the same images, in any
process and any order, so batches stay a pure function of (seed, step).
"""
import dataclasses
import hashlib
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

import numpy as np

from diffusion.data.decode_images import read_all, reason, size_text
from diffusion.errors import InputError

INSPECTED = 64  # images from which shape and values are inferred, instead of reading all
_CHUNK = 8  # images that a thread decodes at a time
_TRIES = 100  # consecutive images that may be unreadable


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
  """uint8 [N, H, W, C] on disk. It holds no open file, so it can be copied to worker processes (by cloudpickle)."""
  fetch: Callable  # numbers of images -> a list of (name, argument of decode)
  decode: Callable  # path or binary file -> uint8 [H, W, C]
  size: tuple[int, int, int]  # (H, W, C) of every image
  index: np.ndarray  # int64 [N]: the images' numbers, as fetch takes them
  groups: np.ndarray | None  # [N]: an unreadable image is replaced by the next one of its group; None: it raises
  mark: bytes  # hash of the origin of the images and of the first of them, decoded
  threads: int | None = None  # that decode; None: a few more than the number of cores

  ndim = 4
  dtype = np.dtype(np.uint8)

  def __len__(self):
    return len(self.index)

  @property
  def shape(self):
    return len(self), *self.size

  @property
  def identity(self):
    """uint8 [16]: replaces a hash of all images, which would have to read them."""
    return np.frombuffer(hashlib.blake2b(self.mark + self.index.tobytes(), digest_size=16).digest(), np.uint8)

  def take(self, positions):
    """A Stream of the images at these positions (integers); reads nothing."""
    groups = None if self.groups is None else self.groups[positions]
    return dataclasses.replace(self, index=self.index[positions], groups=groups)

  def single_threaded(self):
    """The same, decoded by one thread: for one of several processes."""
    return dataclasses.replace(self, threads=1)

  def __getitem__(self, key):
    """uint8 [n, H, W, C], or [H, W, C] for an integer.

    Raises:
      IndexError: a position out of range.
      InputError: an image that is missing, unreadable or of another size.
    """
    numbers = self.index[key]
    images = self._read(numbers.reshape(-1))
    return images if numbers.ndim else images[0]

  def __array__(self, dtype=None, copy=None):
    raise InputError('this needs all images in memory at once, but they are streamed from disk; '
                     'leave out stream=True in config.data')

  def _read(self, numbers):
    images = np.empty((len(numbers), *self.size), np.uint8)
    files = self.fetch(numbers)

    def fill(first):
      for k in range(first, min(first + _CHUNK, len(numbers))):
        images[k] = self._image(numbers[k], *files[k])

    starts = range(0, len(numbers), _CHUNK)
    if len(starts) < 2 or self.threads == 1:
      list(map(fill, starts))
    else:
      with ThreadPoolExecutor(self.threads) as pool:
        try:
          list(pool.map(fill, starts))
        except BaseException:
          pool.shutdown(cancel_futures=True)  # do not read the rest first
          raise
    return images

  def _image(self, number, name, file):
    image, error = self._attempt(name, file)
    if image is not None:
      return image
    if self.groups is None:
      raise InputError(f'cannot read {name} ({error}); repair or remove it')
    same = self.index[self.groups == self.groups[self.index == number][0]]
    for other in np.roll(same, -1 - np.flatnonzero(same == number)[0])[:_TRIES]:
      (substitute, file), = self.fetch(np.array([other]))
      image, _ = self._attempt(substitute, file)
      if image is not None:
        warnings.warn(f'cannot read {name} ({error}); replaced by {substitute}')
        return image
    raise InputError(f'cannot read {name} ({error}), nor the {min(_TRIES, len(same))} images after it')

  def _attempt(self, name, file):
    """(image or None, why it cannot be read). Raises InputError if it is missing or of another size."""
    try:
      image = self.decode(file)
    except (FileNotFoundError, PermissionError) as error:  # not a damaged image: the data have changed
      raise InputError(f'{name} cannot be opened ({type(error).__name__}: {error}); restore it, '
                       'or check that its disk is mounted') from error
    except Exception as error:  # decoders of broken files raise nearly anything; the caller names the file
      return None, reason(error)
    if image.shape != self.size:
      raise InputError(f'images differ in size: the first are {size_text(self.size)}, '
                       f'{name} is {size_text(image.shape)}; give size=, for example size=32')
    return image, ''


def open_stream(fetch, decode, count, mark, groups=None):
  """A Stream of `count` images; reads the first 64, which must be of one size, to determine their shape.

  Args:
    fetch, decode, groups: see Stream.
    mark: str, which distinguishes these images from any others, such as all of their names.
  Raises:
    InputError: the first images cannot be read or differ in size.
  """
  files = fetch(np.arange(min(count, INSPECTED)))
  names = [name for name, _ in files]
  images, _, _ = read_all(decode, names, lambda i: files[i][1], 'stop' if groups is None else 'skip')
  digest = hashlib.blake2b(f'{count} {images.shape} '.encode() + images.tobytes(), digest_size=16)
  digest.update(mark.encode('utf-8', 'surrogateescape'))  # file names need not be valid text
  return Stream(fetch, decode, images.shape[1:], np.arange(count), groups, digest.digest())
