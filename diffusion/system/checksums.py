"""A summary of a tree of arrays: its layout, and one checksum per array.

The checksum is `sum_i mix(w_i + i * 0x9e3779b9) mod 2^32`, with w_i the i-th 32-bit word of the array in row-major
order (or the i-th element, if elements are smaller). A sum does not depend on how the array is sharded over devices
and processes. `mix` is a bijection (the finaliser of MurmurHash3, public domain), so a change in a single word is
always detected; other damage is missed with probability 2^-32.
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


def differences(saved: dict, current: dict) -> list:
  """One line for each array that differs between the layout of a checkpoint and that of this run.

  Such as 'params/conv_in/kernel: (3, 3, 3, 32) float32 here, (3, 3, 1, 64) float32 in the checkpoint'.
  """
  def show(entry):
    return f'({", ".join(map(str, entry[0]))}) {entry[1]}' if entry else 'absent'
  return [f'{path}: {show(current.get(path))} here, {show(saved.get(path))} in the checkpoint'
          for path in {**current, **saved} if current.get(path) != saved.get(path)]


def checksums(tree) -> dict:
  """{path: int} in [0, 2^32): equal for equal bits, on any number of devices and processes. All processes call it."""
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
  """The parts of an array that this process sums, as host arrays, each with the index of its first element."""
  if not isinstance(leaf, jax.Array):
    return [(np.asarray(leaf), [0] * np.ndim(leaf))] if jax.process_index() == 0 else []
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
    raise InputError(f'{path} is a typed PRNG key, whose bits cannot be stored; use jax.random.key_data instead')
  own = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
  return [(np.asarray(shard.data), [part.start or 0 for part in shard.index]) for shard in own]


def of_part(data, start, shape) -> np.uint32:
  """The contribution of the part `data`, at index `start` of an array of shape `shape`, to the array's checksum."""
  # On the host, where orbax copies the arrays anyway: compiling took at least 0.1 s for each new shape.
  size = data.dtype.itemsize
  words = np.ascontiguousarray(data).view({1: np.uint8, 2: np.uint16}.get(size, np.uint32)).reshape(-1)
  stride = max(1, size // 4)  # words per element
  offsets = [np.arange(stride, dtype=np.uint32)]
  for axis in reversed(range(data.ndim)):
    where = np.arange(data.shape[axis], dtype=np.uint64) + np.uint64(start[axis])
    offsets.append((where * np.uint64(stride)).astype(np.uint32))
    stride = stride * shape[axis] % 2**32
  index = functools.reduce(np.add.outer, offsets[::-1]).reshape(-1)
  total = np.zeros((), np.uint32)
  for i in range(0, words.size, 65536):  # in chunks that fit into the cache
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
