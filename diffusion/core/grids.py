"""Sampling grids: the noise levels that a sampler visits, from noise to clean.

A grid is a `Noise[S+1]` of float64 NumPy arrays that starts at the noisiest level visited and always ends with
CLEAN. Every function here takes the number of steps S and returns a function of the schedule (a table or a curve):
`trailing(50)(schedule)`.

In time (trailing, leading, linspace, quadratic, beta, shifted, sections, times): t in (0, 1]. A table is read at
the nearest row, where row i is at t = (i + 1) / T, so that the network gets only times on which it was trained; a
curve is read at t itself. A first level without any signal (logsnr -inf, as in `flow` at t = 1) is visited as it is.

In noise (karras, exponential, polyexponential, cosine, angle, sigmas): values of sigma / alpha, so that one
formula serves VP, VE and flow. Between two rows of a table the time is interpolated (schedules.at_logsnr), or the
nearest row is taken with snap=True; a curve has no rows to snap to. sigma_max and sigma_min default to the ends of
the schedule: its level at t = 1, and the cleanest row, or a curve at t = 1/1000. Where t = 1 has no signal,
sigma / alpha is infinite: karras and both exponentials then start one row cleaner (a curve at t = 0.999), where the
signal is negligible; cosine can start at t = 1 itself.

Every grid takes any S from 1 as long as its levels differ (and, for angle, stay inside the schedule); a single step
goes from the noisiest level to clean.
"""
import numpy as np
from scipy.special import betaincinv

from diffusion.core.gaussian import CLEAN, Noise, take
from diffusion.core.lookup import finite_ends
from diffusion.core.schedules import at_logsnr, evaluate
from diffusion.errors import check_positive, InputError


def _ending_clean(name, levels):
  """The grid of these levels, each of which must be cleaner than the one before, and CLEAN."""
  if not np.all(np.diff(levels.logsnr) > 0):  # NaN included
    raise InputError(f'{name}: two steps have the same noise level on this schedule, or a later one is noisier; '
                     'use fewer steps, or list the levels from noise to clean')
  return Noise(*(np.append(a, c) for a, c in zip(levels, CLEAN)))


def check_steps(name, steps, **positive):
  if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
    raise InputError(f'{name}({steps!r}): expected a number of steps of at least 1')
  check_positive(name, **{argument: value for argument, value in positive.items() if value is not None})


# ---- in time
def _in_time(name, steps, times, **positive):
  """The grid of times(S, T) -> t [S] in (0, 1], noisiest first; a curve counts as a table of max(1000, S) rows."""
  check_steps(name, steps, **positive)
  def grid(schedule):
    T = max(1000, steps) if callable(schedule) else len(schedule.logsnr)
    if steps > T:
      raise InputError(f'{name}({steps}): the schedule has {T} levels; use at most {T} steps')
    return _ending_clean(f'{name}({steps})', evaluate(schedule, times(steps, T)))
  return grid


def _even(S):
  return np.arange(S, 0, -1) / S


def trailing(steps=50):
  """t = 1, 1 - 1/S, .. 1/S: visits the noisiest trained level. The default (arXiv:2305.08891, table 2)."""
  return _in_time('trailing', steps, lambda S, T: _even(S))


