"""Bits per dimension of held-out data, by the variational bound and by the probability-flow ODE."""
import io
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
from diffusion.data.dataset import size
from diffusion.evaluation import elbo, ode_likelihood
from diffusion.evaluation.base import columns, Evaluator, Measured, needs_likelihood
from diffusion.evaluation.metrics import record
from diffusion.evaluation.metrics.trained_features import digest
from diffusion.system import sharding
from diffusion.system.files import write_atomic

STEPS = 128      # network evaluations per image for the bound
ODE_STEPS = 16   # Runge-Kutta steps of the ODE, 4 evaluations each
FITTED = 32      # levels at which the error of the model is measured, for the variances of the bound
SMALL = 64       # dimensions up to which the trace of the ODE is exact
BATCH = 32


def per_image(run, weights, data, measure, title):
  """Measures images of a Dataset, config.evaluate.likelihood_samples of them, drawn at random.

  Args:
    measure: (keys [B], denoise, x0 [B, ...]) -> a tree of arrays [.., B]; it is traced.
    title: of the progress bar.
  Returns:
    The tree, of arrays [.., number].
  """
  options = run.config.evaluate
  number, batch = min(options.likelihood_samples, size(data)), -(-BATCH // run.mesh.size) * run.mesh.size
  order = np.random.default_rng(0).permutation(size(data))[:number]

  @partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
  def measure_batch(weights, ids, batch):
    x0, cond = run.encode(weights.frozen, None, batch)
    return measure(samplers.sample_keys(options.seed, ids), run.plain(weights, cond), x0)

  results = []
  for first in tqdm(range(0, number, batch), title, unit='batch', leave=False, delay=2, disable=None):
    index = order[np.minimum(np.arange(first, first + batch), number - 1)]
    placed = sharding.put_batch((index, run.task.batch(data, index)), run.mesh)
    results.append(jax.device_get(measure_batch(weights, *placed)))
  return jax.tree.map(lambda *parts: np.concatenate(parts, -1)[..., :number], *results)


class ChainStart(NamedTuple):
  """The cleanest level of the chain; finer detail is left to the decoder."""
  schedule: Any    # the table from that level on, or the curve
  smallest: float  # t of that level, for a curve
  logsnr: float    # of that level
  variance: Any    # of a table's steps, or None
  std: Any         # of x0 around the model's estimate at that level, for a curve, or None


def chain_start(run, weights, train):
  """The ChainStart of the smallest bound on training images; with any other the bound is still one.

  A level finer than the model can resolve, or than the steps of the data, costs more bits than it saves the decoder.
  Both costs follow from e, the mean square error of the model's x0, which is measured at FITTED levels: per dimension
  log(1 + gain e) / 2 for a step of a table with the best variance (elbo.fit_variances), gain e / 2 for a small step of
  a curve, and for the decoder the entropy of a Gaussian of variance e.
  """
  curve, levels = callable(run.schedule), run.task.levels
  path, times = _candidates(run.schedule, levels)
  shares = np.clip(-path.logsnr, -20, 20)  # evenly in log-SNR
  index = np.unique(np.searchsorted(shares, np.linspace(shares[0], shares[-1], FITTED)).clip(0, len(shares) - 1))
  fitted = np.log(_errors(run, weights, train, take(path, index)))
  error = np.exp(np.interp(-path.logsnr, -path.logsnr[index], fitted))
  gain = -np.diff(np.exp(path.logsnr)) * error[1:]
  steps = .5 * (gain if curve else np.log1p(gain))
  decoder = np.maximum(.5 * np.log(2 * np.pi * np.e * error) + np.log((levels - 1) / 2), 0.)
  best = int(np.argmin(decoder[:-1] + np.cumsum(steps[::-1])[::-1]))
  if curve:
    return ChainStart(run.schedule, float(times[best]), float(path.logsnr[best]), None, float(np.sqrt(error[best])))
  best = min(best, len(path.logsnr) - 2)
  table = take(path, slice(best, None))
  return ChainStart(table, 0., float(table.logsnr[0]), elbo.fit_variances(table, error[best:]), None)


def _candidates(schedule, levels):
  """(levels that a chain may start at, their times or None): those with noise of at least half a step of the data."""
  cleanest = 2 * np.log(levels - 1)
  if not callable(schedule):
    first = min(int(np.sum(schedule.logsnr > cleanest)), len(schedule.logsnr) - 2)
    return take(schedule, slice(first, None)), None
  times = np.linspace(0, 1, 4001)[:-1]
  times = times[evaluate(schedule, times).logsnr <= cleanest]
  return evaluate(schedule, times), times


def _errors(run, weights, train, levels):
  """The mean square error of the model's x0 at some levels, float64 [len(levels)]."""
  rows = Noise(*(jnp.asarray(a, jnp.float32) for a in levels))

  def measure(keys, denoise, x0):
    def error(_, step):
      row, i = step
      gap = denoise(q_sample(x0, row, samplers.gaussian(keys, i, x0)), row).x0 - x0
      return None, jnp.mean(jnp.square(gap), tuple(range(1, x0.ndim)))
    return jax.lax.scan(error, None, (rows, jnp.arange(len(rows.logsnr))))[1]
  return per_image(run, weights, train, measure, 'errors').mean(-1).astype(np.float64)


def learns_variance(run, weights):
  """Whether the network predicts the variance of its reverse steps."""
  noise, (x0, cond) = Noise(*map(np.float32, evaluate(run.schedule, .5))), run.example
  predict = lambda weights, x, cond: run.plain(weights, cond)(x, noise)
  return jax.eval_shape(predict, weights, x0, cond).variance is not None


def by_bound(run, weights, data, start):
  """The variational bound, with a learned variance over all levels, as in training, or else from the ChainStart on.

  Returns:
    (Estimate of the bits per dimension,
     facts for the record: the mean of each term, and how they were measured,
     {'logsnr', 'rate'}: [STEPS, number], bits per dimension and unit of log-SNR).
  """
  learned = learns_variance(run, weights)
  schedule = run.schedule if learned else start.schedule
  fitted = dict(variance=start.variance, std=start.std, smallest=start.smallest)
  options = (dict(variance='learned') if learned else fitted) | dict(levels=run.task.levels)
  measure = lambda keys, denoise, x0: elbo.bound(keys, denoise, schedule, x0, steps=STEPS, **options)
  terms, curve = per_image(run, weights, data.heldout, measure, 'bound')
  facts = {key: float(terms[key].mean()) for key in ('prior', 'diffusion', 'decoder')}
  facts |= dict(steps=STEPS, variance='learned' if learned else 'fitted on training images',
                cleanest_logsnr=float(evaluate(schedule, 0.).logsnr) if learned else start.logsnr,
                conditional=run.example[1] is not None, guidance=1, levels=run.task.levels)
  return record.mean(terms['total']), facts, curve


def by_ode(run, weights, data, start):
  """The probability-flow ODE, down to the level of the ChainStart or below: (Estimate, facts for the record)."""
  noisiest = float(np.exp(-.5 * evaluate(run.schedule, 1.).logsnr))
  sigma_max = 80. if noisiest > 80 else None
  # Any end gives a density; that of a model that knows nothing yet would be the noisiest level, without a path to it.
  sigma_min = min(float(np.exp(-.5 * start.logsnr)), (sigma_max or noisiest) / 10)
  levels = grids.exponential(2 * ODE_STEPS + 1, sigma_min=sigma_min, sigma_max=sigma_max)(run.schedule)
  exact = np.prod(run.shape) <= SMALL
  trace = ode_likelihood.exact() if exact else ode_likelihood.hutchinson(2)
  measure = lambda keys, denoise, x0: ode_likelihood.bits(
    keys, denoise, levels, x0, trace=trace, steps=run.task.levels)
  values = per_image(run, weights, data.heldout, measure, 'likelihood')
  facts = dict(ode_likelihood.protocol(levels, run.task.levels),
               trace='exact' if exact else 'Hutchinson, 2 Rademacher probes',
               probe_error=float(np.sqrt(np.mean(values['error'] ** 2))), conditional=run.example[1] is not None,
               guidance=1)
  return record.mean(values['total']), facts


def plot_bits(curve, estimate, facts, folder):
  """Writes bits.png: bits per dimension and unit of log-SNR; the area is the diffusion term of the bound."""
  from matplotlib.figure import Figure  # a second to import, and only needed here
  logsnr = np.clip(curve['logsnr'], -20, 20)  # infinite at a level without signal
  edges = np.quantile(logsnr, np.linspace(0, 1, 41))
  bin = np.clip(np.searchsorted(edges, logsnr, side='right') - 1, 0, 39)
  mean = [curve['rate'][bin == k].mean() if (bin == k).any() else np.nan for k in range(40)]
  figure = Figure(figsize=(6, 3.6), layout='constrained')
  axes = figure.subplots()
  axes.stairs(mean, edges, fill=True, alpha=.5)
  axes.set(xlabel='log-SNR (noisy on the left)', ylabel='bits per dimension and unit of log-SNR',
           title=f'bound {estimate.value:.3f} ± {estimate.error:.3f} bits = {facts["diffusion"]:.3f} (the area)\n'
                 f'+ {facts["decoder"]:.3f} below the cleanest level + {facts["prior"]:.3f} prior')
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=130)
  write_atomic(folder / 'bits.png', buffer.getvalue())


