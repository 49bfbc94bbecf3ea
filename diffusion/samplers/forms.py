"""The three ways to write a noisy picture (see the package), and the weights of polynomials in them; float64, on the host."""
from typing import Callable, NamedTuple

import numpy as np

from diffusion.core.gaussian import Target


GAUSS_LEGENDRE = np.polynomial.legendre.leggauss(48)  # nodes in [-1, 1], weights


class Form(NamedTuple):
  """One of the three ways: x / scale is y, and d y / d variable is smooth."""
  row: Target           # what is taken to be smooth, as a * x0 + b * eps
  weight: Callable   # (t, s) -> scale_s * (variable_s - variable_t): what a constant weighs over an interval
  density: Callable  # (s, v) -> scale_s * d variable / d lambda at lambda_s + v, v <= 0


def lam(noise):
  """Half the log-SNR, lambda = log(alpha / sigma)."""
  return noise.logsnr / 2


def ratio(noise):
  """sigma / alpha: the noise level in units of the data."""
  with np.errstate(divide='ignore'):  # infinite without signal
    return noise.sigma / noise.alpha


def has_no_signal(noise):
  """Whether there is so little signal (SNR below 1e-6) that an interval of sigma / alpha from here is all but infinite."""
  return ratio(noise) > 1000


def flow_time(noise):
  """sigma / (alpha + sigma): the time of a straight path."""
  return noise.sigma / (noise.alpha + noise.sigma)


def data(eta=0.):
  """x0 is smooth; with eta > 0 along the stochastic equation whose noise decays (1 + eta) times as fast."""
  rate = 1 + eta
  return Form(Target(1., 0.), lambda t, s: s.alpha * -np.expm1(-rate * (lam(s) - lam(t))),
              lambda s, v: s.alpha * rate * np.exp(rate * v))


NOISE = Form(Target(0., 1.), lambda t, s: s.sigma - s.alpha * ratio(t), lambda s, v: -s.sigma * np.exp(-v))
FLOW = Form(Target(-1., 1.), lambda t, s: s.sigma - (s.alpha + s.sigma) * flow_time(t), None)


def smooth_part(form, pred):
  """What the form takes to be smooth."""
  return form.row.a * pred.x0 + form.row.b * pred.eps


def ddim_update(pred, s, kept=1.):
  """The step with a constant right-hand side, which is DDIM's in every form."""
  return s.alpha * pred.x0 + s.sigma * kept * pred.eps


def lagrange(nodes, points):
  """The Lagrange polynomials of some nodes at some points: [nodes, points]."""
  nodes, points = np.asarray(nodes, np.float64), np.atleast_1d(points)
  gaps = (points - nodes[:, None]) / np.where(np.eye(len(nodes)), 1, nodes[:, None] - nodes)[:, :, None]  # [a, b, points]
  return np.prod(np.where(np.eye(len(nodes))[:, :, None], 1, gaps), axis=1)


def integrals(nodes, low, high, density):
  """The integral of density times each Lagrange polynomial from low to high, [nodes]: Gauss-Legendre, exact to rounding here."""
  z, w = GAUSS_LEGENDRE
  points = (low + high) / 2 + (high - low) / 2 * z
  return lagrange(nodes, points) @ (w * (high - low) / 2 * density(points))


def exponential_weights(form, t, s, nodes):
  """Weights [nodes] of the polynomial in lambda through the nodes (levels), integrated over the interval from t to s."""
  return integrals([lam(n) - lam(s) for n in nodes], lam(t) - lam(s), 0., lambda v: form.density(s, v))


def adams_weights(form, variable, t, s, nodes):
  """Weights [nodes] of the polynomial in the form's own variable, which is its plain integral."""
  scale = form.weight(t, s) / (variable(s) - variable(t))
  return scale * integrals([variable(n) for n in nodes], variable(t), variable(s), np.ones_like)


def midpoint(form, t, s, nodes):
  """The same polynomial, taken at the middle of the interval in lambda."""
  return form.weight(t, s) * lagrange([lam(n) for n in nodes], (lam(t) + lam(s)) / 2)[:, 0]
