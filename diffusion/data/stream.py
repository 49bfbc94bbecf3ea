"""Pictures that stay on the disk and are read when they are asked for: for data that do not fit into memory.

A Stream takes the place of the array in `Dataset.images`. It offers what batches need and no more: len, shape, dtype,
ndim, take, and [slice | whole numbers | number], which reads and decodes now. The same indices give the same pictures
whenever, wherever and in whatever order they are read, so batches stay a pure function of (seed, step).
"""
import dataclasses
import hashlib
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

import numpy as np

from diffusion.data import decode_images
from diffusion.errors import InputError

LOOKED_AT = 64   # pictures from which shape and values are told, instead of reading all
_CHUNK = 8       # pictures a thread takes at a time
_TRIES = 100     # pictures in a row that may be unreadable


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
  """uint8 [N, H, W, C] on the disk. It holds no open file, so worker processes take a copy (by cloudpickle)."""
  fetch: Callable              # numbers of pictures -> for each (name, what decode takes)
  decode: Callable             # -> uint8 [H, W, C]
  size: tuple[int, int, int]   # (H, W, C) of every picture
  index: np.ndarray            # int64 [N]: their numbers, among those that fetch knows
  groups: np.ndarray | None    # [N]: the next of its group takes the place of an unreadable picture; None: it raises
  mark: bytes                  # hash of where they are from, of the first of them and of how those are decoded
  threads: int | None = None   # that decode; None: a few more than there are cores

  ndim = 4
  dtype = np.dtype(np.uint8)

  def __len__(self):
    return len(self.index)

  @property
  def shape(self):
    return len(self), *self.size

  @property
  def identity(self):
    """uint8 [16]: stands for the pictures where a hash of all of them would have to read them."""
    return np.frombuffer(hashlib.blake2b(self.mark + self.index.tobytes(), digest_size=16).digest(), np.uint8)

  def take(self, chosen):
    """A Stream of the pictures at these positions (whole numbers); reads nothing."""
    groups = None if self.groups is None else self.groups[chosen]
    return dataclasses.replace(self, index=self.index[chosen], groups=groups)

  def alone(self):
    """The same, decoded by one thread: for one of several processes."""
    return dataclasses.replace(self, threads=1)

  def __getitem__(self, key):
    """uint8 [n, H, W, C], or [H, W, C] for a number.

    Raises:
      IndexError: a position that is not there.
      InputError: a picture that has gone, cannot be read or has another size.
    """
    numbers = self.index[key]
    images = self._read(numbers.reshape(-1))
    return images if numbers.ndim else images[0]

  def __array__(self, dtype=None, copy=None):
    raise InputError('this needs all pictures in memory at once, but they stay on the disk; '
                     'leave out stream=True in config.data')

  def _read(self, numbers):
    images = np.empty((len(numbers), *self.size), np.uint8)
    found = self.fetch(numbers)

    def fill(first):
      for k in range(first, min(first + _CHUNK, len(numbers))):
        images[k] = self._picture(numbers[k], *found[k])

    starts = range(0, len(numbers), _CHUNK)
    if len(starts) < 2 or self.threads == 1:
      list(map(fill, starts))
    else:
      with ThreadPoolExecutor(self.threads) as pool:
        try:
          list(pool.map(fill, starts))
        except BaseException:
          pool.shutdown(cancel_futures=True)   # do not read the rest first
          raise
    return images

  def _picture(self, number, name, file):
    image, error = self._attempt(name, file)
    if image is not None:
      return image
    if self.groups is None:
      raise InputError(f'cannot read {name} ({error}); mend it or take it out')
    same = self.index[self.groups == self.groups[self.index == number][0]]
    for other in np.roll(same, -1 - np.flatnonzero(same == number)[0])[:_TRIES]:
      (instead, file), = self.fetch(np.array([other]))
      image, _ = self._attempt(instead, file)
      if image is not None:
        warnings.warn(f'cannot read {name} ({error}); {instead} takes its place')
        return image
    raise InputError(f'cannot read {name} ({error}), nor the {min(_TRIES, len(same))} pictures after it')

  def _attempt(self, name, file):
    """(the picture or None, why it cannot be read); raises InputError where it has gone or has another size."""
    try:
      image = self.decode(file)
    except (FileNotFoundError, PermissionError) as error:   # not a damaged picture: the data have changed
      raise InputError(f'{name} cannot be opened ({type(error).__name__}: {error}); put it back, '
                       'or see whether its disk is there') from error
    except Exception as error:   # readers of broken files raise nearly anything; the file is named
      return None, f'{type(error).__name__}: {error}'
    if image.shape != self.size:
      raise InputError(f'pictures differ in size: the first are {decode_images.by(self.size)}, '
                       f'{name} is {decode_images.by(image.shape)}; give size=, for example size=32')
    return image, ''


def open_stream(fetch, decode, count, mark, groups=None):
  """A Stream of `count` pictures; reads the first 64, which must be of one size, to learn their shape.

  Args:
    fetch, decode, groups: see Stream.
    mark: str, which tells these `count` pictures from any others, such as all of their names.
  Raises:
    InputError: the first pictures cannot be read or differ in size.
  """
  first = np.arange(min(count, LOOKED_AT))
  found = fetch(first)
  names = [name for name, _ in found]
  images, _, _ = decode_images.read_all(decode, names, lambda i: found[i][1], 'stop' if groups is None else 'skip')
  told = hashlib.blake2b(f'{count} {images.shape} '.encode() + images.tobytes(), digest_size=16)
  told.update(mark.encode('utf-8', 'surrogateescape'))   # names of files may be no text
  return Stream(fetch, decode, images.shape[1:], np.arange(count), groups, told.digest())
