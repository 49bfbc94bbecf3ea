"""Samplers that evaluate the network twice per interval: a trial step first, then the step itself.

Heun's method, with y = x / alpha and u = sigma / alpha, where dy/du = eps (EDM, arXiv:2206.00364, algorithm 1):

  trial   y' = y_t + (u_s - u_t) * eps_t                        eps_t evaluated at (y_t, t)
  step    y_s = y_t + (u_s - u_t) * (eps_t + eps') / 2          eps' evaluated at (y', s)

In x, both are the DDIM update from t; the step adds a correction with the weight c = alpha_s * (u_s - u_t) / 2:

  trial   x' = alpha_s * x0_t + sigma_s * eps_t
  step    x_s = alpha_s * x0_t + sigma_s * eps_t + c * (eps' - eps_t)

The other methods here differ in the level of the trial point and in what takes the place of eps (see forms.py).
Each evaluation is a row of the scan, so that the compiled program contains the network once: a row with `first`
evaluates at t and makes the trial step, the next row evaluates at the trial point and makes the step. The last
interval, to CLEAN, is a single DDIM step: one row with `first`.
"""
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.gaussian import Noise, Pred, take
from diffusion.core.schedules import at_logsnr, evaluate
from diffusion.errors import InputError
from diffusion.samplers.base import gaussian, Sampler, steps_between, zeros_for
from diffusion.samplers.forms import data, ddim_update, FLOW, has_no_signal, midpoint, NOISE, ratio, smooth_part


class TwoStage(NamedTuple):
  """The state: the sample, and the prediction at the start of the interval."""
  x: Any
  base: Pred


class Stage(NamedTuple):
  """What a row needs besides its levels."""
  first: Any  # whether it starts an interval: its evaluation is the new base
  c: Any      # weight of the correction; 0 in a first row


def two_stage_step(keys, denoise, state, step, form):
  """One evaluation: at the start of an interval, with the trial step, or at the trial point, with the step itself."""
  pred = denoise(state.x, step.t)._replace(variance=None)
  base = jax.tree.map(lambda new, old: jnp.where(step.extra.first, new, old), pred, state.base)
  correction = step.extra.c * (smooth_part(form, pred) - smooth_part(form, base))
  return TwoStage(ddim_update(base, step.s) + correction, base)


def _start(x):
  return TwoStage(x, Pred(zeros_for(x), zeros_for(x)))


# ---- Heun: the trial point is at the end of the interval
def heun():
  """Heun's method in sigma / alpha (EDM, arXiv:2206.00364, algorithm 1): 2S - 1 evaluations on a grid of S steps.

  EDM starts at sigma / alpha = 80. A step from above 1000, where schedules such as cosine start, is Euler's.
  """
  return Sampler(_start, partial(two_stage_step, form=NOISE), partial(_heun_plan, form=NOISE))


def flow_heun():
  """Heun's method along a straight path, in the time sigma / (alpha + sigma): 2S - 1 evaluations for S steps."""
  return Sampler(_start, partial(two_stage_step, form=FLOW), partial(_heun_plan, form=FLOW))


def _heun_rows(levels, form):
  """(interval, first) of each row: two rows per interval; one to CLEAN, and for NOISE one from no signal."""
  corrected = (levels.sigma[1:] > 0) & ~((form is NOISE) & has_no_signal(levels)[:-1])
  interval = np.repeat(np.arange(len(corrected)), 1 + corrected)
  return interval, np.diff(interval, prepend=-1) > 0


def _heun_plan(levels, form, raised=None):
  """The rows of Heun's method; `raised`: levels [S] from which the intervals start instead of those of the grid."""
  interval, first = _heun_rows(levels, form)
  start, end = take(levels if raised is None else raised, interval), take(levels, interval + 1)
  with np.errstate(invalid='ignore'):  # the weight from a level without signal is not used
    c = form.weight(start, end) / 2
  step = steps_between(levels, np.where(first, interval, interval + 1), interval + 1)
  t = Noise(*(np.where(first, a, b) for a, b in zip(start, end)))
  return step._replace(t=t, h=(end.logsnr - t.logsnr) / 2, extra=Stage(first, np.where(first, 0, c)))


