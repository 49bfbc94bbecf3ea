"""Predictor-corrector multistep samplers: UniPC, SA-Solver, and their analogue along a straight path.

The network is evaluated once at the predicted x_t. With this value, a polynomial of one order more repeats the step
that led to t (the corrector); then a polynomial through the same values makes the next step (the predictor). The
corrected x_t is not evaluated again. Both steps begin with the same DDIM and the same fresh noise, so that

  corrected x_t = predicted x_t + sum_j (corrector's weight - predictor's weight) * (m_j - m_1)

where m_1 is the value of the step before, and m_0 the new one.
"""
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.gaussian import solve, take
from diffusion.errors import InputError
from diffusion.samplers.base import gaussian, Sampler, steps, zeros_for
from diffusion.samplers.forms import (data, ddim_update, exponential_weights, FLOW, flow_adams, flow_time, lam,
                                      NOISE, ratio, smooth_part)
from diffusion.samplers.multistep import check_growth, check_kind, check_order, decayed, Multistep, usable


class Coefficients(NamedTuple):
  """What a step needs besides its levels: weights of differences to m_1 (correction) or m_0 (predictor)."""
  new: Any     # correction: of m_0, at t
  old: tuple   # correction: of m_2, m_3 ..
  past: tuple  # predictor: of m_1, m_2 ..
  kept: Any    # share of eps that is not replaced by fresh noise
  noise: Any   # standard deviation of the fresh noise


def corrected_step(keys, denoise, state, step, form, fresh):
  """Evaluates m_0 at t, corrects the sample at t, and predicts the one at s."""
  t, c, (m_1, *older) = step.t, step.extra, state.past
  pred = denoise(state.x, t)._replace(variance=None)
  m_0 = smooth_part(form, pred)
  x = state.x + c.new * (m_0 - m_1) + sum(w * (m - m_1) for w, m in zip(c.old, older))
  moved = solve(form.smooth, t, x, m_0)  # not defined at a level without signal, which is never corrected
  pred = jax.tree.map(lambda old, new: jnp.where(c.new == 0, old, new), pred, moved)
  x = ddim_update(pred, step.s, c.kept) + sum(w * (m - m_0) for w, m in zip(c.past, state.past))
  if fresh:
    x += c.noise * gaussian(keys, step.index, x)
  return Multistep(x, (m_0, *state.past)[:len(state.past)])


def corrected(form, order, values, variable, predictor, corrector, eta=None):
  """The sampler of two rules.

  Args:
    form: the Form, which says what is smooth.
    order: number of values that the predictor uses.
    values: number of previous values that the corrector uses besides the new one; 0: no correction.
    variable: of the polynomials.
    predictor: (t, s, nodes) -> weights of nodes[1:], where nodes[0] is t; called with at least two nodes.
    corrector: (t, s, nodes) -> weights of s and of nodes[1:]; if any is not finite, the step is not corrected.
    eta: None, or level t -> eta of the step from there: its noise decays (1 + eta) times as fast (see decayed).
  """
  depth = max(order, values)
  def plan(levels):
    rows = steps(levels)
    S = len(rows.h)
    new, old, past = np.zeros(S), np.zeros((depth - 1, S)), np.zeros((depth - 1, S))
    for i in range(S):
      nodes, s = usable(levels, i, order, variable), take(levels, i + 1)
      if len(nodes) > 1:
        past[:len(nodes) - 1, i] = predictor(nodes[0], s, nodes)
      if values and i + 1 < S:
        with np.errstate(invalid='ignore', over='ignore'):  # from a level without signal
          weights = np.asarray(corrector(nodes[0], s, usable(levels, i, values, variable)))
        if np.all(np.isfinite(weights)):
          new[i + 1], old[:, i + 1] = weights[0], -past[:, i]
          old[:len(weights) - 1, i + 1] += weights[1:]
    noise = decayed(rows, [eta(take(levels, i)) for i in range(S)] if eta else 0.)
    return rows._replace(extra=Coefficients(new, tuple(old), tuple(past), *noise))
  def init(x):
    return Multistep(x, (zeros_for(x),) * depth)
  return Sampler(init, partial(corrected_step, form=form, fresh=eta is not None), plan)


