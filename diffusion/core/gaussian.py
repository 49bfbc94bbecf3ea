"""Gaussian diffusion: noise levels, what the network is trained to output, and denoisers.

A corruption is x_t = alpha * x0 + sigma * eps with eps ~ N(0, 1). Its level is `Noise(time, alpha, sigma, logsnr)` with
logsnr = log(alpha^2 / sigma^2). A monotone curve of logsnr plus a *scaling* fixes alpha and sigma:

  vp    alpha^2 + sigma^2 = 1   variance preserving (DDPM, arXiv:2006.11239)
  ve    alpha = 1               variance exploding  (EDM, arXiv:2206.00364)
  flow  alpha + sigma = 1       flow matching       (arXiv:2210.02747)

The network is trained to output a * x0 + b * eps: one `Target` (a, b) for each noise level. With x_t these are two linear
equations, so whatever it outputs, x0 and eps follow by solving them (determinant alpha * b - sigma * a):

  predict_eps    (0, 1)                   DDPM, arXiv:2006.11239, equation 14
  predict_x0     (1, 0)
  predict_v      (-sigma, alpha)          progressive distillation, arXiv:2202.00512, appendix D
  predict_flow   (-1, 1)                  the velocity of a straight path, arXiv:2210.02747
  predict_score  (0, -1/sigma)            score matching, arXiv:2011.13456, equation 7
  predict_edm    (sigma, -sd^2)/(sd*r)    r^2 = sigma^2 + sd^2; alpha = 1; input scaled by 1/r, arXiv:2206.00364, table 1

A denoiser is a function (x, noise) -> Pred(x0, eps). Guidance and clipping take denoisers and return denoisers.

Symbols used everywhere: x0 data, eps noise, t the noisier of two levels, s the cleaner; time grows with noise.
Images are [B, H, W, C] in [-1, 1].
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError


# ---- noise levels
class Noise(NamedTuple):
  """A noise level, or many: fields are scalars, [B] (one a picture), [T] (a discrete table) or [S+1] (a sampling grid)."""
  time: Any    # what the network is told: 0..T-1 of a table, 1000*t of a continuous schedule
  alpha: Any   # signal rate
  sigma: Any   # noise rate
  logsnr: Any  # log(alpha^2 / sigma^2)


CLEAN = Noise(0., 1., 0., np.inf)  # where every grid ends, in every scaling


def array_module(array):
  """numpy for host arrays (float64 stays float64), jax.numpy for traced ones."""
  return jnp if isinstance(array, jax.Array) else np


# Written with logaddexp, so that alpha and sigma are exact to rounding at both ends, logsnr = +-inf included.
def vp(time, logsnr):
  """Variance preserving: alpha^2 = sigmoid(logsnr)."""
  xp = array_module(logsnr)
  return Noise(time, xp.exp(-.5 * xp.logaddexp(0., -logsnr)), xp.exp(-.5 * xp.logaddexp(0., logsnr)), logsnr)


def ve(time, logsnr):
  """Variance exploding: alpha = 1, sigma = exp(-logsnr / 2)."""
  xp = array_module(logsnr)
  return Noise(time, xp.ones_like(logsnr), xp.exp(-.5 * logsnr), logsnr)


def flow(time, logsnr):
  """Straight paths: alpha = sigmoid(logsnr / 2), sigma = 1 - alpha."""
  xp = array_module(logsnr)
  return Noise(time, xp.exp(-xp.logaddexp(0., -.5 * logsnr)), xp.exp(-xp.logaddexp(0., .5 * logsnr)), logsnr)


def take(levels, index):
  """Row(s) of a table or grid; `index` may be an integer, an array or a slice."""
  return Noise(*(a[index] for a in levels))


def expand_to(noise, x):
  """Reshapes [B] fields to [B, 1, ...] so that they broadcast against x [B, ...]; scalars stay as they are."""
  def expand(a):
    return jnp.reshape(a, jnp.shape(a) + (1,) * (x.ndim - 1)) if jnp.ndim(a) else a
  return Noise(*(expand(a) for a in noise))


def q_sample(x0, noise, eps):
  """Draws x_t ~ q(x_t | x0): alpha * x0 + sigma * eps (DDPM, arXiv:2006.11239, equation 4).

  Args:
    x0: data [B, ...].
    noise: level(s) [B] or scalar.
    eps: standard Gaussian noise [B, ...].
  Returns:
    x_t [B, ...].
  """
  noise = expand_to(noise, x0)
  return noise.alpha * x0 + noise.sigma * eps


# ---- targets
class Target(NamedTuple):
  """Coefficients of the target a * x0 + b * eps, and what the network's input is multiplied by."""
  a: Any
  b: Any
  scale: Any = 1.


class Pred(NamedTuple):
  """An estimate of both parts of x_t = alpha * x0 + sigma * eps, always consistent with x_t. [B, ...] float32."""
  x0: jax.Array
  eps: jax.Array
  variance: Any = None  # of a network that learns it: where log variance lies from the small (0) to the large (1), [B, ...]


