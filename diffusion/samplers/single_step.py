"""Single-step DPM-Solvers: Runge-Kutta methods in log-SNR whose inner levels are levels of the grid.

The intervals of a grid are taken in groups of as many as the order. Each step of a group starts again from its first
level (base), with the evaluations of the group so far:

  x_s = alpha_s * x0_base + sigma_s * eps_base + new * (m - m_base) + old * (m_before - m_base)

so that S steps cost S evaluations. A step to CLEAN is alone, and so are one from a level without signal (of eps: with
a negligible one) and the last one with noise, where it is more than twice as long in log-SNR as the one before.
Intervals that are left over form a smaller group at that end of the grid where the step is longer.
"""
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.gaussian import Pred, take
from diffusion.samplers.base import Sampler, steps, zeros_for
from diffusion.samplers.forms import (data, ddim_update, exponential_weights, has_no_signal, lam, midpoint, NOISE,
                                      smooth_part)
from diffusion.samplers.multistep import check_kind


class SingleStep(NamedTuple):
  """The state: the sample, the prediction at the start of the group, and the m of the step before."""
  x: Any
  base: Pred
  past: Any


class Weights(NamedTuple):
  """What a step needs besides its levels."""
  first: Any  # whether it starts a group
  new: Any    # weight of m
  old: Any    # weight of the m before


def single_step(keys, denoise, state, step, form):
  """One step of the formula above."""
  pred, c = denoise(state.x, step.t)._replace(variance=None), step.extra
  base = jax.tree.map(lambda new, old: jnp.where(c.first, new, old), pred, state.base)
  m, m_base = smooth_part(form, pred), smooth_part(form, base)
  x = ddim_update(base, step.s) + c.new * (m - m_base) + c.old * (state.past - m_base)
  return SingleStep(x, base, m)


def _sizes(levels, order, form):
  """The number of intervals in each group, from noise to clean."""
  S = len(levels.logsnr) - 1
  crossed = S - (levels.sigma[-1] == 0)  # intervals that end above CLEAN
  start = min(np.sum(has_no_signal(levels) if form is NOISE else levels.alpha == 0), crossed)
  h = np.diff(lam(levels)[start:crossed + 1])
  if len(h) > 1 and h[-1] > 2 * h[-2]:
    crossed, h = crossed - 1, h[:-1]
  full, left = divmod(crossed - start, order)
  left = [left] if left else []
  groups = [order] * full + left if len(h) and h[-1] > 1.001 * h[0] else left + [order] * full
  return [1] * start + groups + [1] * (S - crossed)


def single_steps(form, order, weights):
  """The sampler of a rule weights(form, t, s, nodes) -> [nodes] for the nodes of a group, of which t is the first."""
  def plan(levels):
    position = np.concatenate([np.arange(size) for size in _sizes(levels, order, form)])
    new, old = np.zeros(len(position)), np.zeros(len(position))
    for i in np.flatnonzero(position):
      nodes = [take(levels, i - k) for k in range(position[i], -1, -1)]
      _, *rest = weights(form, nodes[0], take(levels, i + 1), nodes)
      new[i], old[i] = rest[-1], sum(rest[:-1])
    return steps(levels)._replace(extra=Weights(position == 0, new, old))
  def init(x):
    return SingleStep(x, Pred(zeros_for(x), zeros_for(x)), zeros_for(x))
  return Sampler(init, partial(single_step, form=form), plan)


def dpm_solver_2():
  """DPM-Solver-2 (arXiv:2206.00927, algorithm 4) over pairs of intervals: S evaluations for S steps."""
  return single_steps(NOISE, 2, midpoint)


def dpmpp_2s():
  """DPM-Solver++(2S) (arXiv:2211.01095, algorithm 1) over pairs of intervals: S evaluations for S steps."""
  return single_steps(data(), 2, midpoint)


def dpm_solver_3(kind='damped'):
  """DPM-Solver-3 (arXiv:2206.00927, algorithm 5) over groups of three intervals: S evaluations for S steps.

  Args:
    kind: of a group's second and third step, whose length in log-SNR, from the group's first level, is h. 'line' is the
      paper's: the midpoint rule, and a line through the first and third value, of third order only if the third is at
      2/3 of the group. 'parabola': a line and a parabola through all values, third order on any grid. 'damped': the
      first plus a share of the difference, exp(-0.3 h) and exp(-0.7 h); also of third order.
  """
  return single_steps(NOISE, 3, _third_order('dpm_solver_3', kind))


def dpmpp_3s(kind='damped'):
  """DPM-Solver++(3S) (arXiv:2211.01095, appendix A); kind as for dpm_solver_3.

  In diffusers 'line' is solver_type='midpoint', the default, and 'parabola' is 'heun'. On the mixtures of
  experiments/solvers.py 'damped' has 0.6 of the default's error in the mean, and at most 1.4.
  """
  return single_steps(data(), 3, _third_order('dpmpp_3s', kind))


def _third_order(name, kind):
  check_kind(name, kind, ('damped', 'line', 'parabola'))
  def weights(form, t, s, nodes):
    h, full = lam(s) - lam(t), exponential_weights(form, t, s, nodes)
    if len(nodes) == 2:
      simple, damped = midpoint(form, t, s, nodes), np.exp(-.3 * h)
    else:
      simple, damped = np.insert(exponential_weights(form, t, s, nodes[::2]), 1, 0.), np.exp(-.7 * h)
    return simple + dict(line=0., parabola=1., damped=damped)[kind] * (full - simple)
  return weights
