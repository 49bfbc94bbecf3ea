"""Initializers with a NumPy version of the same distribution, which draws parameters on the host.

XLA takes 0.2 s to compile a random draw, and a U-Net has a hundred of them. An initializer made by `with_host` returns
its value in a box that carries the NumPy version. The abstract tree of parameters thus shows which leaves can be drawn
on the host; all others are drawn by their own initializers, in one compiled program.
"""
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class HostDrawn(nn.meta.AxisMetadata):  # Flax's protocol for metadata: modules get the value, the tree keeps the box
  """A parameter, and a function host(rng, shape) -> array that draws from its initial distribution."""
  value: Any
  host: Callable = flax.struct.field(pytree_node=False)

  def unbox(self):
    return self.value

  def replace_boxed(self, val):
    return self.replace(value=val)

  def add_axis(self, index, params):  # the shape of stacked layers (nn.scan, nn.vmap) would give another variance
    return self.value

  def remove_axis(self, index, params):
    return self.value


def with_host(initializer, host):
  """An initializer with a NumPy version.

  Args:
    initializer: (key, shape, dtype) -> array.
    host: (NumPy Generator, shape) -> array of exactly the same distribution.
  """
  return lambda key, shape, dtype=jnp.float32: HostDrawn(initializer(key, shape, dtype), host)


def _glorot_uniform(rng, shape):
  """Kernel [..., C, F]: uniform, variance 2 / (fan in + fan out) (Glorot & Bengio 2010)."""
  bound = np.sqrt(6 / (np.prod(shape[:-2]) * (shape[-2] + shape[-1])))
  return rng.uniform(-bound, bound, shape)


ZEROS = with_host(nn.initializers.zeros, lambda rng, shape: np.zeros(shape))
ONES = with_host(nn.initializers.ones, lambda rng, shape: np.ones(shape))
KERNEL = with_host(nn.initializers.glorot_uniform(), _glorot_uniform)  # the choice of DDPM's code


def draw(create, key):
  """Initial parameters, on the host.

  Args:
    create: pure function, key -> tree of parameters, some of them boxed.
    key: a key, not traced.
  Returns:
    The tree of NumPy arrays, unboxed. Boxed leaves are drawn in the order of the tree by one generator, seeded with
    the key; the others are those of `create(key)`.
  """
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  boxed = lambda leaf: isinstance(leaf, HostDrawn)
  abstract, structure = jax.tree.flatten(jax.eval_shape(create, key), boxed)

  def own(key):  # jit drops everything else, such as the forward pass
    return [None if boxed(leaf) else leaf for leaf in jax.tree.leaves(create(key), is_leaf=boxed)]

  def final(leaf, value):
    return leaf.host(rng, leaf.value.shape).astype(leaf.value.dtype) if boxed(leaf) else value

  values = [None] * len(abstract) if all(map(boxed, abstract)) else jax.device_get(jax.jit(own)(key))
  return jax.tree.unflatten(structure, map(final, abstract, values))
