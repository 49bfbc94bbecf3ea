"""Noise schedules: how noise grows with time.

A discrete schedule is a table, `Noise[T]` of float64 NumPy arrays, row 0 the cleanest. A continuous one is a curve,
a function from t in [0, 1] to `Noise` that works on float64 NumPy (sampling grids) and on traced float32
(training). Every schedule here takes T: an integer gives the table, None the curve. schedule_transforms.py makes
new schedules from these.
"""
import numpy as np

from diffusion.core.gaussian import array_module, flow as flow_scaling, Noise, take, ve, vp
from diffusion.errors import InputError

LOGSNR_LIMIT = 20.  # most curves that reach +-inf are clipped here, where sigma or alpha is 4.5e-5


def from_betas(betas):
  """The table of a discrete VP chain with variances beta_1..beta_T (DDPM, arXiv:2006.11239, equation 2).

  Both alpha_bar and 1 - alpha_bar keep full relative precision at both ends.

  Args:
    betas: [T], each in (0, 1).
  Returns:
    Noise[T], float64; time = 0..T-1.
  Raises:
    InputError: a beta is outside (0, 1).
  """
  betas = np.asarray(betas, np.float64)
  if betas.ndim != 1 or not len(betas) or not np.all((betas > 0) & (betas < 1)):
    outside = np.flatnonzero(~((betas > 0) & (betas < 1))) if betas.ndim == 1 else ()
    bad = [f'beta[{i}] = {betas[i]:g}' for i in outside]
    got = ', '.join(bad[:3]) or f'an array of shape {betas.shape}'
    raise InputError(f'betas: expected a list of numbers inside (0, 1), got {got}')
  log_alpha_bar = np.cumsum(np.log1p(-betas))
  return vp(np.arange(len(betas), dtype=np.float64), log_alpha_bar - np.log(-np.expm1(log_alpha_bar)))


def _check_steps(T):
  if T is not None and (isinstance(T, bool) or not isinstance(T, int) or T < 1):
    raise InputError(f'T={T!r}: expected a number of levels of at least 1, or None for continuous time')


def _curve(logsnr, T, scaling=vp, time=lambda t: 1000. * t):
  """The continuous schedule of a function t -> logsnr, or its table at t = 1/T, 2/T .. 1."""
  def continuous(t):
    with np.errstate(divide='ignore'):  # t = 0 and t = 1 may be +-inf
      return scaling(time(t), logsnr(t))
  _check_steps(T)
  if T is None:
    return continuous
  return continuous(np.arange(1, T + 1) / T)._replace(time=np.arange(T, dtype=np.float64))


def _clip(logsnr):
  return array_module(logsnr).clip(logsnr, -LOGSNR_LIMIT, LOGSNR_LIMIT)


def _logit(t):
  return array_module(t).log1p(-t) - array_module(t).log(t)


def _stretched(name, betas):
  """The table of T betas that are given for a chain of 1000 levels: each is scaled by 1000/T."""
  T = len(betas)
  if np.any(betas * 1000 / T >= 1):
    raise InputError(f'{name}(T={T}): beta reaches {betas.max() * 1000 / T:.3g} after scaling by 1000/T, '
                     f'expected below 1; use T >= {int(1000 * betas.max()) + 1} or a smaller end')
  return from_betas(betas * 1000 / T)


def _from_beta_integral(integral):
  """The curve with alpha_bar = exp(-integral(t)), the integral of the rate beta from 0 to t."""
  return _curve(lambda t: _clip(-integral(t) - array_module(t).log(-array_module(t).expm1(-integral(t)))), None)


def linear(T=1000, start=1e-4, end=.02):
  """Betas increase linearly; start and end are given for T = 1000 and scaled by 1000/T (DDPM, section 4).

  T=None is the limit, the VP SDE with beta(t) from 1000*start to 1000*end (arXiv:2011.13456, equation 33).
  """
  _check_steps(T)
  if T is not None:
    return _stretched('linear', np.linspace(start, end, T))
  return _from_beta_integral(lambda t: 1000. * (start * t + (end - start) * t * t / 2))


