"""What a tokenizer is, and what is told to the user about texts that it does not hold or know."""
import collections
import difflib
import re
from typing import Callable, NamedTuple

import numpy as np

from diffusion.errors import InputError, unknown

PADDING, BEGIN, END, UNKNOWN = range(4)  # ids of our own vocabularies; others begin at SPECIALS
SPECIALS = 4
UNKNOWN_SIGN = '\ufffd'  # what an unknown word is decoded to
SHOWN = 5  # words named in a message


class Encoded(NamedTuple):
  """A text as ids. What is padding follows from `count`, so that its id may be that of a token too."""
  ids: np.ndarray  # int32 [length]: begin, the text, end, padding
  count: int       # ids that are not padding, begin and end among them; the end is at count - 1
  unknown: tuple   # words without an id, each once
  cut: str         # what did not fit, '' if all did
  needed: int      # the count that the whole text has


class Tokenizer(NamedTuple):
  """Texts to ids and back."""
  encode: Callable  # text -> Encoded; InputError for what is no text
  decode: Callable  # ids, padded or not -> text, as the tokenizer cleans it
  size: int         # number of ids
  facts: dict       # JSON: kind, length, size, hash of the vocabulary; in the checkpoint, equal on resume
  fitted: dict      # {name: NumPy array}: the vocabulary, for `rebuild`; in the checkpoint


def framed(ids, length, begin=BEGIN, end=END, pad=PADDING):
  """Ids of a text -> (int32 [length], count): between begin and end, which stay where the text is cut, then padding."""
  row, count = np.full(length, pad, np.int32), min(len(ids) + 2, length)
  row[:count] = [begin, *ids[:length - 2], end]
  return row, count


def valid(text, name='a text'):
  """The text, half characters (surrogates) replaced by U+FFFD. Raises InputError for anything but a str."""
  if not isinstance(text, str):
    raise InputError(f'{name}: expected a text, got {str(text)[:60]!r} of type {type(text).__name__}')
  return re.sub('[\ud800-\udfff]', '\ufffd', text)


def check_whole(name, least, **arguments):
  """Raises InputError for an argument of the tokenizer `name` that is not a whole number of at least `least`."""
  for argument, value in arguments.items():
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
      raise InputError(f'{name}({argument}={value!r}): expected a whole number of at least {least}')


def packed(words):
  """Words without line ends -> uint8 [bytes], one on each line."""
  return np.frombuffer('\n'.join(words).encode(), np.uint8)


def unpacked(array):
  """The inverse of packed."""
  text = array.tobytes().decode()
  return text.split('\n') if text else []


def tokenize(tokenizer, texts):
  """The texts of a data set -> (ids int32 [N, length], counts int32 [N], notes: lines for the user).

  The notes say how many texts are cut and how long the longest is, and which words have no id.

  Raises:
    InputError: an entry is no text; says which.
  """
  texts = list(texts)
  ids = np.zeros((len(texts), tokenizer.facts['length']), np.int32)
  counts, needed = np.zeros(len(texts), np.int32), np.zeros(len(texts), np.int64)
  strange, affected = collections.Counter(), 0
  for i, text in enumerate(texts):
    found = tokenizer.encode(valid(text, f'text {i}'))
    ids[i], counts[i], needed[i] = found.ids, found.count, found.needed
    strange.update(found.unknown)
    affected += bool(found.unknown)
  lines, over = [], needed > ids.shape[1]
  if over.any():
    longest = texts[needed.argmax()]
    lines.append(f'{over.sum()} of {len(texts)} texts are cut to {ids.shape[1]} tokens; the longest needs '
                 f'{needed.max()}: {_short(longest)!r} loses {_short(tokenizer.encode(longest).cut)!r}')
  if strange:
    lines.append(f'{affected} of {len(texts)} texts have words that the vocabulary lacks: '
                 + _listed([word for word, _ in strange.most_common()]))
  return ids, counts, lines


def require(tokenizer, text, setting):
  """The Encoded of a user's text; `notes` says what of it is lost.

  Raises:
    InputError: it is no text, or all its words are unknown; names `setting`, the words, and some that are known.
  """
  found = tokenizer.encode(valid(text, setting))
  known = tokenizer.decode(found.ids).replace(UNKNOWN_SIGN, '')
  if found.unknown and not any(map(str.isalnum, known)):
    vocabulary = unpacked(tokenizer.fitted['vocabulary'])
    near = [word for name in found.unknown[:SHOWN] for word in difflib.get_close_matches(name, vocabulary, 2)]
    names = list(dict.fromkeys([*near, *filter(str.isalpha, vocabulary)]))[:len(near) + SHOWN]
    raise InputError(f'{setting}={_short(text)!r} has no word that occurs in the training texts: '
                     f'{unknown(found.unknown[0], names)} and {len(vocabulary) - len(names)} more')
  return found


def notes(found, setting):
  """Lines for the user on what an Encoded lost of the text given as `setting`."""
  lines = [f'{setting}: the training texts lack {_listed(found.unknown)}, which the model sees as unknown'
           ] if found.unknown else []
  if found.cut:
    lines.append(f'{setting}: {_short(found.cut, 200)!r} is left out; the whole text needs {found.needed} tokens, '
                 f'and the model takes {len(found.ids)}')
  return lines


def _short(text, most=60):
  return text if len(text) <= most else text[:most - 2] + '..'


def _listed(words):
  more = len(words) - SHOWN
  return ', '.join(repr(_short(word)) for word in words[:SHOWN]) + (f' and {more} more' if more > 0 else '')
