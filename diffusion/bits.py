"""Bits per dimension of held-out pictures, by the variational bound and by the probability-flow ODE."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffusion import bound, grids, ode, samplers, sharding
from diffusion.checks import name
from diffusion.errors import InputError
from diffusion.metrics import record
from diffusion.noise import Noise, q_sample, take
from diffusion.schedules import at
from diffusion.train import host_batch

STEPS = 128      # evaluations of the network for the bound of a picture
ODE_STEPS = 16   # Runge-Kutta steps of the ODE, 4 evaluations each
FITTED = 32      # levels at which the errors of the model are measured, for the variances of the bound
BATCH = 32


def _each(run, config, params, pictures, measure, what):
  """measure(keys, denoise, x0) of config.evaluate.likelihood_number of the pictures of a Dataset: a tree of arrays [.., number]."""
  number, seed = min(config.evaluate.likelihood_number, len(pictures.images)), config.evaluate.seed
  if not number:
    raise InputError('this data set has no held-out pictures, of which the likelihood could be measured; leave bound and ode out of config.evaluate.what')
  if run.self_condition:
    raise InputError('the likelihood of a self-conditioned model is not that of one evaluation a level; leave bound and ode out of config.evaluate.what')
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


def readable(schedule, levels=256):
  """(schedule, smallest t) from where the noise is half a step of the data, or from the cleanest level.

  A bound that goes on to finer noise describes digits of it that the data does not have, and pays for them: log2 of how much finer, for
  each dimension. What is left out is the decoder's business, whose bits are counted.
  """
  target, times = 2 * np.log(levels - 1), np.linspace(0, 1, 20_001)
  if callable(schedule):
    return schedule, float(np.interp(-target, -at(schedule, times).logsnr, times))
  first = min(int(np.sum(schedule.logsnr > target)), len(schedule.logsnr) - 2)
  return take(schedule, slice(first, None)), 0.


def fit(run, config, params, train, schedule, smallest):
  """(variance of a table's steps or None, standard deviation of x0 at the cleanest level or None): those that make the bound smallest on
  training pictures, from the model's errors at FITTED levels (see bound.fitted)."""
  index = np.unique(np.linspace(0, len(schedule.logsnr) - 1, FITTED).astype(int)) if not callable(schedule) else None
  levels = take(schedule, index) if index is not None else Noise(*(np.reshape(a, 1) for a in at(schedule, smallest)))
  rows = Noise(*(jnp.asarray(a, jnp.float32) for a in levels))

  def measure(keys, denoise, x0):
    def error(_, step):
      row, i = step
      return None, jnp.mean(jnp.square(denoise(q_sample(x0, row, samplers.gaussian(keys, i, x0)), row).x0 - x0), tuple(range(1, x0.ndim)))
    return jax.lax.scan(error, None, (rows, jnp.arange(len(rows.logsnr))))[1]

  e = _each(run, config, params, train, measure, 'variances').mean(-1).astype(np.float64)
  if index is None:
    return None, float(np.sqrt(e[0]))
  return bound.fitted(schedule, np.exp(np.interp(-schedule.logsnr, -levels.logsnr, np.log(e)))), None


def by_bound(run, config, params, data):
  """The variational bound: (Estimate, facts for the record, curve).

  With a learned variance, of all levels, as it was trained; else of those that are `readable`, with the variances of `fit`.
  facts: the mean terms, and how they were measured. curve: {'logsnr', 'rate'}: [STEPS, pictures], bits per unit of log-SNR.
  """
  schedule, smallest, variance, std, told = run.schedule, 0., 'learned', None, 'learned'
  if name(config, 'variance') != 'learned':
    told = 'fitted on training pictures'
    schedule, smallest = readable(run.schedule)
    variance, std = fit(run, config, params, data.train, schedule, smallest)
  def measure(keys, denoise, x0):
    return bound.bound(keys, denoise, schedule, x0, steps=STEPS, variance=variance, std=std, smallest=smallest)
  terms, curve = _each(run, config, params, data.heldout, measure, 'bound')
  facts = {key: float(terms[key].mean()) for key in ('prior', 'diffusion', 'decoder')}
  how = dict(steps=STEPS, variance=told, cleanest_logsnr=float(at(schedule, smallest).logsnr), conditional=bool(run.classes), guidance=1, levels=256)
  return _mean(terms['total']), facts | how, curve


def by_ode(run, config, params, data):
  """The probability-flow ODE with Hutchinson's estimate: (Estimate, facts for the record)."""
  levels = _even(run.schedule)
  measure = lambda keys, denoise, x0: ode.bits(keys, denoise, levels, x0)
  found = _each(run, config, params, data.heldout, measure, 'likelihood')
  facts = dict(ode.protocol(levels), probes=2, probe_error=float(np.sqrt(np.mean(found['error'] ** 2))), conditional=bool(run.classes), guidance=1)
  return _mean(found['total']), facts


def _even(schedule):
  """The grid of the ODE: even in log-SNR, from at most 80 times as much noise as signal."""
  noisiest = np.exp(-.5 * at(schedule, 1.).logsnr)
  return grids.exponential(2 * ODE_STEPS + 1, sigma_max=80. if noisiest > 80 else None)(schedule)


def _mean(each):
  """The Estimate of a mean over pictures; it covers other pictures, other noise and other probes."""
  return record.normal(each.mean(), each.std(ddof=1) / np.sqrt(len(each)) if len(each) > 1 else np.nan, len(each))