def scaled_linear(T=1000, start=.00085, end=.012):
  """Square roots of the betas increase linearly: latent diffusion and Stable Diffusion (the code of arXiv:2112.10752).

  start and end are given for T = 1000 and scaled by 1000/T, as in `linear`; T=None is the continuous limit.
  """
  _check_steps(T)
  if not (start > 0 and end > 0):
    raise InputError(f'scaled_linear: expected start and end above 0, got {start} and {end}')
  low, high = start ** .5, end ** .5
  if T is not None:
    return _stretched('scaled_linear', np.linspace(low, high, T) ** 2)
  rise = high - low
  return _from_beta_integral(lambda t: 1000. * t * (start + low * rise * t + rise ** 2 * t * t / 3))


def cosine(T=1000, s=.008, max_beta=.999):
  """alpha_bar = cos^2((t + s) / (1 + s) * pi / 2), with beta capped (improved DDPM, arXiv:2102.09672, equation 17).

  cosine(None, s=0) is the trigonometric interpolant alpha = cos(pi t / 2), sigma = sin(pi t / 2) of flow models
  (arXiv:2209.15571; "GVP" in SiT, arXiv:2401.08740), whose velocity is pi/2 times the target v.
  """
  _check_steps(T)
  def log_cos2(t):
    xp = array_module(t)
    return 2 * xp.log(xp.cos((t + s) / (1 + s) * np.pi / 2))
  if T is not None:
    with np.errstate(divide='ignore', invalid='ignore'):
      ends = log_cos2(np.minimum(np.arange(T + 1) / T, 1 - 1e-15))
    return from_betas(np.minimum(-np.expm1(np.diff(ends)), max_beta))
  def logsnr(t):
    xp = array_module(t)
    t = xp.clip(t, 1e-6, 1 - 1e-6)  # away from the cosine's zero and one, in float32 too
    log_alpha_bar = log_cos2(t) - log_cos2(np.float64(0.)).item()
    return _clip(log_alpha_bar - xp.log(-xp.expm1(log_alpha_bar)))
  return _curve(logsnr, T)


def offset_cosine(T=None, min_signal=.02, max_signal=.95, told='time'):
  """alpha = cos(angle), the angle linear between signal rates .95 and .02 (Foster, Generative Deep Learning, ch. 8).

  Args:
    min_signal, max_signal: alpha at t = 1 and at t = 0.
    told: the network's time input: 'time' (1000*t) or 'variance' (1000*sigma^2, as in the book).
  """
  if not 0 < min_signal < max_signal < 1:
    raise InputError(f'offset_cosine: expected 0 < min_signal < max_signal < 1, got {min_signal} and {max_signal}')
  if told not in ('time', 'variance'):
    raise InputError(f"offset_cosine: told={told!r}, expected 'time' or 'variance'")
  low, high = np.arccos(max_signal).item(), np.arccos(min_signal).item()
  def angle(t):
    return low + t * (high - low)
  def logsnr(t):
    xp = array_module(t)
    return -2 * xp.log(xp.tan(angle(t)))
  if told == 'time':
    return _curve(logsnr, T)
  def variance(t):
    return 1000. * array_module(t).sin(angle(t)) ** 2
  table = _curve(logsnr, T, time=variance)
  return table if T is None else table._replace(time=variance(np.arange(1, T + 1) / T))


def sigmoid(T=None, start=-3., end=3., tau=1.):
  """alpha_bar is a section of a sigmoid, rescaled to run from 1 to 0 (Chen, arXiv:2301.10972, algorithm 1)."""
  if not (start < end and tau > 0):
    raise InputError(f'sigmoid: expected start < end and tau > 0, got start={start}, end={end}, tau={tau}')
  def value(x, xp=np):
    return 1 / (1 + xp.exp(-x / tau))
  first, last = value(start), value(end)
  def logsnr(t):
    xp = array_module(t)
    current = value(start + t * (end - start), xp)
    return _clip(xp.log(xp.maximum(last - current, 1e-30)) - xp.log(xp.maximum(current - first, 1e-30)))
  return _curve(logsnr, T)


