"""Writing a file so that a reader, or the next run, sees the old one or the new one and never a half; and whether
anything can be written at all."""
import os

from etils import epath

from diffusion.errors import InputError
from diffusion.system.multihost import is_main, process_index


def write_atomic(path, data: bytes) -> None:
  """Writes `data` to `path`: a temporary neighbour first, then one rename. Parents are made. Of several processes the first writes.

  Raises InputError where it cannot be written (disk full, no permission); what was at `path` before is then
  still there, whole.
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
    raise InputError(f'cannot write {path}: {error}; make room there, or mend the access') from error


def try_writing(path) -> None:
  """Makes the directory `path` where it is missing, and a file in it that goes at once. Raises OSError where that fails.

  Permission bits do not tell: they do not bind root, and a file system may be read-only or full. A process that is killed before
  its file goes leaves it to the next one of the same number, whose file has the same name.
  """
  path = epath.Path(path)
  path.mkdir(parents=True, exist_ok=True)
  trial = path / f'.{process_index()}.trial'
  try:
    trial.write_bytes(bytes(4096))
  finally:
    trial.unlink(missing_ok=True)


def writable(path) -> None:
  """Raises InputError where nothing can be written in the directory `path`, which is made where it is missing."""
  try:
    try_writing(path)
  except OSError as error:
    raise InputError(f'cannot write in {path}: {error.strerror or error}; mend the access, make room, '
                     'or use another directory') from error
