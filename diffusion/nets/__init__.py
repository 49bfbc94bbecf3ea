"""Flax networks, and `make`, which hides Flax from everything else.

A network is a Flax module called as `module(x, time, cond, train)`: x [B, ...], time [B] (about 0 to 1000), cond a tree
of arrays [B, ...] or None. It may have a method `prepare(cond) -> cond` for what depends on the condition alone, such as
a text encoder; `module(x, time, prepared, train)` then takes what that returns.
"""
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion.nets import initializers


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
        `prepare`, with any B; B changes nothing. Each parameter follows its own initializer; those of
        `initializers.with_host` are drawn on the host, and inside jit the same key gives other numbers of the same law.
      apply: (params, x, time, cond=None, train=False, rngs=None) -> out; cond: as `prepare` returns it. rngs:
        {'dropout': key} if the network has dropout and trains.
      prepare: (params, cond) -> cond.
  """
  prepares = hasattr(module, 'prepare')

  def whole(module, x, time, cond):
    return module(x, time, module.prepare(cond) if prepares else cond, False)

  def init(key, shape, cond=None):
    def create(key):
      example = jax.tree.map(lambda a: jnp.broadcast_to(a[:1], (shape[0], *a.shape[1:])), cond)
      return module.init(key, jnp.zeros(shape), jnp.zeros(shape[0]), example, method=whole)['params']

    if isinstance(key, jax.core.Tracer):  # inside jit or eval_shape
      return nn.meta.unbox(create(key))
    return initializers.draw(create, key)

  def apply(params, x, time, cond=None, train=False, rngs=None):
    return module.apply({'params': params}, x, time, cond, train, rngs=rngs)

  def prepare(params, cond):
    return module.apply({'params': params}, cond, method='prepare') if prepares else cond

  return Net(init, apply, prepare)