def flow(T=None):
  """alpha = 1 - t, sigma = t: rectified flow and flow matching (arXiv:2209.03003, arXiv:2210.02747)."""
  return _curve(lambda t: 2 * _logit(t), T, scaling=flow_scaling)


def log_linear(T=None):
  """alpha^2 = 1 - t, the share of tokens that are kept (arXiv:2310.16834; "linear" of MD4, arXiv:2406.04329)."""
  return _curve(_logit, T)


def cosine_flow(T=None):
  """Straight paths at the log-SNR of the trigonometric interpolant: sigma = 1 - 1 / (1 + tan(pi t / 2)).

  CosMap of Stable Diffusion 3 (arXiv:2403.03206, section 3.1) as a schedule: its level at t is that of `flow` at a
  mapped time, but the network's time input is 1000*t.
  """
  def logsnr(t):
    xp = array_module(t)
    return 2 * (xp.log(xp.sin(np.pi / 2 * (1 - t))) - xp.log(xp.sin(np.pi / 2 * t)))  # both sines reach an exact 0
  return _curve(logsnr, T, scaling=flow_scaling)


def laplace(T=None, mu=0., b=.5):
  """Log-SNR at uniform t has a Laplace distribution (mean mu, scale b; arXiv:2407.03297, table 1), clipped at +-20.

  Made for training: with b = 0.5 all but the last of 1000 levels lie within +-3.1, and the last is at -20. A grid
  in time jumps there; sample on a grid in noise, such as grids.exponential or grids.cosine.
  """
  if not b > 0:
    raise InputError(f'laplace: expected b > 0, got {b}')
  def logsnr(t):
    xp = array_module(t)
    return _clip(mu + b * (xp.log(2 * xp.minimum(1 - t, .5)) - xp.log(2 * xp.minimum(t, .5))))
  return _curve(logsnr, T)


def polynomial(T=1000, power=2., precision=1e-5):
  """alpha = (1 - 2s) * (1 - t^power) + s with s = precision (E(3) diffusion, arXiv:2203.17003, appendix B).

  The paper's own code adds s to alpha^2 rather than to alpha and limits how far alpha falls from one level to the
  next: it ends at alpha^2 = 1e-5, where this and the paper's formula end at alpha = 1e-5.
  """
  if not (power > 0 and 0 < precision < .5):
    raise InputError(f'polynomial: expected power > 0 and 0 < precision < 0.5, got {power} and {precision}')
  def logsnr(t):
    xp = array_module(t)
    alpha, rest = (precision + (1 - 2 * precision) * share for share in (1 - t ** power, t ** power))  # their sum is 1
    return 2 * xp.log(alpha) - xp.log(rest) - xp.log1p(alpha)
  return _curve(logsnr, T)


def edm(T=None, sigma_min=.002, sigma_max=80.):
  """alpha = 1, log sigma linear in t; the time input is 1000 * log(sigma) / 4 (EDM, arXiv:2206.00364, table 1)."""
  if not 0 < sigma_min < sigma_max:
    raise InputError(f'edm: expected 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}')
  low, high = np.log(sigma_min).item(), np.log(sigma_max).item()
  log_sigma = lambda t: low + t * (high - low)
  time = lambda t: 250. * log_sigma(t)
  table = _curve(lambda t: -2 * log_sigma(t), T, scaling=ve, time=time)
  return table if T is None else table._replace(time=time(np.arange(1, T + 1) / T))


