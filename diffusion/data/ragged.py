"""A column of examples of different lengths, such as the atoms of molecules: values in a row, and where each ends."""
import dataclasses
import hashlib

import numpy as np

from diffusion.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Ragged:
  """N examples [length, ...] of one dtype."""
  values: np.ndarray   # [sum of the lengths, ...]
  offsets: np.ndarray  # int64 [N + 1], ascending from 0: example i is values[offsets[i]:offsets[i + 1]]

  def __post_init__(self):
    offsets = np.asarray(self.offsets)
    fits = offsets.ndim == 1 and len(offsets) and offsets.dtype.kind in 'iu' and offsets[0] == 0
    if not fits or offsets[-1] != len(self.values) or np.any(np.diff(offsets.astype(np.int64)) < 0):
      raise InputError(f'offsets of a ragged column: expected integers that rise from 0 to the number of values, '
                       f'{len(self.values)}; got {offsets.tolist()[:8]}')

  def __len__(self):
    return len(self.offsets) - 1

  @property
  def shape(self):
    """(N, *shape of one value): the lengths are in `offsets`."""
    return len(self), *self.values.shape[1:]

  @property
  def dtype(self):
    return self.values.dtype

  @property
  def lengths(self):
    return np.diff(self.offsets)

  @property
  def identity(self):
    """uint8 [16]: a hash of all values and lengths."""
    state = hashlib.blake2b(np.ascontiguousarray(self.values).tobytes(), digest_size=16)
    state.update(np.asarray(self.offsets, np.int64).tobytes())
    return np.frombuffer(state.digest(), np.uint8)

  def __getitem__(self, key):
    """The array of one example for an integer; for integers, a mask or a slice the Ragged of those."""
    offsets = np.asarray(self.offsets, np.int64)
    starts, ends = offsets[:-1][key], offsets[1:][key]
    if starts.ndim == 0:
      return self.values[starts:ends]
    lengths = ends - starts
    chosen = np.cumsum([0, *lengths], dtype=np.int64)
    return Ragged(self.values[np.arange(chosen[-1]) + np.repeat(starts - chosen[:-1], lengths)], chosen)

  def padded(self, length=None):
    """(values [N, L, ...] with zeros behind each example, mask bool [N, L]); L is `length`, or the longest example's.

    Raises:
      InputError: an example is longer than `length`.
    """
    lengths = self.lengths
    length = int(lengths.max(initial=0)) if length is None else length
    if lengths.max(initial=0) > length:
      raise InputError(f'an example has {lengths.max()} entries, more than the {length} there is room for')
    mask = np.arange(length) < lengths[:, None]
    out = np.zeros((len(self), length, *self.values.shape[1:]), self.values.dtype)
    out[mask] = self.values
    return out, mask


def ragged(arrays, empty=None):
  """The Ragged of a list of arrays [length, ...]; empty: an array of the right shape and dtype, for an empty list."""
  offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
  return Ragged(np.concatenate(arrays) if arrays else empty, offsets)