def predict_eps():
  return lambda noise: Target(0., 1.)


def predict_x0():
  return lambda noise: Target(1., 0.)


def predict_v():
  return lambda noise: Target(-noise.sigma, noise.alpha)


def predict_flow():
  return lambda noise: Target(-1., 1.)


def predict_score():
  return lambda noise: Target(0., -1. / noise.sigma)


def predict_edm(sd=.5):
  """sd: the standard deviation of the data, in the units of x0."""
  if not sd > 0:
    raise InputError(f'edm(sd={sd!r}): expected a standard deviation above 0')
  def row(noise):
    r = array_module(noise.sigma).sqrt(noise.sigma ** 2 + sd ** 2)
    return Target(noise.sigma / (sd * r), -sd / r, 1 / r)
  return row


def determinant(row, noise):
  """alpha * b - sigma * a. A squared error in the output times (sigma / determinant)^2 is one in x0."""
  return noise.alpha * row.b - noise.sigma * row.a


def solve(row, noise, x, out):
  """Recovers both parts of x from the network's output, in float32 (float64 where x is).

  Args:
    row: the Row at this noise level.
    noise: the level, broadcastable against x.
    x: x_t [B, ...].
    out: network output [B, ...].
  Returns:
    Pred(x0, eps), each [B, ...].
  """
  precise = jnp.promote_types(x.dtype, jnp.float32)
  x, out = x.astype(precise), out.astype(precise)
  det = determinant(row, noise)
  return Pred((row.b * x - noise.sigma * out) / det, (noise.alpha * out - row.a * x) / det)


def from_x0(noise, x, x0, variance=None):
  """The Pred that agrees with x and this estimate of x0; the level must not be clean."""
  return Pred(x0, (x - noise.alpha * x0) / noise.sigma, variance)


# ---- denoisers
def denoiser(net, params, cond, predict):
  """The denoiser of a network.

  Args:
    net: net(params, x, time, cond, train, rngs) -> out [B, ...].
    params: its parameters.
    cond: its condition, [B, ...] leaves or None.
    predict: what it was trained to output.
  Returns:
    denoise(x [B, ...], noise) -> Pred; the level is a scalar or [B].
  """
  def denoise(x, noise):
    level = expand_to(noise, x)
    row = predict(level)
    time = jnp.broadcast_to(jnp.asarray(noise.time, jnp.float32), x.shape[:1])
    out = net(params, row.scale * x, time, cond, False, {})
    out, variance = split_variance(out, x.shape[-1])
    return solve(row, level, x, out)._replace(variance=variance)
  return denoise


def with_estimate(net, x0=None):
  """A self-conditioned network, which takes x and its own earlier estimate of x0 side by side on the last axis, [B, .., 2C], as one that
  takes x (Analog Bits, arXiv:2208.04202, section 3.2).

  Args:
    net: the network.
    x0: the estimate [B, .., C]; None: there is none yet, which is zeros.
  """
  def told(params, x, *rest):
    return net(params, jnp.concatenate([x, jnp.zeros_like(x) if x0 is None else x0], -1), *rest)
  return told


def split_variance(out, channels):
  """(out [B, .., C], variance in [0, 1] or None): a network with 2C outputs learns the variance in the second half, where
  -1 and 1 stand for the small and the large one (improved DDPM, arXiv:2102.09672, section 3.1)."""
  if out.shape[-1] == channels:
    return out, None
  return out[..., :channels], (out[..., channels:].astype(jnp.float32) + 1) / 2


def clip(denoise, low=-1., high=1.):
  """Keeps x0 inside the range of the data (DDPM's code; off for unbounded data such as latents)."""
  def clipped(x, noise):
    pred = denoise(x, noise)
    return from_x0(expand_to(noise, x), x, jnp.clip(pred.x0, low, high), pred.variance)
  return clipped


def dynamic_threshold(denoise, percentile=.995):
  """Clips x0 to [-s, s] and divides it by s, the largest |x0| of a sample but for its extremes (arXiv:2205.11487,
  section 2.3, Imagen). Where `clip` flattens what guidance overdoes, this keeps differences. For data in [-1, 1].

  Args:
    denoise: the denoiser, usually guided.
    percentile: s is this quantile of a sample's |x0|, and at least 1. In (0, 1].
  Raises:
    InputError: a percentile outside (0, 1].
  """
  if not 0 < percentile <= 1:
    raise InputError(f'dynamic_threshold({percentile!r}): expected a share above 0 and up to 1, such as 0.995')
  def thresholded(x, noise):
    pred = denoise(x, noise)
    inside = tuple(range(1, x.ndim))
    s = jnp.maximum(1., jnp.quantile(jnp.abs(pred.x0), percentile, inside, keepdims=True))
    return from_x0(expand_to(noise, x), x, jnp.clip(pred.x0, -s, s) / s, pred.variance)
  return thresholded
