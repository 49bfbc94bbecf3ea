"""Predictor-corrector multistep samplers: UniPC, and its analogue along a straight path.

The network is evaluated once at the predicted x_t. With this value, a polynomial of one order more repeats the step
that led to t (the corrector); then a polynomial through the same values makes the next step (the predictor). The
corrected x_t is not evaluated again.
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
  """The state: the predicted sample, the prediction of the step before, and the values of m before that."""
  x: Any
  base: Pred
  past: tuple


class Coefficients(NamedTuple):
  """What a step needs besides its levels: weights of differences to m_1 (corrector) or m_0 (predictor)."""
  corrected: Any  # whether the sample is corrected; not at the first step
  new: Any        # corrector: of m_0, at t
  old: tuple      # corrector: of m_2, m_3 ..
  past: tuple     # predictor: of m_1, m_2 ..


def corrected_step(keys, denoise, state, step, form):
  """Evaluates m_0 at t, corrects the step from the base (m_1) to t, and predicts the sample at s."""
  t, c, base = step.t, step.extra, state.base
  m_1, m_0 = smooth_part(form, base), smooth_part(form, denoise(state.x, t))
  corrected = ddim_update(base, t) + c.new * (m_0 - m_1) + sum(w * (m - m_1) for w, m in zip(c.old, state.past))
  pred = solve(form.smooth, t, jnp.where(c.corrected, corrected, state.x), m_0)
  past = (m_1, *state.past)[:len(state.past)]
  return Corrected(ddim_update(pred, step.s) + sum(w * (m - m_0) for w, m in zip(c.past, past)), pred, past)


def corrected(form, order, variable, predictor, corrector):
  """The sampler of two rules.

  Args:
    form: the Form, which says what is smooth.
    order: of the predictor; the corrector uses one more evaluation.
    variable: of the polynomials.
    predictor: (t, s, nodes) -> weights of nodes[1:], where nodes[0] is t; called with at least two nodes.
    corrector: (t, s, nodes) -> weights of s and of nodes[1:]; None: no correction.
  """
  def plan(levels):
    rows = steps(levels)
    S = len(rows.h)
    new, old, past = np.zeros(S), np.zeros((order - 1, S)), np.zeros((order - 1, S))
    corrects = np.zeros(S, bool)
    for i in range(S):
      nodes, s = usable(levels, i, order, variable), take(levels, i + 1)
      if len(nodes) > 1:
        past[:len(nodes) - 1, i] = predictor(nodes[0], s, nodes)
      if corrector and i + 1 < S and np.isfinite(variable(nodes[0])):
        new[i + 1], *rest = corrector(nodes[0], s, nodes)
        old[:len(rest), i + 1], corrects[i + 1] = rest, True
    return rows._replace(extra=Coefficients(corrects, new, tuple(old), tuple(past)))
  def init(x):
    return Corrected(x, Pred(zeros_for(x), zeros_for(x)), (zeros_for(x),) * (order - 1))
  return Sampler(init, partial(corrected_step, form=form), plan)


def unipc(order=2, kind='bh2', corrector=True):
  """UniPC-p, of order p as a predictor alone and p + 1 with its corrector (arXiv:2302.04867, algorithms 5 and 7).

  The polynomials in log-SNR through p (predictor) and p + 1 (corrector) values of x0 are integrated exactly. As in the
  authors' code, predictor 2 and corrector 1 use the weight B(h) / 2 instead, which is where the two kinds differ.

  Args:
    order: p, from 1 to 3.
    kind: 'bh1', B(h) = h, or 'bh2', B(h) = 1 - exp(-h).
    corrector: whether samples are corrected, which takes no extra evaluation.
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
  """Adams-Bashforth predictor, Adams-Moulton corrector for the velocity eps - x0 in the time sigma / (alpha + sigma).

  Not from a paper. That time is finite at both ends, so no order is lost at the first level, even without signal,
  nor at the last step. Order p + 1 with one evaluation per step. For grids whose last level is well above clean,
  such as `trailing` and `angle`: a velocity contains eps = (x - alpha * x0) / sigma, so the error of a trained
  network grows as sigma falls, and karras, exponential and cosine end at small sigma.
  """
  check_order('flow_pc', order, 3)
  rule = partial(adams_weights, FLOW, flow_time)
  return corrected(FLOW, order, flow_time, lambda t, s, nodes: rule(t, s, nodes)[1:],
                   lambda t, s, nodes: np.delete(rule(t, s, [s, *nodes]), 1))


def best(levels):
  """The solver with the smallest error for a grid, measured on guided sprites and `trailing` grids.

  From experiments/solvers.py: UniPC-2 up to 3 steps, flow_pc(1) up to 5, flow_pc(2) up to 34, flow_lms(3) from 35.
  UniPC-2 also on any grid whose last level is so clean (sigma / alpha below 0.025, as on karras, exponential and
  cosine) that velocities are dominated by error, and on grids whose last step along a straight path is more than
  twice as long as the one before (as on offset_cosine, which ends at sigma / alpha = 0.33): a polynomial through
  short steps does not extrapolate to one 16 times as long, and flow_lms(3) diverges there.
  """
  steps = len(levels.logsnr) - 1
  if steps < 4 or 0 < ratio(take(levels, -2)) < .025:
    return unipc(2)
  time = flow_time(levels)
  if time[-2] - time[-1] > 2 * (time[-3] - time[-2]):
    return unipc(2)
  return flow_pc(1) if steps < 6 else flow_pc(2) if steps < 35 else flow_lms(3)
