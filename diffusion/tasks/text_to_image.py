"""Images and texts that say what they show: the condition is a text, as tokens."""
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import text
from diffusion.data.arrays import from_unit, to_unit
from diffusion.errors import InputError, unknown
from diffusion.system.files import write_atomic, write_npz
from diffusion.tasks.augment import mirror
from diffusion.tasks.base import Asked, need, Task
from diffusion.tasks.captioned_page import captioned_page
from diffusion.tasks.classes import parse_terms
from diffusion.tasks.frozen_text import open_encoder, with_encoder

EXAMPLES = 16  # captions of the training data that are drawn where none is asked for
TAKES = ('prompt', 'prompt_mix')


def text_to_image(tokens='words', length=0, vocabulary='', flip=False, encoder='', *, data=None, facts=None,
                  fitted=None, open_model=None):
  """x0: images in [-1, 1]; the condition: the tokens of a caption, int32 [B, L], and their weights, 0 for padding.

  A request is a `prompt`, one or several in turn, one on each line: 'a (red:1.5) dragon' gives a part another weight.
  Or a `prompt_mix`, such as '0.5 * a hero + 0.5 * a dragon'. The empty text asks for nothing.

  Args:
    tokens: words (of the training captions), bytes, or clip (byte pairs, from a vocabulary file).
    length: most tokens of a text, begin and end among them; longer ones are cut; 0: 24, 104 or 77.
    vocabulary: of clip, its file or folder (see text/bpe.py).
    flip: whether to mirror a random half of the training images, which suits captions without left and right.
    encoder: of a frozen encoder of texts, which brings its own tokenizer: the work directory of a CLIP, WORKDIR@STEP,
      or a folder of transformers (see tasks/frozen_text.py); '': the network's own is trained.
  """
  if tokens not in text.TOKENIZERS:
    raise InputError(f'tokens={tokens!r}: {unknown(tokens, text.TOKENIZERS)}')
  if encoder and (tokens, length, vocabulary) != ('words', 0, ''):
    raise InputError(f'encoder={encoder!r} brings its own tokenizer; leave tokens, length and vocabulary out')
  if data is not None:
    need(data, 'images', 'captions')
  frozen = open_encoder(encoder, open_model, facts or {}) if encoder and open_model else None
  if frozen:
    fitted, facts = frozen.tokenizer.fitted, facts or dict(tokens=frozen.tokenizer.facts, examples=[''])
  tokenizer = _tokenizer(tokens, length, vocabulary, data, facts, fitted)
  if data is not None:
    shape, classes = list(data.arrays['images'].shape[1:]), list(data.facts.get('classes', ()))
    facts = dict(shape=shape, tokens=tokenizer.facts, classes=classes, examples=_examples(data.arrays['captions']))
  facts = facts or dict(tokens=tokenizer.facts, examples=[''])
  encoded = partial(_encoded, tokenizer)
  task = Task(
    _batch, partial(_encode, flip), null=partial(_null, encoded('')), decode=_decode,
    ask=partial(_ask, encoded, facts['examples']), show=_show, save=_save, facts=facts, fitted=tokenizer.fitted,
    prepare=partial(_prepare, tokenizer), tiles=lambda outputs: outputs['images'], takes=TAKES, gives='images',
    bounds=(-1., 1.), levels=256, between=_between,
    evaluators=('loss', 'samples', 'text', 'clip_score', 'bound', 'ode'))
  return with_encoder(task, frozen) if frozen else task


def _batch(data, indices):
  names = [name for name in ('images', 'tokens', 'counts', 'same') if name in data.arrays]
  return {name: data.arrays[name][indices] for name in names}


def _encode(flip, frozen, key, batch):
  """(x0, cond); of several captions one is drawn, without a key the first is taken."""
  x0, row, chosen = to_unit(batch['images']), np.arange(len(batch['images'])), 0
  if 'tokens' not in batch:  # an image to edit
    return x0, None
  if key is not None:
    flip_key, choice_key = jax.random.split(key)
    x0 = mirror(flip_key, x0) if flip else x0
    chosen = jax.random.randint(choice_key, (len(x0),), 0, jnp.sum(batch['counts'] > 0, 1))
  ids, counts = batch['tokens'][row, chosen], batch['counts'][row, chosen]
  same = dict(same=batch['same'][row, chosen]) if 'same' in batch else {}  # of the task pairs
  return x0, dict(tokens=ids, weights=(np.arange(ids.shape[-1]) < counts[:, None]).astype(np.float32)) | same


def _decode(frozen, x0, cond):
  return dict(images=from_unit(x0))


def _tokenizer(kind, length, vocabulary, data, facts, fitted):
  """The Tokenizer of the captions of data, or the fitted one of a checkpoint, or of the model to start from."""
  if facts and fitted:
    return text.rebuild(facts['tokens'], fitted)
  if kind != 'clip' and vocabulary:
    raise InputError(f'vocabulary={vocabulary!r}: only tokens=clip has a vocabulary file; leave it empty')
  texts = np.ravel(data.arrays['captions'][:]).tolist() if data is not None and kind == 'words' else None
  given = dict(words=dict(texts=texts), bytes={}, clip=dict(path=vocabulary))[kind]
  return text.TOKENIZERS[kind](**given, **(dict(length=length) if length else {}), fitted=fitted or None)


