"""From times to noise levels and back, traced: what losses and their weights look up on a schedule."""
import jax.numpy as jnp
import numpy as np

from diffusion.core.gaussian import Noise, take
from diffusion.core.schedules import evaluate


def levels_at(schedule):
  """u [B] -> Noise[B]: rows of a table, or points of a curve."""
  if callable(schedule):
    return lambda u: schedule(jnp.clip(u, 1e-5, 1 - 1e-5))  # logsnr stays finite
  T = len(schedule.logsnr)
  rows = Noise(*(np.asarray(a, np.float32) for a in schedule))
  return lambda u: take(Noise(*map(jnp.asarray, rows)), jnp.minimum((u * T).astype(jnp.int32), T - 1))


def nearest_row(schedule):
  """logsnr [B] -> the nearest row of a table, traced."""
  logsnr = np.clip(schedule.logsnr, -1e4, 1e4)  # a level without signal has a midpoint to its neighbour too
  edges = jnp.asarray(-(logsnr[1:] + logsnr[:-1]) / 2, jnp.float32)
  return lambda value: jnp.searchsorted(edges, -value)


def curve_samples(schedule):
  """Times of a curve, dense at both ends, and their logsnr, which rises: on the host in float64, for interpolation."""
  t = 1 / (1 + np.exp(np.linspace(-12, 12, 4097)))
  return t, evaluate(schedule, t).logsnr


def time_of_logsnr(schedule):
  """logsnr [B] -> u [B], traced: the time of a curve, or the middle of the nearest row of a table."""
  if callable(schedule):
    t, logsnr = (jnp.asarray(a, jnp.float32) for a in curve_samples(schedule))
    return lambda value: jnp.interp(value, logsnr, t)
  nearest, T = nearest_row(schedule), len(schedule.logsnr)
  return lambda value: (nearest(value) + .5) / T
