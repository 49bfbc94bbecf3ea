"""From a trained model to samples: the compiled sampler, batch by batch."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffusion import samplers
from diffusion.errors import check_seed, InputError
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
      -> (outputs {name: [B, ...]}, frames {name: [S+1, len(trace), ...]}, the starting noise first, or None,
      whether all values of a sample are finite, bool [B]).
  """
  sampler, levels, shape = sampler or run.sampler, run.levels if levels is None else levels, shape or run.shape

  def once(weights, keys, cond, start):
    if not run.predicts:
      x = run.model(weights).draw(keys, cond, shape)
      return run.decode(weights.frozen, x, cond), None, finite_rows(x)
    project = run.task.project and (lambda x: run.task.project(x, cond))
    x = run.prior(weights, keys, levels, shape) if start is None else start
    x = project(x) if project else x
    def frame(x):
      return run.decode(weights.frozen, *jax.tree.map(lambda a: a[np.asarray(trace)], (x, cond)))
    solver = samplers.projected(sampler, project) if project else sampler
    solver = samplers.self_conditioned(solver) if run.self_condition else solver
    follow = None if trace is None else lambda state: frame(state.x)
    out = samplers.sample(keys, run.denoise(weights, cond), solver, levels, x, follow)
    if trace is None:
      return run.decode(weights.frozen, out, cond), None, finite_rows(out)
    frames = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), frame(x), out[1])
    return run.decode(weights.frozen, out[0], cond), frames, finite_rows(out[0])

  @partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
  def sample(weights, ids, cond, start):
    number = run.config.sample.best_of if start is None else 1
    drawn = [once(weights, samplers.sample_keys(candidate_seed(seed, j), ids), cond, start) for j in range(number)]
    return best_of(drawn, run.task.score, cond) if number > 1 else drawn[0]
  return sample


def candidate_seed(seed, j):
  """The seed of the j-th candidate for each sample; that of the first is the seed."""
  return seed if j == 0 else (seed + j * 0x6a09e667) % 2 ** 31


def best_of(drawn, score, cond):
  """Of several (outputs, frames, whether finite) of the same samples, for each sample the one with the highest score.

  The first of equal ones; frames are those of the first candidates.
  """
  scores = jnp.stack([score(outputs, cond) for outputs, *_ in drawn])
  best, row = jnp.argmax(scores, 0), jnp.arange(scores.shape[1])
  outputs, frames, finite = zip(*drawn)
  return jax.tree.map(lambda *a: jnp.stack(a)[best, row], *outputs), frames[0], jnp.stack(finite)[best, row]


def finite_rows(x):
  """Whether all values of an example are finite, bool [B]; x: a tree [B, ...]."""
  whole = lambda a: jnp.all(jnp.isfinite(a), tuple(range(1, a.ndim)))
  return jnp.all(jnp.stack(jax.tree.leaves(jax.tree.map(whole, x))), 0)


def check_finite(lost, number):
  """Raises InputError if some of `number` samples are not finite. lost: their ids."""
  if lost:
    which = ', '.join(map(str, lost[:8])) + (', ..' if len(lost) > 8 else '')
    raise InputError(f'{len(lost)} of {number} samples are not finite (number {which}): lower the scale of '
                     'config.guide, set config.clip_x0=True, or use more steps in config.grid')


def stream(run, sample, batch, weights, ids, cond=None, start=None, lost=None):
  """Yields what `sample` (see make_sample) returns, batch by batch, for any number of ids.

  Args:
    batch: samples per batch; rounded up to a multiple of the devices.
    ids, cond, start: [N, ...], as for make_sample.
    lost: a list, to which the ids of samples that are not finite are added; None: they raise after the last batch.
  Yields:
    (outputs {name: [n, ...]}, frames or None); the samples of all batches are N.
  Raises:
    InputError: samples that are not finite.
  """
  found = [] if lost is None else lost
  batch = -(-batch // run.mesh.size) * run.mesh.size
  for first in tqdm(range(0, len(ids), batch), 'sampling', unit='batch', leave=False, delay=2, disable=None):
    index = np.minimum(np.arange(first, first + batch), len(ids) - 1)  # the last id fills up the last batch
    rows = jax.tree.map(lambda a: sharding.put_batch(np.asarray(a)[index], run.mesh), (np.asarray(ids), cond, start))
    outputs, frames, finite = jax.device_get(sample(weights, *rows))
    found += [int(ids[i]) for i, good in zip(range(first, len(ids)), finite) if not good]
    yield jax.tree.map(lambda a: a[:len(ids) - first], outputs), frames
  if lost is None:
    check_finite(found, len(ids))


def make_draw(run, seed, batch, sampler=None, levels=None, trace=None, shape=None):
  """The sampler for any number of samples: make_sample, batch by batch.

  Args: as for make_sample and stream.
  Returns:
    draw(weights, ids [N], cond=None, start=None, lost=None) -> (outputs {name: [N, ...]}, frames of the first batch
    or None). Sample k depends on (seed, k) and its condition alone, not on `batch` or the devices.
  """
  sample = make_sample(run, seed, sampler, levels, trace, shape)

  def draw(weights, ids, cond=None, start=None, lost=None):
    outputs, frames = zip(*stream(run, sample, batch, weights, ids, cond, start, lost))
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
    InputError: a model that draws nothing, a request that it does not understand, samples that are not finite.
  """
  from diffusion.generation import chain  # which draws with this module
  check_seed('seed', seed)
  for name, value in (('number', number), ('batch', batch)):
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
      raise InputError(f'{name}={value!r}: expected a whole number of at least 1')
  models = model if isinstance(model, list) else [model]
  for each in models:
    require(each.run, 'draws')
  parts = chain.draw(models, request, number, seed, batch, setting='')
  check_finite(parts[-1].lost, number)
  return models[-1].run.task.given(parts[-1].outputs)