def _examples(captions):
  """Different captions, evenly spread over the data."""
  spread = np.unique(np.linspace(0, len(captions) - 1, 4 * EXAMPLES).astype(int))
  some = dict.fromkeys(str(np.ravel(captions[i])[0]) for i in spread)
  return [caption for caption in some if caption][:EXAMPLES] or ['']


def _prepare(tokenizer, frozen, data):
  """The Dataset with the columns tokens, int32 [N, captions of an image, L], and counts, int32 [N, captions].

  Its fact `lost` has lines for the user: captions that are cut, words without an id.
  """
  captions = np.asarray(data.arrays['captions'][:])
  captions = captions[:, None] if captions.ndim == 1 else captions
  ids, counts, notes = text.tokenize(tokenizer, captions.ravel().tolist())
  absent = (captions == '') & (np.arange(captions.shape[1]) > 0)  # an image may have fewer captions than others
  counts = np.where(absent, 0, counts.reshape(captions.shape))
  return data._replace(arrays=data.arrays | dict(tokens=ids.reshape(*captions.shape, -1), counts=counts),
                       facts=data.facts | dict(lost=notes))


class Row(NamedTuple):
  """A text as the model takes it."""
  tokens: np.ndarray   # int32 [L]
  weights: np.ndarray  # float32 [L], 0 for padding
  notes: tuple = ()    # lines for the user


def _encoded(tokenizer, prompt, setting='prompt'):
  """The Row of a prompt."""
  if not prompt.strip():
    found, weights = tokenizer.encode(''), 1.
  else:
    found, weights = text.encode_weighted(tokenizer, prompt, setting)
  there = np.arange(len(found.ids)) < found.count
  return Row(found.ids, np.where(there, weights, 0.).astype(np.float32), tuple(text.notes(found, setting)))


def _null(empty, cond):
  """The empty text in place of each: the first token, whose weight no user sets, has the share of its text in a mix."""
  ids, weights = (jnp.broadcast_to(a, cond['tokens'].shape) for a in empty[:2])
  return dict(tokens=ids, weights=weights * cond['weights'][..., :1])


def _ask(encoded, examples, request, ids, seed):
  """Prompts in turn, or one mix for all."""
  if request.get('prompt_mix'):
    if request.get('prompt'):
      raise InputError(f'prompt_mix={request["prompt_mix"]!r} and prompt={request["prompt"]!r}: use one of them')
    terms = parse_terms(request['prompt_mix'], 'prompt_mix', 'a hero')
    if min(share for share, _ in terms) < 0:
      raise InputError(f'prompt_mix={request["prompt_mix"]!r}: a weight is below 0; to lead away from a text, use '
                       "config.guide='cfg(3, negative=TEXT)'")
    rows = [encoded(prompt, 'prompt_mix') for _, prompt in terms]
    cond = dict(tokens=np.stack([row.tokens for row in rows]),
                weights=np.stack([np.float32(share) * row.weights for (share, _), row in zip(terms, rows)]))
    return Asked(jax.tree.map(lambda a: np.repeat(a[None], len(ids), 0), cond), None, notes=_notes(rows))
  prompts = prompts_of(request.get('prompt', ''), examples)
  rows = [encoded(prompt) for prompt in prompts]
  index = np.asarray(ids) % len(prompts)  # sample k has the same prompt for any number
  cond = dict(tokens=np.stack([row.tokens for row in rows])[index],
              weights=np.stack([row.weights for row in rows])[index])
  return Asked(cond, [prompts[i] for i in index], notes=_notes(rows))


def _between(a, b, shares):
  """Both texts, the weights of one's tokens falling and those of the other's rising."""
  both = {name: np.repeat(np.stack([a[name], b[name]], 1), len(shares), 0) for name in a}
  falling = np.stack([1 - np.asarray(shares), shares], 1)[..., None]
  return both | dict(weights=(both['weights'] * falling).astype(np.float32))


def _notes(rows):
  return tuple(dict.fromkeys(note for row in rows for note in row.notes))


def prompts_of(asked, examples=('',)):
  """The prompts of a request: a text with one on each line, or a list of texts; '' is the examples."""
  prompts = [line.strip() for line in asked.split('\n') if line.strip()] if isinstance(asked, str) else list(asked)
  if not all(isinstance(prompt, str) for prompt in prompts):
    raise InputError(f'prompt={asked!r}: expected a text, or a list of texts')
  return ['' if prompt == 'none' else prompt for prompt in prompts] or list(examples)


def _show(outputs, labels, title):
  return captioned_page(outputs['images'], labels or [''] * len(outputs['images']), title)


def _save(folder, outputs, cond, labels):
  """samples.npz: images uint8 [N, H, W, C], the tokens and weights asked for; prompts.txt: a prompt on each line."""
  write_npz(folder / 'samples.npz', outputs | (cond or {}))
  if labels:
    write_atomic(folder / 'prompts.txt', '\n'.join([*labels, '']).encode())
