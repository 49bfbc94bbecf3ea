"""Bits per dimension of held-out pictures, by the variational bound and by the probability-flow ODE."""
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffusion import samplers
from diffusion.core import grids
from diffusion.core.gaussian import Noise, q_sample, take
from diffusion.core.schedules import evaluate
from diffusion.data.dataset import host_batch
from diffusion.evaluation import elbo, ode_likelihood
from diffusion.evaluation.metrics import record
from diffusion.setup.validate import spec_name
from diffusion.system import sharding

STEPS = 128      # evaluations of the network for the bound of a picture
ODE_STEPS = 16   # Runge-Kutta steps of the ODE, 4 evaluations each
FITTED = 32      # levels at which the errors of the model are measured, for the variances of the bound
SMALL = 64       # dimensions up to which the trace of the ODE is exact
BATCH = 32


def _each(run, config, params, pictures, measure, what):
  """measure(keys, denoise, x0) of config.evaluate.likelihood_samples of the pictures of a Dataset: a tree of arrays [.., number]."""
  number, seed = min(config.evaluate.likelihood_samples, len(pictures.images)), config.evaluate.seed
  order, batch = np.random.default_rng(0).permutation(len(pictures.images))[:number], -(-BATCH // run.mesh.size) * run.mesh.size

  @partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
  def some(params, ids, batch):
    x0, cond = run.task.encode(None, batch)
    return measure(samplers.sample_keys(seed, ids), run.plain(params, cond), x0)

  found = []
  for first in tqdm(range(0, number, batch), what, unit='batch', leave=False, delay=2, disable=None):
    index = order[np.minimum(np.arange(first, first + batch), number - 1)]
    placed = sharding.put_batch((index, host_batch(pictures, index)), run.mesh)
    found.append(jax.device_get(some(params, *placed)))
  return jax.tree.map(lambda *parts: np.concatenate(parts, -1)[..., :number], *found)


class ChainStart(NamedTuple):
  """From where on a model describes pictures by noise levels; what is finer is the decoder's."""
  schedule: Any    # the table from that level on, or the curve
  smallest: float  # t of that level, of a curve
  logsnr: float    # there
  variance: Any    # of a table's steps, or None
  std: Any         # of x0 around the model's there, of a curve, or None


def chain_start(run, config, params, train, levels=256):
  """The Cut that makes the bound smallest on training pictures; wherever it is, the bound of the levels that are left is one.

  A level finer than the model can follow, or than the steps of the data, costs more bits than it saves the decoder. What both would cost
  follows from the mean square error of the model's x0 at FITTED levels: half of log(1 + gain e) a dimension for a step of a table with
  the best variance (see bound.fitted), half of gain e for a small one of a curve, and the entropy of a Gaussian of variance e for the decoder.
  """
  schedule, times = run.schedule, None
  if callable(schedule):
    times = np.linspace(0, 1, 4001)[:-1]
    times = times[evaluate(schedule, times).logsnr <= 2 * np.log(levels - 1)]  # noise of half a step of the data
    path = evaluate(schedule, times)
  else:
    path = take(schedule, slice(min(int(np.sum(schedule.logsnr > 2 * np.log(levels - 1))), len(schedule.logsnr) - 2), None))
  shares = np.clip(-path.logsnr, -20, 20)  # levels evenly in log-SNR
  index = np.unique(np.searchsorted(shares, np.linspace(shares[0], shares[-1], FITTED)).clip(0, len(shares) - 1))
  error = np.exp(np.interp(-path.logsnr, -path.logsnr[index], np.log(_errors(run, config, params, train, take(path, index)))))
  gain = -np.diff(np.exp(path.logsnr)) * error[1:]
  steps = .5 * (gain if times is not None else np.log1p(gain))
  decoder = np.maximum(.5 * np.log(2 * np.pi * np.e * error) + np.log((levels - 1) / 2), 0.)
  best = int(np.argmin(decoder[:-1] + np.cumsum(steps[::-1])[::-1]))
  if times is not None:
    return ChainStart(schedule, float(times[best]), float(path.logsnr[best]), None, float(np.sqrt(error[best])))
  best = min(best, len(path.logsnr) - 2)
  table = take(path, slice(best, None))
  return ChainStart(table, 0., float(table.logsnr[0]), elbo.fit_variances(table, error[best:]), None)


def _errors(run, config, params, train, levels):
  """The mean square error of the model's x0 at some levels, [len(levels)]."""
  rows = Noise(*(jnp.asarray(a, jnp.float32) for a in levels))

  def measure(keys, denoise, x0):
    def error(_, step):
      row, i = step
      return None, jnp.mean(jnp.square(denoise(q_sample(x0, row, samplers.gaussian(keys, i, x0)), row).x0 - x0), tuple(range(1, x0.ndim)))
    return jax.lax.scan(error, None, (rows, jnp.arange(len(rows.logsnr))))[1]
  return _each(run, config, params, train, measure, 'errors').mean(-1).astype(np.float64)


def by_bound(run, config, params, data, cut):
  """The variational bound: (Estimate, facts for the record, curve).

  Of a learned variance, of all levels, as it was trained; else of those of the Cut.
  facts: the mean terms, and how they were measured. curve: {'logsnr', 'rate'}: [STEPS, pictures], bits per unit of log-SNR.
  """
  learned = spec_name(config, 'variance') == 'learned'
  told = dict(variance='learned') if learned else dict(variance=cut.variance, std=cut.std, smallest=cut.smallest)
  schedule = run.schedule if learned else cut.schedule
  def measure(keys, denoise, x0):
    return elbo.bound(keys, denoise, schedule, x0, steps=STEPS, **told)
  terms, curve = _each(run, config, params, data.heldout, measure, 'bound')
  facts = {key: float(terms[key].mean()) for key in ('prior', 'diffusion', 'decoder')}
  how = dict(steps=STEPS, variance='learned' if learned else 'fitted on training pictures',
             cleanest_logsnr=float(evaluate(schedule, 0.).logsnr) if learned else cut.logsnr, conditional=bool(run.classes), guidance=1, levels=256)
  return record.mean(terms['total']), facts | how, curve


def by_ode(run, config, params, data, cut):
  """The probability-flow ODE with Hutchinson's estimate, down to the level of the Cut: (Estimate, facts for the record)."""
  noisiest = float(np.exp(-.5 * evaluate(run.schedule, 1.).logsnr))
  levels = grids.exponential(2 * ODE_STEPS + 1, sigma_min=float(np.exp(-.5 * cut.logsnr)), sigma_max=80. if noisiest > 80 else None)(run.schedule)
  trace = ode_likelihood.exact() if np.prod(run.shape) <= SMALL else ode_likelihood.hutchinson(2)
  measure = lambda keys, denoise, x0: ode_likelihood.bits(keys, denoise, levels, x0, trace=trace)
  found = _each(run, config, params, data.heldout, measure, 'likelihood')
  facts = dict(ode_likelihood.protocol(levels), trace='exact' if np.prod(run.shape) <= SMALL else 'Hutchinson, 2 Rademacher probes', probe_error=float(np.sqrt(np.mean(found['error'] ** 2))), conditional=bool(run.classes), guidance=1)
  return record.mean(found['total']), facts