def evaluate(schedule, t):
  """The level(s) at t in (0, 1] of a table or a curve, on the host in float64.

  A table is read at the row nearest to t, where row i is at t = (i + 1) / T.
  """
  t = np.asarray(t, np.float64)
  if callable(schedule):
    return Noise(*(np.asarray(a, np.float64) for a in schedule(t)))
  T = len(schedule.logsnr)
  return take(schedule, np.clip(np.round(t * T).astype(int) - 1, 0, T - 1))


def sub_vp_scaling(time, logsnr):
  """Sub-VP: sigma = 1 - alpha^2 (arXiv:2011.13456, equation 29). With sigma / alpha = 2 sinh(w), alpha = exp(-w)."""
  xp = array_module(logsnr)
  w = xp.arcsinh(.5 * xp.exp(-.5 * logsnr))
  return Noise(time, xp.exp(-w), -xp.expm1(-2 * w), logsnr)


SCALINGS = (vp, ve, flow_scaling, sub_vp_scaling)


def scaling_of(schedule):
  """The scaling of a schedule, inferred from its alphas.

  Raises:
    InputError: it is none of SCALINGS.
  """
  levels = evaluate(schedule, np.linspace(.1, .9, 9))
  errors = [np.max(np.abs(scaling(0., levels.logsnr).alpha - levels.alpha)) for scaling in SCALINGS]
  best = int(np.argmin(errors))
  if not errors[best] < 1e-5:
    raise InputError('this schedule has no known scaling (VP, VE, flow, sub-VP): its alpha and logsnr do not agree; '
                     'make it with a scaling of core/gaussian.py, or add its own to schedules.SCALINGS')
  return SCALINGS[best]


def _time_of(curve, logsnr):
  """t at which a decreasing curve reaches logsnr, by bisection to rounding; the ends are exact."""
  first, last = evaluate(curve, [0., 1.]).logsnr
  low, high = np.zeros_like(logsnr), np.ones_like(logsnr)
  for _ in range(100):
    middle = (low + high) / 2
    above = evaluate(curve, middle).logsnr > logsnr
    low, high = np.where(above, middle, low), np.where(above, high, middle)
  return np.where(logsnr <= last, 1., np.where(logsnr >= first, 0., high))


def at_logsnr(schedule, logsnr):
  """The level(s) of a schedule at given log-SNRs, on the host in float64: the inverse of `evaluate`.

  The log-SNR is returned unchanged, alpha and sigma follow from the schedule's scaling, and the time is the
  network's time input there: for a curve, its own at that t; between two rows of a table, interpolated in log-SNR
  (in alpha where the noisier row has no signal). At both ends, including infinite and flat ones, it is the time of
  t = 1 and t = 0.

  Args:
    schedule: a table or a curve.
    logsnr: values inside the range of the schedule; an excess within float32 rounding (1e-5) is clipped.
  Raises:
    InputError: a value outside that range, or a schedule of unknown scaling.
  """
  logsnr, (last, first) = np.asarray(logsnr, np.float64), evaluate(schedule, [1., 0.]).logsnr
  outside = ~((logsnr >= last - 1e-5) & (logsnr <= first + 1e-5))
  if np.any(outside):
    value, *ends = (f'{l:.4g} (sigma/alpha {np.exp(-l / 2):.4g})' for l in (logsnr[outside].flat[0], last, first))
    raise InputError(f'log-SNR {value} is outside the schedule, which runs from {ends[0]} to {ends[1]}')
  logsnr, scaling = np.clip(logsnr, last, first), scaling_of(schedule)
  if callable(schedule):
    return scaling(evaluate(schedule, _time_of(schedule, logsnr)).time, logsnr)
  rows = take(schedule, slice(None, None, -1))  # logsnr increasing
  level = scaling(np.interp(logsnr, rows.logsnr, rows.time), logsnr)
  if np.isneginf(last):
    near = logsnr < rows.logsnr[1]
    level = level._replace(time=np.where(near, np.interp(level.alpha, rows.alpha[:2], rows.time[:2]), level.time))
  return level
