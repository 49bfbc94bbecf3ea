"""What the network is trained to output: one row (a, b) of a table.

The target is a * x0 + b * eps. With x_t = alpha * x0 + sigma * eps these are two linear equations, so whatever the network
outputs, x0 and eps follow by solving them (determinant alpha * b - sigma * a). Each function below makes a
`Predict`: a function from a noise level to its `Row`.

  eps    (0, 1)                    DDPM, arXiv:2006.11239, equation 14
  x0     (1, 0)
  v      (-sigma, alpha)           progressive distillation, arXiv:2202.00512, appendix D
  flow   (-1, 1)                   the velocity of a straight path, arXiv:2210.02747
  score  (0, -1/sigma)             score matching, arXiv:2011.13456, equation 7
  edm    (sigma, -sd^2)/(sd*r)     r^2 = sigma^2 + sd^2; alpha = 1; input scaled by 1/r, arXiv:2206.00364, table 1
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion.errors import InputError
from diffusion.noise import namespace


class Row(NamedTuple):
  """Coefficients of the target a * x0 + b * eps, and what the network's input is multiplied by."""
  a: Any
  b: Any
  scale: Any = 1.


class Pred(NamedTuple):
  """An estimate of both parts of x_t = alpha * x0 + sigma * eps, always consistent with x_t. [B, ...] float32."""
  x0: jax.Array
  eps: jax.Array
  variance: Any = None  # of a network that learns it: where log variance lies from the small (0) to the large (1), [B, ...]


def eps():
  return lambda noise: Row(0., 1.)


def x0():
  return lambda noise: Row(1., 0.)


def v():
  return lambda noise: Row(-noise.sigma, noise.alpha)


def flow():
  return lambda noise: Row(-1., 1.)


def score():
  return lambda noise: Row(0., -1. / noise.sigma)


def edm(sd=.5):
  """sd: the standard deviation of the data, in the units of x0."""
  if not sd > 0:
    raise InputError(f'edm(sd={sd!r}): expected a standard deviation above 0')
  def row(noise):
    r = namespace(noise.sigma).sqrt(noise.sigma ** 2 + sd ** 2)
    return Row(noise.sigma / (sd * r), -sd / r, 1 / r)
  return row


def determinant(row, noise):
  """alpha * b - sigma * a. A squared error in the output times (sigma / determinant)^2 is one in x0."""
  return noise.alpha * row.b - noise.sigma * row.a


def solve(row, noise, x, out):
  """Recovers both parts of x from the network's output, in float32 (float64 where x is).

  Args:
    row: the Row at this noise level.
    noise: the level, broadcastable against x.
    x: x_t [B, ...].
    out: network output [B, ...].
  Returns:
    Pred(x0, eps), each [B, ...].
  """
  precise = jnp.promote_types(x.dtype, jnp.float32)
  x, out = x.astype(precise), out.astype(precise)
  det = determinant(row, noise)
  return Pred((row.b * x - noise.sigma * out) / det, (noise.alpha * out - row.a * x) / det)


def from_x0(noise, x, x0, variance=None):
  """The Pred that agrees with x and this estimate of x0; the level must not be clean."""
  return Pred(x0, (x - noise.alpha * x0) / noise.sigma, variance)


def from_eps(noise, x, eps, variance=None):
  """The Pred that agrees with x and this estimate of eps; the level must have some signal."""
  return Pred((x - noise.sigma * eps) / noise.alpha, eps, variance)
