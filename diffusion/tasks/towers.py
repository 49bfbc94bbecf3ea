"""The two towers of a CLIP as given weights of a task: embeddings of images and captions, cached and measured.

Embeddings have length 1 everywhere outside of a network, whatever its own scale is. The empty text has the embedding 0:
it asks for nothing.
"""
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import text
from diffusion.data.dataset import fingerprint, size, take
from diffusion.errors import InputError
from diffusion.objectives.contrastive import unit
from diffusion.system import cache, sharding, tensors
from diffusion.tasks.prepare import with_column
from diffusion.tasks.text_to_image import text_to_image

BATCH = 256        # images, or captions, embedded at once
MEASURED = 50_000  # embeddings that are measured


class Towers(NamedTuple):
  """A CLIP."""
  weights: Any      # build.Weights on the host: given weights of the task
  digest: str       # hash of its parameters
  size: int         # D
  images: Callable  # (weights, uint8 [B, H, W, C]) -> unit vectors [B, D]
  texts: Callable   # (weights, tokens [B, L], their weights [B, L]) -> unit vectors [B, D], 0 for the empty text
  facts: dict       # of its task
  fitted: dict      # its vocabulary


def open_towers(where, open_model, facts, shape=None):
  """The Towers of a work directory, for a model whose facts are {} before its first training.

  Args:
    shape: [H, W, C] of the images at hand, or None.
  Raises:
    InputError: there is no CLIP, or another one than the model was trained with; another tokenizer; images of another
      size than it takes.
  """
  field = f'clip={where!r}'
  try:
    opened = open_model(where)
  except InputError as error:
    raise InputError(f'{field}: {error}; --config=configs/clip.py trains a CLIP') from error
  run = opened.run
  if not {'embed_image', 'embed_text'} <= run.can:
    raise InputError(f'{field}: the objective {run.objective.name} there has no towers; give the work directory of a '
                     'CLIP, as of configs/clip.py')
  there, weights = run.task.facts, sharding.fetch(opened.weights)._replace(frozen={})
  if shape and list(shape) != list(there['shape']):
    raise InputError(f'{field}: it takes images of {there["shape"]}, and these have {list(shape)}; use data of that '
                     'size, or a CLIP that was trained on such images')
  mark, known = tensors.digest(weights.params), facts.get('clip')
  if known not in (None, mark):
    raise InputError(f'{field}: its weights have the hash {mark[:8]}, and this model was trained on embeddings of '
                     f'{known[:8]}; give that CLIP, or train anew in another --workdir')
  if facts.get('tokens', there['tokens']) != there['tokens']:
    raise InputError(f'{field}: its tokenizer is {there["tokens"]}, and that of this model {facts["tokens"]}; give the '
                     'CLIP that it was trained with')
  empty = jnp.asarray(text.rebuild(there['tokens'], run.task.fitted).encode('').ids)

  def images(weights, images):
    return run.model(weights).embed_image(run.encode({}, None, dict(images=images))[0])

  def texts(weights, tokens, counts):
    found = run.model(weights).embed_text(dict(tokens=tokens, weights=counts))
    return jnp.where(jnp.all(tokens == empty, -1, keepdims=True), 0., found)
  probe = jax.eval_shape(images, weights, jax.ShapeDtypeStruct((1, *there['shape']), jnp.uint8))
  return Towers(weights, mark, probe.shape[-1], images, texts, there, run.task.fitted)


def compiled(tower, weights):
  """The function of host arrays that a tower is with these weights, which are no constants of its program."""
  run = jax.jit(tower)
  return lambda *arrays: np.asarray(run(weights, *arrays))


def captions_task(towers, data, facts, fitted):
  """The task text_to_image with the tokenizer of the CLIP."""
  tokens = towers.facts['tokens']
  facts = facts or dict(tokens=tokens, examples=[''])
  return text_to_image(tokens['kind'], tokens['length'], data=data, facts=facts, fitted=towers.fitted)


def with_embeddings(towers, data, names=('image', 'text')):
  """The prepared Dataset with the columns image_embedding [N, D] and text_embedding [N, captions, D], float16."""
  placed, arrays = jax.device_put(towers.weights), data.arrays
  of_images, of_texts = jax.jit(towers.images), jax.jit(towers.texts)

  def image(index):
    return of_images(placed, arrays['images'][index]).astype(jnp.float16)

  def texts(index):
    tokens, counts = arrays['tokens'][index], arrays['counts'][index]
    there = (np.arange(tokens.shape[-1]) < counts[..., None]).astype(np.float32)
    flat = of_texts(placed, tokens.reshape(-1, tokens.shape[-1]), there.reshape(-1, tokens.shape[-1]))
    return flat.reshape(*counts.shape, -1).astype(jnp.float16)
  key = [towers.digest, fingerprint((data._replace(arrays={k: arrays[k] for k in ('images', 'captions')}),))]
  for name, compute in (('image', image), ('text', texts)):
    data = with_column(data, f'{name}_embedding', compute, key, BATCH) if name in names else data
  return data


def measured(towers, data, compute):
  """compute(image embeddings float64 [n, D], text embeddings [n, D]) -> {name: array}, of training examples.

  Args:
    data: the Dataset, with the columns of tokens.
  """
  some = take(data, np.unique(np.linspace(0, size(data) - 1, MEASURED).astype(int)))
  made = with_embeddings(towers, some)
  images, texts = made.arrays['image_embedding'][:], made.arrays['text_embedding'][:, 0]
  return compute(np.asarray(unit(jnp.asarray(images)), np.float64), np.asarray(texts, np.float64))


def principal(images):
  """{name: array} of the principal components of embeddings [n, D], float64 inside.

  Returns:
    dict of 'pca_mean': [D]; 'pca_axes': [D, D], a unit vector in each column, the largest variance first;
      'pca_variance': [D]. float32.
  """
  mean = images.mean(0)
  variance, axes = np.linalg.eigh(np.cov(images.T, bias=True))
  return dict(pca_mean=np.float32(mean), pca_axes=np.float32(axes[:, ::-1]),
              pca_variance=np.float32(np.maximum(variance[::-1], 0)))


def chosen_caption(key, batch):
  """{tokens, weights, text_embedding} of one caption of each image: drawn, or without a key the first."""
  row, counts = jnp.arange(len(batch['counts'])), batch['counts']
  chosen = 0 if key is None else jax.random.randint(key, row.shape, 0, jnp.sum(counts > 0, 1))
  ids, there = batch['tokens'][row, chosen], jnp.arange(batch['tokens'].shape[-1]) < counts[row, chosen][:, None]
  found = dict(tokens=ids, weights=there.astype(jnp.float32))
  if 'text_embedding' in batch:
    found |= dict(text_embedding=batch['text_embedding'][row, chosen].astype(jnp.float32))
  return found


def scaled(embedding):
  """sqrt(D) times unit vectors [.., D], so that entries have mean square 1: what networks are given."""
  return embedding * embedding.shape[-1] ** .5


def tiles(embeddings):
  """A picture of each, uint8 [N, s, s, 3]: its numbers row by row, red above 0 and blue below it."""
  N, D = embeddings.shape
  side = int(np.ceil(D ** .5))
  v = np.clip(np.asarray(embeddings, np.float64) * D ** .5 / 2.5, -1, 1)
  v = np.pad(v, ((0, 0), (0, side * side - D))).reshape(N, side, side)
  fade = np.round(255 * (1 - np.abs(v))).astype(np.uint8)
  full = np.full_like(fade, 255)
  return np.stack([np.where(v >= 0, full, fade), fade, np.where(v >= 0, fade, full)], -1)
