"""UniPC (arXiv:2302.04867): a multistep predictor in x0, whose every evaluation first corrects the step that led to it."""
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion.noise import take
from diffusion.predict import Pred, from_x0
from diffusion.samplers.core import Sampler, blank, steps
from diffusion.samplers.forms import data, exact, lam, move
from diffusion.samplers.multistep import check_kind, check_order, usable

X0 = data()


class UniPC(NamedTuple):
  """The state: the predicted sample, the corrected one before it, and the x0 before that, newest first."""
  x: Any
  base: Pred
  past: tuple


class Weights(NamedTuple):
  """What a step needs besides its levels."""
  corrected: Any  # whether the sample is corrected; not at the first step
  new: Any        # of the corrector: on the new x0,
  old: tuple      # and on those before the base
  past: tuple     # of the predictor: on the base and those before it


def unipc_step(keys, denoise, state, step):
  """Evaluates, corrects the sample, predicts the next one. All weights are of differences."""
  t, w, base = step.t, step.extra, state.base
  x0 = denoise(state.x, t).x0
  better = move(base, t) + w.new * (x0 - base.x0) + sum(c * (m - base.x0) for c, m in zip(w.old, state.past))
  pred = from_x0(t, jnp.where(w.corrected, better, state.x), x0)
  past = (base.x0, *state.past)[:len(state.past)]
  return UniPC(move(pred, step.s) + sum(c * (m - x0) for c, m in zip(w.past, past)), pred, past)


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
  def simple(t, s, node):  # B(h) / 2 of the difference per h
    h = lam(s) - lam(t)
    return s.alpha * (h if kind == 'bh1' else -np.expm1(-h)) / 2 * h / (lam(node) - lam(t))
  def predictor(t, s, nodes):
    return [simple(t, s, nodes[1])] if len(nodes) == 2 else exact(X0, t, s, nodes)[1:]
  def plan(levels):
    rows = steps(levels)
    S = len(rows.h)
    new, old, past, corrected = np.zeros(S), np.zeros((order - 1, S)), np.zeros((order - 1, S)), np.zeros(S, bool)
    for i in range(S):
      nodes, s = usable(levels, i, order, True), take(levels, i + 1)
      past[:len(nodes) - 1, i] = predictor(nodes[0], s, nodes) if len(nodes) > 1 else []
      if corrector and i + 1 < S and nodes[0].alpha > 0:
        c = [simple(nodes[0], s, s)] if len(nodes) == 1 else np.delete(exact(X0, nodes[0], s, [s, *nodes]), 1)
        corrected[i + 1], new[i + 1] = True, c[0]
        old[:len(c) - 1, i + 1] = c[1:]
    return rows._replace(extra=Weights(corrected, new, tuple(old), tuple(past)))
  return Sampler(lambda x: UniPC(x, Pred(blank(x), blank(x)), (blank(x),) * (order - 1)), unipc_step, plan)
