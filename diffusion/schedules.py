"""Noise schedules: how noise grows with time.

A discrete schedule is a table, `Noise[T]` of float64 NumPy arrays, row 0 the cleanest. A continuous one is a function from
t in [0, 1] to `Noise`, which works on float64 NumPy (sampling grids) and on traced float32 (training). Every schedule here
takes T: an integer gives the table, None the continuous limit.
"""
import numpy as np

from diffusion.errors import InputError
from diffusion.noise import Noise, flow as flow_scaling, namespace, take, ve, vp

LOGSNR_LIMIT = 20.  # continuous curves that reach +-inf are cut here; sigma or alpha is then 4.5e-5


def from_betas(betas):
  """The table of a discrete VP chain with variances beta_1..beta_T (DDPM, arXiv:2006.11239, equation 2).

  Both 1 - alpha_bar and alpha_bar keep full relative precision at both ends.

  Args:
    betas: [T] in (0, 1).
  Returns:
    Noise[T], float64; time = 0..T-1.
  Raises:
    InputError: a beta is outside (0, 1).
  """
  betas = np.asarray(betas, np.float64)
  if betas.ndim != 1 or not len(betas) or not np.all((betas > 0) & (betas < 1)):
    bad = [f'beta[{i}] = {betas[i]:g}' for i in np.flatnonzero(~((betas > 0) & (betas < 1)))] if betas.ndim == 1 else []
    raise InputError(f'betas: expected a list of numbers inside (0, 1), got {", ".join(bad[:3]) or f"an array of shape {betas.shape}"}')
  log_alpha_bar = np.cumsum(np.log1p(-betas))
  return vp(np.arange(len(betas), dtype=np.float64), log_alpha_bar - np.log(-np.expm1(log_alpha_bar)))


def _check_steps(T):
  if T is not None and (isinstance(T, bool) or not isinstance(T, int) or T < 1):
    raise InputError(f'T={T!r}: expected a number of levels of at least 1, or None for continuous time')


def _curve(logsnr, T, scaling=vp, time=lambda t: 1000. * t):
  """The continuous schedule of a curve t -> logsnr, or its table at t = 1/T, 2/T .. 1."""
  def continuous(t):
    with np.errstate(divide='ignore'):  # t = 0 and t = 1 may be +-inf
      return scaling(time(t), logsnr(t))
  _check_steps(T)
  if T is None:
    return continuous
  return continuous(np.arange(1, T + 1) / T)._replace(time=np.arange(T, dtype=np.float64))


def _clip(logsnr):
  return namespace(logsnr).clip(logsnr, -LOGSNR_LIMIT, LOGSNR_LIMIT)


def linear(T=1000, start=1e-4, end=.02):
  """Betas rise linearly; start and end are given for T = 1000 and scaled by 1000/T (DDPM, section 4).

  T=None is the limit, the VP SDE with beta(t) from 1000*start to 1000*end (arXiv:2011.13456, equation 33).
  """
  _check_steps(T)
  if T is not None:
    betas = np.linspace(start, end, T) * 1000 / T
    if np.any(betas >= 1):
      raise InputError(f'linear(T={T}): beta reaches {betas.max():.3g} after scaling by 1000/T, expected below 1; '
                       f'use T >= {int(1000 * max(start, end)) + 1} or a smaller end')
    return from_betas(betas)
  def logsnr(t):
    xp = namespace(t)
    log_alpha_bar = -1000. * (start * t + (end - start) * t * t / 2)
    return _clip(log_alpha_bar - xp.log(-xp.expm1(log_alpha_bar)))
  return _curve(logsnr, T)


def cosine(T=1000, s=.008, max_beta=.999):
  """alpha_bar = cos^2((t + s) / (1 + s) * pi / 2), with beta capped (improved DDPM, arXiv:2102.09672, equation 17)."""
  _check_steps(T)
  def log_cos2(t):
    xp = namespace(t)
    return 2 * xp.log(xp.cos((t + s) / (1 + s) * np.pi / 2))
  if T is not None:
    with np.errstate(divide='ignore', invalid='ignore'):
      ends = log_cos2(np.minimum(np.arange(T + 1) / T, 1 - 1e-15))
    return from_betas(np.minimum(-np.expm1(np.diff(ends)), max_beta))
  def logsnr(t):
    xp = namespace(t)
    t = xp.clip(t, 1e-6, 1 - 1e-6)  # the cosine's zero and one, in float32 too
    log_alpha_bar = log_cos2(t) - log_cos2(np.float64(0.)).item()
    return _clip(log_alpha_bar - xp.log(-xp.expm1(log_alpha_bar)))
  return _curve(logsnr, T)


