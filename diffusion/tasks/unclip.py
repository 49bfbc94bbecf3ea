"""Images from the embeddings of a CLIP, and a text where there is one: the decoder of DALL-E 2 (arXiv:2204.06125,
section 2.1).

In the condition an embedding is sqrt(D) times a unit vector, and 0 stands for none. The hash of the CLIP is in the
checkpoint, and so are the principal components of its embeddings of the training images.
"""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.data.arrays import to_unit
from diffusion.errors import InputError
from diffusion.objectives.contrastive import unit
from diffusion.tasks import towers as clips
from diffusion.tasks.base import blend
from diffusion.tasks.text_to_image import TAKES, text_to_image

COLUMNS = ('images', 'tokens', 'counts', 'image_embedding')


def unclip(clip, text_dropout=.475, embedding_dropout=.05, *, data=None, facts=None, fitted=None, open_model=None):
  """x0: images in [-1, 1]; the condition: tokens int32 [L] of a caption, their weights, and `embedding` float32 [D].

  A request may give an `embedding`: unit vectors [N, D], as a prior draws them, 'text' for that of the prompt, 'none'.

  Args:
    clip: the work directory of a CLIP, or WORKDIR@STEP; its tokenizer is that of the decoder.
    text_dropout, embedding_dropout: shares of training examples without the one or the other, beside those that have
      neither, which are config.condition_dropout.
  Raises:
    InputError: no CLIP, or another one than the model was trained with; images of another size.
  """
  for name, value in (('text_dropout', text_dropout), ('embedding_dropout', embedding_dropout)):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
      raise InputError(f'{name}={value!r}: expected a share from 0 to 1')
  if open_model is None:  # only the arguments are checked
    return text_to_image()._replace(takes=(*TAKES, 'embedding'))
  towers = clips.open_towers(clip, open_model, facts or {}, data and data.arrays['images'].shape[1:])
  task = clips.captions_task(towers, data, facts, None)
  fitted = fitted or {}
  if data is not None and 'pca_axes' not in fitted:
    fitted = clips.measured(towers, task.prepare((), data), lambda images, texts: clips.principal(images))
  no_text = lambda cond: cond | task.null({name: cond[name] for name in ('tokens', 'weights')})

  def prepare(frozen, data):
    return clips.with_embeddings(towers, task.prepare((), data), ('image',))
  embed, texts = (clips.compiled(tower, towers.weights) for tower in (towers.images, towers.texts))
  return task._replace(
    batch=lambda data, indices: {name: data.arrays[name][indices] for name in COLUMNS},
    encode=partial(_encode, no_text, text_dropout, embedding_dropout),
    null=lambda cond: no_text(cond) | dict(embedding=jnp.zeros_like(cond['embedding'])),
    ask=partial(_ask, task.ask, texts, towers.size), prepare=prepare, takes=(*TAKES, 'embedding'),
    embed=embed, between=partial(_between, task.between),
    facts=task.facts | dict(clip=towers.digest, size=towers.size),
    fitted=task.fitted | {name: fitted[name] for name in ('pca_mean', 'pca_axes', 'pca_variance') if name in fitted},
    evaluators=('loss', 'decoder', 'text', 'bound', 'ode'))  # others would draw from texts alone


def _encode(no_text, text_dropout, embedding_dropout, frozen, key, batch):
  """(x0, cond); with a key, texts and embeddings are left out independently of each other."""
  x0 = to_unit(batch['images'])
  if 'tokens' not in batch:  # an image to edit
    return x0, None
  keys = (None,) * 3 if key is None else jax.random.split(key, 3)
  cond = clips.chosen_caption(keys[0], batch) | dict(embedding=clips.scaled(unit(batch['image_embedding'])))
  if key is None:
    return x0, cond
  left_out = lambda key, share: jax.random.bernoulli(key, share, (len(x0),))
  kept = left_out(keys[1], 1 - embedding_dropout)[:, None]
  dropped = left_out(keys[2], text_dropout)[:, None]
  cond = jax.tree.map(lambda a, b: jnp.where(dropped, b, a), cond, no_text(cond))
  return x0, cond | dict(embedding=jnp.where(kept, cond['embedding'], 0.))


def _ask(ask, texts, size, request, ids, seed):
  wanted = request.get('embedding', '')
  asked = ask({name: value for name, value in request.items() if name != 'embedding'}, ids, seed)
  shape, notes = (len(ids), size), asked.notes
  if isinstance(wanted, str):
    if wanted not in ('', 'none', 'text'):
      raise InputError(f"embedding={wanted!r}: expected 'text' for that of the prompt, 'none', or, in a chain, what a "
                       'prior draws')
    z = np.zeros(shape, np.float32)
    if wanted == 'text' and asked.cond['tokens'].ndim == 2:
      z = texts(asked.cond['tokens'], np.where(asked.cond['weights'] > 0, np.float32(1), np.float32(0)))
    elif wanted == 'text':
      raise InputError("embedding='text' is that of one prompt, and prompt_mix has several; use prompt")
    if not wanted:
      notes += ('no embedding was given: the decoder draws from the text alone; a prior draws one first, as in '
                "--chain='runs/prior_diffusion, THIS_WORKDIR'",)
  else:
    z = np.asarray(wanted, np.float32)
    if z.shape != shape or not np.all(np.isfinite(z)):
      raise InputError(f'embedding: expected finite unit vectors {list(shape)}, got {list(z.shape)}; use what a prior '
                       'of the same CLIP draws')
  cond = asked.cond | dict(embedding=np.asarray(clips.scaled(np.asarray(z)), np.float32))
  return asked._replace(cond=cond, notes=notes)


def _between(between, a, b, shares):
  texts = between(*({name: cond[name] for name in ('tokens', 'weights')} for cond in (a, b)), shares)
  return texts | dict(embedding=blend(a['embedding'], b['embedding'], shares))
