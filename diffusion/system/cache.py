"""Arrays that are slow to compute, kept as .npz files in the user's cache directory.

The directory holds at most $DIFFUSION_CACHE_GB gigabytes, 50 by default: the files used longest ago are removed first.
"""
import hashlib
import json
import os
import pathlib
import tempfile
import time
import warnings
import zipfile

import numpy as np

from diffusion.errors import InputError


def cache_dir():
  """$DIFFUSION_CACHE, $XDG_CACHE_HOME/diffusion or ~/.cache/diffusion; a Path, which need not exist."""
  override = os.environ.get('DIFFUSION_CACHE')
  if override:
    return pathlib.Path(os.path.expanduser(override))
  return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'diffusion'


def cached(name, key, make, min_seconds=0.0):
  """The result of make(), from the cache if possible. A damaged file is replaced, with a warning.

  Args:
    name: prefix of the file name.
    key: everything the result depends on, as JSON holds it.
    make: () -> dict of arrays.
    min_seconds: results that took less are not kept. A directory that is not writable costs a warning, not the run.
  """
  digest = hashlib.blake2b(json.dumps(key, default=str).encode(), digest_size=12).hexdigest()
  path = cache_dir() / f'{name}-{digest}.npz'
  if path.exists():
    try:
      with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
      _touch(path)
      return arrays
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
      warnings.warn(f'recomputed, because the cached file is damaged: {path} ({error})')
  start = time.monotonic()
  arrays = make()
  if time.monotonic() - start >= min_seconds:
    try:
      _write(path, arrays)
      make_room(path)
    except OSError as error:
      warnings.warn(f'not cached: {path} ({error}); set DIFFUSION_CACHE to a writable directory')
  return arrays


def _touch(path):
  try:
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # used now, and no newer
  except OSError:
    pass  # a cache that belongs to somebody else can be read all the same


def make_room(kept):
  """Removes the files used longest ago, never `kept`, until the directory is within its limit; says what and where.

  Raises:
    InputError: the limit is not a number.
  """
  text = os.environ.get('DIFFUSION_CACHE_GB', '50')
  try:
    limit = float(text) * 1e9
  except ValueError as error:
    raise InputError(f'DIFFUSION_CACHE_GB={text!r}: expected a number of gigabytes, such as 50') from error
  files = sorted(kept.parent.glob('*.npz'), key=lambda path: path.stat().st_atime)
  total, removed = sum(path.stat().st_size for path in files), []
  for path in files:
    if total > limit and path != kept:
      total -= path.stat().st_size
      path.unlink(missing_ok=True)
      removed.append(path.name)
  if removed:
    warnings.warn(f'{kept.parent} was above {limit / 1e9:g} GB (DIFFUSION_CACHE_GB): removed {", ".join(removed)}')
  if total > limit:
    warnings.warn(f'{kept} alone is {total / 1e9:.3g} GB, above DIFFUSION_CACHE_GB={text}')


def _write(path, arrays):
  # Renaming is atomic: other processes see the complete file or none.
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, temporary = tempfile.mkstemp(dir=path.parent, suffix='.tmp')
  try:
    with os.fdopen(handle, 'wb') as file:
      np.savez(file, **arrays)
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise


def pack_text(value):
  """JSON value -> uint8 [bytes], to store text beside arrays without pickling."""
  return np.frombuffer(json.dumps(value).encode(), np.uint8)


def unpack_text(array):
  """The inverse of pack_text."""
  return json.loads(array.tobytes())