def offset_cosine(T=None, min_signal=.02, max_signal=.95, told='time'):
  """alpha = cos(angle), the angle linear between signal rates of 0.95 and 0.02 (Foster, Generative Deep Learning, ch. 8).

  Args:
    min_signal, max_signal: alpha at t = 1 and at t = 0.
    told: what the network is told: 'time' (1000*t) or 'variance' (1000*sigma^2, as in the book).
  """
  if not 0 < min_signal < max_signal < 1:
    raise InputError(f'offset_cosine: expected 0 < min_signal < max_signal < 1, got {min_signal} and {max_signal}')
  if told not in ('time', 'variance'):
    raise InputError(f"offset_cosine: told={told!r}, expected 'time' or 'variance'")
  low, high = np.arccos(max_signal).item(), np.arccos(min_signal).item()
  def angle(t):
    return low + t * (high - low)
  def logsnr(t):
    xp = namespace(t)
    return -2 * xp.log(xp.tan(angle(t)))
  if told == 'time':
    return _curve(logsnr, T)
  def variance(t):
    return 1000. * namespace(t).sin(angle(t)) ** 2
  table = _curve(logsnr, T, time=variance)
  return table if T is None else table._replace(time=variance(np.arange(1, T + 1) / T))


def sigmoid(T=None, start=-3., end=3., tau=1.):
  """alpha_bar is a piece of a sigmoid, rescaled to run from 1 to 0 (Chen, arXiv:2301.10972, algorithm 1)."""
  if not (start < end and tau > 0):
    raise InputError(f'sigmoid: expected start < end and tau > 0, got start={start}, end={end}, tau={tau}')
  def value(x, xp=np):
    return 1 / (1 + xp.exp(-x / tau))
  first, last = value(start), value(end)
  def logsnr(t):
    xp = namespace(t)
    here = value(start + t * (end - start), xp)
    return _clip(xp.log(xp.maximum(last - here, 1e-30)) - xp.log(xp.maximum(here - first, 1e-30)))
  return _curve(logsnr, T)


def flow(T=None):
  """alpha = 1 - t, sigma = t: rectified flow and flow matching (arXiv:2209.03003, arXiv:2210.02747)."""
  def logsnr(t):
    xp = namespace(t)
    return 2 * (xp.log1p(-t) - xp.log(t))
  return _curve(logsnr, T, scaling=flow_scaling)


def edm(T=None, sigma_min=.002, sigma_max=80.):
  """alpha = 1, log sigma linear in t; the network is told 1000 * log(sigma) / 4 (EDM, arXiv:2206.00364, table 1)."""
  if not 0 < sigma_min < sigma_max:
    raise InputError(f'edm: expected 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}')
  low, high = np.log(sigma_min).item(), np.log(sigma_max).item()
  def log_sigma(t):
    return low + t * (high - low)
  def told(t):
    return 250. * log_sigma(t)
  table = _curve(lambda t: -2 * log_sigma(t), T, scaling=ve, time=told)
  return table if T is None else table._replace(time=told(np.arange(1, T + 1) / T))


def at(schedule, t):
  """The level(s) at t in (0, 1] of a schedule of either kind, on the host in float64.

  A table is read at the row nearest to t, where row i stands for t = (i + 1) / T.
  """
  t = np.asarray(t, np.float64)
  if callable(schedule):
    return Noise(*(np.asarray(a, np.float64) for a in schedule(t)))
  T = len(schedule.logsnr)
  return take(schedule, np.clip(np.round(t * T).astype(int) - 1, 0, T - 1))


def level(schedule, logsnr):
  """The level(s) of a schedule at given log-SNR, on the host in float64: the inverse of `at`.

  A curve is inverted by bisection and gives what it would give at that time. Between two rows of a table, time and log alpha are
  interpolated in log-SNR.

  Args:
    schedule: a table or a curve.
    logsnr: values inside the range of the schedule.
  Raises:
    InputError: a value outside that range.
  """
  logsnr = np.asarray(logsnr, np.float64)
  if callable(schedule):
    low, high = np.zeros_like(logsnr), np.ones_like(logsnr)
    for _ in range(60):
      middle = (low + high) / 2
      above = schedule(middle).logsnr > logsnr
      low, high = np.where(above, middle, low), np.where(above, high, middle)
    found = at(schedule, high)
    return found
  rows = take(schedule, slice(None, None, -1))  # logsnr rises
  alpha = np.exp(np.interp(logsnr, rows.logsnr, np.log(rows.alpha)))
  return Noise(np.interp(logsnr, rows.logsnr, rows.time), alpha, alpha * np.exp(-logsnr / 2), logsnr)
