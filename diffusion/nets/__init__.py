"""Flax networks, and `make`, which hides Flax from everything else.

A network is a Flax module called as `module(x, time, cond, train)`: x [B, ...], time [B] (about 0 to 1000), cond a
tree of arrays [B, ...] or None. A method `prepare(cond) -> cond` is optional, for what depends on the condition alone,
such as a text encoder; the network is then called with the prepared condition.

A network declares as fields which of these values it takes, and `sized` passes no others:

  classes       number of classes in the data, 0 if none
  out_channels  channels of the output if not those of x, for self-conditioning and a learned variance
  constrain     function that keeps activations split by batch, to be called between blocks
  timed         whether an image tower is told the noise level, given by the objective
  moments, critic      numbers for each latent value, and whether there is a discriminator, given by the objective
  values, codes, dots  numbers of values of a code, of codes and of values of a cosine, given by the objective
  vocabulary, length   number of token ids and most tokens of a text, where the task gives tokens

Two more fields are optional, and read by `setting`:

  dtype         of the activations, 'float32' or 'bfloat16'
  remat         whether activations are recomputed in the backward pass

To add a network, write a file with the module and TINY, a spec small enough for tests, and list both here.
"""
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion.errors import InputError
from diffusion.nets import autoencoder, classifier, clip, initializers, mlp, prior, transformer, unet, unet1d, with_text
from diffusion.nets.pretrained import dit, unet2d

NETS = dict(unet=unet.UNet, classifier=classifier.Classifier, mlp=mlp.Mlp,
            unet1d=unet1d.UNet1d, transformer=transformer.Transformer, with_text=with_text.WithText, clip=clip.Clip,
            autoencoder=autoencoder.Autoencoder, unet2d=unet2d.UNet2D, unet2d_condition=unet2d.UNet2DCondition,
            dit=dit.Dit, prior=prior.Prior, prior_ar=prior.PriorAr)
TINY = dict(unet=unet.TINY, classifier=classifier.TINY, mlp=mlp.TINY, unet1d=unet1d.TINY,
            transformer=transformer.TINY, with_text=with_text.TINY, clip=clip.TINY, autoencoder=autoencoder.TINY,
            unet2d=unet2d.TINY, unet2d_condition=unet2d.TINY_CONDITION, dit=dit.TINY,
            prior=prior.TINY, prior_ar=prior.TINY_AR)
DEFAULTS = dict(dtype='float32', remat=False)  # for networks without these fields


def sized(cls, required=(), **sizes):
  """The values that a network class declares as fields.

  Args:
    cls: the Flax module class.
    required: names of fields that it must declare.
    sizes: values by name, see the module docstring.
  Raises:
    InputError: a required field is missing.
  """
  declared = [field.name for field in dataclasses.fields(cls) if field.name not in ('parent', 'name')]
  missing = [name for name in required if name not in declared]
  if missing:
    raise InputError(f'the network {cls.__name__} has no field {", ".join(missing)}; '
                     f'its fields are {", ".join(declared)}')
  return {name: value for name, value in sizes.items() if name in declared}


def setting(module, name):
  """The field `dtype` or `remat` of a module, or its default if the module does not declare it."""
  return getattr(module, name, DEFAULTS[name])


class Net(NamedTuple):
  """A network as pure functions."""
  init: Callable     # (key, shape, cond=None) -> params
  apply: Callable    # (params, x, time, cond=None, train=False, rngs=None) -> out
  prepare: Callable  # (params, cond) -> cond, called once per sample and once per loss; mostly the identity
  look: Callable = None  # (params, x, time, cond) -> its attention to a context, a list of [B, heads, pixels, keys]
  call: Callable = None  # (params, name, *arrays) -> what the module's method of that name returns


def make(module):
  """The `Net` of a Flax module.

  Returns:
    Net of
      init: (key, shape, cond=None) -> params. shape: of x, [B, ...]. cond: an example of the condition before
        `prepare`, with any batch size. Each parameter is drawn by its own initializer; those of
        `initializers.with_host` are drawn on the host, so that inside jit the same key gives other numbers of the
        same distribution.
      apply: (params, x, time, cond=None, train=False, rngs=None) -> out. cond: as returned by `prepare`.
        rngs: {'dropout': key} in training, if the network has dropout.
      prepare: (params, cond) -> cond.
      look: (params, x, time, cond) -> [weights [B, heads, pixels, keys] of each layer that attends to a context].
      call: (params, name, *arrays) -> what another method of the module returns, such as encode.
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

  def look(params, x, time, cond):
    _, found = module.apply({'params': params}, x, time, cond, False, mutable=['intermediates'])
    return jax.tree.leaves(found)

  call = lambda params, name, *arrays: module.apply({'params': params}, *arrays, method=name)
  return Net(init, apply, prepare, look, call)

