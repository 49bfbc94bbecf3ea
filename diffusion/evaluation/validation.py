"""The loss on held-out images by log-SNR: a table, a plot, JSON.

The loss is the error that the objective reports: the squared error of the output, or a classifier's cross-entropy.
"""
import io
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.data.dataset import size as count
from diffusion.errors import InputError
from diffusion.evaluation.base import columns, Evaluator, Measured, needs_heldout
from diffusion.evaluation.metrics import record
from diffusion.evaluation.metrics.trained_features import digest
from diffusion.system import sharding
from diffusion.system.files import write_atomic
from diffusion.training.heldout import heldout_measurement
from diffusion.training.loop import LOGSNR_EDGES


def heldout_by_logsnr(run, weights, data, draws=8, seed=0):
  """The error of the objective on held-out examples, each noised `draws` times.

  Args:
    run: the Experiment.
    weights: the Weights to evaluate.
    data: a Dataset.
  Returns:
    {'what', 'loss', 'loss_error', 'number', 'draws', 'seed', 'bins': [{'low', 'high', 'mean', 'error', 'count'}]};
    errors are standard errors, over examples for the loss and over draws within a bin.
  Raises:
    InputError: there are no held-out images.
  """
  if not count(data):
    raise InputError('config.data has no held-out examples; set its argument heldout, such as heldout=64')

  @partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
  def measure(weights, batch, key):
    x0, cond = run.encode(weights.frozen, None, batch)
    metrics = heldout_measurement(run, weights, key, x0, cond)[1]
    return metrics[error], metrics.get('logsnr', jnp.full(len(metrics[error]), jnp.nan))

  (error, what), size, n = run.objective.error, -(-run.plan.batch // run.mesh.size) * run.mesh.size, count(data)
  key = lambda draw, i: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), draw), i)
  errors, logsnr = np.empty((2, draws, n), np.float32)
  for i, first in enumerate(range(0, n, size)):
    # Examples that stay on disk are read once for all draws.
    batch = sharding.put_batch(run.task.batch(data, np.arange(first, first + size) % n), run.mesh)
    rows = slice(first, min(first + size, n))
    for draw in range(draws):
      values, levels = jax.device_get(measure(weights, batch, key(draw, i)))
      errors[draw, rows], logsnr[draw, rows] = values[:rows.stop - first], levels[:rows.stop - first]
  examples = errors.mean(0)
  edges = [-np.inf, *LOGSNR_EDGES, np.inf]
  bins = [_bin(low, high, errors[(logsnr > low) & (logsnr <= high)]) for low, high in zip(edges, edges[1:])]
  return dict(what=what, loss=float(examples.mean()), loss_error=_standard_error(examples), number=n, draws=draws,
              seed=seed, bins=[b for b in bins if b['count']])


def _standard_error(values):
  return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float('nan')


def _bin(low, high, values):
  return dict(low=float(low), high=float(high), count=len(values), mean=float(values.mean()) if len(values) else None,
              error=_standard_error(values))


def table(result):
  """The result as text."""
  lines = [f'held-out {result["what"]} {result["loss"]:.5f} +- {result["loss_error"]:.5f} '
           f'({result["number"]} examples, {result["draws"]} draws each)']
  lines += ['     log-SNR          loss           +-    draws'] if result['bins'] else []
  lines += [f'{b["low"]:5g} to {b["high"]:5g}  {b["mean"]:12.5f} {b["error"]:12.5f} {b["count"]:8d}'
            for b in result['bins']]
  return '\n'.join(lines)


def save(result, folder):
  """Writes heldout.json and heldout.png (loss against log-SNR) into `folder`; returns their paths."""
  finite = lambda x: None if isinstance(x, float) and not np.isfinite(x) else x
  bins = [{k: finite(v) for k, v in b.items()} for b in result['bins']]
  record = {k: finite(v) for k, v in result.items()} | dict(bins=bins)
  write_atomic(folder / 'heldout.json', json.dumps(record, indent=2).encode())
  write_atomic(folder / 'heldout.png', _plot(result))
  return folder / 'heldout.json', folder / 'heldout.png'


def _plot(result):
  from matplotlib.figure import Figure  # a second to import, and only needed here
  figure = Figure(figsize=(6, 3.6), layout='constrained')
  axes = figure.subplots()
  low, high = LOGSNR_EDGES[0] - 3, LOGSNR_EDGES[-1] + 3
  centres = [(max(b['low'], low) + min(b['high'], high)) / 2 for b in result['bins']]
  means, errors = ([b[key] for b in result['bins']] for key in ('mean', 'error'))
  axes.errorbar(centres, means, yerr=errors, marker='o', capsize=3)
  axes.set(xlabel='log-SNR (noisy on the left)', ylabel=result['what'], yscale='log',
           title=f'held-out {result["what"]} {result["loss"]:.4f} ± {result["loss_error"]:.4f}')
  axes.grid(alpha=.3)
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=130)
  return buffer.getvalue()


def _measure(run, weights, data, folder, report):
  """The Measured of the evaluator loss; writes heldout.json and heldout.png."""
  result, config = heldout_by_logsnr(run, weights, data.heldout), run.config
  save(result, folder)
  report('', table(result))
  protocol = dict(what=result['what'], predict=config.predict, schedule=config.schedule,
                  data_hash=digest(*columns(data.heldout)))
  error = record.normal(result['loss'], result['loss_error'], result['number'])
  return Measured(dict(heldout_error=error), dict(heldout_error=protocol))


EVALUATOR = Evaluator(lambda run, data: needs_heldout(data) if run.objective.error[0] else
                      f'the objective {run.objective.name} reports no error', _measure)
