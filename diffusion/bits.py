"""Bits per dimension of held-out pictures, by the variational bound and by the probability-flow ODE."""
from functools import partial

import jax
import numpy as np
from tqdm import tqdm

from diffusion import bound, grids, ode, samplers, sharding
from diffusion.checks import name
from diffusion.errors import InputError
from diffusion.metrics import record
from diffusion.schedules import at
from diffusion.train import host_batch

STEPS = 128      # evaluations of the network for the bound of a picture
ODE_STEPS = 16   # Runge-Kutta steps of the ODE, 4 evaluations each
BATCH = 32


def _each(run, config, params, data, measure, what):
  """measure(keys, denoise, x0) of config.evaluate.likelihood_number held-out pictures: a tree of arrays with the pictures last."""
  number, seed = min(config.evaluate.likelihood_number, len(data.heldout.images)), config.evaluate.seed
  if not number:
    raise InputError('this data set has no held-out pictures, of which the likelihood could be measured; leave bound and ode out of config.evaluate.what')
  if run.self_condition:
    raise InputError('the likelihood of a self-conditioned model is not defined by one evaluation a level; leave bound and ode out of config.evaluate.what')
  order, batch = np.random.default_rng(0).permutation(len(data.heldout.images))[:number], -(-BATCH // run.mesh.size) * run.mesh.size

  @partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
  def some(params, ids, batch):
    x0, cond = run.task.encode(None, batch)
    return measure(samplers.sample_keys(seed, ids), run.plain(params, cond), x0)

  found = []
  for first in tqdm(range(0, number, batch), what, unit='batch', leave=False, delay=2, disable=None):
    index = order[np.minimum(np.arange(first, first + batch), number - 1)]
    placed = sharding.put_batch((index, host_batch(data.heldout, index)), run.mesh)
    found.append(jax.device_get(some(params, *placed)))
  return jax.tree.map(lambda *parts: np.concatenate(parts, -1)[..., :number], *found)


def by_bound(run, config, params, data):
  """The variational bound: (Estimate, facts for the record, curve).

  facts: the mean terms, and how they were measured. curve: {'logsnr', 'rate'}: [STEPS, pictures], bits per unit of log-SNR.
  """
  variance = 'learned' if name(config, 'variance') == 'learned' else 'small'
  def measure(keys, denoise, x0):
    return bound.bound(keys, denoise, run.schedule, x0, steps=STEPS, variance=variance, smallest=1e-3)
  terms, curve = _each(run, config, params, data, measure, 'bound')
  facts = {key: float(terms[key].mean()) for key in ('prior', 'diffusion', 'decoder')}
  how = dict(steps=STEPS, variance=variance if not callable(run.schedule) else None, conditional=bool(run.classes), guidance=1, levels=256)
  return _mean(terms['total']), facts | how, curve


def by_ode(run, config, params, data):
  """The probability-flow ODE with Hutchinson's estimate: (Estimate, facts for the record)."""
  levels = _even(run.schedule)
  measure = lambda keys, denoise, x0: ode.bits(keys, denoise, levels, x0)
  found = _each(run, config, params, data, measure, 'likelihood')
  facts = dict(ode.protocol(levels), probes=2, probe_error=float(np.sqrt(np.mean(found['error'] ** 2))), conditional=bool(run.classes), guidance=1)
  return _mean(found['total']), facts


def _even(schedule):
  """The grid of the ODE: even in log-SNR, from at most 80 times as much noise as signal."""
  noisiest = np.exp(-.5 * at(schedule, 1.).logsnr)
  return grids.exponential(2 * ODE_STEPS + 1, sigma_max=80. if noisiest > 80 else None)(schedule)


def _mean(each):
  """The Estimate of a mean over pictures; it covers other pictures, other noise and other probes."""
  return record.normal(each.mean(), each.std(ddof=1) / np.sqrt(len(each)) if len(each) > 1 else np.nan, len(each))
