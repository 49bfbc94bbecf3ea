"""Denoisers: functions (x, noise) -> Pred(x0, eps). Guidance and clipping take denoisers and return denoisers."""
import jax.numpy as jnp

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
