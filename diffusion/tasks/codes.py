"""Embeddings of images by a CLIP as a few codes, to be drawn one after the other from captions: what the autoregressive
prior of DALL-E 2 models (arXiv:2204.06125, section 2.2).

An embedding is projected on its first principal components, in the order of their variance, and each is cut into
buckets that hold equal numbers of training examples; a code stands for the mean of its bucket. The cosine of image and
caption, cut into buckets too, is part of the condition: that of the example in training, and one of the upper half
where samples are drawn. Components and buckets are measured on the training data and kept in the checkpoint.
"""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError
from diffusion.objectives.contrastive import unit
from diffusion.tasks import embeddings as vectors, towers as clips
from diffusion.tasks.text_to_image import text_to_image

LOST = .01  # mean squared error of the components that are kept, at most; embeddings have length 1


def codes(clip, components=0, buckets=64, dots=16, *, data=None, facts=None, fitted=None, open_model=None):
  """x0: codes int32 [K]; the condition: the tokens of a caption, sqrt(D) times its embedding, and `dot` int32 [].

  Args:
    clip: the work directory of a CLIP, or WORKDIR@STEP; its tokenizer is that of the prior.
    components: K; 0: as many as it takes for a mean squared error below 1 %.
    buckets: of each component.
    dots: buckets of the cosine of image and caption.
  Raises:
    InputError: no CLIP, or another one than the model was trained with; images of another size; more components than
      an embedding has numbers, or more buckets than there are examples.
  """
  for name, value, least in (('components', components, 0), ('buckets', buckets, 2), ('dots', dots, 2)):
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
      raise InputError(f'{name}={value!r}: expected a whole number of at least {least}')
  if open_model is None:  # only the arguments are checked
    return text_to_image()._replace(gives='embedding', bounds=None, levels=None, categories=buckets)
  task, towers = vectors.conditioned(clip, data, facts, open_model)
  fitted = fitted or {}
  if data is not None and 'code_means' not in fitted:
    compute = partial(measure, components=components, buckets=buckets, dots=dots)
    fitted = task.fitted | clips.measured(towers, task.prepare((), data), compute)
  own = {name: fitted[name] for name in ('pca_mean', 'pca_axes', 'code_edges', 'code_means', 'dot_edges')}

  def encode(frozen, key, batch):
    z, cond = unit(batch['image_embedding']), vectors.condition(key, batch)
    cosine = jnp.sum(z * cond['text_embedding'], -1) / towers.size ** .5
    return codes_of(own, z), cond | dict(dot=jnp.searchsorted(own['dot_edges'], cosine).astype(jnp.int32))

  def decode(frozen, x0, cond):
    return vectors.outputs(vectors_of(own, x0))
  return task._replace(
    encode=encode, decode=decode, null=partial(_null, task.null, dots), ask=partial(_ask, task.ask, dots),
    categories=buckets, facts=task.facts | dict(components=own['code_means'].shape[0], buckets=buckets, dots=dots),
    fitted=task.fitted | own)


# ---- embeddings and codes
def measure(images, texts, components, buckets, dots):
  """{name: array} of unit vectors [n, D]: principal components, edges and means of buckets, edges of cosines.

  Returns:
    dict of 'pca_mean': [D]; 'pca_axes': [D, K]; 'code_edges': [K, buckets - 1]; 'code_means': [K, buckets];
      'dot_edges': [dots - 1]. float32.
  """
  n, D = images.shape
  found = clips.principal(images)
  lost = np.append(np.cumsum(found['pca_variance'][::-1])[::-1], 0)  # of the first 0, 1, .. D components
  K = components or max(1, int(np.argmax(lost < LOST)))
  if K > D:
    raise InputError(f'components={K}: an embedding has {D} numbers; use at most that many')
  if n < buckets or n < dots:
    raise InputError(f'buckets={buckets}, dots={dots}: there are {n} training examples; use fewer buckets than that')
  axes = found['pca_axes'][:, :K]
  y = np.sort((images - found['pca_mean']) @ axes, 0)
  cuts = np.linspace(0, n, buckets + 1).astype(int)
  edges = (y[cuts[1:-1] - 1] + y[cuts[1:-1]]) / 2
  means = np.stack([y[a:b].mean(0) for a, b in zip(cuts, cuts[1:])])
  cosines = np.quantile(np.sum(images * texts, 1), np.linspace(0, 1, dots + 1)[1:-1])
  return dict(pca_mean=found['pca_mean'], pca_axes=axes, code_edges=np.float32(edges.T), code_means=np.float32(means.T),
              dot_edges=np.float32(cosines))


def codes_of(fitted, z):
  """Vectors [B, D] -> codes int32 [B, K]; fitted: as from `measure`."""
  y = (z - fitted['pca_mean']) @ fitted['pca_axes']
  place = jax.vmap(partial(jnp.searchsorted, side='right'), (0, 1), 1)
  return place(fitted['code_edges'], y).astype(jnp.int32)


def vectors_of(fitted, codes):
  """The means of the buckets of codes int [B, K], as vectors [B, D]."""
  y = jnp.asarray(fitted['code_means'])[jnp.arange(codes.shape[-1]), codes]
  return y @ fitted['pca_axes'].T + fitted['pca_mean']


# ---- the condition
def _null(null, dots, cond):
  """As for embeddings; the number after the last bucket stands for no cosine."""
  rest = null({name: value for name, value in cond.items() if name != 'dot'})
  return rest | dict(dot=jnp.full_like(cond['dot'], dots))


def upper_dots(dots, ids, seed):
  """A bucket of the upper half of `dots` buckets for each id, int32 [N]; that of id k depends on (seed, k) alone."""
  return np.array([np.random.default_rng((seed, int(i))).integers(dots // 2, dots) for i in ids], np.int32)


def _ask(ask, dots, request, ids, seed):
  """A cosine of the upper half for each sample; the empty text has none."""
  asked, drawn = ask(request, ids, seed), upper_dots(dots, ids, seed)
  nothing = ~np.any(asked.cond['text_embedding'], 1)
  return asked._replace(cond=asked.cond | dict(dot=np.where(nothing, np.int32(dots), drawn)))
