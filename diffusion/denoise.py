"""Denoisers: functions (x, noise) -> Pred(x0, eps). Guidance and clipping take denoisers and return denoisers."""
import jax.numpy as jnp

from diffusion.errors import InputError
from diffusion.noise import like
from diffusion.predict import from_x0, solve


def denoiser(net, params, cond, predict):
  """The denoiser of a network.

  Args:
    net: net(params, x, time, cond, train, rngs) -> out [B, ...].
    params: its parameters.
    cond: its condition, [B, ...] leaves or None.
    predict: what it was trained to output (see predict.py).
  Returns:
    denoise(x [B, ...], noise) -> Pred; the level is a scalar or [B].
  """
  def denoise(x, noise):
    level = like(noise, x)
    row = predict(level)
    time = jnp.broadcast_to(jnp.asarray(noise.time, jnp.float32), x.shape[:1])
    out = net(params, row.scale * x, time, cond, False, {})
    out, variance = split_variance(out, x.shape[-1])
    return solve(row, level, x, out)._replace(variance=variance)
  return denoise


def beside(net, x0=None):
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
    return from_x0(like(noise, x), x, jnp.clip(pred.x0, low, high), pred.variance)
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
    return from_x0(like(noise, x), x, jnp.clip(pred.x0, -s, s) / s, pred.variance)
  return thresholded
