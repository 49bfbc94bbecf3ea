"""Texts as the networks of published pipelines take them: tokenizers and encoders of a folder of diffusers."""
from functools import partial
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import text
from diffusion.errors import InputError
from diffusion.interop import folder as folders, models


class Texts(NamedTuple):
  """What a pipeline does with texts. params: those of its encoders, a tuple of {name: array}."""
  context: Callable   # (params, tokens int [N, encoders, L]) -> the condition, a dict of arrays [N, ..]; may be traced
  encoded: Callable   # (params, prompt) -> the condition of one, NumPy [1, ..]
  empty: Callable     # params -> that of no prompt
  notes: Callable     # prompts -> lines for the user, of what is cut
  prepared: Callable  # Dataset -> the same with the column tokens, of the first caption of each image


def read_texts(folder, encoders, index, pixels):
  """(Texts, params) of a pipeline.

  Args:
    folder: of the pipeline.
    encoders: names of the folders of its text encoders: one, or the two of SDXL.
    index: its model_index.json.
    pixels: size of its images, of which SDXL is told.
  """
  found = [models.read(f'{folder}/{part}') for part in encoders]
  tokenizers = [tokenizer_of(f'{folder}/{part.replace("text_encoder", "tokenizer")}') for part in encoders]
  modules, xl = [model.module for model in found], len(encoders) == 2

  def tokens(prompts):
    return np.stack([[t.encode(text.base.valid(str(p), 'prompt')).ids for t in tokenizers] for p in prompts])

  def context(params, tokens):
    towers = [m.apply(dict(params=p), tokens[:, i]) for i, (m, p) in enumerate(zip(modules, params))]
    if not xl:
      return dict(context=towers[0].last)
    ids = jnp.asarray([pixels, pixels, 0, 0, pixels, pixels], jnp.float32)
    return dict(context=jnp.concatenate([tower.before for tower in towers], -1), pooled=towers[1].embedded,
                time_ids=jnp.broadcast_to(ids, (len(tokens), 6)))
  run = jax.jit(context)

  def encoded(params, prompt):
    return jax.device_get(run(params, tokens([prompt])))

  def empty(params):
    cond = encoded(params, '')
    if not (xl and index.get('force_zeros_for_empty_prompt', True)):
      return cond
    return {name: a if name == 'time_ids' else np.zeros_like(a) for name, a in cond.items()}

  notes = partial(_notes, tokenizers[0])
  prepared = partial(_prepared, tokens, notes)
  return Texts(context, encoded, empty, notes, prepared), tuple(model.params for model in found)


def _notes(tokenizer, prompts):
  cut = [f for p in prompts if (f := tokenizer.encode(text.base.valid(str(p), 'prompt'))).cut]
  return tuple(line for f in cut[:3] for line in text.notes(f, 'prompt'))


def _prepared(tokens, notes, data):
  captions = np.asarray(data.arrays['captions'][:])
  captions = (captions if captions.ndim == 1 else captions[:, 0]).tolist()
  columns = data.arrays | dict(tokens=tokens(captions))  # int32 [N, encoders, L]
  return data._replace(arrays=columns, facts=data.facts | dict(lost=list(notes(captions))))


def tokenizer_of(folder, most=10 ** 4):
  """CLIP's tokenizer as a folder of transformers describes it, for texts of at most that many tokens."""
  config = folders.read_json(f'{folder}/tokenizer_config.json')
  pad = config.get('pad_token') or '<|endoftext|>'
  pad = pad.get('content') if isinstance(pad, dict) else pad
  if pad not in ('<|endoftext|>', '!'):
    raise InputError(f'{folder}: pad_token={pad!r}: expected <|endoftext|> or !')
  return text.clip(folder, min(config.get('model_max_length', 77), most), 'end' if pad != '!' else 0)
