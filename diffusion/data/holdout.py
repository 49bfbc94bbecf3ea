"""Which images are held out: decided by their content, so that no image is on both sides."""
import hashlib

import numpy as np

from diffusion.data.dataset import check, in_memory, Source, take
from diffusion.errors import InputError


def fingerprint(image, salt=''):
  """64-bit hash (int) of uint8 [H, W, C], equal for an image and its mirror image."""
  data = min(image.tobytes(), image[:, ::-1].tobytes())
  digest = hashlib.blake2b(data, digest_size=8, key=salt.encode())
  return int.from_bytes(digest.digest(), 'little')


def _name_fingerprint(name, salt):
  digest = hashlib.blake2b(name.encode('utf-8', 'surrogateescape'), digest_size=8, key=salt.encode())
  return int.from_bytes(digest.digest(), 'little')


def split(data, heldout, seed, name, notes=(), names=None):
  """A Source with about `heldout` of the images held out; which ones does not depend on their order.

  Args:
    data: a Dataset.
    heldout: a number of images (int) or a fraction of them (float in [0, 1)). Duplicates and mirror images stay on one
      side, so there may be a few more.
    seed: other seeds hold out other images.
    name: of the data, for error messages.
    notes: of the Source.
    names: None, to split by content; or N strings by which to split images that stay on disk; duplicates are then not
      noticed.
  Raises:
    InputError: there are no images, or `heldout` leaves none to train on.
  """
  check(data, name)
  count = len(data.images)
  if count == 0:
    raise InputError(f'{name}: no images found')
  number = heldout if isinstance(heldout, int) else round(heldout * count)
  if not 0 <= number <= count or (isinstance(heldout, float) and heldout >= 1):
    raise InputError(f'{name}: heldout={heldout} of {count} images; give a number or a fraction such as 0.1')
  held = np.zeros(count, bool)
  if number:
    hashed, values = (fingerprint, data.images) if names is None else (_name_fingerprint, names)
    prints = np.array([hashed(value, str(seed)) for value in values], np.uint64)
    held = prints <= np.sort(prints)[number - 1]
  if held.all():
    raise InputError(f'{name}: heldout={heldout} leaves no image to train on '
                     f'({count} images, duplicates kept together); set heldout=0 or add images')
  if names is not None and number:
    notes = (*notes, 'held out by name and not by content: duplicates of an image may be on both sides')
  return Source(take(data, ~held), take(data, held), tuple(notes))


def by_part(data, parts, name, notes=()):
  """A Source with the split that the data came in: 'train' or 'heldout' for each image."""
  held = np.array(parts) == 'heldout'
  check(data, name)
  if held.all():
    raise InputError(f'{name}: all readable images are held out, none is left to train on')
  if not in_memory(data):
    unknown = 'not checked: held-out images may also occur in training'
    return Source(take(data, ~held), take(data, held), (*notes, unknown))
  trained_on = {fingerprint(image) for image in data.images[~held]}
  shared = sum(fingerprint(image) in trained_on for image in data.images[held])
  warning = (f'{shared} of {held.sum()} held-out images also occur in training',) if shared else ()
  return Source(take(data, ~held), take(data, held), tuple(notes) + warning)
