"""Texts as tokens: words or characters, of a vocabulary that the training texts have."""
import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from diffusion.data.dataset import condition_vectors, first_captions
from diffusion.errors import InputError
from diffusion.system.files import write_atomic, write_npz
from diffusion.tasks.base import need, Task
from diffusion.tasks.classes import ask_classes, class_facts, TAKES
from diffusion.tasks.fonts import font_of

UNITS = dict(word=r"\s?[\w'-]+|\s?[^\w\s]|\s", character=r'(?s).')  # a token keeps the space before it
END, UNKNOWN = '', '\ufffd'  # token 0, which fills a text up to the length of x0, and token 1
BLANK, FREE, MASK = '_', -1, '░'
SHOWN, WIDTH = 40, 900  # texts on a page, and its width in pixels


def words(unit='word', length=0, most=50_000, *, data=None, facts=None):
  """x0: tokens int32 [length, 1] of the column `captions`; the condition: None, or a class.

  A request may give a `text` with blanks to fill, such as 'a _ hero with _': one blank for each token.

  Args:
    unit: word or character.
    length: tokens of a text; longer ones are cut; 0: those of the longest training text.
    most: tokens in the vocabulary, the most frequent of the training texts; others become one unknown token.
  """
  if unit not in UNITS:
    raise InputError(f'unit={unit!r}: expected one of {", ".join(UNITS)}')
  if data is not None:
    need(data, 'captions')
    facts = _measured(data, unit, length, most) | class_facts(data)
  facts = facts or dict(vocabulary=[END, UNKNOWN], length=1, classes=[])
  vocabulary, length, classes = facts['vocabulary'], facts['length'], tuple(facts['classes'])
  tokens_of = _tokenizer(unit, vocabulary, length)

  def batch(data, indices):
    conditional = dict(cond=condition_vectors(data.arrays['labels'][indices], classes)) if classes else {}
    return dict(tokens=data.arrays['tokens'][indices]) | conditional

  def texts(outputs):
    shown = [*vocabulary, MASK]
    return [''.join(shown[i] for i in row[:, 0]).strip() for row in np.asarray(outputs['texts'])]

  def save(folder, outputs, cond, labels):
    _save(folder, texts(outputs), outputs['texts'], labels, vocabulary)

  return Task(
    batch, lambda frozen, key, batch: (batch['tokens'], batch.get('cond')), null=unasked,
    decode=lambda frozen, x0, cond: dict(texts=x0), ask=_ask(facts, tokens_of, unit),
    prepare=_prepare(facts, tokens_of, unit), save=save,
    show=lambda outputs, labels, title: page(texts(outputs), labels, title), result=texts, facts=facts,
    takes=(*TAKES, 'text'), gives='texts', categories=len(vocabulary), evaluators=('loss', 'nelbo'))


def _tokenizer(unit, vocabulary, length):
  """The function text -> tokens int32 [length, 1]."""
  number = {token: i for i, token in enumerate(vocabulary)}
  def tokens_of(text):
    found = [number.get(token, 1) for token in re.findall(UNITS[unit], text)[:length]]
    return np.array(found + [0] * (length - len(found)), np.int32)[:, None]
  return tokens_of


def _prepare(facts, tokens_of, unit):
  """The function that adds the column `tokens`, int32 [N, length, 1]."""
  vocabulary, length = facts['vocabulary'], facts['length']
  def prepare(frozen, data):
    texts = first_captions(data)[:].tolist()
    words = lambda: np.array([tokens_of(text) for text in texts], np.int32).reshape(-1, length, 1)
    column = _characters(texts, vocabulary, length) if unit == 'character' else words()
    return data._replace(arrays=data.arrays | dict(tokens=column))
  return prepare


def _ask(facts, tokens_of, unit):
  def ask(request, ids, seed):
    asked, text = ask_classes(facts)(request, ids, seed), request.get('text', '')
    if not text:
      return asked
    known = _with_blanks(text, tokens_of, unit, facts['length'], facts['vocabulary'])
    named = {} if asked.cond is None else dict(cond=asked.cond)
    return asked._replace(cond=named | dict(known=np.repeat(known[None], len(ids), 0)))
  return ask


def unasked(cond):
  """The condition without a request; tokens that are known stay known."""
  known = dict(known=cond['known']) if isinstance(cond, dict) and 'known' in cond else {}
  zeros = jax.tree.map(jnp.zeros_like, cond)
  return zeros | known if known else zeros


def _measured(data, unit, length, most):
  count, longest = collections.Counter(), 0
  for text in first_captions(data)[:].tolist():
    found = text if unit == 'character' else re.findall(UNITS[unit], text)
    count.update(found)
    longest = max(longest, len(found))
  vocabulary = [END, UNKNOWN, *sorted(token for token, _ in count.most_common(most - 2))]
  return dict(vocabulary=vocabulary, length=length or longest, unit=unit)


def _characters(texts, vocabulary, length):
  """Tokens int32 [N, length, 1] of characters, all at once: a corpus has hundreds of millions."""
  codes = np.array(texts, f'U{length}').view(np.uint32).reshape(-1, length)
  known = np.array([ord(token) for token in vocabulary[2:]], np.uint32)  # in ascending order
  place = np.minimum(np.searchsorted(known, codes), len(known) - 1)
  return np.where(codes == 0, 0, np.where(known[place] == codes, place + 2, 1)).astype(np.int32)[..., None]


def _with_blanks(text, tokens_of, unit, length, vocabulary):
  """Tokens [length, 1] of a text, FREE where it has a blank."""
  if not isinstance(text, str) or len(re.findall(UNITS[unit], text)) > length:
    raise InputError(f'text={text!r}: expected a text of at most {length} tokens, with {BLANK} for each to be filled')
  split = re.findall(UNITS[unit], text)
  tokens = tokens_of(text)
  blank = np.array([token.strip() == BLANK for token in split] + [False] * (length - len(split)))[:, None]
  unknown = [token for token, i, free in zip(split, tokens[:, 0], blank[:, 0]) if i == 1 and not free]
  if unknown:
    where = 'at the beginning of' if ' ' + unknown[0] in vocabulary else 'in'
    name = unknown[0].strip() or unknown[0]
    raise InputError(f'text={text!r}: {name!r} does not occur {where} the training texts; write {BLANK} where '
                     f'the model is to choose, or words such as {", ".join(map(repr, vocabulary[2:8]))}')
  return np.where(blank, FREE, tokens)


def _save(folder, texts, tokens, labels, vocabulary):
  """samples.txt: a text on each line; labels.txt: the class of each; samples.npz: the tokens and what they mean."""
  lines = [text.replace('\n', ' ') for text in texts]
  write_atomic(folder / 'samples.txt', '\n'.join([*lines, '']).encode())
  if labels:
    write_atomic(folder / 'labels.txt', '\n'.join([*labels, '']).encode())
  write_npz(folder / 'samples.npz', dict(tokens=tokens, vocabulary=np.array(vocabulary)))


def page(texts, labels, title):
  """The first texts as lines, under their class where there is one."""
  shown = texts[:SHOWN]
  lines = [title, ''] + [f'{label}: {text}' if labels else text
                         for label, text in zip(labels or [''] * len(shown), shown)]
  lines += [f'and {len(texts) - SHOWN} more'] * (len(texts) > SHOWN)
  image = Image.new('RGB', (WIDTH, 12 + 20 * len(lines)), 'white')
  draw = ImageDraw.Draw(image)
  for i, line in enumerate(lines):
    font, line = font_of(line, 14)
    draw.text((8, 6 + 20 * i), line, 'black' if i else '#777777', font)
  return image
