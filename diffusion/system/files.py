"""Atomic writes, so that readers see the old or the new file and never a part; and checks that one can write."""
import io
import os

from etils import epath
import numpy as np

from diffusion.errors import InputError
from diffusion.system.multihost import is_main, process_index


def write_atomic(path, data: bytes) -> None:
  """Writes `data` to `path` by way of a temporary file beside it and a rename; creates missing parents.

  Of several processes, only the first writes. Raises InputError if the file cannot be written (disk full, no
  permission); a previous file at `path` is then left intact.
  """
  if not is_main():
    return
  path = epath.Path(path)
  part = path.parent / f'.{path.name}.{os.getpid()}.part'
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      part.write_bytes(data)
      part.replace(path)
    except BaseException:
      part.unlink(missing_ok=True)
      raise
  except OSError as error:
    raise InputError(f'cannot write {path}: {error}; free disk space or check permissions') from error


def try_writing(path) -> None:
  """Creates the directory `path` if missing, and a file in it that is removed at once. Raises OSError if that fails.

  Permission bits are not enough: they do not apply to root, and a file system may be read-only or full. A process
  killed before its file is removed leaves it to the next process of the same number, whose file has the same name.
  """
  path = epath.Path(path)
  path.mkdir(parents=True, exist_ok=True)
  trial = path / f'.{process_index()}.trial'
  try:
    trial.write_bytes(bytes(4096))
  finally:
    trial.unlink(missing_ok=True)


def writable(path) -> None:
  """Raises InputError if the directory `path`, which is created if missing, is not writable."""
  try:
    try_writing(path)
  except OSError as error:
    raise InputError(f'cannot write in {path}: {error.strerror or error}; check permissions, free disk '
                     'space, or use another directory') from error


def write_npz(path, arrays) -> None:
  """Writes {name: array} as a compressed .npz without pickles, whole or not at all."""
  buffer = io.BytesIO()
  np.savez_compressed(buffer, allow_pickle=False, **arrays)
  write_atomic(path, buffer.getvalue())
