"""Made-up vocabularies in the forms in which CLIP's is published, and texts for them."""
import gzip
import json
import random
import unicodedata

ALPHABET = 'abcdé'
PUBLISHED = 48_894  # merges of CLIP's
_SHOWN = [byte for byte in range(256) if chr(byte).isprintable() and byte != 32]
_REST = [byte for byte in range(256) if byte not in _SHOWN]
SYMBOL = {byte: chr(byte) for byte in _SHOWN} | {byte: chr(256 + i) for i, byte in enumerate(_REST)}
BASE = [*SYMBOL.values(), *(symbol + '</w>' for symbol in SYMBOL.values())]


def merges(count, seed=0):
  """Pairs (a, b) of symbols of ALPHABET; both parts are earlier ones, and no two give the same."""
  rng = random.Random(seed)
  inner = sorted({SYMBOL[byte] for byte in ALPHABET.encode()})
  left, right, seen, pairs = inner[:], [*inner, *(symbol + '</w>' for symbol in inner)], set(), []
  while len(pairs) < count:
    pair = rng.choice(left), rng.choice(right)
    whole = ''.join(pair)
    if whole not in seen:
      seen.add(whole)
      pairs.append(pair)
      size = len(whole.removesuffix('</w>'))
      left += [whole] * (whole[-1] != '>' and size <= 3)
      right += [whole] * (size <= 4)
  return pairs


def write_text(path, pairs):
  """The one-file form, with lines after the merges that are not used; packed where the name ends in .gz."""
  lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *map(' '.join, pairs), 'not used', 'nor this']
  data = '\n'.join([*lines, '']).encode()
  path.write_bytes(gzip.compress(data, 1) if path.suffix == '.gz' else data)
  return str(path)


def tokens(pairs):
  """All tokens in the published order."""
  return [*BASE, *(a + b for a, b in pairs), '<|startoftext|>', '<|endoftext|>']


def write_folder(path, pairs, order=None):
  """The two-file form; `order`: the tokens by id."""
  path.mkdir()
  (path / 'vocab.json').write_text(json.dumps({token: i for i, token in enumerate(order or tokens(pairs))}))
  (path / 'merges.txt').write_text('\n'.join(['#version: 0.2', *map(' '.join, pairs), '']), encoding='utf-8')
  return str(path)


def random_words(count, seed=0, letters=ALPHABET, longest=12):
  rng = random.Random(seed)
  return [''.join(rng.choices(letters, k=rng.randint(1, longest))) for _ in range(count)]


def random_unicode(count, seed=0):
  """Texts of 1 to 40 characters of every plane that is in use, spaces among them; no half or control characters."""
  rng, texts = random.Random(seed), []
  for _ in range(count):
    top = rng.choice((0x7f, 0x250, 0x3000, 0x10000, 0x20000))
    found = (chr(rng.randrange(32, top)) for _ in range(rng.randint(1, 40)))
    texts.append(''.join(c for c in found if unicodedata.category(c) not in ('Cs', 'Cc', 'Cn') and c != '&'))
  return texts
