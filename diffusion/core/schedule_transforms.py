"""Schedules made of schedules. In a spec they nest: 'zero_terminal(scaled_linear)', 'shift(cosine(None), 4)'."""
import math

import numpy as np

from diffusion.core.gaussian import array_module, vp
from diffusion.core.schedules import scaling_of, sub_vp_scaling
from diffusion.errors import InputError


def _transformed(schedule, scaling, logsnr):
  """The schedule with logsnr(old logsnr) under a scaling; the network is told what it was told at the same t."""
  def move(noise):
    return scaling(noise.time, logsnr(noise.logsnr))
  return (lambda t: move(schedule(t))) if callable(schedule) else move(schedule)


def _expect_vp(name, schedule):
  if scaling_of(schedule) is not vp:
    raise InputError(f'{name}: expected a variance-preserving schedule (alpha^2 + sigma^2 = 1), such as linear or cosine')


def shift(schedule, ratio):
  """Multiplies sigma / alpha by `ratio` at the same t, in the schedule's own scaling: log-SNR falls by 2 log(ratio).

  For pictures `ratio` times as wide, whose neighbouring pixels average out that much more noise: simple diffusion
  (arXiv:2301.11093, equation 4; their ratio is d / 64). On `flow` the levels are those at r t / (1 + (r - 1) t), the shift
  of Stable Diffusion 3 (arXiv:2403.03206, equation 23).
  The network is told what the given schedule tells at the same t, so its times stay spread over 0..1000 (for `edm`: the
  unshifted log sigma; give edm other ends instead). A network trained on the plain schedule knows a level by its plain time:
  to sample from it at noisier levels keep the schedule and shift the grid (grids.shifted), as Stable Diffusion 3 does.

  Args:
    schedule: a table or a curve.
    ratio: above 1 for more noise; 1 leaves the schedule as it is.
  Raises:
    InputError: ratio is not a number above 0.
  """
  if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < math.inf:
    raise InputError(f'shift(ratio={ratio!r}): expected a number above 0')
  return _transformed(schedule, scaling_of(schedule), lambda l: l - 2 * math.log(ratio))


def sub_vp(schedule):
  """The sub-VP form of a VP schedule: the same alpha, sigma squared (arXiv:2011.13456, equation 29, of linear(None)).

  Raises:
    InputError: the schedule is not variance preserving.
  """
  _expect_vp('sub_vp', schedule)
  def logsnr(l):  # log(alpha^2 / sigma^4), where sigma^2 = 1 / (1 + exp(l))
    return l + array_module(l).logaddexp(0., l)
  return _transformed(schedule, sub_vp_scaling, logsnr)


def zero_terminal(schedule):
  """A table whose last row has no signal: the alphas are moved and stretched, the first row kept (arXiv:2305.08891, algorithm 1).

  The last row has logsnr -inf, alpha 0 and sigma 1, exactly; alpha is sqrt(alpha_bar).

  The network must predict v or x0: eps says nothing about x0 there.

  Raises:
    InputError: a curve, fewer than two rows, or not variance preserving.
  """
  if callable(schedule) or len(schedule.logsnr) < 2:
    raise InputError('zero_terminal: expected a table of at least 2 rows; give the schedule a number of levels T')
  _expect_vp('zero_terminal', schedule)
  alpha, gap = schedule.alpha, schedule.sigma ** 2 / (1 + schedule.alpha)  # gap = 1 - alpha, without the cancellation
  first, last = alpha[0], alpha[-1]
  lower = (alpha - last) * first / (first - last)
  lower_gap = (first * gap - last * gap[0]) / (first - last)
  with np.errstate(divide='ignore'):
    logsnr = 2 * np.log(lower) - np.log(lower_gap) - np.log1p(lower)
  return vp(schedule.time, logsnr)
