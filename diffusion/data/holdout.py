"""Which examples are held out: decided by their content, so that none is on both sides."""
import collections
import hashlib

import numpy as np

from diffusion.data.arrays import check_images
from diffusion.data.dataset import check, in_memory, size, Source, take
from diffusion.errors import check_seed, InputError, shown


def fingerprint(image, salt=''):
  """64-bit hash (int) of uint8 [H, W, C], equal for an image and its mirror image."""
  data = min(image.tobytes(), image[:, ::-1].tobytes())
  digest = hashlib.blake2b(data, digest_size=8, key=salt.encode())
  return int.from_bytes(digest.digest(), 'little')


def fingerprints(data, salt=''):
  """64-bit hashes (int), one per example: of images as `fingerprint`, of other data of all columns but the labels."""
  if 'images' in data.arrays:
    return [fingerprint(image, salt) for image in data.arrays['images']]
  columns = [column for name, column in data.arrays.items() if name != 'labels'] or list(data.arrays.values())
  return [_row_fingerprint([column[i] for column in columns], salt) for i in range(size(data))]


def _of_strata(prints, strata, number):
  """`number` examples, bool [N]: every so many-th in the order of strata and hashes (systematic sampling)."""
  held, order = np.zeros(len(prints), bool), np.lexsort((prints, strata))
  held[order[np.diff(np.arange(len(prints) + 1) * number // len(prints)) > 0]] = True
  return held


def _of_each(prints, salt):
  """A hash of each example from one that equal examples share, and from how many of these came before it."""
  seen = collections.Counter()
  for value in prints:
    seen[value] += 1
    yield _name_fingerprint(f'{value} {seen[value]}', salt)


def _row_fingerprint(values, salt):
  digest = hashlib.blake2b(digest_size=8, key=salt.encode())
  for value in values:
    value = np.asarray(value)
    numbers = value.dtype.kind in 'biufc'
    content = value.tobytes() if numbers else repr(value.tolist()).encode()  # quoted: where a text ends is told
    digest.update(f'{value.dtype.kind} {value.shape} '.encode() + content)
  return int.from_bytes(digest.digest(), 'little')


def _name_fingerprint(name, salt):
  digest = hashlib.blake2b(name.encode('utf-8', 'surrogateescape'), digest_size=8, key=salt.encode())
  return int.from_bytes(digest.digest(), 'little')


def split(data, heldout, seed, name, notes=(), names=None, together=True, strata=None):
  """A Source with about `heldout` of the examples held out; which ones does not depend on their order.

  Args:
    data: a Dataset.
    heldout: a number of examples (int) or a fraction of them (float in [0, 1)). Duplicates, and mirror images, stay on
      one side, so there may be a few more.
    seed: other seeds hold out other examples.
    name: of the data, for error messages.
    notes: of the Source.
    names: None, to split by content; or N strings by which to split images that stay on disk; duplicates are then not
      noticed.
    together: whether equal examples stay on one side. Of tables with few values, where many rows are equal by chance,
      neither side would then be a fair sample.
    strata: None, or int [N]: of each stratum the same share is held out.
  Raises:
    InputError: there are no examples, or `heldout` leaves none to train on.
  """
  what, name = _checked(data, name), str(name)
  count = size(data)
  check_seed(f'{name}: seed', seed)
  number, held = number_of(heldout, count, name, what), np.zeros(count, bool)
  if number:
    salt = str(seed)
    hashed = [_name_fingerprint(name, salt) for name in names or ()] or fingerprints(data, salt)
    hashed = hashed if together else list(_of_each(hashed, salt))
    prints = np.array(hashed, np.uint64)
    held = prints <= np.sort(prints)[number - 1] if strata is None else _of_strata(prints, strata, number)
  if held.all():
    raise InputError(f'{name}: heldout={heldout} leaves none of the {what} to train on '
                     f'({count} {what}, duplicates kept together); set heldout=0 or add {what}')
  if names is not None and number:
    notes = (*notes, 'held out by name and not by content: duplicates of an image may be on both sides')
  return sides(take(data, ~held), take(data, held), notes)


def number_of(heldout, count, name, what):
  """How many of `count` examples `heldout` means, a number (int) or a fraction (float); raises InputError."""
  if isinstance(heldout, bool) or not isinstance(heldout, (int, float)):
    raise InputError(f'{name}: heldout={heldout!r}: expected a number of {what}, or a fraction such as 0.1')
  if count == 0:
    raise InputError(f'{name}: no {what} found')
  fraction = isinstance(heldout, float)
  number = heldout if not fraction else round(heldout * count) if 0 <= heldout < 1 else -1
  if not 0 <= number <= count:
    raise InputError(f'{name}: heldout={heldout} of {count} {what}; give a number or a fraction such as 0.1')
  return number


def sides(train, heldout, notes=()):
  """The Source of both sides; says, and states as the fact `untrained`, which classes have nothing to train on."""
  classes, labels = train.facts.get('classes', ()), train.arrays.get('labels')
  if labels is None or labels.ndim == 2:
    return Source(train, heldout, tuple(notes))
  count = np.bincount(labels, minlength=len(classes))
  absent = tuple(name for name, number in zip(classes, count) if not number)
  if not absent:
    return Source(train, heldout, tuple(notes))
  names = ', '.join(map(shown, absent[:6])) + (', ..' if len(absent) > 6 else '')
  note = f'no examples to train on of {len(absent)} of {len(classes)} classes, drawn only if asked for: {names}'
  with_fact = (side._replace(facts=side.facts | dict(untrained=absent)) for side in (train, heldout))
  return Source(*with_fact, (*notes, note))


def _checked(data, name):
  """Checks the data; what they are called."""
  (check_images if 'images' in data.arrays else check)(data, name)
  return next(iter(data.arrays))


def by_part(data, parts, name, notes=()):
  """A Source with the split that the images came in: 'train' or 'heldout' for each."""
  held = np.array(parts) == 'heldout'
  _checked(data, name)
  if held.all():
    raise InputError(f'{name}: all readable images are held out, none is left to train on')
  if not in_memory(data):
    unknown = 'not checked: held-out images may also occur in training'
    return sides(take(data, ~held), take(data, held), (*notes, unknown))
  prints = np.array(fingerprints(data), np.uint64)
  shared = np.isin(prints[held], prints[~held]).sum()
  warning = (f'{shared} of {held.sum()} held-out images also occur in training',) if shared else ()
  return sides(take(data, ~held), take(data, held), (*notes, *warning))
