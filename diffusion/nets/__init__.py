"""Flax networks, and `make`, which hides Flax from everything else.

A network is a Flax module called as `module(x, time, cond, train)`: x [B, ...], time [B] (about 0 to 1000), cond a tree
of arrays [B, ...] or None. It may have a method `prepare(cond) -> cond` for what depends on the condition alone, such as
a text encoder; `module(x, time, prepared, train)` then takes what that returns.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Net(NamedTuple):
  """A network as three pure functions."""
  init: Callable     # (key, shape, cond=None) -> params
  apply: Callable    # (params, x, time, cond=None, train=False, rngs=None) -> out
  prepare: Callable  # (params, cond) -> cond, computed once per sample and once per loss; the identity for most


def make(module):
  """The `Net` of a Flax module.

  Returns:
    Net of
      init: (key, shape, cond=None) -> params. shape: of x, [B, ...]; cond: an example of the condition as it is before
        `prepare`, with any B; B changes nothing. Inside jit the same key gives other numbers of the same distribution.
      apply: (params, x, time, cond=None, train=False, rngs=None) -> out; cond: as `prepare` returns it. rngs:
        {'dropout': key} if the network has dropout and trains.
      prepare: (params, cond) -> cond.
  """
  prepares = hasattr(module, 'prepare')

  def whole(module, x, time, cond):
    return module(x, time, module.prepare(cond) if prepares else cond, False)

  def init(key, shape, cond=None):
    example = jax.tree.map(lambda a: jnp.broadcast_to(a[:1], (shape[0], *a.shape[1:])), cond)

    def create(key):
      return module.init(key, jnp.zeros(shape), jnp.zeros(shape[0]), example, method=whole)['params']

    if isinstance(key, jax.core.Tracer):  # inside jit or eval_shape: the modules' own initialisers
      return create(key)
    return draw(np.asarray(jax.random.key_data(key)), jax.eval_shape(create, key))

  def apply(params, x, time, cond=None, train=False, rngs=None):
    return module.apply({'params': params}, x, time, cond, train, rngs=rngs)

  def prepare(params, cond):
    return module.apply({'params': params}, cond, method='prepare') if prepares else cond

  return Net(init, apply, prepare)


def draw(seed, shapes):
  """Initial parameters for a tree of shapes, by the names of its leaves.

  The distributions are those of the modules' own initialisers. Drawn on the host, because XLA takes 0.2 s to
  compile a random draw and a U-Net has a hundred of them.

  Args:
    seed: array of unsigned integers.
    shapes: tree of ShapeDtypeStruct.
  Returns:
    The same tree of float32 NumPy arrays.
  """
  rng = np.random.default_rng(seed)

  def leaf(path, like):
    return initial(rng, path[-1].key, like.shape)

  return jax.tree_util.tree_map_with_path(leaf, shapes)


def initial(rng, name, shape):
  """A leaf, float32. kernel [..., C, F]: uniform, variance 2 / (fan in + fan out) (Glorot & Bengio 2010)."""
  if name == 'kernel':
    bound = np.sqrt(6 / (np.prod(shape[:-2]) * (shape[-2] + shape[-1])))
    return rng.uniform(-bound, bound, shape).astype(np.float32)
  if name == 'scale':
    return np.ones(shape, np.float32)
  if name in ('bias', 'zero_kernel'):
    return np.zeros(shape, np.float32)
  raise ValueError(f'No initial value is defined for a parameter called {name!r}')
