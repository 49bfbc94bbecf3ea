"""Weights of parts of a prompt: `a (red:1.5) dragon with (two eyes:0.5)`."""
import math
import re

import numpy as np

from diffusion.errors import InputError
from diffusion.text.base import require, valid


def weighted(text, setting='prompt'):
  """A prompt -> [(part, weight)]; the parts one after the other are the plain text.

  `(part:weight)` gives a part a weight of at least 0, the text outside 1. Brackets stand in each other nowhere; those
  without a colon are plain text. \\( and \\) and \\\\ are a bracket and a backslash of the plain text.

  Raises:
    InputError: brackets inside brackets or without their other half, a weight that is no number of at least 0, nothing
      before the colon; names `setting`.
  """
  def refuse(problem):
    raise InputError(f'{setting}={text[:80]!r}: {problem}; expected (part:1.5), and \\( for a bracket of the text')
  text = valid(text, setting)
  parts, inside = [('', 1.)], None  # inside: what a bracket holds so far
  for token in re.findall(r'\\[()\\]|[()]|[^()\\]+|\\', text):
    if token == '(' and inside is not None:
      refuse(f'a bracket inside that of {inside[:30]!r}')
    elif token == '(':
      inside = ''
    elif token == ')' and inside is None:
      refuse('a bracket is closed that is not open')
    elif token == ')':
      parts.append(_part(inside, refuse))
      inside = None
    elif inside is None:
      parts.append((token[-1] if token[0] == '\\' else token, 1.))
    else:
      inside += token[-1] if token[0] == '\\' else token
  if inside is not None:
    refuse(f'the bracket of {inside[:30]!r} is not closed')
  return _joined(parts)


def _part(inside, refuse):
  """(text, weight) of what stands in brackets."""
  part, colon, number = inside.rpartition(':')
  if not colon:
    return f'({inside})', 1.
  try:
    weight = float(number)
  except ValueError:
    refuse(f'{number.strip()!r} is no number')
  if not 0 <= weight < math.inf:
    refuse(f'the weight {number.strip()} is not a number of at least 0')
  if not part.strip():
    refuse(f'({inside}) has no text before its weight')
  return part, weight


def _joined(parts):
  """The same with neighbours of weight 1 as one part, and without empty ones."""
  joined = []
  for part, weight in parts:
    if joined and joined[-1][1] == weight == 1:
      joined[-1] = joined[-1][0] + part, weight
    else:
      joined.append((part, weight))
  return [(part, weight) for part, weight in joined if part]


def encode_weighted(tokenizer, text, setting='prompt'):
  """A prompt with weights -> (Encoded of its plain text, weights float32 [length]; begin, end and padding have 1).

  Raises:
    InputError: as `weighted` and `require`; brackets that cut a token in two.
  """
  parts = weighted(text, setting)
  found = require(tokenizer, ''.join(part for part, _ in parts), setting)
  weights, before, done = np.ones(len(found.ids), np.float32), '', 1
  for part, weight in parts:
    before += part
    so_far = tokenizer.encode(before)
    end = so_far.count - 1  # the ids of the text up to here are the first of the whole, if no token is cut
    if (so_far.ids[:end] != found.ids[:end]).any():
      raise InputError(f'{setting}={text[:80]!r}: {part[-30:]!r} ends in a word or a run of signs; take in all of it')
    weights[done:end] = weight
    done = end
  return found, weights
