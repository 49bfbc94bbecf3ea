"""Two samplers exactly as diffusers has them: for models of other people, and for parity.

Both work out their next level as row t - T // S, whatever the grid visits next, and keep the network's eps where x0 is
clipped. On other grids than 'leading' the first differs from the level at which the network is asked next.
"""
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion.core.gaussian import Noise, take
from diffusion.errors import InputError
from diffusion.samplers.base import gaussian, Sample, Sampler, Step, zeros_for
from diffusion.samplers.forms import NOISE
from diffusion.samplers.multistep import ADAMS_BASHFORTH


def _table(name, schedule):
  if callable(schedule):
    raise InputError(f'{name}: expected a schedule that is a table; give it a number of levels T')
  return schedule


def _ends(schedule, levels, rows):
  """The levels at these rows; the last of the grid where a row is negative."""
  found, last = take(schedule, np.maximum(rows, 0)), take(levels, -1)
  return Noise(*(np.where(rows < 0, b, a) for a, b in zip(found, last)))


def _visited(part, table, steps, levels):
  """(rows visited, rows from one level to the next) of a part of the grid `levels`, or of all of it (None)."""
  rows = np.round(part.time[:-1]).astype(int)
  return rows, len(table.time) // (steps or len((part if levels is None else levels).time) - 1)


def ddim_shipped(schedule, eta=0., clip=0., steps=0, levels=None):
  """DDIM of diffusers.

  Args:
    eta: as for ddim.
    clip: x0 is clipped to [-clip, clip], and eps left as it is; 0: it is not clipped.
    steps: S, if another than the number of levels visited; 0: that number.
    levels: the whole grid, of which an edit visits a part.
  """
  if not 0 <= eta <= 1 or not 0 <= clip < np.inf:
    raise InputError(f'ddim_shipped({eta=}, {clip=}): expected eta from 0 to 1, and a range of at least 0')
  table = _table('ddim_shipped', schedule)

  def plan(part):
    rows, jump = _visited(part, table, steps, levels)
    t, s = take(part, slice(0, -1)), _ends(table, part, rows - jump)
    return Step(t, s, (s.logsnr - t.logsnr) / 2, np.arange(1, len(rows) + 1, dtype=np.uint32))

  def step(keys, denoise, state, step):
    pred = denoise(state.x, step.t)
    x0 = jnp.clip(pred.x0, -clip, clip) if clip else pred.x0
    k = -jnp.expm1(-2 * step.h)
    x = step.s.alpha * x0 + step.s.sigma * jnp.sqrt(1 - eta ** 2 * k) * pred.eps
    if eta:
      x += eta * step.s.sigma * jnp.sqrt(k) * gaussian(keys, step.index, state.x)
    return Sample(x)
  return Sampler(Sample, step, plan)


class Pndm(NamedTuple):
  """The state: the sample, that before the first step of the plan, and the last eps, newest first."""
  x: Any
  start: Any
  past: tuple


class Coefficients(NamedTuple):
  """What a step of pndm needs besides its levels."""
  first: Any    # whether it is the first step of a plan, of which an edit makes several
  again: Any    # whether the first step is made again, with the mean of two eps
  weights: Any  # [4] of the eps, newest first
  grow: Any     # x_s = grow * x + slope * eps
  slope: Any


def pndm(schedule, steps=0, levels=None):
  """PNDM without Runge-Kutta steps, as diffusers has it (skip_prk_steps): Stable Diffusion's own sampler.

  Adams-Bashforth of eps with the weights of equal steps (arXiv:2202.09778, equation 12); the first step is made twice,
  the second time with the mean of eps at both of its ends, so a grid of S levels takes S + 1 evaluations. steps and
  levels: as for ddim_shipped.
  """
  table = _table('pndm', schedule)

  def plan(part):
    rows, jump = _visited(part, table, steps, levels)
    twice = len(rows) > 1
    asked = np.concatenate([rows[:1 + twice], rows[1:2] if twice else [], rows[2:]]).astype(int)
    again = np.arange(len(asked)) == (1 if twice else -1)
    start = np.where(again, asked + jump, asked)
    t, s = take(table, asked), _ends(table, part, np.where(again, asked, asked - jump))
    start = take(table, np.minimum(start, len(table.time) - 1))
    weights = np.zeros((len(asked), 4))
    for i in range(len(asked)):
      order = 1 if i == 0 else min(max(i, 2), 4)
      weights[i, :order] = [.5, .5] if i == 1 else ADAMS_BASHFORTH[order - 1]
    first = np.arange(len(asked)) == 0
    extra = Coefficients(first, again, weights, s.alpha / start.alpha, NOISE.weight(start, s))
    return Step(t, s, (s.logsnr - start.logsnr) / 2, np.arange(1, len(asked) + 1, dtype=np.uint32), extra)

  def step(keys, denoise, state, step):
    c, eps = step.extra, denoise(state.x, step.t).eps
    recent = (eps, *state.past)
    start = jnp.where(c.first, state.x, state.start)
    x = jnp.where(c.again, start, state.x)
    x_s = c.grow * x + c.slope * sum(c.weights[i] * e for i, e in enumerate(recent))
    past = tuple(jnp.where(c.again, old, new) for old, new in zip(state.past, recent))
    return Pndm(x_s, start, past)
  return Sampler(lambda x: Pndm(x, x, (zeros_for(x),) * 3), step, plan)


