"""Linear measurements of x0, and denoisers that agree with a measurement."""
from typing import Callable, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion.core.gaussian import expand_to, from_x0
from diffusion.errors import InputError


class Linear(NamedTuple):
  """A linear measurement y = forward(x0), and a linear right inverse: forward(inverse(y)) = y."""
  forward: Callable
  inverse: Callable


def known_pixels(mask):
  """The pixels where the mask is 0; y is zero elsewhere."""
  def keep(x):
    return jnp.where(mask, 0., x)
  return Linear(keep, keep)


def luma(weights=(.299, .587, .114)):
  """The grey image [..., 1] of an RGB image (ITU-R BT.601); the inverse is grey and so preserves colour differences.

  Raises:
    InputError: weights that do not sum to 1.
  """
  weights = np.asarray(weights, np.float32)
  if not np.isclose(weights.sum(), 1):
    raise InputError(f'luma({tuple(weights.tolist())}): expected weights whose sum is 1')
  def forward(x):
    return jnp.sum(x * weights, -1, keepdims=True)
  def inverse(y):
    return jnp.broadcast_to(y, (*y.shape[:-1], len(weights)))
  return Linear(forward, inverse)


def block_average(factor):
  """The image of averages over blocks of factor x factor pixels; the inverse repeats pixels. x [..., H, W, C].

  Raises:
    InputError: a factor below 1.
  """
  if factor < 1:
    raise InputError(f'block_average({factor!r}): expected a factor of at least 1')
  def forward(x):
    *batch, height, width, channels = x.shape
    return jnp.mean(x.reshape(*batch, height // factor, factor, width // factor, factor, channels), (-4, -2))
  def inverse(y):
    return jnp.repeat(jnp.repeat(y, factor, -3), factor, -2)
  return Linear(forward, inverse)


def ddnm(denoise, operator, y):
  """x0 + A^+ (y - A x0): an x0 that agrees with a noiseless measurement (DDNM, arXiv:2212.00490, equation 13).

  As a function of the denoiser it makes every solver end on an image with A x = y. Apply it outside of clip.

  Args:
    denoise: (x, noise) -> Pred.
    operator: a Linear.
    y: the measurement; broadcasts against operator.forward(x0).
  Returns:
    A denoiser.
  """
  def constrained(x, noise):
    pred = denoise(x, noise)
    x0 = pred.x0 + operator.inverse(y - operator.forward(pred.x0))
    return from_x0(expand_to(noise, x), x, x0, pred.variance)
  return constrained
