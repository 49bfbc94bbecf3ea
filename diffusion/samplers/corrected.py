"""Multistep samplers whose every evaluation first corrects the step that led to it: UniPC, and its like along a straight path.

A prediction of x at t is evaluated once. That evaluation, with those before it, gives the step that led there a polynomial of one
order more (the corrector), and then the next step its own (the predictor). The corrected x is not evaluated again.
"""
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion.core.gaussian import Pred, solve, take
from diffusion.samplers.base import Sampler, steps, zeros_for
from diffusion.samplers.forms import (adams_weights, data, ddim_update, exponential_weights, FLOW, flow_time, lam,
                                      ratio, smooth_part)
from diffusion.samplers.multistep import check_kind, check_order, flow_lms, usable


class Corrected(NamedTuple):
  """The state: the predicted sample, the corrected one before it, and the evaluations before that, newest first."""
  x: Any
  base: Pred
  past: tuple


class Weights(NamedTuple):
  """What a step needs besides its levels; all weights are of differences to the newest evaluation of the base."""
  corrected: Any  # whether the sample is corrected; not at the first step
  new: Any        # of the corrector: on the new evaluation,
  old: tuple      # and on those before the base
  past: tuple     # of the predictor: on the base and those before it


def corrected_step(keys, denoise, state, step, form):
  """Evaluates, corrects the sample, predicts the next one."""
  t, w, base = step.t, step.extra, state.base
  before, now = smooth_part(form, base), smooth_part(form, denoise(state.x, t))
  better = ddim_update(base, t) + w.new * (now - before) + sum(c * (m - before) for c, m in zip(w.old, state.past))
  pred = solve(form.row, t, jnp.where(w.corrected, better, state.x), now)
  past = (before, *state.past)[:len(state.past)]
  return Corrected(ddim_update(pred, step.s) + sum(c * (m - now) for c, m in zip(w.past, past)), pred, past)


def corrected(form, order, variable, predictor, corrector):
  """The sampler of two rules.

  Args:
    form: what is smooth.
    order: of the predictor; the corrector uses the new evaluation besides.
    variable: of the polynomials.
    predictor: (t, s, nodes) -> weights of nodes[1:], where nodes[0] is t; asked for with at least two nodes.
    corrector: (t, s, nodes) -> weights of s and of nodes[1:], or None to leave predictions as they are.
  """
  def plan(levels):
    rows = steps(levels)
    S = len(rows.h)
    new, old, past, done = np.zeros(S), np.zeros((order - 1, S)), np.zeros((order - 1, S)), np.zeros(S, bool)
    for i in range(S):
      nodes, s = usable(levels, i, order, variable), take(levels, i + 1)
      if len(nodes) > 1:
        past[:len(nodes) - 1, i] = predictor(nodes[0], s, nodes)
      if corrector and i + 1 < S and np.isfinite(variable(nodes[0])):
        new[i + 1], *rest = corrector(nodes[0], s, nodes)
        old[:len(rest), i + 1], done[i + 1] = rest, True
    return rows._replace(extra=Weights(done, new, tuple(old), tuple(past)))
  return Sampler(lambda x: Corrected(x, Pred(zeros_for(x), zeros_for(x)), (zeros_for(x),) * (order - 1)), partial(corrected_step, form=form), plan)


def unipc(order=2, kind='bh2', corrector=True):
  """UniPC-p, of order p as a predictor alone and p + 1 with its corrector (arXiv:2302.04867, algorithms 5 and 7).

  The polynomials in log-SNR through p (predictor) and p + 1 (corrector) values of x0 are integrated exactly. As in its authors' code,
  predictor 2 and corrector 1 take the weight B(h) / 2 instead, which is where the two kinds differ.

  Args:
    order: p, from 1 to 3.
    kind: 'bh1', B(h) = h, or 'bh2', B(h) = 1 - exp(-h).
    corrector: whether samples are corrected, which takes no further evaluation.
  """
  check_order('unipc', order, 3)
  check_kind('unipc', kind, ('bh1', 'bh2'))
  form = data()
  def simple(t, s, node):
    h = lam(s) - lam(t)
    return s.alpha * (h if kind == 'bh1' else -np.expm1(-h)) / 2 * h / (lam(node) - lam(t))
  def predict(t, s, nodes):
    return [simple(t, s, nodes[1])] if len(nodes) == 2 else exponential_weights(form, t, s, nodes)[1:]
  def correct(t, s, nodes):
    return [simple(t, s, s)] if len(nodes) == 1 else np.delete(exponential_weights(form, t, s, [s, *nodes]), 1)
  return corrected(form, order, lam, predict, correct if corrector else None)


def flow_pc(order=2):
  """Our own: Adams-Bashforth predictor and Adams-Moulton corrector of the velocity eps - x0 in the time sigma / (alpha + sigma).

  That time is finite at both ends, so no order is lost at the first level, even without signal, nor at the last step. Of order
  p + 1, one evaluation a step. For grids whose last level is well above clean, such as `trailing` and `angle`: a velocity holds
  eps = (x - alpha * x0) / sigma, so the error of a trained network grows as sigma falls, and karras, exponential and cosine end low.
  """
  check_order('flow_pc', order, 3)
  rule = partial(adams_weights, FLOW, flow_time)
  return corrected(FLOW, order, flow_time, lambda t, s, nodes: rule(t, s, nodes)[1:],
                   lambda t, s, nodes: np.delete(rule(t, s, [s, *nodes]), 1))


def best(levels):
  """The solver of the least error for the steps of a grid, as measured on 32 guided sprites and `trailing` grids (experiments/solvers.py).

  UniPC-2 up to 3 steps, flow_pc(1) up to 5, flow_pc(2) up to 34, flow_lms(3) from 35; UniPC-2 on any grid whose last level is so clean
  (sigma / alpha below 0.025, as on karras, exponential and cosine) that velocities are all error there, and on one whose last step is more
  than twice as long as that before, along a straight path (as on offset_cosine, which ends at sigma / alpha = 0.33): a polynomial through
  short steps says nothing about one that is 16 times as long, and flow_lms(3) was seen to diverge.
  """
  steps = len(levels.logsnr) - 1
  if steps < 4 or 0 < ratio(take(levels, -2)) < .025:
    return unipc(2)
  place = levels.sigma / (levels.alpha + levels.sigma)
  if place[-2] - place[-1] > 2 * (place[-3] - place[-2]):
    return unipc(2)
  return flow_pc(1) if steps < 6 else flow_pc(2) if steps < 35 else flow_lms(3)
