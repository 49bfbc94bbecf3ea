"""The two forms in which CLIP's vocabulary is published, read and checked."""
import gzip
import json
import zlib

from diffusion.errors import InputError
from diffusion.system.files import user_path

START, STOP, WORD_END = '<|startoftext|>', '<|endoftext|>', '</w>'
MERGES = 49152 - 256 - 2  # lines used of bpe_simple_vocab_16e6.txt, which has more
EXPECTED = ("CLIP's bpe_simple_vocab_16e6.txt, as it is or .gz, or a folder with vocab.json and merges.txt, or "
            'tokenizer.json')
_VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that Latin-1 shows
_HIDDEN = sorted({*range(256)} - {*_VISIBLE})
BYTE_ORDER = [*_VISIBLE, *_HIDDEN]  # of the first 256 ids
BYTE_SYMBOLS = [chr(256 + _HIDDEN.index(byte)) if byte in _HIDDEN else chr(byte) for byte in range(256)]
SYMBOLS = [BYTE_SYMBOLS[byte] + end for end in ('', WORD_END) for byte in BYTE_ORDER]


def read(path):
  """A published vocabulary -> (tokens by id, list of str; pairs to merge by rank, list of (str, str)).

  Raises:
    InputError: it cannot be read, is no such file or not whole, or its two files do not belong together.
  """
  if not path or not isinstance(path, str):
    raise InputError(f'clip(path={path!r}): expected {EXPECTED}')
  where = user_path(path)
  if where.is_dir() and not (where / 'vocab.json').exists() and (where / 'tokenizer.json').exists():
    tokens, merges = _of_one_file(where / 'tokenizer.json')
  elif where.is_dir():
    merges = _pairs(_text(where / 'merges.txt'), where / 'merges.txt')
    tokens = _numbered(_text(where / 'vocab.json'), where / 'vocab.json')
  else:
    merges = _pairs(_text(where), where, MERGES)
    tokens = [*SYMBOLS, *(a + b for a, b in merges), START, STOP]
  _check(tokens, merges, where)
  return tokens, merges


def _text(path):
  """The text of a file that may be packed by gzip."""
  try:
    data = path.read_bytes()
    return (gzip.decompress(data) if data[:2] == b'\x1f\x8b' else data).decode('utf-8-sig')
  except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
    reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
    raise InputError(f'{path} cannot be read ({reason}); expected {EXPECTED}') from error


def _pairs(text, path, most=None):
  """The first `most` pairs of a file with one on each line after a header; all of them if None."""
  lines = text.rstrip().split('\n')
  if '#version' not in lines[0]:
    raise InputError(f'{path}: the first line {lines[0][:60]!r} has no #version; expected {EXPECTED}')
  pairs = [tuple(line.split()) for line in lines[1:][:most]]
  wrong = next((i for i, pair in enumerate(pairs) if len(pair) != 2), None)
  if wrong is not None:
    raise InputError(f'{path}, line {wrong + 2}: {lines[wrong + 1][:60]!r} is no pair to merge; expected {EXPECTED}')
  if most and len(pairs) < most:
    raise InputError(f'{path} has {len(pairs)} pairs to merge, not {most} or more: it is not complete; get it again')
  return pairs


def _of_one_file(path):
  """(tokens, merges) of the file that transformers 5 writes instead of both."""
  try:
    model = json.loads(_text(path))['model']
    pairs = [tuple(pair.split() if isinstance(pair, str) else pair) for pair in model['merges']]
    return _numbered(json.dumps(model['vocab']), path), [(a, b) for a, b in pairs]
  except (ValueError, TypeError, KeyError, RecursionError) as error:
    raise InputError(f'{path} is not the tokenizer.json of byte pairs; expected {EXPECTED}') from error


def _numbered(text, path):
  """The tokens of vocab.json in the order of their ids."""
  try:
    number = json.loads(text)
    tokens = sorted(number, key=number.get)
    whole = [number[token] for token in tokens] == list(range(len(tokens)))
  except (ValueError, TypeError, AttributeError, RecursionError) as error:
    raise InputError(f'{path} is not JSON of the form {{"token": id, ..}}; expected {EXPECTED}') from error
  if not whole:
    raise InputError(f'{path}: the ids of {len(tokens)} tokens are not 0 to {len(tokens) - 1}, each once; get it again')
  return tokens


def _check(tokens, merges, path):
  """Raises InputError unless the tokens are all bytes, begin and end, what the merges give, and names in <>."""
  known = set(tokens)
  missing = [token for token in (*SYMBOLS, START, STOP) if token not in known]
  if missing:
    raise InputError(f'{path} lacks the tokens {", ".join(map(repr, missing[:3]))} ({len(missing)} of those of all '
                     f"bytes, begin and end): it is not CLIP's; expected {EXPECTED}")
  if len(known) < len(tokens):
    raise InputError(f'{path}: two pairs give the same token; expected {EXPECTED}')
  wrong = next(((a, b) for a, b in merges if not known.issuperset((a, b, a + b))), None)
  if wrong:
    raise InputError(f'{path}: a part of the pair {wrong[0]!r} {wrong[1]!r}, or what it gives, is no token: it is '
                     'damaged, or vocab.json and merges.txt are not of one tokenizer; get it again')
  made = {*SYMBOLS, *(a + b for a, b in merges)}
  idle = [token for token in tokens if token not in made and not (token[:1] == '<' and token[-1:] == '>')]
  if idle:
    raise InputError(f'{path}: no pair of merges.txt gives {idle[0]!r} of vocab.json ({len(idle)} such tokens): '
                     'merges.txt is not complete, or of another tokenizer; get both from one place')
