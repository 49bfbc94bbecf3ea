"""The three ways to write a noisy image (see the package), and weights of polynomials in them; float64, on the host.

In each form a step from t to s of the exact solution is DDIM plus the integral of what changes:

  x_s = alpha_s * x0_t + sigma_s * eps_t + scale_s * (integral of (m - m_t) d variable from t to s)

where m is the right-hand side of the form, which it assumes to be smooth: eps (NOISE), x0 (data()) or eps - x0
(FLOW). A method replaces m by a polynomial through values at some levels (nodes); then the integral is a weighted
sum of those values, and the weights depend on the grid alone.
"""
from typing import Callable, NamedTuple

import numpy as np

from diffusion.core.gaussian import Target

GAUSS_LEGENDRE = np.polynomial.legendre.leggauss(48)  # nodes in [-1, 1], weights
NEGLIGIBLE_SIGNAL = 1000  # sigma / alpha above which the step in sigma / alpha is as good as infinite (SNR below 1e-6)


class Form(NamedTuple):
  """One of the three ways: x / scale is y, and m = dy / d variable is smooth."""
  smooth: Target      # m as a * x0 + b * eps
  weight: Callable    # (t, s) -> scale_s * (variable_s - variable_t): the weight of a constant m over an interval
  density: Callable   # (s, v) -> scale_s * d variable / d lambda at lambda_s + v, v <= 0


# ---- the variables
def lam(noise):
  """Half the log-SNR, lambda = log(alpha / sigma)."""
  return noise.logsnr / 2


def ratio(noise):
  """sigma / alpha: the noise level in units of the data; infinite without signal."""
  with np.errstate(divide='ignore'):
    return noise.sigma / noise.alpha


def flow_time(noise):
  """sigma / (alpha + sigma): the time of a straight path."""
  return noise.sigma / (noise.alpha + noise.sigma)


def has_no_signal(noise):
  """Whether the signal is negligible, so that no step in sigma / alpha starts here."""
  return ratio(noise) > NEGLIGIBLE_SIGNAL


# ---- the forms
def data(eta=0.):
  """x0 is smooth; with eta > 0, along the stochastic equation whose noise decays (1 + eta) times as fast."""
  rate = 1 + eta
  return Form(Target(1., 0.), lambda t, s: s.alpha * -np.expm1(-rate * (lam(s) - lam(t))),
              lambda s, v: s.alpha * rate * np.exp(rate * v))


NOISE = Form(Target(0., 1.), lambda t, s: s.sigma - s.alpha * ratio(t), lambda s, v: -s.sigma * np.exp(-v))
FLOW = Form(Target(-1., 1.), lambda t, s: s.sigma - (s.alpha + s.sigma) * flow_time(t), None)


def smooth_part(form, pred):
  """m, the right-hand side that the form assumes to be smooth."""
  return form.smooth.a * pred.x0 + form.smooth.b * pred.eps


def ddim_update(pred, s, kept=1.):
  """The step with a constant right-hand side, which is DDIM in every form; `kept`: the share of eps that stays."""
  return s.alpha * pred.x0 + s.sigma * kept * pred.eps


# ---- weights of polynomials
def lagrange(nodes, points):
  """The Lagrange polynomials of some nodes at some points: [nodes, points]."""
  nodes, points = np.asarray(nodes, np.float64), np.atleast_1d(points)
  same = np.eye(len(nodes), dtype=bool)
  factors = (points - nodes[:, None]) / np.where(same, 1, nodes[:, None] - nodes)[:, :, None]  # [a, b, points]
  return np.prod(np.where(same[:, :, None], 1, factors), axis=1)


def integrals(nodes, low, high, density):
  """The integrals of density times each Lagrange polynomial from low to high, [nodes], exact to rounding."""
  z, w = GAUSS_LEGENDRE
  points = (low + high) / 2 + (high - low) / 2 * z
  return lagrange(nodes, points) @ (w * (high - low) / 2 * density(points))


def exponential_weights(form, t, s, nodes):
  """Weights [nodes] of the polynomial in lambda through the nodes (levels), integrated from t to s."""
  return integrals([lam(n) - lam(s) for n in nodes], lam(t) - lam(s), 0., lambda v: form.density(s, v))


def adams_weights(form, variable, t, s, nodes):
  """Weights [nodes] of the polynomial in the form's own variable, integrated from t to s."""
  scale = form.weight(t, s) / (variable(s) - variable(t))
  return scale * integrals([variable(n) for n in nodes], variable(t), variable(s), np.ones_like)


def amplification(t, s, nodes, weights):
  """By how much a step of FLOW enlarges errors of the model's x0, of one size at each level, from t to y_s.

  An error d of x0 is one of -d * (alpha + sigma) / sigma in a velocity: it grows as sigma falls, and again where the
  steps grow. The step with a constant velocity enlarges none.

  Args:
    nodes: levels besides t.   weights: of the difference of the velocity at each of them to that at t.
  """
  rate = lambda noise: (noise.alpha + noise.sigma) / noise.sigma
  own = s.alpha - s.sigma * t.alpha / t.sigma + sum(weights) * rate(t)
  return (abs(own) + sum(abs(w) * rate(n) for w, n in zip(weights, nodes))) / (s.alpha + s.sigma)


def flow_adams(t, s, nodes, growth, implicit=False):
  """Weights of the polynomial of velocities through t = nodes[0] and as many of the others as `growth` allows.

  Args:
    growth: largest amplification.   implicit: whether s is a node too.
  Returns:
    Weights of the differences to t, of nodes[1:], or of s and nodes[1:]; NaN where s is one and not even it is allowed.
  """
  for k in range(len(nodes), 0, -1):
    others = [s] * implicit + nodes[1:k]
    weights = adams_weights(FLOW, flow_time, t, s, [t, *others])[1:]
    if amplification(t, s, others, weights) <= growth:
      return np.append(weights, np.zeros(len(nodes) - k))
  return np.full(len(nodes) - 1 + implicit, np.nan if implicit else 0.)


def midpoint(form, t, s, nodes):
  """Weights [nodes] of the polynomial in lambda through the nodes, taken at the middle of the interval."""
  return form.weight(t, s) * lagrange([lam(n) for n in nodes], (lam(t) + lam(s)) / 2)[:, 0]
