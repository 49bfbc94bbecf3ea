"""Tensors in .safetensors files: read without running code, checked name by name, and hashed."""
import base64
import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from diffusion.errors import InputError
from diffusion.system.checksums import flat
from diffusion.system.files import user_path

CONVERT = 'python -m experiments.convert_weights IN.pth OUT.safetensors'


class Weights(NamedTuple):
  """The contents of a file."""
  path: str
  tensors: dict  # {name: NumPy array}
  digest: str  # SHA-256 of the file, hexadecimal
  expected: str  # what it should hold and where that comes from, for error messages


def refuse(weights, problem):
  """Raises InputError: the problem, what was expected, and the checksum of the file."""
  contents = f'{len(weights.tensors)} tensors, SHA-256' if weights.tensors else 'SHA-256'
  raise InputError(f'{weights.path}: {problem}; expected {weights.expected}. Found {contents} {weights.digest}')


def read(path, expected):
  """The tensors of a .safetensors file.

  Args:
    path: str; local or gs://.
    expected: what it should hold and where that comes from, for error messages.
  Returns:
    Weights.
  Raises:
    InputError: the file cannot be read, is a pickle (.pth, .bin, .pt), is not safetensors, or is incomplete.
  """
  if not path or not isinstance(path, str):
    raise InputError(f'{path!r} is not the path of a weights file; expected {expected}')
  try:
    data = user_path(path).read_bytes()
  except OSError as error:
    raise InputError(f'{path} cannot be read ({error.strerror or error}); expected {expected}') from error
  weights = Weights(path, {}, hashlib.sha256(data).hexdigest(), expected)
  try:
    return weights._replace(tensors=safetensors.numpy.load(data))
  except KeyError as error:
    refuse(weights, f'has tensors of type {error.args[0]}, which NumPy does not have: save them as F32')
  except (safetensors.SafetensorError, ValueError) as error:
    if data[:4] == b'PK\x03\x04' or data[:1] == b'\x80':  # so may a header's length begin: one file in 32
      refuse(weights, f'is a PyTorch pickle, which could run code when read: convert it with {CONVERT}')
    refuse(weights, f'is not a complete safetensors file ({len(data)} bytes: {" ".join(str(error).split())})')


def read_tree(path, like, expected):
  """A tree of NumPy arrays from a file that holds exactly its leaves under their paths, such as 'conv_in/kernel'.

  Args:
    path, expected: as in read.
    like: tree of arrays or ShapeDtypeStructs, such as the parameters.
  Raises:
    InputError: as in read; tensors that are missing, unexpected, or of another shape or dtype.
  """
  weights, leaves = read(str(path), expected), flat(like)
  check(weights, {name: f'{a.dtype} {list(a.shape)}' for name, a in leaves.items()},
        {name: f'{a.dtype} {list(a.shape)}' for name, a in weights.tensors.items()})
  return jax.tree.unflatten(jax.tree.structure(like), [weights.tensors[name] for name in leaves])


def select(weights, module, pixels, unused=()):
  """The parameters of a Flax module whose names are those of the tensors.

  Args:
    weights: Weights.
    module: called with images float32 [1, pixels, pixels, 3].
    unused: prefixes and suffixes of names that the file may hold besides.
  Returns:
    {name: float32 array on the device}.
  Raises:
    InputError: tensors that are missing, of another shape or not finite, or unknown ones: the file then belongs to
      another network.
  """
  example = jax.ShapeDtypeStruct((1, pixels, pixels, 3), jnp.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), example)['params']
  ignored = lambda name: name not in shapes and (name.startswith(tuple(unused)) or name.endswith(tuple(unused)))
  check(weights, {name: str(list(a.shape)) for name, a in shapes.items()},
        {name: str(list(a.shape)) for name, a in weights.tensors.items() if not ignored(name)})
  bad = not_finite({name: weights.tensors[name] for name in shapes})
  if bad:
    refuse(weights, f'has values that are not finite numbers in {_listed(bad)}')
  return {name: jnp.asarray(weights.tensors[name], jnp.float32) for name in shapes}


def check(weights, expected, actual):
  """Refuses the weights unless `actual` is `expected`, both {name: description of a tensor}."""
  missing = [name for name in expected if name not in actual]
  unlike = [f'{name} {actual[name]}, not {expected[name]}' for name in expected
            if name in actual and actual[name] != expected[name]]
  extra = [name for name in actual if name not in expected]
  problems = (('lacks', missing), ('has tensors of another dtype or another shape:', unlike),
              ('has tensors that the network does not:', extra))
  for problem, names in problems:
    if names:
      refuse(weights, f'{problem} {_listed(names)}')


def not_finite(tensors):
  """The names of the arrays that hold anything but finite floating-point numbers."""
  return [name for name, a in tensors.items() if a.dtype.kind != 'f' or not np.isfinite(a).all()]


def shape(weights, name, dimensions):
  """The shape of a tensor, from which sizes of the network are taken; refuses another number of dimensions."""
  if name not in weights.tensors:
    refuse(weights, f'has no {name}')
  sizes = weights.tensors[name].shape
  if len(sizes) != dimensions or 0 in sizes:
    refuse(weights, f'{name} is {list(sizes)}, not of {dimensions} dimensions')
  return sizes


def depth(weights, prefix):
  """The number of layers, whose tensors are called prefix + number + '.' + ...; refuses 0."""
  numbers = {name.removeprefix(prefix).split('.')[0] for name in weights.tensors if name.startswith(prefix)}
  if not numbers:
    refuse(weights, f'has no layers {prefix}0, {prefix}1, ..')
  return len(numbers)


def _listed(names, most=3):
  return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')


# ---- in memory
def digest(tree):
  """Hash of a tree of arrays with their paths, shapes and types: 32 hexadecimal digits."""
  state = hashlib.blake2b(digest_size=16)
  for path, leaf in flat(tree).items():
    array = np.ascontiguousarray(leaf)
    state.update(f'{path} {array.dtype} {array.shape}'.encode())
    state.update(array.tobytes())
  return state.hexdigest()


def to_text(arrays):
  """{name: NumPy array} -> text, for a record in JSON."""
  rows = {name: np.asarray(a, order='C') for name, a in arrays.items()}  # the format writes memory as it lies
  return base64.b64encode(safetensors.numpy.save(rows)).decode() if arrays else ''


def from_text(text):
  """The inverse of to_text."""
  return safetensors.numpy.load(base64.b64decode(text)) if text else {}
