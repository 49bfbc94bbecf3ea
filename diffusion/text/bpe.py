"""Tokens that are CLIP's: pairs of bytes that are often neighbours, merged in the order of a given vocabulary.

Radford et al. 2021, arXiv:2103.00020, section 2.4; byte pairs as in Sennrich et al. 2016, arXiv:1508.07909.
"""
import functools
import heapq
import html
import itertools
import re
import unicodedata

import numpy as np

from diffusion.errors import InputError
from diffusion.system.tensors import digest
from diffusion.text.base import check_whole, Encoded, framed, packed, Tokenizer, unpacked, valid
from diffusion.text.bpe_files import BYTE_SYMBOLS, read, START, STOP, WORD_END

FIXED = re.compile(re.escape(START) + '|' + re.escape(STOP) + "|'s|'t|'re|'ve|'m|'ll|'d", re.IGNORECASE)
RUN = re.compile('L+|N|O+')
BYTE = {symbol: byte for byte, symbol in enumerate(BYTE_SYMBOLS)}


def clip(path='', length=77, pad='end', *, fitted=None):
  """The Tokenizer of CLIP and of the models that read its texts, from the vocabulary file of one.

  Texts are cleaned by `clean`. The original first repairs the text with the package ftfy (wrongly decoded characters,
  curly quotes, ligatures); that is left out on every machine, so that ids do not depend on what is installed. No word
  is unknown: there are all bytes. `<|endoftext|>` in a text is the end, as in the original.

  Args:
    path: `bpe_simple_vocab_16e6.txt`, or .gz, or a folder with `vocab.json` and `merges.txt`.
    length: ids of a text, begin and end among them.
    pad: after the end: 'end', the id of the end again, as in Stable Diffusion 1, or 0, as in CLIP, OpenCLIP and
      Stable Diffusion 2. 0 is also the id of '!': `count` tells which ids are padding.
    fitted: that of an earlier one, instead of `path`.
  Raises:
    InputError: another length or pad; a file that cannot be read or is no such vocabulary.
  """
  check_whole('clip', 3, length=length)
  if pad != 'end' and (pad != 0 or isinstance(pad, bool)):
    raise InputError(f"clip(pad={pad!r}): expected 'end' (Stable Diffusion 1) or 0 (CLIP, OpenCLIP, SD 2)")
  tokens, merges = _restored(fitted) if fitted else read(path)
  number = {token: i for i, token in enumerate(tokens)}
  begin, end, parts = number[START], number[STOP], _parts(number, merges)

  def encode(text):
    found = [part for word in clean(text).split() for part in parts(word)]
    ids = [i for _, part in found for i in part]
    ends = itertools.accumulate(len(part) for _, part in found)
    cut = ' '.join(piece for (piece, _), last in zip(found, ends) if last > length - 2)
    return Encoded(*framed(ids, length, begin, end, end if pad == 'end' else 0), (), cut, len(ids) + 2)

  def decode(ids):
    text = itertools.takewhile(lambda i: i != end, (i for i in ids if i != begin))
    return b''.join(spelled(tokens[i]) for i in text).decode(errors='replace').strip()

  fitted = dict(vocabulary=packed(tokens),
                merges=np.array([[number[a], number[b]] for a, b in merges], np.int32).reshape(-1, 2))
  facts = dict(kind='clip', length=length, size=len(tokens), pad=pad, vocabulary=digest(fitted))
  return Tokenizer(encode, decode, len(tokens), facts, fitted)


def _parts(number, merges):
  """The function: a text without spaces -> ((piece, its ids), ..)."""
  ranks = {pair: rank for rank, pair in enumerate(merges)}
  tokens = lambda piece: [piece] if piece in (START, STOP) else merged(symbols(piece), ranks)
  @functools.lru_cache(1 << 16)
  def parts(word):
    return tuple((piece, [number[token] for token in tokens(piece)]) for piece in pieces(word))
  return parts


def clean(text):
  """The text in Unicode form NFC, HTML entities resolved twice, runs of spaces as one, in lower case."""
  text = html.unescape(html.unescape(unicodedata.normalize('NFC', valid(text))))
  return ' '.join(text.split()).lower()


def pieces(word):
  """The parts of a text without spaces, each merged by itself: endings ('s), runs of letters, digits, other runs."""
  kinds, found, start = ''.join(map(_kind, word)), [], 0
  while start < len(word):
    end = (FIXED.match(word, start) or RUN.match(kinds, start)).end()
    found.append(word[start:end])
    start = end
  return found


@functools.cache
def _kind(character):
  """L letter, N number, O other."""
  kind = unicodedata.category(character)[0]
  return kind if kind in 'LN' else 'O'


def symbols(piece):
  """A symbol for each byte of a piece, the last marked as the end of a word."""
  found = [BYTE_SYMBOLS[byte] for byte in piece.encode()]
  return [*found[:-1], found[-1] + WORD_END]


def spelled(token):
  """The bytes of a token, a space after the end of a word."""
  inside = token.removesuffix(WORD_END)
  return bytes(BYTE[symbol] for symbol in inside) + b' ' * (inside != token)


def merged(symbols, ranks):
  """The symbols after merging neighbours, those of the lowest rank first, from the left.

  A heap of the pairs, so that n symbols take n log n steps: a text without spaces may be long.
  """
  symbols, n = [*symbols], len(symbols)  # None: it is part of an earlier one
  before, after = [*range(-1, n - 1)], [*range(1, n + 1)]
  heap = [(ranks[pair], i) for i, pair in enumerate(zip(symbols, symbols[1:])) if pair in ranks]
  heapq.heapify(heap)
  while heap:
    rank, i = heapq.heappop(heap)
    j = after[i]
    if j == n or ranks.get((symbols[i], symbols[j])) != rank:  # one of both has been merged since
      continue
    symbols[i] += symbols[j]
    symbols[j], after[i] = None, after[j]
    if after[i] < n:
      before[after[i]] = i
    for k in (before[i], i):
      if k >= 0 and after[k] < n and (symbols[k], symbols[after[k]]) in ranks:
        heapq.heappush(heap, (ranks[symbols[k], symbols[after[k]]], k))
  return [symbol for symbol in symbols if symbol is not None]


def _restored(fitted):
  tokens = unpacked(fitted['vocabulary'])
  return tokens, [(tokens[a], tokens[b]) for a, b in fitted['merges'].tolist()]
