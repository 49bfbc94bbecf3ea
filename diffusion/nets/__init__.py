"""Flax networks, and `make`, which hides Flax from everything else.

A network is a Flax module called as `module(x, time, cond, train)`: x [B, ...], time [B] (about 0 to 1000), cond a tree
of arrays [B, ...] or None. It may have a method `prepare(cond) -> cond` for what depends on the condition alone, such as
a text encoder; `module(x, time, prepared, train)` then takes what that returns.

What it takes from its surroundings, it declares as a field; `sized` passes nothing else:

  classes       how many classes the data have, 0 if none
  out_channels  channels of the output, if these are not those of x: for self-conditioning and a learned variance
  constrain     function that keeps activations split by batch, to be called between blocks

Two more fields, if it has them, are read by others (`setting`):

  dtype         of the activations, 'float32' or 'bfloat16'
  remat         whether activations are recomputed in the backward pass

To add a network: a file with the module and a TINY spec of it for tests, and an entry in NETS and TINY here.
"""
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion.errors import InputError
from diffusion.nets import classifier, initializers, unet

NETS = dict(unet=unet.UNet, classifier=classifier.Classifier)
TINY = dict(unet=unet.TINY, classifier=classifier.TINY)
DEFAULTS = dict(dtype='float32', remat=False)  # of networks without these fields


def sized(cls, required=(), **sizes):
  """Those of `sizes` that a network class declares as fields.

  Args:
    cls: the Flax module class.
    required: names of sizes that it must declare.
    sizes: values by name, see the module.
  Raises:
    InputError: a required field that it does not declare.
  """
  declared = [field.name for field in dataclasses.fields(cls) if field.name not in ('parent', 'name')]
  missing = [name for name in required if name not in declared]
  if missing:
    raise InputError(f'the network {cls.__name__} has no field {", ".join(missing)}; its fields: {", ".join(declared)}')
  return {name: value for name, value in sizes.items() if name in declared}


def setting(module, name):
  """The value of the field `dtype` or `remat` of a module, whether it declares it or not."""
  return getattr(module, name, DEFAULTS[name])


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