def adams_in_logsnr(form, kind):
  """(predictor, corrector) that integrate polynomials in log-SNR exactly; `form`: level t -> Form of the step.

  kind: 'bh1' or 'bh2': predictor 2 and corrector 1 use the weight B(h) / 2 instead (UniPC's code); 'exact': they don't.
  """
  def simple(t, s, node):
    h, (_, weight, density) = lam(s) - lam(t), form(t)
    return (density(s, 0.) * h if kind == 'bh1' else weight(t, s)) / 2 * (1. if node is s else h / (lam(node) - lam(t)))
  def predictor(t, s, nodes):
    if len(nodes) == 2 and kind != 'exact':
      return [simple(t, s, nodes[1])]
    return exponential_weights(form(t), t, s, nodes)[1:]
  def corrector(t, s, nodes):
    if len(nodes) == 1 and kind != 'exact':
      return [simple(t, s, s)]
    return np.delete(exponential_weights(form(t), t, s, [s, *nodes]), 1)
  return predictor, corrector


def unipc(order=2, kind='bh2', corrector=True, of='x0'):
  """UniPC-p, of order p as a predictor alone and p + 1 with its corrector (arXiv:2302.04867, algorithms 5 and 7).

  The polynomials in log-SNR through p (predictor) and p + 1 (corrector) values of x0 are integrated exactly. As in the
  authors' code, predictor 2 and corrector 1 use the weight B(h) / 2 instead, which is where the two kinds differ.
  The order falls towards CLEAN, as there: keeping it, UniPC-3 has up to ten times the error on grids with a long last
  step in log-SNR (angle, cosine, flow), and gains little on others.

  Args:
    order: p, from 1 to 3.
    kind: 'bh1', B(h) = h, or 'bh2', B(h) = 1 - exp(-h), or exp(h) - 1 of eps.
    corrector: whether samples are corrected, which takes no extra evaluation.
    of: 'x0' or 'eps': what the polynomials are of.
  """
  check_order('unipc', order, 3)
  check_kind('unipc', kind, ('bh1', 'bh2'))
  if of not in ('x0', 'eps'):
    raise InputError(f"unipc(of={of!r}): expected 'x0' or 'eps'")
  form = data() if of == 'x0' else NOISE
  return corrected(form, order, order if corrector else 0, lam, *adams_in_logsnr(lambda t: form, kind))


def sa_solver(predictor=2, corrector=2, tau=1., low=0., high=np.inf, kind='bh1'):
  """SA-Solver: stochastic Adams in data prediction (arXiv:2309.05019, equations 14 and 17; PEC, algorithm 1).

  The stochastic equation whose noise decays 1 + tau^2 times as fast; its predictor alone, with kind 'exact', is
  dpmpp_sde_2m(tau^2, 'heun') for order 2, and sa_solver(p, p + 1, 0, kind='bh2') is unipc(p).

  Args:
    predictor: number of values of x0 that the predictor uses, from 1 to 3.
    corrector: the same of the corrector, the new value included, from 2 to 4; 0: no correction.
    tau: amount of noise; 0 is the ODE.
    low, high: there is noise in steps that start where sigma / alpha is between them.
    kind: 'bh1' is the authors' code and diffusers' (weights with two values are those of a trapezoid), 'exact' the
      paper's, 'bh2' as for unipc.
  Raises:
    InputError: an order, amount or kind that does not exist.
  """
  check_order('sa_solver', predictor, 3)
  check_kind('sa_solver', kind, ('bh1', 'bh2', 'exact'))
  if isinstance(corrector, bool) or corrector not in (0, 2, 3, 4):
    raise InputError(f'sa_solver(corrector={corrector!r}): expected 0 (none), 2, 3 or 4')
  if not (0 <= tau < np.inf and 0 <= low <= high):
    raise InputError(f'sa_solver({tau=}, {low=}, {high=}): expected amounts of at least 0, and low <= high')
  def eta(t):
    return tau ** 2 if low <= ratio(t) <= high else 0.
  rules = adams_in_logsnr(lambda t: data(eta(t)), kind)
  return corrected(data(), predictor, max(corrector - 1, 0), lam, *rules, eta=eta if tau else None)


def flow_pc(order=2, growth=2.5):
  """Adams-Bashforth predictor, Adams-Moulton corrector for the velocity eps - x0 in the time sigma / (alpha + sigma).

  Not from a paper. That time is finite at both ends, so no order is lost at the first level, even without signal,
  nor at the last step. Order p + 1 with one evaluation per step, where the network's error is no matter.

  Args:
    order: p, from 1 to 3.
    growth: a step has the highest order that enlarges errors of the network's x0 at most so many times (forms.py),
      which matters on grids with steps of many sizes, such as karras, exponential and cosine; inf: no limit.
  """
  check_order('flow_pc', order, 3)
  limit = check_growth('flow_pc', growth)
  return corrected(FLOW, order, order, flow_time, partial(flow_adams, growth=limit),
                   partial(flow_adams, growth=limit, implicit=True))
