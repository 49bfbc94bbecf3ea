"""Texts that a frozen encoder has encoded: of a CLIP that was trained here, or of a folder of transformers.

The encoder is given weights: an argument of compiled functions, and in the checkpoint by its hash alone. It runs where
conditions are made, so no gradient reaches it. Beside tokens and weights a condition then has `states`, what the
encoder gives each token, float32 [L, W], and `pooled`, sqrt(E) times a unit vector, float32 [E]. A token of weight 0,
such as padding, is seen by no other.
"""
from functools import partial
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import text
from diffusion.errors import InputError
from diffusion.interop import folder as folders, models
from diffusion.objectives.contrastive import unit
from diffusion.system import sharding, tensors
from diffusion.system.files import user_path
from diffusion.tasks.published_texts import tokenizer_of

KINDS = {name: models.KINDS[name] for name in ('CLIPTextModel', 'CLIPTextModelWithProjection')}
EXPECTED = ('expected the work directory of a CLIP, as of configs/clip.py, or a folder of transformers with '
            'text_encoder and tokenizer, or with the files of both')
ADDED = ('states', 'pooled')


class TextEncoder(NamedTuple):
  """A frozen encoder of texts."""
  tokenizer: text.Tokenizer  # its own
  params: Any                # on the devices
  read: Callable             # (params, tokens int [B, L], mask bool [B, L]) -> (states [B, L, W], vectors [B, E])
  facts: dict                # tokens: those of the tokenizer; encoder: the hash of the parameters


def _encoder(tokenizer, params, read):
  return TextEncoder(tokenizer, params, read, dict(tokens=tokenizer.facts, encoder=tensors.digest(params)))


def open_encoder(where, open_model, facts):
  """The TextEncoder of a work directory, WORKDIR@STEP or folder, for a model whose facts are {} before its training.

  Raises:
    InputError: there is no encoder, or another one than the model was trained with; a folder without a tokenizer, or
      with that of another encoder.
  """
  field, path = f'encoder={where!r}', user_path(str(where))
  own = path / 'text_encoder' if (path / 'text_encoder').is_dir() else path
  try:
    of_folder = (own / 'config.json').exists()
    found = _of_folder(own, path) if of_folder else _of_workdir(where, open_model)
  except InputError as error:
    raise InputError(f'{field}: {error}') from error
  for name, new in found.facts.items():
    if facts.get(name, new) != new:
      raise InputError(f'{field}: its {dict(tokens="tokenizer", encoder="hash")[name]} is {new}, and this model was '
                       f'trained with {facts[name]}; give that encoder, or train anew in another --workdir')
  return found


def _of_workdir(where, open_model):
  """That of a CLIP that was trained here; its image tower is left out."""
  try:
    opened = open_model(where)
  except InputError as error:
    raise InputError(f'{error}; {EXPECTED}') from error
  run = opened.run
  if 'read_text' not in run.can:
    raise InputError(f'the objective {run.objective.name} there has no text tower; {EXPECTED}')
  rest = opened.weights._replace(params={}, frozen={})
  params = jax.device_put(sharding.fetch(dict(text=opened.weights.params['text'])))

  def read(params, tokens, mask):
    return run.model(rest._replace(params=params)).read_text(tokens, mask)
  return _encoder(text.rebuild(run.task.facts['tokens'], run.task.fitted), params, read)


def _of_folder(own, whole):
  """That of a folder; `whole` has the folder `tokenizer`, or else the files of the tokenizer are beside the weights."""
  beside = whole / 'tokenizer' if (whole / 'tokenizer').is_dir() else own
  if not (beside / 'tokenizer_config.json').exists():
    raise InputError(f'{beside} has no tokenizer_config.json: the encoder lacks its tokenizer; put that file there, '
                     'with vocab.json and merges.txt, or tokenizer.json')
  _, _, module = models.describe(folders.read_json(own / 'config.json'), str(own), KINDS)
  tokenizer = tokenizer_of(str(beside), module.max_position_embeddings)
  empty = tokenizer.encode('')
  end = empty.ids[empty.count - 1]
  if tokenizer.size != module.vocab_size or module.eos_token_id not in (2, end):  # 2 of old files: the largest id
    raise InputError(f'{beside} is the tokenizer of another encoder: it has {tokenizer.size} tokens and ends a text '
                     f'with {end}, and the encoder has {module.vocab_size} and {module.eos_token_id}; get both from '
                     'one place')
  params = models.read(own, kinds=KINDS).params

  def read(params, tokens, mask):
    found = module.apply(dict(params=params), tokens, mask)
    return found.last, unit(found.pooled if found.embedded is None else found.embedded)
  return _encoder(tokenizer, params, read)


# ---- the task
def with_encoder(task, encoder):
  """A task of texts as tokens, whose conditions have what the encoder makes of them, besides."""
  read = partial(_read, encoder.read)
  one = jax.jit(read)
  told = lambda cond: cond | _of_rows(lambda *row: one(encoder.params, *row), cond)
  empty = told(task.ask(dict(prompt=['']), np.arange(1), 0).cond)

  def encode(frozen, key, batch):
    x0, cond = task.encode(frozen, key, batch)
    if cond is None:  # an image to edit
      return x0, None
    return x0, cond | read(frozen, cond['tokens'], cond['weights'])

  def null(cond):
    texts = task.null(_without(cond))
    return texts | {name: jnp.broadcast_to(empty[name], cond[name].shape) for name in ADDED}

  def ask(request, ids, seed):
    asked = task.ask(request, ids, seed)
    return asked._replace(cond=told(asked.cond))

  def save(folder, outputs, cond, labels):
    task.save(folder, outputs, cond and _without(cond), labels)
  return task._replace(encode=encode, null=null, ask=ask, save=save, frozen=encoder.params,
                       facts=task.facts | encoder.facts)


def _without(cond):
  return {name: a for name, a in cond.items() if name not in ADDED}


def _read(read, params, tokens, weights):
  """{'states', 'pooled'} of tokens [B, L] and their weights."""
  states, vectors = read(params, tokens, weights > 0)
  return dict(states=states.astype(jnp.float32), pooled=vectors.astype(jnp.float32) * vectors.shape[-1] ** .5)


def _of_rows(one, cond):
  """{'states', 'pooled'}, NumPy, of all texts of a condition: each alone, so that they do not depend on the others."""
  tokens, L = cond['tokens'], cond['tokens'].shape[-1]
  rows = np.concatenate([tokens, cond['weights'] > 0], -1).reshape(-1, 2 * L)
  different, place = np.unique(rows, axis=0, return_inverse=True)
  made = [jax.device_get(one(row[None, :L], row[None, L:])) for row in different]
  index = place.reshape(tokens.shape[:-1])
  return {name: np.concatenate([found[name] for found in made])[index] for name in ADDED}
