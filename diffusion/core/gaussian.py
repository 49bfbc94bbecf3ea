"""Gaussian diffusion: noise levels, what the network is trained to output, and denoisers.

The forward process is x_t = alpha * x0 + sigma * eps with eps ~ N(0, 1). A noise level is `Noise(time, alpha,
sigma, logsnr)` with logsnr = log(alpha^2 / sigma^2). A monotone curve of logsnr and a *scaling* determine alpha and
sigma:

  vp    alpha^2 + sigma^2 = 1   variance preserving (DDPM, arXiv:2006.11239)
  ve    alpha = 1               variance exploding  (EDM, arXiv:2206.00364)
  flow  alpha + sigma = 1       flow matching       (arXiv:2210.02747)

The network is trained to output a * x0 + b * eps: one `Target` (a, b) for each noise level. Together with x_t these
are two linear equations, so x0 and eps follow from any output by solving them (determinant alpha * b - sigma * a):

  predict_eps    (0, 1)                   DDPM, arXiv:2006.11239, equation 14
  predict_x0     (1, 0)
  predict_v      (-sigma, alpha)          progressive distillation, arXiv:2202.00512, appendix D
  predict_flow   (-1, 1)                  the velocity of a straight path, arXiv:2210.02747
  predict_score  (0, -1/sigma)            score matching, arXiv:2011.13456, equation 7
  predict_edm    (sigma, -sd^2)/(sd*r)    alpha = 1; input times 1/r, r^2 = sigma^2 + sd^2, arXiv:2206.00364, table 1
  scaled         that of another target   input scaled to unit variance

A denoiser is a function (x, noise) -> Pred(x0, eps). Guidance and clipping are functions from denoisers to denoisers.

Symbols used everywhere: x0 data, eps noise, t the noisier of two levels, s the cleaner; time grows with noise.
Images are [B, H, W, C] in [-1, 1].
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import check_positive, InputError


# ---- noise levels
class Noise(NamedTuple):
  """One or more noise levels: scalars, [B] (one per example), [T] (a discrete table) or [S+1] (a sampling grid)."""
  time: Any    # the network's time input: 0..T-1 of a table, 1000*t of a continuous schedule
  alpha: Any   # signal rate
  sigma: Any   # noise rate
  logsnr: Any  # log(alpha^2 / sigma^2)


CLEAN = Noise(0., 1., 0., np.inf)  # the end of every grid, in every scaling


def array_module(array):
  """numpy for host arrays (float64 stays float64), jax.numpy for traced ones."""
  return jnp if isinstance(array, jax.Array) else np


# Written with logaddexp, so that alpha and sigma are exact to rounding at both ends, including logsnr = +-inf.
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


def column(a, ndim):
  """[B] -> [B, 1, ...] of ndim dimensions; a scalar stays as it is."""
  return jnp.reshape(a, jnp.shape(a) + (1,) * (ndim - 1)) if jnp.ndim(a) else a


def expand_to(noise, x):
  """Reshapes [B] fields to [B, 1, ...] so that they broadcast against x [B, ...]; scalars stay as they are."""
  return Noise(*(column(a, x.ndim) for a in noise))


def q_sample(x0, noise, eps):
  """Samples x_t ~ q(x_t | x0): alpha * x0 + sigma * eps (DDPM, arXiv:2006.11239, equation 4).

  Args:
    x0: data [B, ...].
    noise: level(s) [B] or scalar.
    eps: standard Gaussian noise [B, ...].
  Returns:
    x_t [B, ...].
  """
  noise = expand_to(noise, x0)
  return noise.alpha * x0 + noise.sigma * eps


# ---- targets: what the network is trained to output
class Target(NamedTuple):
  """The target a * x0 + b * eps at a noise level, and how the network is called for it."""
  a: Any
  b: Any
  scale: Any = 1.         # factor of the network's input
  scalings: tuple = ()    # those it is defined for, such as (ve,); (): all where inputs keep the size of the data
  variance: Any = None    # second half of the channels -> learned variance, as in Pred; None: the network has none


class Pred(NamedTuple):
  """An estimate of both parts of x_t = alpha * x0 + sigma * eps, always consistent with x_t. [B, ...] float32."""
  x0: jax.Array
  eps: jax.Array
  variance: Any = None  # learned: position of the log variance between the small (0) and the large one (1), [B, ...]

  def towards(self, other, scale):
    """self + scale * (other - self), with the variance of the other; scale [] or [B]."""
    k = column(scale, self.x0.ndim)
    return Pred(self.x0 + k * (other.x0 - self.x0), self.eps + k * (other.eps - self.eps), other.variance)


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
  def target(noise):
    r = array_module(noise.sigma).sqrt(noise.sigma ** 2 + sd ** 2)
    return Target(noise.sigma / (sd * r), -sd / r, 1 / r, (ve,))
  return target


def scaled(predict, sd=.5):
  """Another target for a network whose input has unit variance at every level, so that it goes with ve as well.

  The input is times 1 / sqrt(alpha^2 sd^2 + sigma^2), as EDM's (arXiv:2206.00364, appendix B.6).

  Args:
    predict: the target; in a config a spec, 'scaled(eps)'.
    sd: the standard deviation of the data.
  """
  check_positive('scaled', sd=sd)
  def target(noise):
    return predict(noise)._replace(scale=(noise.alpha ** 2 * sd ** 2 + noise.sigma ** 2) ** -.5)
  return target


def in_range(noise, out):
  """An output of -1 for the small and 1 for the large variance (arXiv:2102.09672, section 3.1)."""
  return (out + 1) / 2


def with_variance(predict, share=in_range):
  """The same target, for a network that learns the variance of a step.

  Args:
    share: (noise, output) -> the variance as in Pred; objectives/variance.py has another.
  """
  return lambda noise: predict(noise)._replace(variance=lambda out: share(noise, out))


def determinant(target, noise):
  """alpha * b - sigma * a. A squared error of the output times (sigma / determinant)^2 is one of x0."""
  return noise.alpha * target.b - noise.sigma * target.a


def solve(target, noise, x, out):
  """Recovers both parts of x from the network's output, in float32 (float64 where x is).

  Args:
    target: the Target at this noise level.
    noise: the level, broadcastable against x.
    x: x_t [B, ...].
    out: network output [B, ...].
  Returns:
    Pred(x0, eps), each [B, ...].
  """
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  x, out = x.astype(dtype), out.astype(dtype)
  det = determinant(target, noise)
  return Pred((target.b * x - noise.sigma * out) / det, (noise.alpha * out - target.a * x) / det)


def from_x0(noise, x, x0, variance=None):
  """The Pred that agrees with x and this estimate of x0; the level must not be clean."""
  return Pred(x0, (x - noise.alpha * x0) / noise.sigma, variance)


def split_output(target, x, out):
  """Separates the variance from the rest of a network's output.

  Args:
    target: the Target, whose `variance` says whether there is one and how it is read.
    x: x_t [B, .., C].
    out: network output [B, .., C], or [B, .., 2C] with a variance.
  Returns:
    (out [B, .., C], variance float32 [B, .., C], 0 for the small and 1 for the large one, or None).
  Raises:
    InputError: an output of another shape, which would broadcast against x.
  """
  expected = (*x.shape[:-1], 2 * x.shape[-1]) if target.variance else x.shape
  if out.shape != expected:
    raise InputError(f'the network outputs shape {out.shape}: expected {expected} for x of shape {x.shape}'
                     f'{" and a learned variance" if target.variance else ""}; change its number of output channels')
  if not target.variance:
    return out, None
  return out[..., :x.shape[-1]], target.variance(out[..., x.shape[-1]:].astype(jnp.float32))


# ---- denoisers
def denoiser(net, params, cond, predict):
  """The denoiser of a network.

  Args:
    net: net(params, x, time, cond, train, rngs) -> out [B, ...].
    params: its parameters.
    cond: its condition, [B, ...] leaves or None.
    predict: noise -> Target, what it was trained to output.
  Returns:
    denoise(x [B, ...], noise) -> Pred; the level is a scalar or [B].
  """
  def denoise(x, noise):
    level = expand_to(noise, x)
    target = predict(level)
    time = jnp.broadcast_to(jnp.asarray(noise.time, jnp.float32), x.shape[:1])
    out, variance = split_output(target, x, net(params, target.scale * x, time, cond, False, {}))
    return solve(target, level, x, out)._replace(variance=variance)
  return denoise


def with_estimate(net, x0=None):
  """Turns a self-conditioned network into one that takes x alone (Analog Bits, arXiv:2208.04202, section 3.2).

  Args:
    net: the network, whose input is x and its earlier estimate of x0 side by side on the last axis, [B, .., 2C].
    x0: the estimate [B, .., C]; None: zeros, as before the first estimate.
  """
  def self_conditioned(params, x, *rest):
    return net(params, jnp.concatenate([x, jnp.zeros_like(x) if x0 is None else x0], -1), *rest)
  return self_conditioned


def clip(denoise, low=-1., high=1.):
  """Clips x0 to the range of the data (as DDPM's code does; off for unbounded data such as latents)."""
  def clipped(x, noise):
    pred = denoise(x, noise)
    return from_x0(expand_to(noise, x), x, jnp.clip(pred.x0, low, high), pred.variance)
  return clipped


def dynamic_threshold(denoise, percentile=.995):
  """Clips x0 to [-s, s] and divides by s, a high quantile of its |x0| (Imagen, arXiv:2205.11487, section 2.3).

  Where `clip` flattens what guidance exaggerates, this preserves differences. For data in [-1, 1].

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
    s = jnp.maximum(1., jnp.quantile(jnp.abs(pred.x0), percentile, tuple(range(1, x.ndim)), keepdims=True))
    return from_x0(expand_to(noise, x), x, jnp.clip(pred.x0, -s, s) / s, pred.variance)
  return thresholded
