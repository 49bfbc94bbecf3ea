"""Tokens that are the words and punctuation of the training texts."""
import collections
import functools
import re
import unicodedata

from diffusion.system.tensors import digest
from diffusion.text.base import (check_whole, Encoded, framed, packed, SPECIALS, Tokenizer, UNKNOWN, UNKNOWN_SIGN,
                                 unpacked, valid)


def words(texts=None, length=24, most=50_000, *, fitted=None):
  """The Tokenizer of the words of training texts, the most frequent first, equally frequent ones by their characters.

  Id 0 is padding, 1 begin, 2 end, 3 every word that the vocabulary lacks. Words of languages that are written without
  spaces are not found: `bytes` and `clip` take those.

  Args:
    texts: of the training data; None: no words.
    length: ids of a text, begin and end among them.
    most: words in the vocabulary.
    fitted: that of an earlier one, which then has the vocabulary.
  Raises:
    InputError: a length below 3, or something that is no text.
  """
  check_whole('words', 3, length=length)
  check_whole('words', 1, most=most)
  vocabulary = unpacked(fitted['vocabulary']) if fitted else _most_frequent(texts or (), most)
  number = {word: i for i, word in enumerate(vocabulary, SPECIALS)}

  def encode(text):
    found = split(text)
    kept, cut = found[:length - 2], ' '.join(found[length - 2:])
    strange = tuple(dict.fromkeys(word for word in kept if word not in number))
    ids, count = framed([number.get(word, UNKNOWN) for word in kept], length)
    return Encoded(ids, count, strange, cut, len(found) + 2)

  def decode(ids):
    return ' '.join(UNKNOWN_SIGN if i == UNKNOWN else vocabulary[i - SPECIALS] for i in ids if i >= UNKNOWN)

  fitted = dict(vocabulary=packed(vocabulary))
  size = SPECIALS + len(vocabulary)
  facts = dict(kind='words', length=length, size=size, vocabulary=digest(fitted))
  return Tokenizer(encode, decode, size, facts, fitted)


def split(text):
  """Words and signs of a text in Unicode form NFC and in lower case; cleaned, a text is these with spaces between.

  A word is a run of letters, accents, digits and _, with ' or - inside it: don't, two-headed.
  """
  return [word for chunk in unicodedata.normalize('NFC', valid(text)).lower().split() for word in _words_in(chunk)]


@functools.lru_cache(1 << 16)
def _words_in(chunk):
  """The words and signs of a text without spaces."""
  kinds = ''.join(map(_kind, chunk))
  return tuple(chunk[found.start():found.end()] for found in re.finditer('w+(?:-w+)*|.', kinds))


@functools.cache
def _kind(character):
  """w in words, - inside words too, . a sign."""
  if character in "'’-":
    return '-'
  return 'w' if unicodedata.category(character)[0] in 'LMN' or character == '_' else '.'


def _most_frequent(texts, most):
  count = collections.Counter()
  for text in texts:
    count.update(split(text))
  return sorted(count, key=lambda word: (-count[word], word))[:most]
