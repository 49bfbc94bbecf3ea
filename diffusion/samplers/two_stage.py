"""Samplers that evaluate twice to cross an interval: a trial step to an intermediate or the final level, then the step itself.

  trial   x_r = alpha_r * x0 + sigma_r * eps
  step    x_s = alpha_s * x0 + sigma_s * eps + c * (m_r - m_t)

with x0 and eps evaluated at t (the base), m what the form takes to be smooth. Each evaluation is a row of its own, so the
compiled program holds the network once and no evaluation is wasted. The last interval, to CLEAN, is a single step.
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
  """The state: the sample, and the evaluation that the next step starts from."""
  x: Any
  base: Pred


class Stage(NamedTuple):
  """What a row needs besides its levels."""
  first: Any       # whether the evaluation is a new base
  c: Any           # weight of the difference to the base
  scale: Any = ()  # of the sample before the evaluation, where noise is added then
  noise: Any = ()  # and the noise that is added


def two_stage_step(keys, denoise, state, step, form, strength=0.):
  """One evaluation: of a new base, with a trial step, or of a trial point, with the step itself.

  strength: of the noise that is added before an evaluation where the level is raised.
  """
  x, stage = state.x, step.extra
  if strength:
    x = stage.scale * x + strength * stage.noise * gaussian(keys, step.index, x)
  pred = denoise(x, step.t)._replace(variance=None)
  base = jax.tree.map(lambda new, old: jnp.where(stage.first, new, old), pred, state.base)
  return TwoStage(ddim_update(base, step.s) + stage.c * (smooth_part(form, pred) - smooth_part(form, base)), base)


def _sampler(form, plan, strength=0.):
  step = partial(two_stage_step, form=form, strength=strength)
  return Sampler(lambda x: TwoStage(x, Pred(zeros_for(x), zeros_for(x))), step, plan)


def _trapezoid(form, lift=lambda levels: levels):
  """Rows that cross every interval by the mean of both ends; the interval to CLEAN, and one from a silent level, by its start alone.

  lift: levels [N] -> the levels that they are raised to before the first evaluation, by adding noise.
  """
  def plan(levels):
    single = (form is NOISE) & has_no_signal(levels)
    rows = np.array([row for i in range(len(levels.logsnr) - 1) for row in [(i, i + 1, 1, i), (i + 1, i + 1, 0, i)]
                     if row[2] or levels.sigma[i + 1] > 0 and not single[i]])
    starts, ends, first, interval = rows[:, 0], rows[:, 1], rows[:, 2] == 1, rows[:, 3]
    start = take(levels, interval)
    raised = lift(start)
    with np.errstate(divide='ignore', invalid='ignore'):  # a level without signal, which no weight can start from
      half = form.weight(raised, take(levels, interval + 1)) / 2
      grown = np.nan_to_num(raised.alpha / start.alpha, nan=1.)
      fresh = np.nan_to_num(raised.alpha * np.sqrt(np.maximum(ratio(raised) ** 2 - ratio(start) ** 2, 0)))
    stage = Stage(first, np.where(first, 0, half), np.where(first, grown, 1), np.where(first, fresh, 0))
    step = steps_between(levels, starts, ends)
    t = Noise(*(np.where(first, a, b) for a, b in zip(raised, step.t)))
    return step._replace(t=t, h=(step.s.logsnr - t.logsnr) / 2, extra=stage)
  return plan


def _pairs(form):
  """Intervals in pairs, the level between them as the trial point; leftover intervals are single, at the noisy end."""
  def plan(levels):
    S = len(levels.logsnr) - 1
    crossed = S - (levels.sigma[-1] == 0)
    start = min(np.sum(has_no_signal(levels) if form is NOISE else levels.alpha == 0), crossed)
    start += (crossed - start) % 2
    second = np.zeros(S, bool)
    second[start + 1:crossed:2] = True
    at, c = np.arange(S), np.zeros(S)
    for i in np.flatnonzero(second):
      t, r, s = (take(levels, i + k) for k in (-1, 0, 1))
      c[i] = midpoint(form, t, s, [t, r])[1]
    return steps_between(levels, at, at + 1)._replace(extra=Stage(~second, c))
  return plan


def heun():
  """Heun's method in sigma / alpha (EDM, arXiv:2206.00364, algorithm 1): 2S - 1 evaluations on a grid of S steps.

  EDM starts at sigma / alpha = 80. A step from above 1000, where schedules such as cosine start, is Euler's.
  """
  return _sampler(NOISE, _trapezoid(NOISE))


def flow_heun():
  """Heun's method along a straight path, in the time sigma / (alpha + sigma): 2S - 1 evaluations on a grid of S steps."""
  return _sampler(FLOW, _trapezoid(FLOW))


def dpm_solver_2():
  """DPM-Solver-2 (arXiv:2206.00927, algorithm 4) over pairs of intervals: as many evaluations as the grid has steps."""
  return _sampler(NOISE, _pairs(NOISE))


def dpmpp_2s():
  """DPM-Solver++(2S) (arXiv:2211.01095, algorithm 1) over pairs of intervals: as many evaluations as the grid has steps."""
  return _sampler(data(), _pairs(data()))


def churn(schedule, churn=40., low=.05, high=50., noise=1.003):
  """EDM's stochastic sampler (arXiv:2206.00364, algorithm 2): Heun, with noise added before every first evaluation.

  Args:
    schedule: of the network, which tells it the raised levels; they stay inside the range that it knows.
    churn: S_churn, the amount of fresh noise over all steps; 0 is Heun.
    low, high: S_tmin and S_tmax: noise is added where sigma / alpha lies between them.
    noise: S_noise, the standard deviation of the noise added.
  Raises:
    InputError: a negative amount, or low above high.
  """
  if not (churn >= 0 and noise >= 0 and 0 <= low <= high):
    raise InputError(f'churn({churn=}, {low=}, {high=}, {noise=}): expected amounts of at least 0, and low <= high')
  def plan(levels):
    gamma = min(churn / (len(levels.logsnr) - 1), np.sqrt(2) - 1)
    known = evaluate(schedule, [1., 0.]).logsnr
    def lift(start):
      u = ratio(start)
      logsnr = start.logsnr - 2 * np.where((low <= u) & (u <= high), np.log1p(gamma), 0)
      raised = at_logsnr(schedule, np.clip(logsnr, *known))
      return Noise(*(np.where(logsnr < start.logsnr, a, b) for a, b in zip(raised, start)))
    return _trapezoid(NOISE, lift)(levels)
  return _sampler(NOISE, plan, strength=noise)
