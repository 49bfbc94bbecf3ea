"""Folders of diffusers and transformers: config.json beside weights in .safetensors, read one tensor at a time."""
import json
from typing import Callable, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from diffusion.errors import InputError
from diffusion.system.files import user_path, write_atomic
from diffusion.system.tensors import CONVERT

STEMS = ('diffusion_pytorch_model', 'model')  # of diffusers, of transformers
FLOATS = {'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16, 'F64': np.float64}


class Stored(NamedTuple):
  """Tensors in files."""
  where: str     # of the folder, for messages
  shapes: dict   # name -> shape
  get: Callable  # name -> float32 array, read now: nothing else of the file is in memory; InputError: not finite


def read_json(path):
  """The object in a JSON file. Raises InputError: it cannot be read or is no object."""
  path = user_path(path)
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(f'{path} cannot be read ({getattr(error, "strerror", None) or error}); expected a JSON object, '
                     'as diffusers saves it') from error
  if not isinstance(found, dict):
    raise InputError(f'{path}: expected a JSON object, as diffusers saves it')
  return found


def files(folder, variant=''):
  """The weight files of a folder, with the names in their index if there are several.

  Args:
    variant: 'fp16' or 'non_ema', files with that in their names; '': those without, or else the only variant there is.
  Returns:
    {path: names of its tensors, or None: all}.
  Raises:
    InputError: no such files, or only pickles.
  """
  folder = user_path(folder)
  if not folder.is_dir():
    raise InputError(f'{folder} is no folder; expected one with config.json and weights, as diffusers saves it')
  present = sorted(path.name for path in folder.iterdir())
  found = {}
  for stem in STEMS:
    for name in present:
      for ending, index in (('.safetensors', False), ('.safetensors.index.json', True)):
        if name == stem + ending:
          found.setdefault('', (folder / name, index))
        elif name.startswith(f'{stem}.') and name.endswith(ending) and '-of-' not in name:
          found.setdefault(name[len(stem) + 1:-len(ending)], (folder / name, index))
      if name.startswith(f'{stem}.safetensors.index.') and name != f'{stem}.safetensors.index.json':
        found.setdefault(name[len(f'{stem}.safetensors.index.'):-len('.json')], (folder / name, True))
  chosen = variant if variant in found else next(iter(found)) if not variant and len(found) == 1 else None
  if chosen is None:
    pickles = [name for name in present if name.endswith(('.bin', '.ckpt', '.pt', '.pth'))]
    if pickles and not found:
      raise InputError(f'{folder} holds {pickles[0]}, a pickle, which could run code when read: convert it with '
                       f'{CONVERT.replace("IN.pth", str(folder / pickles[0])).replace("OUT", str(folder / STEMS[0]))}')
    there = ', '.join(name or 'one without a variant' for name in found) or 'none'
    raise InputError(f'{folder}: no weights of variant {variant!r}; there: {there}; expected {STEMS[0]}.safetensors, '
                     f'{STEMS[1]}.safetensors, or an index of several')
  path, index = found[chosen]
  return _indexed(path) if index else {path: None}


def _indexed(path):
  """{shard: names} of an index file."""
  shards = {}
  names = read_json(path).get('weight_map')
  if not isinstance(names, dict):
    raise InputError(f'{path}: no weight_map; expected an index of shards')
  for name, shard in names.items():
    shards.setdefault(path.parent / str(shard), []).append(name)
  missing = sorted(shard.name for shard in shards if not shard.exists())
  if missing:
    raise InputError(f'{path.parent} lacks the shard {", ".join(missing)} of {len(shards)}: get it again')
  return shards


def stored(folder, variant=''):
  """The tensors of a folder, Stored.

  Raises:
    InputError: as of `files`; a file that is not complete; a shard without its tensors; numbers of an unknown type.
  """
  shapes, place = {}, {}
  for path, names in files(folder, variant).items():
    with _opened(path) as file:
      there = set(file.keys())
      absent = [name for name in names or () if name not in there]
      if absent:
        raise InputError(f'{path} lacks {absent[0]} and {len(absent) - 1} more that its index names: get it again')
      for name in names or sorted(there):
        part = file.get_slice(name)
        if part.get_dtype() not in (*FLOATS, 'I64', 'I32'):
          raise InputError(f'{path}: {name} is of type {part.get_dtype()}; expected {", ".join(FLOATS)}')
        shapes[name], place[name] = tuple(part.get_shape()), path

  def get(name):
    with _opened(place[name]) as file:
      array = np.asarray(file.get_tensor(name)).astype(np.float32, copy=False)
    if not np.isfinite(array).all():
      number = np.sum(~np.isfinite(array))
      raise InputError(f'{place[name]}: {number:,} of the {array.size:,} numbers of {name} are NaN or infinite, as '
                       'after a diverged training or in a damaged copy: get it again')
    return array
  return Stored(str(folder), shapes, get)


def _opened(path):
  try:
    return safetensors.safe_open(str(path), framework='numpy')
  except (OSError, safetensors.SafetensorError) as error:
    raise InputError(f'{path} is not a complete safetensors file ({" ".join(str(error).split())}): get it again'
                     ) from error


def write(folder, config, tensors, stem=STEMS[0], most=10 ** 10):
  """Writes config.json and the tensors, with an index if they are more than `most` bytes, as diffusers does.

  Args:
    tensors: {name: NumPy array}.
    stem: 'diffusion_pytorch_model', or 'model' of transformers.
  """
  folder = user_path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  write_atomic(folder / 'config.json', (json.dumps(config, indent=2, sort_keys=True) + '\n').encode())
  parts = [[]]
  for name in sorted(tensors):
    if parts[-1] and sum(tensors[n].nbytes for n in parts[-1]) + tensors[name].nbytes > most:
      parts.append([])
    parts[-1].append(name)
  place = {}
  for i, names in enumerate(parts):
    shard = f'{stem}.safetensors' if len(parts) == 1 else f'{stem}-{i + 1:05d}-of-{len(parts):05d}.safetensors'
    place |= dict.fromkeys(names, shard)
    part = {name: np.ascontiguousarray(tensors[name]) for name in names}
    write_atomic(folder / shard, safetensors.numpy.save(part, metadata=dict(format='pt')))
  if len(parts) > 1:
    total = sum(a.nbytes for a in tensors.values())
    index = dict(metadata=dict(total_size=total), weight_map=place)
    write_atomic(folder / f'{stem}.safetensors.index.json', json.dumps(index, indent=2).encode())
