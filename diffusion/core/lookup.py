"""Traced lookups on a schedule, for losses and their weights: from times to noise levels and back."""
import jax.numpy as jnp
import numpy as np

from diffusion.core.gaussian import Noise, take
from diffusion.core.schedules import evaluate


def levels_at(schedule):
  """The function u [B] in [0, 1) -> Noise[B]: rows of a table, or points of a curve."""
  if callable(schedule):
    return lambda u: schedule(jnp.clip(u, 1e-5, 1 - 1e-5))  # keeps logsnr finite
  T = len(schedule.logsnr)
  rows = Noise(*(np.asarray(a, np.float32) for a in schedule))
  return lambda u: take(Noise(*map(jnp.asarray, rows)), jnp.minimum((u * T).astype(jnp.int32), T - 1))


def nearest_row(schedule):
  """The function logsnr [B] -> index [B] of the nearest row of a table."""
  logsnr = np.clip(schedule.logsnr, -1e4, 1e4)  # finite midpoints, also next to a level without signal
  edges = jnp.asarray(-(logsnr[1:] + logsnr[:-1]) / 2, jnp.float32)
  return lambda value: jnp.searchsorted(edges, -value)


def curve_samples(schedule):
  """(t, logsnr) of a curve for interpolation, float64 [4097]: dense at both ends, logsnr increasing."""
  t = 1 / (1 + np.exp(np.linspace(-12, 12, 4097)))
  return t, evaluate(schedule, t).logsnr


def time_of_logsnr(schedule):
  """The function logsnr [B] -> u [B]: the time of a curve, or the middle of the nearest row of a table."""
  if callable(schedule):
    t, logsnr = (jnp.asarray(a, jnp.float32) for a in curve_samples(schedule))
    return lambda value: jnp.interp(value, logsnr, t)
  nearest, T = nearest_row(schedule), len(schedule.logsnr)
  return lambda value: (nearest(value) + .5) / T
