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

Midpoint methods evaluate halfway in log-SNR, at a level that the grid does not have, and need the schedule for it.
The ancestral ones step past s, to sigma_s * kept, and return to s by fresh noise (k-diffusion; kept as for DDIM).
"""
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.gaussian import Noise, Pred, take
from diffusion.core.schedules import at_logsnr, evaluate
from diffusion.errors import InputError
from diffusion.samplers.base import gaussian, Sampler, Step, steps, steps_between, zeros_for
from diffusion.samplers.forms import data, ddim_update, FLOW, has_no_signal, lam, NOISE, ratio, smooth_part
from diffusion.samplers.multistep import check_eta


class TwoStage(NamedTuple):
  """The state: the sample, and the prediction at the start of the interval."""
  x: Any
  base: Pred


class Stage(NamedTuple):
  """What a row needs besides its levels."""
  first: Any  # whether it starts an interval: its evaluation is the new base
  c: Any      # weight of the correction; 0 in a first row


def two_stage_step(keys, denoise, state, step, form, kept=1.):
  """One evaluation: at the start of an interval, with the trial step, or at the trial point, with the step itself."""
  pred = denoise(state.x, step.t)._replace(variance=None)
  base = jax.tree.map(lambda new, old: jnp.where(step.extra.first, new, old), pred, state.base)
  correction = step.extra.c * (smooth_part(form, pred) - smooth_part(form, base))
  return TwoStage(ddim_update(base, step.s, kept) + correction, base)


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


# ---- the level raised at the start of each interval, as in EDM's stochastic sampler
class Churn(NamedTuple):
  """What a row needs besides its levels: x becomes scale * x + noise * z before the evaluation."""
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
  _check_churn('churn', churn, low, high, noise)
  return _churned(partial(_heun_plan, form=NOISE), schedule, churn, low, high, noise)


def dpm_2(schedule, churn=0., low=0., high=np.inf, noise=1.):
  """k-diffusion's DPM-Solver-2: the midpoint rule for eps in sigma / alpha, with EDM's churn; arguments as there.

  The midpoint is in log-SNR, as of DPM-Solver-2, but the step is Euler's with the slope there: still of order 2.
  """
  _check_churn('dpm_2', churn, low, high, noise)
  return _churned(lambda levels, raised: _midpoint_plan(schedule, levels, NOISE, raised), schedule, churn, low, high,
                  noise)


def _check_churn(name, churn, low, high, noise):
  if not (churn >= 0 and noise >= 0 and 0 <= low <= high):
    raise InputError(f'{name}({churn=}, {low=}, {high=}, {noise=}): expected amounts of at least 0, and low <= high')


def _churned(rows, schedule, churn, low, high, noise):
  """The sampler of NOISE whose rows(levels, raised) follow churn."""
  def raise_levels(levels, gamma):
    u = ratio(levels)
    logsnr = levels.logsnr - 2 * np.where((low <= u) & (u <= high), np.log1p(gamma), 0)
    raised = _levels_at(schedule, logsnr, True)
    return Noise(*(np.where(logsnr < levels.logsnr, a, b) for a, b in zip(raised, levels)))

  def plan(levels):
    S, (interval, first) = len(levels.logsnr) - 1, _heun_rows(levels, NOISE)
    start = take(levels, slice(0, S))
    raised = raise_levels(start, min(churn / S, np.sqrt(2) - 1))
    with np.errstate(divide='ignore', invalid='ignore'):  # a level without signal, which is not raised
      scale = np.nan_to_num(raised.alpha / start.alpha, nan=1.)
      added = np.nan_to_num(raised.alpha * np.sqrt(np.maximum(ratio(raised) ** 2 - ratio(start) ** 2, 0)))
    planned = rows(levels, raised=raised)
    scale, added = np.where(first, scale[interval], 1), np.where(first, added[interval], 0)
    return planned._replace(extra=Churn(planned.extra, scale, added))

  def step(keys, denoise, state, step):
    stage, scale, added = step.extra
    if noise:
      z = gaussian(keys, step.index, state.x)
      state = state._replace(x=scale * state.x + noise * added * z)
    return two_stage_step(keys, denoise, state, step._replace(extra=stage), NOISE)
  return Sampler(_start, step, plan)


# ---- the trial point is halfway
class Ancestral(NamedTuple):
  """What a row of an ancestral method needs besides its levels."""
  stage: Stage
  kept: Any   # share of eps that is not replaced by fresh noise
  noise: Any  # weight of the noise of this row
  again: Any  # weight of the noise of the row before


def dpm_2_ancestral(schedule, eta=1., noise=1.):
  """k-diffusion's DPM-Solver-2 with ancestral noise, eta times DDPM's; noise: its standard deviation, 1 is right."""
  return _ancestral('dpm_2_ancestral', schedule, NOISE, eta, noise)


def dpmpp_2s_ancestral(schedule, eta=1., noise=1.):
  """DPM-Solver++(2S) (arXiv:2211.01095, algorithm 1) with ancestral noise, as k-diffusion's; options as above."""
  return _ancestral('dpmpp_2s_ancestral', schedule, data(), eta, noise)


