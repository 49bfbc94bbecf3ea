"""A prior of embeddings: what it draws for held-out captions beside the embeddings of their images, and what simpler
rules give.

The cosine with the true embedding stands in the table, and is no measure of a prior: it is highest for the mean of all
embeddings that fit a caption, of which no image has one. The Frechet distance and retrieval are.
"""
from functools import partial
import math

import jax
import numpy as np

from diffusion.data.dataset import first_captions, padded_batches, size, take
from diffusion.evaluation.base import columns, Evaluator, first, Measured, needs_heldout
from diffusion.evaluation.metrics import frechet, gaussian_stats, record
from diffusion.evaluation.metrics.trained_features import digest
from diffusion.evaluation.retrieval import ranks
from diffusion.evaluation.tokens import independent
from diffusion.generation import sampling
from diffusion.system import sharding
from diffusion.tasks.codes import upper_dots


def baselines(texts, images, asked):
  """{name: unit vectors [n, D]} for captions with the embeddings `asked` [n, D], from training pairs [N, D] of both.

  Returns:
    dict of 'regression': least squares from text to image, with an intercept; 'nearest': the image of the training
      caption that is nearest; 'text': the embedding of the caption itself.
  """
  lift = lambda a: np.concatenate([np.ones((len(a), 1)), a], 1)
  matrix, *_ = np.linalg.lstsq(lift(texts), images, rcond=None)
  return dict(regression=normed(lift(asked) @ matrix), nearest=images[np.argmax(asked @ texts.T, 1)], text=asked)


def normed(a):
  """Rows scaled to length 1; a row of zeros stays."""
  return a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12)


def compare(drawn, images, same):
  """{'distance', 'recall', 'cosine'}: Estimates of what was drawn [n, D] against the embeddings of the images [n, D].

  Args:
    same: int [n], equal for equal captions.
  """
  moments = [gaussian_stats.moments([a]) for a in (drawn, images)]
  found = ranks(drawn, images, same)
  return dict(distance=frechet.fd_infinity(*moments), recall=record.share(int(np.sum(found == 0)), len(found)),
              cosine=record.mean(np.sum(drawn * images, 1)))


def bits(run, weights, data, number):
  """-log2 p of the codes of held-out examples and of the bucket of their cosine, per code, [number]."""
  @partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
  def likelihood(weights, batch):
    return run.model(weights).log_likelihood(*run.encode(weights.frozen, None, batch))
  batch, found = -(-min(number, 128) // run.mesh.size) * run.mesh.size, []
  for index, count in padded_batches(number, batch):
    rows = sharding.put_batch(run.task.batch(data, index), run.mesh)
    found.append(jax.device_get(likelihood(weights, rows))[:count])
  nats = -np.concatenate(found).astype(np.float64)
  return (nats / math.log(2) + math.log2(run.task.facts['dots'])) / run.shape[0]


def table(rows):
  """{name: {'distance', 'recall', 'cosine', 'length'}} as text."""
  show = lambda e: f'{e.value:.3f} ({e.low:.3f} to {e.high:.3f})'
  lines = ['| embeddings of | Frechet distance | recall@1 | cosine with the true one | length |',
           '|---|---|---|---|---|']
  for name, row in rows.items():
    distance = '0' if row['distance'] is None else show(row['distance'])
    lines.append(f'| {name} | {distance} | {show(row["recall"])} | {row["cosine"].value:.3f} | {row["length"]:.3f} |')
  return lines


# ---- the evaluator
def _unit(column):
  return normed(np.asarray(column[:], np.float64))


def _measure(run, weights, data, folder, report):
  options = run.config.evaluate
  number = min(options.num_samples, size(data.heldout))
  index = np.random.default_rng(options.seed).permutation(size(data.heldout))[:number]
  held, ids = take(data.heldout, index), np.arange(number)
  report('prior', f'{number} embeddings for held-out captions')
  images, asked = _unit(held.arrays['image_embedding']), np.asarray(held.arrays['text_embedding'][:, 0], np.float64)
  same = np.unique([str(text) for text in first_captions(held)[:]], return_inverse=True)[1]
  cond = jax.device_get(run.encode(run.frozen, None, run.task.batch(held, ids))[1])
  if 'dot' in cond:
    cond = cond | dict(dot=upper_dots(run.task.facts['dots'], ids, options.seed))
  outputs, _ = sampling.make_draw(run, options.seed, min(run.config.sample.batch, number))(weights, ids, cond)
  known = data.train.arrays
  found = baselines(np.asarray(known['text_embedding'][:, 0], np.float64), _unit(known['image_embedding']), asked)
  drawn = dict(prior=np.asarray(outputs['embedding'], np.float64)) | found
  rows = {name: compare(z, images, same) | dict(length=1.) for name, z in drawn.items()}
  rows['prior']['length'] = float(np.mean(outputs['length']))
  metrics = {f'{name}_distance': row['distance'] for name, row in rows.items()}
  metrics |= dict(prior_recall=rows['prior']['recall'], length_error=record.mean(np.abs(outputs['length'] - 1)))
  notes = [*table(rows), 'recall@1: the embedding of the own image is the nearest of '
           f'{number}; the last row is what CLIP itself finds', '']
  details = {name: {key: e._asdict() for key, e in row.items() if key != 'length'} for name, row in rows.items()}
  if 'log_likelihood' in run.can:
    each = bits(run, weights, held, number)
    codes = lambda side: run.encode(run.frozen, None, run.task.batch(side, np.arange(size(side))))[0]
    alone = independent(codes(data.train), codes(held), run.task.categories) / math.log(2) / run.shape[0]
    metrics['code_bits'] = record.mean(each)
    details['unigram_bits'] = float(alone.mean())
    notes.append(f'code_bits: {run.shape[0]} codes of {run.task.categories} values, with the {run.task.facts["dots"]} '
                 f'buckets of the cosine; {alone.mean():.3f} where each code is drawn by its frequency in training')
  protocol = dict(candidates=number, data_hash=digest(*columns(held)), clip_hash=run.task.facts['clip'])
  return Measured(metrics, {name: protocol for name in metrics}, dict(prior=details),
                  dict(prior_recall=rows['text']['recall']), tuple(notes))


EVALUATOR = Evaluator(lambda run, data: first(
  '' if run.task.gives == 'embedding' else f'the samples are {run.task.gives or "none"}, not embeddings',
  needs_heldout(data)), _measure)
