"""Lookups on a schedule: its ends, and, traced for losses and weights, from a log-SNR to its row or time."""
import jax.numpy as jnp
import numpy as np

from diffusion.core.schedules import evaluate


def finite_ends(schedule, infinite=False):
  """(noisiest, cleanest) log-SNR: at t = 1, and of row 0 or a curve at t = 1/1000.

  Where t = 1 has no signal, the first is of the row before (a curve: t = 0.999), or -inf with `infinite`.
  """
  T = 1000 if callable(schedule) else len(schedule.logsnr)
  cleanest, second, noisiest = evaluate(schedule, [1 / T, 1 - 1 / T, 1.]).logsnr
  return second if np.isneginf(noisiest) and not infinite else noisiest, cleanest


def nearest_row(schedule):
  """The function logsnr [B] -> index [B] of the nearest row of a table."""
  logsnr = np.clip(schedule.logsnr, -1e4, 1e4)  # finite midpoints, also next to a level without signal
  edges = jnp.asarray(-(logsnr[1:] + logsnr[:-1]) / 2, jnp.float32)
  return lambda value: jnp.searchsorted(edges, -value)


def curve_samples(schedule):
  """(t, logsnr) of a curve for interpolation, float64 [4097]: dense at both ends, logsnr increasing."""
  t = 1 / (1 + np.exp(np.linspace(-12, 12, 4097)))
  return t, evaluate(schedule, t).logsnr


def fall_of_logsnr(curve):
  """The function logsnr [B] -> -dlogsnr/dt [B] of a curve."""
  t, logsnr = curve_samples(curve)
  d = 1e-4 * t * (1 - t)
  fall = (evaluate(curve, t - d).logsnr - evaluate(curve, t + d).logsnr) / (2 * d)
  logsnr, fall = jnp.asarray(logsnr, jnp.float32), jnp.asarray(fall, jnp.float32)
  return lambda value: jnp.interp(value, logsnr, fall)


def time_of_logsnr(schedule):
  """The function logsnr [B] -> u [B]: the time of a curve, or the middle of the nearest row of a table."""
  if callable(schedule):
    t, logsnr = (jnp.asarray(a, jnp.float32) for a in curve_samples(schedule))
    return lambda value: jnp.interp(value, logsnr, t)
  nearest, T = nearest_row(schedule), len(schedule.logsnr)
  return lambda value: (nearest(value) + .5) / T
