"""Particles that sample x0 given a measurement for any data: exact as their number grows (TDS, arXiv:2306.17775).

A step proposes with the denoiser of posterior.pigdm. What it got wrong becomes the weight of a particle: its
p(x_s | x_t) over that of the proposal, and p(y | x_t), which ends in the exact one of x0. When weights become unequal,
particles are drawn anew in their proportion.
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion.core.posterior import likelihood
from diffusion.samplers.base import gaussian, Sampler

_RESAMPLE = 2 ** 31 + 3  # folded into the key: a stream of its own


class Particles(NamedTuple):
  """The state: x [K, ...] are particles of one measurement, equally weighted after the last step."""
  x: jax.Array
  log_weight: jax.Array  # [K]
  pending: jax.Array     # [K], the part of the weight that lacks log p(y | x) of the next level
  ess: Any               # effective sample size over K after the step, before particles are drawn anew, in (0, 1]


def twisted(operator, y, noise, variance=1., least=.5, iterations=20):
  """The sampler; the whole batch are particles of one image, so that samples are not independent of each other.

  Args:
    operator: a Linear.
    y: the measurement [1, ...].
    noise: its standard deviation, above 0.
    variance, iterations: as for posterior.pigdm. They change how far weights spread, not what is sampled.
    least: share of the effective sample size below which particles are drawn anew; 1: at every step.
  Raises:
    InputError: a noise or variance that is not above 0.
  """
  twist_of = lambda denoise: likelihood(denoise, operator, y, noise, variance, iterations)
  twist_of(None)  # refuses bad values now
  def init(x):
    zeros = jnp.zeros(len(x))
    return Particles(x, zeros, zeros, jnp.ones(()))

  def step(keys, denoise, state, step):
    t, s = step.t, step.s
    pred, guided, log_p = twist_of(denoise)(state.x, t)
    weight = state.log_weight + state.pending + log_p
    ess = effective(weight)
    chosen = jnp.where(ess < least, resampled(keys[0], step.index, weight), jnp.arange(len(weight)))
    pick = lambda tree: jax.tree.map(lambda a: a if a is None else a[chosen], tree)
    x, plain, guided, log_p, weight = pick((state.x, pred, guided, log_p, jnp.where(ess < least, 0., weight)))
    k = -jnp.expm1(-2 * step.h)
    std, z = s.sigma * jnp.sqrt(k), gaussian(keys, step.index, x)
    last = s.sigma == 0  # the step to x0 has no noise: nothing to propose
    gap = jnp.where(last, 0., guided.x0 - plain.x0) * s.alpha * k / jnp.where(last, 1., std)
    mean = s.alpha * plain.x0 + s.sigma * jnp.exp(-step.h) * plain.eps
    x = mean + std * (gap + z)
    total = lambda a: jnp.sum(a, tuple(range(1, a.ndim)))
    pending = -total(gap ** 2) / 2 - total(gap * z) - log_p  # log of p(x_s | x_t) over the proposal's
    end = weight + pending - total((y - operator.forward(x)) ** 2) / (2 * noise ** 2)
    final = jnp.where(last, resampled(keys[0], 0, end), jnp.arange(len(end)))
    return Particles(x[final], weight, pending, jnp.where(last, effective(end), ess))
  return Sampler(init, step)


def effective(log_weight):
  """The effective sample size of log weights [K] as a share of K (Kong 1992)."""
  w = jax.nn.softmax(log_weight)
  return 1 / (len(w) * jnp.sum(w ** 2))


def resampled(key, number, log_weight):
  """Indices [K] in proportion to the weights: systematic resampling, with one random number for all."""
  n = len(log_weight)
  start = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, _RESAMPLE), number))
  places = (jnp.arange(n) + start) / n
  return jnp.minimum(jnp.searchsorted(jnp.cumsum(jax.nn.softmax(log_weight)), places), n - 1)
