"""Images, unconditional or conditioned on a class or context vector."""
import jax
import jax.numpy as jnp

from diffusion.data.arrays import from_unit
from diffusion.tasks.base import Task


def to_unit(images):
  """uint8 [0, 255] -> float32 [-1, 1]; NumPy and JAX arrays. The inverse of `from_unit` for all 256 values."""
  return images.astype('float32') / 127.5 - 1.0


def image(flip=False):
  """flip: whether to mirror a random half of the training images left to right."""
  def encode(key, batch):
    x0 = to_unit(batch['images'])
    if flip and key is not None:
      mirrored = jax.random.bernoulli(key, shape=(len(x0), 1, 1, 1))
      x0 = jnp.where(mirrored, x0[:, :, ::-1], x0)
    return x0, batch.get('cond')
  def null(cond):
    return jax.tree.map(jnp.zeros_like, cond)
  return Task(encode, null, from_unit)