def dpmpp_sde(schedule, eta=1., noise=1., r=.5):
  """k-diffusion's two-stage DPM-Solver++ SDE: the ancestral 2S whose trial point has its own fresh noise.

  Both noises of an interval are of one Brownian path in sigma / alpha, so they are correlated, as there.

  Args:
    schedule: of the network, for its time input at the trial points.
    eta: amount of fresh noise, in [0, 1]; 0 is the ODE.
    noise: standard deviation of the noise, in units of the right one.
    r: where in the interval of log-SNR the trial point is, in (0, 1).
  """
  if not 0 < r < 1:
    raise InputError(f'dpmpp_sde(r={r!r}): expected a number between 0 and 1')
  return _ancestral('dpmpp_sde', schedule, data(), eta, noise, r, stochastic=True)


def _ancestral(name, schedule, form, eta, noise, r=.5, stochastic=False):
  check_eta(name, eta, 1)
  if not 0 <= noise < np.inf:
    raise InputError(f'{name}(noise={noise!r}): expected a number from 0')
  def plan(levels):
    return _midpoint_plan(schedule, levels, form, None, eta, r, stochastic)
  def step(keys, denoise, state, step):
    stage, kept, added, again = step.extra
    state = two_stage_step(keys, denoise, state, step._replace(extra=stage), form, kept)
    if not eta or not noise:
      return state
    z = added * gaussian(keys, step.index, state.x)
    if stochastic:
      z += again * gaussian(keys, step.index - 1, state.x)
    return state._replace(x=state.x + noise * z)
  return Sampler(_start, step, plan)


def _kept(t, s, eta):
  """The share of eps that an ancestral step from t to s keeps, sqrt(1 - eta^2 k), and its noise (see ancestral.py)."""
  k = -np.expm1(t.logsnr - s.logsnr)
  return np.sqrt(1 - k + (1 - eta ** 2) * k), s.sigma * eta * np.sqrt(k)


def _midpoint_plan(schedule, levels, form, raised=None, eta=None, r=.5, stochastic=False):
  """The rows of a midpoint method; eta: None, or of an ancestral one; stochastic: its trial point has noise too."""
  steps(levels)
  interval, first = _heun_rows(levels, NOISE)
  alone = np.bincount(interval)[interval] == 1
  t, s = take(take(levels, slice(0, -1)) if raised is None else raised, interval), take(levels, interval + 1)
  kept, up = _kept(t, s, eta or 0.)
  with np.errstate(divide='ignore', invalid='ignore'):  # of intervals without a trial point
    end = lam(s) if stochastic else lam(s) - np.log(kept)  # where an ancestral step ends without its noise
    half = lam(t) + r * (end - lam(t))
    c = form.weight(t, s._replace(sigma=s.sigma * kept, logsnr=s.logsnr - 2 * np.log(kept))) / (2 * r)
  trial = Noise(*(np.where(alone, a, b) for a, b in zip(s, _levels_at(schedule, 2 * half, ~alone))))
  a, b = (Noise(*(np.where(first, x, y) for x, y in zip(*pair))) for pair in ((t, trial), (trial, s)))
  rows = Step(a, b, (b.logsnr - a.logsnr) / 2, np.arange(1, len(first) + 1, dtype=np.uint32))
  stage = Stage(first, np.where(first, 0, c))
  if eta is None:
    return rows._replace(extra=stage)
  early, early_up = _kept(t, trial, eta) if stochastic else (np.ones(len(first)), np.zeros(len(first)))
  with np.errstate(invalid='ignore'):  # of intervals from a level without signal
    share = np.where(first | (not stochastic), 0, (ratio(t) - ratio(trial)) / (ratio(t) - ratio(s)))
  early, early_up = (np.where(alone, b, a) for a, b in ((early, kept), (early_up, up)))
  kept, noise = np.where(first, early, kept), np.where(first, early_up, up * np.sqrt(1 - share))
  return rows._replace(extra=Ancestral(stage, kept, noise, up * np.sqrt(share)))


def _levels_at(schedule, logsnr, wanted):
  """The schedule's levels at these log-SNRs, inside its range; where they are not wanted, any."""
  return at_logsnr(schedule, np.clip(np.where(wanted, logsnr, 0), *evaluate(schedule, [1., 0.]).logsnr))
