"""Linear multistep samplers: one evaluation per step, corrected by previous evaluations.

  x_s = alpha_s * x0 + sigma_s * kept * eps + sum_j c_j * (m_j - m_0) + noise * z

m_0 is the right-hand side that the form assumes to be smooth (see forms.py), m_j its value j steps ago; without
history this is DDIM. Methods differ in the c_j, which depend on the grid alone and are computed in float64. The
first steps have less history, so the order increases from 1. Polynomials in log-SNR cannot reach CLEAN, where it is
infinite: there the last step has order 1. Some methods lower the order of the steps before it too (see usable).
"""
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from diffusion.core.gaussian import take
from diffusion.errors import InputError
from diffusion.samplers.base import gaussian, Sampler, steps, zeros_for
from diffusion.samplers.forms import (adams_weights, data, ddim_update, exponential_weights, FLOW, flow_adams,
                                      flow_time, lam, midpoint, NOISE, ratio, smooth_part)

ALWAYS = np.inf  # for `lowered`
ADAMS_BASHFORTH = ((1.,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


class Multistep(NamedTuple):
  """The state: the sample, and the previous values of m, newest first."""
  x: Any
  past: tuple


class Coefficients(NamedTuple):
  """What a step needs besides its levels."""
  past: tuple  # c_1, c_2 ..
  kept: Any    # share of eps that is not replaced by fresh noise
  noise: Any   # standard deviation of the fresh noise


def check_order(name, order, highest):
  if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= highest:
    raise InputError(f'{name}(order={order!r}): expected a whole number from 1 to {highest}')


def check_kind(name, kind, kinds):
  if kind not in kinds:
    raise InputError(f'{name}(kind={kind!r}): expected {", ".join(map(repr, kinds[:-1]))} or {kinds[-1]!r}')


def check_growth(name, growth):
  """growth, 'inf' as well, as a float; raises InputError unless it is at least 1."""
  if str(growth) != 'inf' and not (isinstance(growth, (int, float)) and growth >= 1):
    raise InputError(f'{name}(growth={growth!r}): expected a number from 1, or inf')
  return float(growth)


def check_eta(name, eta, highest=np.inf):
  if not 0 <= eta <= highest or eta == np.inf:
    raise InputError(f'{name}(eta={eta!r}): expected a number from 0{f" to {highest}" if highest < np.inf else ""}')


def multistep_step(keys, denoise, state, step, form, fresh):
  """One step of the formula above; `fresh`: whether it draws noise."""
  pred, coefficients = denoise(state.x, step.t), step.extra
  m_0 = smooth_part(form, pred)
  x = ddim_update(pred, step.s, coefficients.kept) + sum(c * (m - m_0) for c, m in zip(coefficients.past, state.past))
  if fresh:
    x += coefficients.noise * gaussian(keys, step.index, x)
  return Multistep(x, (m_0, *state.past)[:len(state.past)])


def usable(levels, i, order, variable, lowered=ALWAYS):
  """The levels whose evaluations step i may use, newest first: at most `order`, each with a finite `variable`.

  If the variable is infinite at the last level, the last step has order 1; with fewer steps than `lowered`, the step
  before it has at most order 2, the one before that 3, and so on.
  """
  S = len(levels.logsnr) - 1
  falls = not np.isfinite(variable(take(levels, -1))) and (S < lowered or i == S - 1)
  nodes = [take(levels, i - j) for j in range(min(order, i + 1, S - i if falls else order))]
  return nodes[:1] + [n for n in nodes[1:] if np.isfinite(variable(n))]


def decayed(rows, eta):
  """(share of eps that stays, standard deviation of the noise) of steps whose noise decays (1 + eta) times as fast."""
  decay = np.multiply(eta, rows.h, out=np.zeros_like(rows.h), where=np.greater(eta, 0))
  return np.exp(-decay), rows.s.sigma * np.sqrt(-np.expm1(-2 * decay))


def multistep(form, order, variable, weights, eta=0., lowered=0):
  """The sampler of a rule weights(t, s, nodes) -> [nodes], for a polynomial in `variable` with nodes[0] = t."""
  def plan(levels):
    rows, past = steps(levels), np.zeros((order - 1, len(levels.logsnr) - 1))
    for i in range(past.shape[1]):
      nodes = usable(levels, i, order, variable, lowered)
      if len(nodes) > 1:
        past[:len(nodes) - 1, i] = weights(nodes[0], take(levels, i + 1), nodes)[1:]
    return rows._replace(extra=Coefficients(tuple(past), *decayed(rows, eta)))
  def init(x):
    return Multistep(x, (zeros_for(x),) * (order - 1))
  return Sampler(init, partial(multistep_step, form=form, fresh=eta > 0), plan)


# ---- x0 in log-SNR
def dpmpp_2m(kind='midpoint'):
  """DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2); kind 'heun' integrates the line through two x0 exactly."""
  return dpmpp_sde_2m(0., kind)


def dpmpp_sde_2m(eta=1., kind='midpoint'):
  """SDE-DPM-Solver++(2M) (arXiv:2211.01095, section 5); eta scales its noise, 0 is 2M. Best from 15 steps on."""
  check_kind('dpmpp_2m', kind, ('midpoint', 'heun'))
  check_eta('dpmpp_sde_2m', eta)
  rule = midpoint if kind == 'midpoint' else exponential_weights
  return multistep(data(eta), 2, lam, partial(rule, data(eta)), eta=eta)


def dpmpp_3m():
  """DPM-Solver++(3M), of third order, which the forms of dpmpp_3m_shipped are not.

  Each step is 2M's plus the share exp(-0.7 h) of what the exact integral of the parabola adds to it: a parabola
  extrapolates badly over long steps in log-SNR, and h is above 1 in 5 to 10 steps. On the mixtures of
  experiments/solvers.py its error is 0.7 of the better shipped form's in the mean, and at most 1.2.
  """
  return dpmpp_sde_3m(0.)


def dpmpp_sde_3m(eta=1.):
  """SDE-DPM-Solver++ with the history of 3M; eta scales its noise, 0 is dpmpp_3m. After k-diffusion's 3M SDE."""
  check_eta('dpmpp_sde_3m', eta)
  form = data(eta)
  def weights(t, s, nodes):
    share = np.exp(-.7 * (lam(s) - lam(t))) if len(nodes) == 3 else 0.
    line = np.append(midpoint(form, t, s, nodes[:2]), np.zeros(len(nodes) - 2))
    return line + share * (exponential_weights(form, t, s, nodes) - line)
  return multistep(form, 3, lam, weights, eta)


def dpmpp_3m_shipped(form='diffusers', eta=0.):
  """DPM-Solver++(3M) as libraries ship it: half the second difference, an error, and so order 2. For parity.

  Args:
    form: 'diffusers', whose steps of order 2 are midpoint's and which lowers the order towards CLEAN below 15 steps,
      or 'k', k-diffusion's, which does neither.
    eta: of k-diffusion's stochastic form, where it is 1; 0 is the ODE. Diffusers' has a wrong sign in its last term,
      whose weight then stays at -1 for short steps, and is not offered.
  """
  if form not in ('diffusers', 'k'):
    raise InputError(f"dpmpp_3m_shipped(form={form!r}): expected 'diffusers' or 'k'")
  check_eta('dpmpp_3m_shipped', eta)
  if eta and form == 'diffusers':
    raise InputError(f"dpmpp_3m_shipped(eta={eta!r}): expected 0 with form='diffusers'; form='k' draws noise")
  def weights(t, s, nodes):
    if len(nodes) < 3:
      return (midpoint if form == 'diffusers' else exponential_weights)(data(eta), t, s, nodes)
    h, r0, r1 = (lam(a) - lam(b) for a, b in ((s, t), nodes[:2], nodes[1:]))
    second, H = np.array([1 / r0, -1 / r0 - 1 / r1, 1 / r1]) * h ** 2 / (r0 + r1), (1 + eta) * h
    return exponential_weights(data(eta), t, s, nodes) + s.alpha * ((1 + np.expm1(-H) / H) / H - .5) * second
  return multistep(data(eta), 3, lam, weights, eta, lowered=15 if form == 'diffusers' else 0)


# ---- eps, and the velocity of a straight path
def deis(order=3):
  """DEIS (arXiv:2204.13902, section 3.3) with polynomials of eps in log(sigma / alpha), order 1 to 4.

  Its order falls towards CLEAN below 15 steps, as diffusers' does, and order 4 always, where it is of more use.
  """
  check_order('deis', order, 4)
  return multistep(NOISE, order, lam, partial(exponential_weights, NOISE), lowered=15 if order < 4 else ALWAYS)


def lms(order=4):
  """Linear multistep in sigma / alpha (Adams-Bashforth on any grid; k-diffusion's LMS, rho-AB of arXiv:2204.13902)."""
  check_order('lms', order, 4)
  return multistep(NOISE, order, ratio, partial(adams_weights, NOISE, ratio))


def flow_lms(order=2, growth=2.5):
  """Linear multistep of the velocity of a straight path, in its time sigma / (alpha + sigma); growth as for flow_pc."""
  check_order('flow_lms', order, 4)
  limit = check_growth('flow_lms', growth)
  return multistep(FLOW, order, flow_time, lambda t, s, nodes: np.append(0., flow_adams(t, s, nodes, limit)))


def plms(order=4):
  """Pseudo linear multistep (PNDM, arXiv:2202.09778, equation 12): the weights of equal steps on any grid.

  The order increases over the first steps as in iPNDM (arXiv:2204.13902), where PNDM takes three Runge-Kutta steps
  of four evaluations each.
  """
  check_order('plms', order, 4)
  def weights(t, s, nodes):
    return NOISE.weight(t, s) * np.array(ADAMS_BASHFORTH[len(nodes) - 1])
  return multistep(NOISE, order, ratio, weights)
