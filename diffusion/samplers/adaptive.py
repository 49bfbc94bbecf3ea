"""An adaptive Runge-Kutta solver for the probability-flow ODE, with step sizes per sample."""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.gaussian import expand_to, Noise, take
from diffusion.core.schedules import at_logsnr, evaluate
from diffusion.errors import InputError
from diffusion.samplers.base import compute_dtype, Sampler, steps_between
from diffusion.samplers.forms import flow_time

# Dormand and Prince (1980), 5(4): stage weights, the last row being the fifth-order step, and its difference to the
# fourth-order step.
STAGES = np.array([
  [0, 0, 0, 0, 0, 0, 0],
  [1 / 5, 0, 0, 0, 0, 0, 0],
  [3 / 40, 9 / 40, 0, 0, 0, 0, 0],
  [44 / 45, -56 / 15, 32 / 9, 0, 0, 0, 0],
  [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0, 0],
  [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0, 0],
  [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0]])
ERROR = STAGES[-1] - np.array([5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40])


class Adaptive(NamedTuple):
  """The state: the sample, and the number of evaluations of the network for it."""
  x: Any
  evaluations: Any  # [B]


class Cursor(NamedTuple):
  """The position of the integration, for every sample."""
  y: Any        # [B, ...]
  slope: Any    # dy / dw, [B, ...]
  w: Any        # [B]
  h: Any        # the next step, [B], negative
  tries: Any    # []
  evaluations: Any


def integrate(slope, y, start, end, rtol, atol, limit):
  """Solves dy / dw = slope(y, w [B]) from start down to end; after `limit` tries the rest is crossed in one step."""
  stages, error = jnp.asarray(STAGES, y.dtype), jnp.asarray(ERROR, y.dtype)
  def wide(a):
    return a.reshape(-1, *[1] * (y.ndim - 1))
  def trial(c, h):
    def stage(i, slopes):
      point = c.y + wide(h) * jnp.tensordot(stages[i], slopes, 1)
      return slopes.at[i].set(slope(point, c.w + h * jnp.sum(stages[i])))
    slopes = jnp.zeros((7, *y.shape), y.dtype).at[0].set(c.slope)
    return jax.lax.fori_loop(jnp.where(c.tries == 0, 0, 1), 7, stage, slopes)
  def body(c):
    left = end - c.w
    h = jnp.where(c.tries == limit - 1, left, jnp.maximum(c.h, left))
    slopes = trial(c, h)
    y = c.y + wide(h) * jnp.tensordot(stages[6], slopes, 1)
    scaled = wide(h) * jnp.tensordot(error, slopes, 1) / (atol + rtol * jnp.maximum(jnp.abs(c.y), jnp.abs(y)))
    size = jnp.sqrt(jnp.mean(scaled ** 2, tuple(range(1, y.ndim))) + 1e-20)
    done = left == 0
    accepted = ((size <= 1) | (c.tries == limit - 1)) & ~done
    def choose(new, old):
      return jnp.where(wide(accepted), new, old)
    w = jnp.where(accepted, jnp.where(h == left, end, c.w + h), c.w)
    evaluations = c.evaluations + jnp.where(c.tries == 0, 7, jnp.where(done, 0, 6))
    return Cursor(choose(y, c.y), choose(slopes[6], slopes[0]), w, h * jnp.clip(.9 * size ** -.2, .2, 5.), c.tries + 1,
                  evaluations)
  first = jnp.full(y.shape[:1], (end - start) / 20, y.dtype)
  cursor = Cursor(y, jnp.zeros_like(y), jnp.full_like(first, start), first, 0, jnp.zeros(y.shape[:1], jnp.int32))
  return jax.lax.while_loop(lambda c: (c.tries < limit) & ((c.tries == 0) | jnp.any(c.w > end)), body, cursor)


def adaptive(schedule, rtol=1e-3, atol=1e-3, limit=100):
  """Dormand-Prince 5(4) in the time sigma / (alpha + sigma), from the first level of the grid to its end.

  Only the ends of the grid matter: before CLEAN it stops at the cleanest level of the schedule. A library's solver
  would choose one step size for the whole batch, so that a sample would depend on its neighbours.

  Args:
    schedule: of the network; between its levels, time and alpha are interpolated.
    rtol, atol: relative and absolute error tolerated per step.
    limit: maximum number of steps tried; the rest is then crossed in one.
  Raises:
    InputError: a tolerance not above 0, or a limit below 2.
  """
  if not (rtol > 0 and atol > 0 and limit >= 2):
    raise InputError(f'adaptive({rtol=}, {atol=}, {limit=}): expected tolerances above 0 and a limit of at least 2')
  def plan(levels):
    last = len(levels.logsnr) - 1
    end = take(levels, last)
    if end.sigma == 0:
      end = at_logsnr(schedule, max(_cleanest(schedule), levels.logsnr[0]))
    noisiest = max(min(levels.logsnr[0], end.logsnr - 1e-3), evaluate(schedule, 1.).logsnr, -60)
    known = at_logsnr(schedule, np.linspace(noisiest, end.logsnr, 4000))
    known = Noise(*(a[None] for a in known))
    return steps_between(levels, [0], [last])._replace(extra=(np.reshape(flow_time(end), 1), known))
  def step(keys, denoise, state, step):
    x, t, s, (end, known) = state.x, step.t, step.s, step.extra
    def slope(y, w):
      w = jnp.minimum(w, 1 - 1e-6)  # a level without signal has log-SNR -inf
      logsnr = 2 * (jnp.log1p(-w) - jnp.log(w))
      alpha = jnp.interp(logsnr, known.logsnr, known.alpha)
      noise = Noise(jnp.interp(logsnr, known.logsnr, known.time), alpha, alpha * w / (1 - w), logsnr)
      pred = denoise(y * expand_to(noise, y).alpha / (1 - expand_to(noise._replace(alpha=w), y).alpha), noise)
      return pred.eps - pred.x0
    c = integrate(slope, x.astype(compute_dtype(x)) / (t.alpha + t.sigma), flow_time(t), end, rtol, atol, limit)
    return Adaptive((s.alpha + s.sigma) * (c.y + (flow_time(s) - end) * c.slope), c.evaluations)
  return Sampler(lambda x: Adaptive(x, jnp.zeros(x.shape[:1], jnp.int32)), step, plan)


def _cleanest(schedule):
  return evaluate(schedule, 1 / 1000 if callable(schedule) else 1 / len(schedule.logsnr)).logsnr
