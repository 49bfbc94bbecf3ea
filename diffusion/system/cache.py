"""Arrays that take long to make, kept as .npz files in the user's cache folder."""
import hashlib
import json
import os
import pathlib
import tempfile
import time
import warnings
import zipfile

import numpy as np


def cache_dir():
  """$DIFFUSION_CACHE, $XDG_CACHE_HOME/diffusion or ~/.cache/diffusion (a Path, perhaps not there yet)."""
  own = os.environ.get('DIFFUSION_CACHE')
  if own:
    return pathlib.Path(own).expanduser()
  return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'diffusion'


def cached(name, key, make, min_seconds=0.0):
  """make() -> dict of arrays, from the cache if it is there and whole; kept if making took min_seconds.

  key: anything JSON can hold, on which the result depends. A damaged file is made again; a folder that cannot
  be written costs a warning, not the run.
  """
  digest = hashlib.blake2b(json.dumps(key, default=str).encode(), digest_size=12).hexdigest()
  path = cache_dir() / f'{name}-{digest}.npz'
  if path.exists():
    try:
      with np.load(path, allow_pickle=False) as stored:
        return dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
      warnings.warn(f'made again because it is damaged: {path} ({error})')
  start = time.monotonic()
  arrays = make()
  if time.monotonic() - start >= min_seconds:
    try:
      _write(path, arrays)
    except OSError as error:
      warnings.warn(f'not kept for the next run: {path} ({error}); '
                    'set DIFFUSION_CACHE to a folder that can be written')
  return arrays


def _write(path, arrays):
  # Renaming is atomic: another process sees the whole file or none.
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
  """JSON value -> uint8 [bytes], to keep text beside arrays without pickling."""
  return np.frombuffer(json.dumps(value).encode(), np.uint8)


def unpack_text(array):
  return json.loads(array.tobytes())
