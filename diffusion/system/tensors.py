"""Weights of published networks, from a .safetensors file: read without running what is in it, checked name by name, and hashed."""
import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath

from diffusion.errors import InputError

CONVERT = 'python -m experiments.convert_weights IN.pth OUT.safetensors'


class Weights(NamedTuple):
  """What a file holds."""
  path: str
  tensors: dict  # {name: array}
  digest: str    # SHA-256 of the file
  expected: str  # what it should hold and where that comes from, for error messages


def refuse(weights, problem):
  """Raises InputError: what is wrong, what was expected, and the checksum of what was found."""
  found = f'{len(weights.tensors)} tensors, SHA-256' if weights.tensors else 'SHA-256'
  raise InputError(f'{weights.path}: {problem}; expected {weights.expected}. Found {found} {weights.digest}')


def read(path, expected):
  """The tensors of a .safetensors file.

  Args:
    path: of the file; local, or a bucket's.
    expected: what it should hold and where that comes from.
  Returns:
    Weights.
  Raises:
    InputError: it is not there, cannot be read, is a pickle (.pth, .bin, .pt), or is not safetensors or not whole.
  """
  if not path or not isinstance(path, str):
    raise InputError(f'{path!r} is no path of weights; expected {expected}')
  try:
    data = epath.Path(path).expanduser().read_bytes()
  except OSError as error:
    raise InputError(f'{path} cannot be read ({error.strerror or error}); expected {expected}') from error
  weights = Weights(path, {}, hashlib.sha256(data).hexdigest(), expected)
  if data[:4] == b'PK\x03\x04' or data[:1] == b'\x80':
    refuse(weights, f"is a pickle of PyTorch's, which could run code when read: convert it with {CONVERT}")
  try:
    return weights._replace(tensors=safetensors.numpy.load(data))
  except KeyError as error:
    refuse(weights, f'has tensors of type {error.args[0]}, which NumPy does not know: save them as F32')
  except (safetensors.SafetensorError, ValueError) as error:
    refuse(weights, f'is no safetensors file, or not a whole one ({len(data)} bytes: {" ".join(str(error).split())})')


def shape(weights, name, dimensions):
  """The shape of a tensor from which the sizes of the network are read, with so many dimensions."""
  if name not in weights.tensors:
    refuse(weights, f'has no {name}')
  found = weights.tensors[name].shape
  if len(found) != dimensions or 0 in found:
    refuse(weights, f'{name} is {list(found)}, not of {dimensions} dimensions')
  return found


def depth(weights, prefix):
  """The number of layers whose names are prefix + number + '.'."""
  numbers = {name.removeprefix(prefix).split('.')[0] for name in weights.tensors if name.startswith(prefix)}
  if not numbers:
    refuse(weights, f'has no layers {prefix}0, {prefix}1, ..')
  return len(numbers)


def select(weights, module, pixels, unused=()):
  """The parameters of a network, which are tensors of the file under their own names.

  Args:
    weights: Weights.
    module: Flax module, called with pictures float32 [1, pixels, pixels, 3].
    unused: beginnings and ends of names that the file may hold besides.
  Returns:
    {name: float32 array on the device}.
  Raises:
    InputError: tensors that are missing, of another shape, not finite, or unknown: those make it another network.
  """
  example = jax.ShapeDtypeStruct((1, pixels, pixels, 3), jnp.float32)
  wanted = jax.eval_shape(module.init, jax.random.key(0), example)['params']
  found = weights.tensors
  names = lambda names: ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
  missing = [name for name in wanted if name not in found]
  unlike = [f'{name} {list(found[name].shape)}, not {list(wanted[name].shape)}' for name in wanted
            if name in found and found[name].shape != wanted[name].shape]
  extra = [name for name in found if name not in wanted and not name.startswith(tuple(unused)) and not name.endswith(tuple(unused))]
  for what, which in (('lacks', missing), ('has tensors of another shape:', unlike), ('has tensors that the network does not:', extra)):
    if which:
      refuse(weights, f'{what} {names(which)}')
  bad = [name for name in wanted if found[name].dtype.kind != 'f' or not np.isfinite(found[name]).all()]
  if bad:
    refuse(weights, f'has values that are not finite numbers in {names(bad)}')
  return {name: jnp.asarray(found[name], jnp.float32) for name in wanted}
