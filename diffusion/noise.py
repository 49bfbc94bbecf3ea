"""Noise levels: the one currency of this codebase.

A Gaussian corruption is x_t = alpha * x0 + sigma * eps with eps ~ N(0, 1). Its level is `Noise(time, alpha, sigma, logsnr)`
with logsnr = log(alpha^2 / sigma^2). A monotone curve of logsnr plus a *scaling* fixes alpha and sigma:

  vp    alpha^2 + sigma^2 = 1   variance preserving (DDPM, arXiv:2006.11239)
  ve    alpha = 1               variance exploding  (EDM, arXiv:2206.00364)
  flow  alpha + sigma = 1       flow matching       (arXiv:2210.02747)

Key to the symbols used everywhere: x0 data, eps noise, t the noisier of two levels, s the cleaner; time grows with noise.
Images are [B, H, W, C] in [-1, 1].
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Noise(NamedTuple):
  """A noise level, or many: fields are scalars, [B] (one a picture), [T] (a discrete table) or [S+1] (a sampling grid)."""
  time: Any    # what the network is told: 0..T-1 of a table, 1000*t of a continuous schedule
  alpha: Any   # signal rate
  sigma: Any   # noise rate
  logsnr: Any  # log(alpha^2 / sigma^2)


CLEAN = Noise(0., 1., 0., np.inf)  # where every grid ends, in every scaling


def namespace(array):
  """numpy for host arrays (float64 stays float64), jax.numpy for traced ones."""
  return jnp if isinstance(array, jax.Array) else np


# Written with logaddexp, so that alpha and sigma are exact to rounding at both ends, logsnr = +-inf included.
def vp(time, logsnr):
  """Variance preserving: alpha^2 = sigmoid(logsnr)."""
  xp = namespace(logsnr)
  return Noise(time, xp.exp(-.5 * xp.logaddexp(0., -logsnr)), xp.exp(-.5 * xp.logaddexp(0., logsnr)), logsnr)


def ve(time, logsnr):
  """Variance exploding: alpha = 1, sigma = exp(-logsnr / 2)."""
  xp = namespace(logsnr)
  return Noise(time, xp.ones_like(logsnr), xp.exp(-.5 * logsnr), logsnr)


def flow(time, logsnr):
  """Straight paths: alpha = sigmoid(logsnr / 2), sigma = 1 - alpha."""
  xp = namespace(logsnr)
  return Noise(time, xp.exp(-xp.logaddexp(0., -.5 * logsnr)), xp.exp(-xp.logaddexp(0., .5 * logsnr)), logsnr)


def take(levels, index):
  """Row(s) of a table or grid; `index` may be an integer, an array or a slice."""
  return Noise(*(a[index] for a in levels))


def like(noise, x):
  """Reshapes [B] fields to [B, 1, ...] so that they broadcast against x [B, ...]; scalars stay as they are."""
  def expand(a):
    return jnp.reshape(a, jnp.shape(a) + (1,) * (x.ndim - 1)) if jnp.ndim(a) else a
  return Noise(*(expand(a) for a in noise))


def micro_batch(batch, i, n):
  """The i-th of n equal parts of a batch, leaves [B, ...] -> [B/n, ...]: every n-th row, so that each device keeps to its own rows."""
  return jax.tree.map(lambda a: jnp.reshape(a, (a.shape[0] // n, n, *a.shape[1:]))[:, i], batch)


def q_sample(x0, noise, eps):
  """Draws x_t ~ q(x_t | x0): alpha * x0 + sigma * eps (DDPM, arXiv:2006.11239, equation 4).

  Args:
    x0: data [B, ...].
    noise: level(s) [B] or scalar.
    eps: standard Gaussian noise [B, ...].
  Returns:
    x_t [B, ...].
  """
  noise = like(noise, x0)
  return noise.alpha * x0 + noise.sigma * eps
