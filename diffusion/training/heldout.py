"""The validation loss: the training loss on held-out data."""
from functools import partial

import jax
import numpy as np

from diffusion.data.dataset import host_batch
from diffusion.system import sharding


def make_heldout_loss(run, data, number):
  """A function (step, params) -> {'heldout_loss': float}; examples and noise are the same at every call.

  Args:
    run: the Experiment.
    data: a Dataset of held-out examples, at least one; fewer than a batch are repeated to fill one.
    number: examples to use, rounded down to whole batches, at least one batch.
  """
  @partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
  def measure(params, batch, key):
    x0, cond = run.task.encode(None, batch)
    return run.loss(key, params, x0, cond, False)[0]

  size = run.plan.batch
  batches = min(number, len(data.images)) // size or 1

  def heldout_loss(step, params):
    losses = []
    for i in range(batches):
      indices = np.arange(i * size, (i + 1) * size) % len(data.images)
      batch = sharding.put_batch(host_batch(data, indices), run.mesh)
      key = jax.random.fold_in(jax.random.key(run.plan.seed), 2 ** 31 + i)  # above every training step's
      losses.append(jax.device_get(measure(params, batch, key)))
    return dict(heldout_loss=float(np.mean(losses)))
  return heldout_loss
