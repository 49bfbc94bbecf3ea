"""Augmentation that the network is told of, so that it does not leak into samples (EDM, arXiv:2206.00364, F.2).

Each transformation is applied to an image with some probability, and its strength becomes a number of the condition,
0 where it was not applied. Samples are drawn with zeros: as if nothing had been done.
"""
import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

TOLD = ('mirrored', 'log2 scale', 'cosine of the rotation - 1', 'its sine', 'shift down', 'shift right')
SCALE, SHIFT = .2, .125  # standard deviations: of log2 of the scale, and of shifts in heights and widths of the image


def mirror(key, x):
  """Images [B, H, W, C], a random half of them mirrored left to right; the network is not told."""
  mirrored = jax.random.bernoulli(key, shape=(len(x), 1, 1, 1))
  return jnp.where(mirrored, x[:, :, ::-1], x)


def augment(key, x, probability):
  """Mirrors, scales, rotates and shifts images, each with this probability.

  Args:
    x: [B, H, W, C], any real values; what lies outside of an image is its reflection.
    probability: of each transformation, in [0, 1]; the paper has 0.12 to 0.15.
  Returns:
    (images [B, H, W, C], what was done float32 [B, 6], see TOLD; scale and shifts in their standard deviations).
  """
  B = len(x)
  keys = iter(jax.random.split(key, 8))
  where = lambda value: jnp.where(jax.random.bernoulli(next(keys), probability, value.shape[:1])[:, None], value, 0.)
  mirrored = where(jax.random.bernoulli(next(keys), shape=(B, 1)).astype(jnp.float32))
  scale = where(jax.random.normal(next(keys), (B, 1)))
  angle = where(jax.random.uniform(next(keys), (B, 1), minval=-jnp.pi, maxval=jnp.pi))
  shift = where(jax.random.normal(next(keys), (B, 2)))
  told = jnp.concatenate([mirrored, scale, jnp.cos(angle) - 1, jnp.sin(angle), shift], -1)
  changed = jnp.any(told != 0, -1)[:, None, None, None]
  return jnp.where(changed, jax.vmap(warp)(x, told), x), told


def warp(image, told):
  """An image [H, W, C], mirrored, scaled, rotated (counter-clockwise, about its centre) and shifted, as told [6]."""
  H, W, _ = image.shape
  mirrored, scale, cosine, sine, down, right = told
  factor, cosine = 2. ** (SCALE * scale), cosine + 1
  y = jnp.arange(H)[:, None] - (H - 1) / 2 - SHIFT * H * down  # each pixel of the result asks where it comes from
  x = jnp.arange(W) - (W - 1) / 2 - SHIFT * W * right
  y, x = (cosine * y + sine * x) / factor, (cosine * x - sine * y) / factor * (1 - 2 * mirrored)
  places = [y + (H - 1) / 2, x + (W - 1) / 2]
  return jnp.stack([map_coordinates(image[..., c], places, 1, 'reflect') for c in range(image.shape[-1])], -1)
