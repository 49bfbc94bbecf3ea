"""Embeddings of images by a CLIP, to be drawn from captions: what the diffusion prior of DALL-E 2 models
(arXiv:2204.06125, section 2.2).

x0 is what unit vectors z are in their principal components, each divided by a power of its standard deviation, and all
scaled to a mean variance of 1. Embeddings vary a thousand times more in some directions than in others: with one scale
for all the errors of a network fill the narrow ones, and with equal variances they are learned as carefully as the wide
ones, which tell images apart. Components are measured on the training data and kept in the checkpoint. What is drawn is
scaled to length 1 again.
"""
from functools import partial

import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError
from diffusion.objectives.contrastive import unit
from diffusion.system.files import write_atomic, write_npz
from diffusion.tasks import towers as clips
from diffusion.tasks.captioned_page import captioned_page
from diffusion.tasks.text_to_image import text_to_image

COLUMNS = ('tokens', 'counts', 'image_embedding', 'text_embedding')
NARROW = 1e-6  # variance of a component, of the largest, below which it is not enlarged further


def embeddings(clip, whiten=.5, *, data=None, facts=None, fitted=None, open_model=None):
  """x0: embeddings float32 [D]; the condition: the tokens of a caption, and sqrt(D) times its own embedding.

  Args:
    clip: the work directory of a CLIP, or WORKDIR@STEP; its tokenizer is that of the prior.
    whiten: the power, from 0, one scale for all components, to 1, equal variances.
  Raises:
    InputError: no CLIP, or another one than the model was trained with; images of another size; another power.
  """
  if isinstance(whiten, bool) or not isinstance(whiten, (int, float)) or not 0 <= whiten <= 1:
    raise InputError(f'whiten={whiten!r}: expected a number from 0 (one scale for all) to 1 (equal variances)')
  if open_model is None:  # only the arguments are checked
    return text_to_image()._replace(gives='embedding', bounds=None, levels=None)
  task, towers = conditioned(clip, data, facts, open_model)
  fitted = fitted or {}
  if data is not None and 'pca_axes' not in fitted:
    fitted = clips.measured(towers, task.prepare((), data), lambda images, texts: clips.principal(images))
  own = {name: fitted[name] for name in ('pca_mean', 'pca_axes', 'pca_variance')}
  mean, axes, variance = own.values()
  variance = np.maximum(variance, NARROW * variance[0])
  scale = variance ** (whiten / 2) * np.sqrt(np.mean(variance ** (1 - whiten)))  # of x0 the mean variance is 1

  def encode(frozen, key, batch):
    return (unit(batch['image_embedding']) - mean) @ axes / scale, condition(key, batch)

  def decode(frozen, x0, cond):
    return outputs((x0 * scale) @ axes.T + mean)
  return task._replace(encode=encode, decode=decode, fitted=task.fitted | own,
                       facts=task.facts | dict(whiten=float(whiten)))


def conditioned(clip, data, facts, open_model):
  """(a Task of embeddings without encode and decode, its Towers): what priors of every kind share."""
  shape = data and data.arrays['images'].shape[1:]
  towers = clips.open_towers(clip, open_model, facts or {}, shape)
  task = clips.captions_task(towers, data, facts, None)
  embed = clips.compiled(towers.texts, towers.weights)

  def prepare(frozen, data):
    return clips.with_embeddings(towers, task.prepare((), data))
  return task._replace(
    batch=lambda data, indices: {name: data.arrays[name][indices] for name in COLUMNS},
    null=partial(null, task.null), ask=partial(_ask, task.ask, embed), prepare=prepare, show=_show, save=_save,
    tiles=lambda outputs: clips.tiles(outputs['embedding']), takes=('prompt',), gives='embedding', bounds=None,
    levels=None, score=score, facts=task.facts | dict(clip=towers.digest, size=towers.size),
    evaluators=('loss', 'prior')), towers


def condition(key, batch):
  """The condition of a batch."""
  found = clips.chosen_caption(key, batch)
  return found | dict(text_embedding=clips.scaled(found['text_embedding']))


def outputs(z):
  """What is drawn, of vectors [B, D]: unit vectors, and the length that each had."""
  return dict(embedding=unit(z), length=jnp.linalg.norm(z, axis=-1))


def null(null_text, cond):
  """Neither a text nor its embedding, which is 0."""
  texts = null_text({name: cond[name] for name in ('tokens', 'weights')})
  return cond | texts | dict(text_embedding=jnp.zeros_like(cond['text_embedding']))


def score(outputs, cond):
  """The cosine of what was drawn and of its text, [B]: by which the better of two samples is kept."""
  return jnp.sum(outputs['embedding'] * cond['text_embedding'], -1)


def _ask(ask, embed, request, ids, seed):
  asked = ask(request, ids, seed)
  cond = asked.cond
  there = np.where(cond['weights'] > 0, 1, 0).astype(np.float32)
  notes = asked.notes
  if np.any(there != cond['weights']):
    notes += ('prompt: an embedding has no weights of words; they count as 1',)
  rows, place = np.unique(cond['tokens'], axis=0, return_inverse=True)
  first = np.array([np.argmax(place.ravel() == i) for i in range(len(rows))])
  vectors = np.asarray(embed(rows, there[first]))[place.ravel()]
  cond = dict(tokens=cond['tokens'], weights=there, text_embedding=np.float32(clips.scaled(vectors)))
  return asked._replace(cond=cond, notes=notes)


def _show(outputs, labels, title):
  texts = labels or [''] * len(outputs['embedding'])
  return captioned_page(clips.tiles(outputs['embedding']), texts, title)


def _save(folder, outputs, cond, labels):
  """samples.npz: embedding, unit vectors float32 [N, D], and the length each had before; prompts.txt."""
  write_npz(folder / 'samples.npz', outputs | (cond or {}))
  if labels:
    write_atomic(folder / 'prompts.txt', '\n'.join([*labels, '']).encode())
