"""Retrieval by a model of two towers: how often the right caption of an image is among the first, and the reverse.

Recall depends on the number of candidates, which is part of the protocol. A caption is right if it is equal to the
image's own.
"""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.gaussian import expand_to, q_sample, take
from diffusion.core.lookup import time_of_logsnr
from diffusion.data.dataset import padded_batches, size, take as some
from diffusion.evaluation.base import columns, Evaluator, first, Measured, needs_heldout
from diffusion.evaluation.metrics import record
from diffusion.evaluation.metrics.trained_features import digest
from diffusion.objectives.timesteps import levels_at
from diffusion.system import sharding

CANDIDATES = 500  # held-out pairs, or all if there are fewer
FIRST = (1, 5)
LEVELS = (-8., -4., 0., 4., 8.)  # log-SNRs at which a noised CLIP is measured


def vectors(run, weights, data, level=None, seed=0):
  """The unit vectors of pairs: images [N, D], texts [N, D], and int [N], equal for equal captions.

  Args:
    run, weights: of a model with embed_image and embed_text.
    data: a Dataset that its task has prepared.
    level: Noise of scalars by which images are noised; None: clean.
    seed: of that noise.
  """
  @partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
  def of_batch(weights, batch, key):
    x0, cond = run.encode(weights.frozen, None, batch)
    model, noise = run.model(weights), level
    x = x0 if level is None else q_sample(x0, expand_to(noise, x0), jax.random.normal(key, x0.shape))
    return model.embed_image(x, noise), model.embed_text(cond), cond['same']
  batch = -(-min(size(data), 128) // run.mesh.size) * run.mesh.size
  found = []
  for i, (index, count) in enumerate(padded_batches(size(data), batch)):
    rows = sharding.put_batch(run.task.batch(data, index), run.mesh)
    made = jax.device_get(of_batch(weights, rows, jax.random.fold_in(jax.random.key(seed), i)))
    found.append([a[:count] for a in made])
  return [np.concatenate(parts) for parts in zip(*found)]


def ranks(queries, keys, same):
  """int [N]: for each query, how many wrong keys are at least as similar as the most similar right one.

  Ties count as wrong, so that a model that says the same of everything finds nothing.

  Args:
    queries, keys: unit vectors [N, D].
    same: int [N]: key j is right for query i where same[j] == same[i].
  """
  cosines, right = queries @ keys.T, same[:, None] == same
  best = np.where(right, cosines, -np.inf).max(1, keepdims=True)
  return np.sum(~right & (cosines >= best), 1)


def recalls(images, texts, same):
  """{name: Estimate}: the shares of images whose caption, and of captions whose image, is among the first."""
  found = dict(text=ranks(images, texts, same), image=ranks(texts, images, same))
  return {f'recall_{what}_{k}': record.share(int(np.sum(rank < k)), len(rank))
          for what, rank in found.items() for k in FIRST}


def level_at(schedule, logsnr):
  """The Noise of scalars nearest to a log-SNR."""
  time = time_of_logsnr(schedule)(jnp.asarray([logsnr], jnp.float32))
  return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), take(levels_at(schedule)(time), 0))


# ---- the evaluator
def needs(run, data):
  return first('' if {'embed_image', 'embed_text'} <= run.can else f'the objective {run.objective.name} has no towers',
               needs_heldout(data), '' if size(data.heldout) > 1 else 'there is only one held-out pair')


def _measure(run, weights, data, folder, report):
  """Recall among held-out pairs; of a noised CLIP by log-SNR too."""
  seed, n = run.config.evaluate.seed, min(CANDIDATES, size(data.heldout))
  pairs = some(data.heldout, np.random.default_rng(seed).permutation(size(data.heldout))[:n])
  report('retrieval', f'{n} held-out pairs')
  metrics = recalls(*vectors(run, weights, pairs))
  protocol = dict(candidates=n, data_hash=digest(*columns(pairs)))
  details, notes = {}, [f'recall_text_k: the caption of an image is among the first k of {n}; recall_image_k: the '
                        'image of a caption is']
  if run.schedule is not None:
    for logsnr in LEVELS:
      level = level_at(run.schedule, logsnr)
      found = recalls(*vectors(run, weights, pairs, level, seed))
      details[f'{float(level.logsnr):.2f}'] = {name: estimate._asdict() for name, estimate in found.items()}
      values = ', '.join(f'{name} {estimate.value:.2f}' for name, estimate in found.items())
      notes.append(f'at log-SNR {float(level.logsnr):.1f}: {values}')
  return Measured(metrics, {name: protocol for name in metrics}, dict(retrieval=details), notes=tuple(notes))


EVALUATOR = Evaluator(needs, _measure)
