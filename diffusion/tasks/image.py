"""Pictures, unconditional or told by class or context vector."""
import jax
import jax.numpy as jnp

from diffusion.data.dataset import from_unit, to_unit
from diffusion.tasks import Task


def image(flip=False):
  """Args: flip, whether a random half of the training pictures is mirrored left to right."""
  def encode(key, batch):
    x0 = to_unit(batch['images'])
    if flip and key is not None:
      mirrored = jax.random.bernoulli(key, shape=(len(x0), 1, 1, 1))
      x0 = jnp.where(mirrored, x0[:, :, ::-1], x0)
    return x0, batch.get('cond')
  def null(cond):
    return jax.tree.map(jnp.zeros_like, cond)
  return Task(encode, null, from_unit)