def leading(steps=50):
  """Every (T/S)-th row from row 0, as in DDIM's code; never visits the noisiest rows. For parity with other work.

  Where S does not divide T, diffusers takes every floor(T/S)-th row and starts cleaner still; its steps_offset=1
  (Stable Diffusion) is one row noisier throughout.
  """
  return _in_time('leading', steps, lambda S, T: (np.arange(S)[::-1] * T // S + 1) / T)


def linspace(steps=50):
  """S evenly spaced rows including both ends, as in improved DDPM's code. For parity with other work.

  A single step visits the noisiest row, where diffusers visits row 0.
  """
  return _in_time('linspace', steps, lambda S, T: (np.round(np.linspace(T - 1, 0, S)) + 1) / T)


def quadratic(steps=50):
  """t = (k/S)^2, k = S .. 1, at least a row apart: more steps near the clean end (arXiv:2010.02502, section D.2).

  DDIM's code starts at 0.8 T and visits row 0 twice when S is large; this starts at t = 1.
  """
  return _in_time('quadratic', steps, lambda S, T: np.maximum(_even(S) ** 2, np.arange(S, 0, -1) / T))


def beta(steps=50, a=.6, b=.6):
  """Quantiles 1, 1 - 1/S, .. 1/S of a Beta(a, b) distribution over time: more steps at both ends (arXiv:2407.12173).

  a = b = 1 is trailing. Diffusers takes the quantiles over sigma instead of time, which leaves fewer steps at low
  noise.
  """
  return _in_time('beta', steps, lambda S, T: betaincinv(a, b, _even(S)), a=a, b=b)


def shifted(steps=50, ratio=3.):
  """Trailing times shifted to r t / (1 + (r - 1) t): more steps at high noise for r > 1, as high resolutions need.

  On `flow` this is the resolution shift of Stable Diffusion 3 (arXiv:2403.03206, equation 23), and the network gets
  the shifted time. To train at shifted levels too, see schedule_transforms.shift.
  """
  def times(S, T):
    t = _even(S)
    return ratio * t / (1 + (ratio - 1) * t)
  return _in_time('shifted', steps, times, ratio=ratio)


def _list(name, values, most):
  try:
    array = np.asarray(values, np.float64)
  except (TypeError, ValueError):
    array = np.zeros(())
  if array.ndim != 1 or not array.size or not np.all((array > 0) & (array <= most)):
    raise InputError(f'{name}({values!r:.80}): expected a list of numbers above 0 and at most {most:g}')
  return array


def times(values):
  """A list of times in (0, 1], noisiest first: times([1, .7, .3, .1]). Row i of a table [T] is at (i + 1) / T."""
  array = _list('times', values, 1)
  return _in_time('times', len(array), lambda S, T: array)


# ---- rows by sections
def sections(counts='ddim25'):
  """Rows chosen part by part, as guided-diffusion (arXiv:2105.05233) and GLIDE (arXiv:2112.10741) name them.

  Args:
    counts: numbers of steps, cleanest part first: '10,10,15' divides the rows into three equal parts and visits 10, 10
      and 15 of them, each from its first row to its last; '250' is one part. 'ddimN' visits rows 0, i, 2i .. with the
      smallest i that gives N. 'fast27' is '10,10,3,2,2' with row T - 3 in place of the last, T - 1.
  """
  ddim, fast = str(counts).startswith('ddim'), counts == 'fast27'
  listed = (10, 10, 3, 2, 2) if fast else str(counts).removeprefix('ddim').strip('[()], ').split(',')
  parts = [int(part) if str(part).strip().isdecimal() else -1 for part in listed]
  if min(parts) < 0 or not sum(parts) or ddim and len(parts) > 1:
    raise InputError(f"sections({counts!r}): expected numbers of steps such as '10,10,15', or 'ddim25' or 'fast27'")
  def times(S, T):
    rows = _strided(S, T) if ddim else _rows_by_parts(parts, T)
    if fast:
      rows[-1] = T - 3
    return (rows[::-1] + 1) / T
  return _in_time('sections', sum(parts), times)


def _strided(S, T):
  stride = -(-T // S)
  if len(range(0, T, stride)) != S:
    raise InputError(f"sections('ddim{S}'): no whole stride visits {S} of {T} levels; use a divisor of {T}, or "
                     f"sections('{S}')")
  return np.arange(0, T, stride)


def _rows_by_parts(counts, T):
  """counts[i] rows of the i-th of equal parts of a table of T; where T does not divide, the first are a row longer."""
  rows, start = [], 0
  for i, count in enumerate(counts):
    size = T // len(counts) + (i < T % len(counts))
    if count > size:
      raise InputError(f'sections: {count} steps of a part of {size} levels; use at most {size}')
    stride = (size - 1) / (count - 1) if count > 1 else 1.
    rows.append(start + np.round(np.cumsum([0., *[stride] * (count - 1)])[:count]))  # added up, as in their code
    start += size
  return np.concatenate(rows)


# ---- in noise
def _snapped(schedule, logsnr):
  """The rows of a table nearest to these log-SNRs, by interpolated row number."""
  rows = schedule._replace(time=np.arange(len(schedule.time)))
  return take(schedule, np.round(at_logsnr(rows, logsnr).time).astype(int))


def _at_noise(name, schedule, logsnr, snap):
  find = _snapped if snap and not callable(schedule) else at_logsnr
  return _ending_clean(name, find(schedule, logsnr))


def _evenly(forward, inverse):
  """(first, last, S) -> logsnr [S], evenly spaced in forward(logsnr)."""
  return lambda first, last, S: inverse(np.linspace(forward(first), forward(last), S))


def _in_noise(name, steps, between, sigma_min, sigma_max, snap, infinite=False):
  """The grid with the levels between(first logsnr, last logsnr, steps), both ends included exactly.

  infinite: whether `between` takes -inf, so that the grid may start without signal.
  """
  check_steps(name, steps, sigma_min=sigma_min, sigma_max=sigma_max)
  def grid(schedule):
    first, last = finite_ends(schedule, infinite)
    first = first if sigma_max is None else -2 * np.log(sigma_max)
    last = last if sigma_min is None else -2 * np.log(sigma_min)
    logsnr = between(first, last, steps)
    logsnr[-1], logsnr[0] = last, first  # exact; a single step is at the first
    return _at_noise(f'{name}({steps})', schedule, logsnr, snap)
  return grid


def karras(steps=18, rho=7., sigma_min=None, sigma_max=None, snap=False):
  """(sigma / alpha)^(1/rho) evenly spaced (EDM, arXiv:2206.00364, equation 5); larger rho: more steps near clean.

  karras(18, sigma_min=.002) on the schedule `edm` is EDM's own grid from 80 to 0.002 (on the curve; t = 1/1000 has
  0.00202). Other schedules start far above 80 (cosine at 2e4), which wastes the first steps: use sigma_max=80.

  Args:
    steps: number of steps; the first is at sigma_max, the last goes from sigma_min to clean.
    rho: above 0; 1 is even in sigma / alpha, and the limit of large rho is `exponential`.
    sigma_min, sigma_max: ends of sigma / alpha, inside the schedule's range; None: those of the schedule (see the
      module).
    snap: whether to take the nearest row of a table.
  """
  check_steps('karras', steps, rho=rho)
  def power(l):
    return np.exp(-l / (2 * rho))
  return _in_noise('karras', steps, _evenly(power, lambda f: -2 * rho * np.log(f)), sigma_min, sigma_max, snap)


def exponential(steps=18, sigma_min=None, sigma_max=None, snap=False):
  """log(sigma / alpha) evenly spaced, so that h is the same at every step but the last (DPM-Solver, arXiv:2206.00927).

  `logsnr` is the same function: even in log-SNR. Arguments as for karras.
  """
  return _in_noise('exponential', steps, np.linspace, sigma_min, sigma_max, snap)


logsnr = exponential


def polyexponential(steps=18, rho=1., sigma_min=None, sigma_max=None, snap=False):
  """log(sigma / alpha) = low + (high - low) r^rho with r evenly from 1 to 0 (k-diffusion's polyexponential).

  rho = 1 is `exponential`; above 1, more steps near clean. Other arguments as for karras.
  """
  check_steps('polyexponential', steps, rho=rho)
  def between(first, last, S):
    return last + (first - last) * np.linspace(1, 0, S) ** rho
  return _in_noise('polyexponential', steps, between, sigma_min, sigma_max, snap)


def cosine(steps=50, sigma_min=None, sigma_max=None, snap=False):
  """arctan(sigma / alpha) evenly spaced: the angle on the circle of a VP schedule, or cosine(None, s=0) at even times.

  Arguments as for karras; may start without signal (see the module).
  """
  def angle(l):
    return np.arctan(np.exp(-l / 2))
  even = _evenly(angle, lambda f: -2 * np.log(np.tan(f)))
  return _in_noise('cosine', steps, even, sigma_min, sigma_max, snap, infinite=True)


def angle(steps=50):
  """arctan(sigma / alpha) evenly spaced from the noisiest level to 0, which is CLEAN: `cosine` without its last level.

  On the schedule cosine(None, s=0) this is `trailing`. With samplers.flow_pc it has the smallest error of all grids
  and samplers at 5 to 10 steps on a mixture of Gaussians (experiments/solvers.py).
  """
  check_steps('angle', steps)
  def grid(schedule):
    noisiest, cleanest = np.arctan(np.exp(-evaluate(schedule, [1., 0.]).logsnr / 2))
    if noisiest / steps < cleanest:
      raise InputError(f'angle({steps}): the last level would be cleaner than the schedule; '
                       f'use at most {int(noisiest / cleanest)} steps')
    rest = -2 * np.log(np.tan(noisiest * _even(steps)[1:]))
    return _at_noise(f'angle({steps})', schedule, np.append(evaluate(schedule, [1.]).logsnr, rest), False)
  return grid


def sigmas(values, snap=False):
  """A list of sigma / alpha in the schedule's range, noisiest first, without the final 0: sigmas([80, 10, 1, .1])."""
  array = _list('sigmas', values, 1e6)
  return lambda schedule: _at_noise(f'sigmas({len(array)} values)', schedule, -2 * np.log(array), snap)
