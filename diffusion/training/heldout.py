"""The validation loss: the training loss on held-out data."""
from functools import partial

import jax
import numpy as np

from diffusion.data.dataset import size as count
from diffusion.system import sharding


def make_heldout_loss(run, data, number):
  """A function (step, weights) -> {'heldout_loss': float}; examples and noise are the same at every call.

  Args:
    run: the Experiment.
    data: a Dataset of held-out examples, at least one; fewer than a batch are repeated to fill one.
    number: examples to use, rounded down to whole batches, at least one batch.
  """
  @partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
  def measure(weights, batch, key):
    x0, cond = run.encode(weights.frozen, None, batch)
    return heldout_measurement(run, weights, key, x0, cond)[0]

  size = run.plan.batch
  batches = min(number, count(data)) // size or 1

  def heldout_loss(step, weights):
    losses = []
    for i in range(batches):
      indices = np.arange(i * size, (i + 1) * size) % count(data)
      batch = sharding.put_batch(run.task.batch(data, indices), run.mesh)
      key = jax.random.fold_in(jax.random.key(run.plan.seed), 2 ** 31 + i)  # above every training step's
      losses.append(jax.device_get(measure(weights, batch, key)))
    return dict(heldout_loss=float(np.mean(losses)))
  return heldout_loss


def heldout_measurement(run, weights, key, x0, cond):
  """(loss, metrics) of a batch without what only training does, such as dropout."""
  return run.objective.loss(key, weights.params, x0, cond, memory=weights.memory,
                            frozen=weights.frozen.get('objective', ()), ema=weights.params, step=run.plan.steps,
                            train=False, part=None)
