"""What is in a tree of arrays, in a few numbers: its layout, and a checksum for each array.

The checksum: with w_i the i-th 32-bit word of the array in row-major order (or the i-th element, where they
are smaller), `sum_i mix(w_i + i * 0x9e3779b9) mod 2^32`. A sum does not depend on how the array is cut over
devices and processes. `mix` is a bijection (the finaliser of MurmurHash3, public domain), so that a change in
one word always shows; any other damage is missed once in 2^32.
"""
import functools

import jax
import numpy as np

from diffusion.errors import InputError
from diffusion.system.consensus import all_gather_text, run_together


def layout(tree) -> dict:
  """{path: [shape, dtype]} of a tree of arrays or of ShapeDtypeStructs, as JSON holds it."""
  return {path: [list(np.shape(leaf)), str(leaf.dtype if hasattr(leaf, 'dtype') else np.asarray(leaf).dtype)]
          for path, leaf in flat(tree).items()}


def differences(saved: dict, here: dict) -> list:
  """One line for each array by which two layouts differ, such as
  `params/conv_in/kernel: (3, 3, 3, 32) float32 here, (3, 3, 1, 64) float32 in the checkpoint`."""
  def show(entry):
    return f'({", ".join(map(str, entry[0]))}) {entry[1]}' if entry else 'absent'
  return [f'{path}: {show(here.get(path))} here, {show(saved.get(path))} in the checkpoint'
          for path in {**here, **saved} if here.get(path) != saved.get(path)]


def checksums(tree) -> dict:
  """{path: int} in [0, 2^32): equal for equal bits, on any number of devices and processes (see the top)."""
  leaves = flat(tree)

  def parts():
    sums = np.zeros(len(leaves), np.uint32)
    for k, (path, leaf) in enumerate(leaves.items()):
      for data, start in _shards(path, leaf):
        sums[k] += of_part(data, start, np.shape(leaf))
    return sums

  texts = all_gather_text(run_together(parts).tobytes().hex())
  total = sum(np.frombuffer(bytes.fromhex(text), np.uint32) for text in texts)
  return dict(zip(leaves, total.tolist()))


def _shards(path, leaf):
  """The parts of an array that this process answers for, on the host, each with the index where it starts."""
  if not isinstance(leaf, jax.Array):
    return [(np.asarray(leaf), [0] * np.ndim(leaf))] if jax.process_index() == 0 else []
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
    raise InputError(f'{path} is a typed PRNG key, which has no bits to store; put jax.random.key_data there')
  own = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
  return [(np.asarray(shard.data), [part.start or 0 for part in shard.index]) for shard in own]


def of_part(data, start, shape) -> np.uint32:
  """What the part `data`, at index `start` of an array of this shape, adds to the checksum of the array."""
  # On the host, where orbax copies the arrays anyway: compiled, it took 0.1 s and more for each new shape.
  size = data.dtype.itemsize
  words = np.ascontiguousarray(data).view({1: np.uint8, 2: np.uint16}.get(size, np.uint32)).reshape(-1)
  stride = max(1, size // 4)  # words in an element
  offsets = [np.arange(stride, dtype=np.uint32)]
  for axis in reversed(range(data.ndim)):
    where = np.arange(data.shape[axis], dtype=np.uint64) + np.uint64(start[axis])
    offsets.append((where * np.uint64(stride)).astype(np.uint32))
    stride = stride * shape[axis] % 2**32
  index = functools.reduce(np.add.outer, offsets[::-1]).reshape(-1)
  total = np.zeros((), np.uint32)
  for i in range(0, words.size, 65536):  # in pieces that stay in the cache
    h = index[i:i + 65536]
    h *= np.uint32(0x9e3779b9)
    h += words[i:i + 65536]
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x85ebca6b)
    h ^= h >> np.uint32(13)
    h *= np.uint32(0xc2b2ae35)
    h ^= h >> np.uint32(16)
    total += h.sum(dtype=np.uint32)
  return total


def flat(tree) -> dict:
  """{path: leaf}, in the order of the leaves."""
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
