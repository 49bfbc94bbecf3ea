"""Which pictures are held out: decided by the picture, so that none is on both sides."""
import hashlib

import numpy as np

from diffusion.data.dataset import check, in_memory, Source, take
from diffusion.errors import InputError


def fingerprint(image, salt=''):
  """64-bit hash (int) of uint8 [H, W, C], the same for a picture and its mirror image."""
  data = min(image.tobytes(), image[:, ::-1].tobytes())
  digest = hashlib.blake2b(data, digest_size=8, key=salt.encode())
  return int.from_bytes(digest.digest(), 'little')


def _name_print(name, salt):
  digest = hashlib.blake2b(name.encode('utf-8', 'surrogateescape'), digest_size=8, key=salt.encode())
  return int.from_bytes(digest.digest(), 'little')


def split(data, heldout, seed, name, notes=(), names=None):
  """Source with about `heldout` of the pictures held out; the same pictures whatever their order.

  heldout: a number of pictures (int) or a share of them (float in [0, 1)); copies and mirror images stay on
  one side, so there may be a few more. Raises InputError for no pictures, or a `heldout` that leaves none.
  names: None, or N strings by which to divide pictures that stay on the disk; copies are not noticed then.
  """
  check(data, name)
  count = len(data.images)
  if count == 0:
    raise InputError(f'{name}: no pictures found')
  wanted = heldout if isinstance(heldout, int) else round(heldout * count)
  if not 0 <= wanted <= count or (isinstance(heldout, float) and heldout >= 1):
    raise InputError(f'{name}: heldout={heldout} of {count} pictures; give a number or a share such as 0.1')
  held = np.zeros(count, bool)
  if wanted:
    hashed, values = (fingerprint, data.images) if names is None else (_name_print, names)
    prints = np.array([hashed(value, str(seed)) for value in values], np.uint64)
    held = prints <= np.sort(prints)[wanted - 1]
  if held.all():
    raise InputError(f'{name}: heldout={heldout} leaves no picture to train on '
                     f'({count} pictures, copies kept together); set heldout=0 or add pictures')
  if names is not None and wanted:
    notes = (*notes, 'held out by name and not by content: copies of a picture may be on both sides')
  return Source(take(data, ~held), take(data, held), tuple(notes))


def by_part(data, parts, name, notes=()):
  """Source with the parts ('train' or 'heldout' for each picture) that the data came in."""
  held = np.array(parts) == 'heldout'
  check(data, name)
  if held.all():
    raise InputError(f'{name}: all readable pictures are held out, none is left to train on')
  if not in_memory(data):
    unknown = 'whether held-out pictures also occur in training was not looked for'
    return Source(take(data, ~held), take(data, held), (*notes, unknown))
  prints = {fingerprint(image) for image in data.images[~held]}
  shared = sum(fingerprint(image) in prints for image in data.images[held])
  warning = (f'{shared} of {held.sum()} held-out pictures also occur in training',) if shared else ()
  return Source(take(data, ~held), take(data, held), tuple(notes) + warning)