def _bound(run, weights, data, folder, report):
  """The Measured of the evaluator bound; writes bits.png."""
  report('likelihood', f'bound of {run.config.evaluate.likelihood_samples} held-out examples')
  bound, facts, curve = by_bound(run, weights, data, chain_start(run, weights, data.train))
  plot_bits(curve, bound, facts, folder)
  return Measured(dict(bits_bound=bound), dict(bits_bound=_protocol(run, data)), dict(bits_bound=facts))


def _ode(run, weights, data, folder, report):
  """The Measured of the evaluator ode."""
  report('likelihood', f'ode of {run.config.evaluate.likelihood_samples} held-out examples')
  ode, facts = by_ode(run, weights, data, chain_start(run, weights, data.train))
  protocol = _protocol(run, data) | dict(dequantisation=facts['dequantisation'])
  note = ('bits_ode is measured on data with uniform noise added and stops at sigma/alpha = '
          f'{facts["sigma_min"]:.3g}; bits_bound has a decoder below that: either may be the smaller one')
  return Measured(dict(bits_ode=ode), dict(bits_ode=protocol), dict(bits_ode=facts), notes=(note,))


def _protocol(run, data):
  return dict(data_hash=digest(*columns(data.heldout)), levels=run.task.levels, conditional=run.example[1] is not None)


BOUND, ODE = Evaluator(needs_likelihood, _bound), Evaluator(needs_likelihood, _ode)
