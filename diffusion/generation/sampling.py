"""From a trained model to samples: the compiled sampler, batch by batch."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffusion import samplers
from diffusion.setup.build import require
from diffusion.system import sharding


def make_sample(run, seed, sampler=None, levels=None, trace=None, shape=None):
  """The compiled sampler of one batch: all steps in one program, the batch divided over the devices.

  Args:
    run: the Experiment.
    seed: of all samples.
    sampler, levels: in place of the Experiment's.
    trace: None, or the indices (within the batch) of samples whose every step is returned.
    shape: of one x0, in place of that of training.
  Returns:
    sample(weights, ids [B], cond: tree [B, ...] or None, start [B, ...] or None)
      -> (outputs {name: [B, ...]}, frames {name: [S+1, len(trace), ...]}, the starting noise first, or None).
  """
  sampler, levels, shape = sampler or run.sampler, run.levels if levels is None else levels, shape or run.shape

  @partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
  def sample(weights, ids, cond, start):
    keys = samplers.sample_keys(seed, ids)
    if 'denoise' not in run.can:
      return run.decode(weights.frozen, run.model(weights).draw(keys, cond, shape), cond), None
    project = run.task.project and (lambda x: run.task.project(x, cond))
    x = samplers.prior(keys, levels, shape) if start is None else start
    x = project(x) if project else x
    def frame(x):
      index = np.asarray(trace)
      return run.decode(weights.frozen, x[index], jax.tree.map(lambda a: a[index], cond))
    solver = samplers.projected(sampler, project) if project else sampler
    solver = samplers.self_conditioned(solver) if run.self_condition else solver
    follow = None if trace is None else lambda state: frame(state.x)
    out = samplers.sample(keys, run.denoise(weights, cond), solver, levels, x, follow)
    if trace is None:
      return run.decode(weights.frozen, out, cond), None
    frames = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), frame(x), out[1])
    return run.decode(weights.frozen, out[0], cond), frames
  return sample


def stream(run, sample, batch, weights, ids, cond=None, start=None):
  """Yields what `sample` (see make_sample) returns, batch by batch, for any number of ids.

  Args:
    batch: samples per batch; rounded up to a multiple of the devices.
    ids, cond, start: [N, ...], as for make_sample.
  Yields:
    (outputs {name: [n, ...]}, frames or None); the samples of all batches are N.
  """
  batch = -(-batch // run.mesh.size) * run.mesh.size
  for first in tqdm(range(0, len(ids), batch), 'sampling', unit='batch', leave=False, delay=2, disable=None):
    index = np.minimum(np.arange(first, first + batch), len(ids) - 1)  # the last id fills up the last batch
    rows = jax.tree.map(lambda a: sharding.put_batch(np.asarray(a)[index], run.mesh), (np.asarray(ids), cond, start))
    outputs, frames = jax.device_get(sample(weights, *rows))
    yield jax.tree.map(lambda a: a[:len(ids) - first], outputs), frames


def make_draw(run, seed, batch, sampler=None, levels=None, trace=None, shape=None):
  """The sampler for any number of samples: make_sample, batch by batch.

  Args: as for make_sample and stream.
  Returns:
    draw(weights, ids [N], cond=None, start=None) -> (outputs {name: [N, ...]}, frames of the first batch or None).
    Sample k depends on (seed, k) and its condition alone, not on `batch` or the devices.
  """
  sample = make_sample(run, seed, sampler, levels, trace, shape)

  def draw(weights, ids, cond=None, start=None):
    outputs, frames = zip(*stream(run, sample, batch, weights, ids, cond, start))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs), frames[0]
  return draw


def draw(model, number, seed=0, batch=48, **request):
  """Samples of a model that diffusion.load opened, or of several in turn (see generation/chain.py).

  Args:
    model: Loaded(run, weights, step), or a list of them.
    number: of samples.
    seed: sample k depends on (seed, k) and its request alone.
    batch: samples drawn at once.
    request: what the task takes, such as classes='hero, food', or classes='none' for unconditional.
  Returns:
    What the task gives: of images uint8 [number, H, W, C].
  Raises:
    InputError: a model that draws nothing, or a request that it does not understand.
  """
  from diffusion.generation import chain  # which draws with this module
  models = model if isinstance(model, list) else [model]
  for each in models:
    require(each.run, 'draws')
  parts = chain.draw(models, request, number, seed, batch, setting='')
  return parts[-1].outputs[models[-1].run.task.gives]
