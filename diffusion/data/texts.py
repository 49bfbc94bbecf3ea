"""The user's own texts: one for each line of a file, or pieces of one long text."""
import numpy as np

from diffusion.data import holdout
from diffusion.data.dataset import Dataset, Source, take
from diffusion.errors import InputError
from diffusion.system.files import read_text, user_path


def text(path, length=0, heldout=.05, seed=0):
  """A text file: column `captions`, strings.

  Args:
    path: of the file, in UTF-8.
    length: 0: each line that is not empty is a text. Else pieces of so many characters, one after the other, and
      those at the end of the file are held out, as is usual for text8.
    heldout: a number of texts (int) or a fraction of them (float); equal lines stay on one side.
    seed: other seeds hold out other lines.
  Raises:
    InputError: a file that cannot be read, is no text, or is too short.
  """
  if isinstance(length, bool) or not isinstance(length, int) or length < 0:
    raise InputError(f'{path}: length={length!r}: expected a number of characters, or 0 for lines')
  whole = read_text(user_path(path))
  if not length:
    texts = [line.strip() for line in whole.splitlines() if line.strip()]
    return holdout.split(_dataset(texts), heldout, seed, path)
  texts = [whole[i:i + length] for i in range(0, len(whole) - length + 1, length)]
  number = holdout.number_of(heldout, len(texts), path, f'pieces of {length} characters')
  if number == len(texts):
    raise InputError(f'{path}: heldout={heldout} leaves none of {len(texts)} pieces to train on')
  data, last = _dataset(texts), np.arange(len(texts)) >= len(texts) - number
  return Source(take(data, ~last), take(data, last))


def _dataset(texts):
  return Dataset(dict(captions=np.array(texts, np.dtypes.StringDType())))