# ---- EDM's stochastic sampler: Heun, with the level raised at the start of each interval
class Churn(NamedTuple):
  """What a row of `churn` needs besides its levels: x becomes scale * x + noise * z before the evaluation."""
  stage: Stage
  scale: Any
  noise: Any


def churn(schedule, churn=40., low=.05, high=50., noise=1.003):
  """EDM's stochastic sampler (arXiv:2206.00364, algorithm 2): Heun, with noise added at the start of each interval.

  Args:
    schedule: of the network, for its time input at the raised levels, which stay inside the schedule's range.
    churn: S_churn, the amount of fresh noise over all steps; 0 is Heun.
    low, high: S_tmin and S_tmax: noise is added where sigma / alpha is between them.
    noise: S_noise, the standard deviation of the noise added.
  Raises:
    InputError: a negative amount, or low above high.
  """
  if not (churn >= 0 and noise >= 0 and 0 <= low <= high):
    raise InputError(f'churn({churn=}, {low=}, {high=}, {noise=}): expected amounts of at least 0, and low <= high')

  def raise_levels(levels, gamma):
    u = ratio(levels)
    logsnr = levels.logsnr - 2 * np.where((low <= u) & (u <= high), np.log1p(gamma), 0)
    raised = at_logsnr(schedule, np.clip(logsnr, *evaluate(schedule, [1., 0.]).logsnr))
    return Noise(*(np.where(logsnr < levels.logsnr, a, b) for a, b in zip(raised, levels)))

  def plan(levels):
    S, (interval, first) = len(levels.logsnr) - 1, _heun_rows(levels, NOISE)
    start = take(levels, slice(0, S))
    raised = raise_levels(start, min(churn / S, np.sqrt(2) - 1))
    with np.errstate(divide='ignore', invalid='ignore'):  # a level without signal, which is not raised
      scale = np.nan_to_num(raised.alpha / start.alpha, nan=1.)
      added = np.nan_to_num(raised.alpha * np.sqrt(np.maximum(ratio(raised) ** 2 - ratio(start) ** 2, 0)))
    rows = _heun_plan(levels, NOISE, raised)
    scale, added = np.where(first, scale[interval], 1), np.where(first, added[interval], 0)
    return rows._replace(extra=Churn(rows.extra, scale, added))

  def step(keys, denoise, state, step):
    stage, scale, added = step.extra
    if noise:
      z = gaussian(keys, step.index, state.x)
      state = state._replace(x=scale * state.x + noise * added * z)
    return two_stage_step(keys, denoise, state, step._replace(extra=stage), NOISE)
  return Sampler(_start, step, plan)


# ---- pairs of intervals: the trial point is the level between the two
def dpm_solver_2():
  """DPM-Solver-2 (arXiv:2206.00927, algorithm 4) over pairs of intervals: S evaluations for S steps."""
  return Sampler(_start, partial(two_stage_step, form=NOISE), partial(_pairs_plan, form=NOISE))


def dpmpp_2s():
  """DPM-Solver++(2S) (arXiv:2211.01095, algorithm 1) over pairs of intervals: S evaluations for S steps."""
  return Sampler(_start, partial(two_stage_step, form=data()), partial(_pairs_plan, form=data()))


def _pairs_plan(levels, form):
  """The rows of a midpoint rule over pairs of intervals; intervals without a partner are single, at the noisy end."""
  S = len(levels.logsnr) - 1
  crossed = S - (levels.sigma[-1] == 0)  # intervals that end above CLEAN
  start = min(np.sum(has_no_signal(levels) if form is NOISE else levels.alpha == 0), crossed)
  start += (crossed - start) % 2
  second = np.zeros(S, bool)
  second[start + 1:crossed:2] = True
  rows, c = np.arange(S), np.zeros(S)
  for i in np.flatnonzero(second):
    t, r, s = (take(levels, i + k) for k in (-1, 0, 1))
    c[i] = midpoint(form, t, s, [t, r])[1]
  return steps_between(levels, rows, rows + 1)._replace(extra=Stage(~second, c))
