"""Transforms of schedules. In a config they nest: 'zero_terminal(scaled_linear)', 'shift(cosine(None), 4)'."""
import math

import numpy as np

from diffusion.core.gaussian import array_module, vp
from diffusion.core.schedules import scaling_of, sub_vp_scaling
from diffusion.errors import check_positive, InputError


def _transformed(schedule, scaling, logsnr):
  """The schedule with logsnr(old logsnr) under a scaling; the network's time input at each t does not change."""
  def move(noise):
    return scaling(noise.time, logsnr(noise.logsnr))
  return (lambda t: move(schedule(t))) if callable(schedule) else move(schedule)


def expect_vp(name, schedule):
  if scaling_of(schedule) is not vp:
    raise InputError(f'{name}: expected a variance-preserving schedule (alpha^2 + sigma^2 = 1), '
                     'such as linear or cosine')


def shift(schedule, ratio):
  """Multiplies sigma / alpha by `ratio` at the same t, in the schedule's own scaling: log-SNR falls by 2 log(ratio).

  For images `ratio` times as wide, whose neighbouring pixels average out that much more noise: simple diffusion
  (arXiv:2301.11093, equation 4; their ratio is d / 64). On `flow` the levels are those at r t / (1 + (r - 1) t),
  the shift of Stable Diffusion 3 (arXiv:2403.03206, equation 23). The network's time input at t is that of the
  original schedule, so that times stay spread over 0..1000 (for `edm`: the unshifted log sigma; change the ends of
  edm instead). A network trained on the original schedule identifies a level by its original time: to sample from
  it at noisier levels, keep the schedule and shift the grid (grids.shifted), as Stable Diffusion 3 does.

  Args:
    schedule: a table or a curve.
    ratio: above 1 for more noise; 1 changes nothing.
  Raises:
    InputError: ratio is not a number above 0.
  """
  check_positive('shift', ratio=ratio)
  return _transformed(schedule, scaling_of(schedule), lambda l: l - 2 * math.log(ratio))


def sub_vp(schedule):
  """The sub-VP form of a VP schedule: the same alpha, sigma squared (arXiv:2011.13456, equation 29, for linear(None)).

  Raises:
    InputError: the schedule is not variance preserving.
  """
  expect_vp('sub_vp', schedule)
  def logsnr(l):  # log(alpha^2 / sigma^4), where sigma^2 = 1 / (1 + exp(l))
    return l + array_module(l).logaddexp(0., l)
  return _transformed(schedule, sub_vp_scaling, logsnr)


def zero_terminal(schedule):
  """A table rescaled to zero terminal SNR, with the first row unchanged (arXiv:2305.08891, algorithm 1).

  The last row has logsnr -inf, alpha 0 and sigma 1, exactly; alpha is sqrt(alpha_bar). The network must predict v
  or x0, since eps says nothing about x0 there.

  Raises:
    InputError: a curve, fewer than two rows, or not variance preserving.
  """
  if callable(schedule) or len(schedule.logsnr) < 2:
    raise InputError('zero_terminal: expected a table of at least 2 rows; give the schedule a number of levels T')
  expect_vp('zero_terminal', schedule)
  alpha, gap = schedule.alpha, schedule.sigma ** 2 / (1 + schedule.alpha)  # gap = 1 - alpha, without the cancellation
  first, last = alpha[0], alpha[-1]
  lower = (alpha - last) * first / (first - last)
  lower_gap = (first * gap - last * gap[0]) / (first - last)
  with np.errstate(divide='ignore'):
    logsnr = 2 * np.log(lower) - np.log(lower_gap) - np.log1p(lower)
  return vp(schedule.time, logsnr)
