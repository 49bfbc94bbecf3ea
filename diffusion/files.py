"""Writing a file so that a reader, or the next run, sees the old one or the new one and never a half."""
import os

from etils import epath

from diffusion.errors import InputError


def write_atomic(path, data: bytes) -> None:
  """Writes `data` to `path`: a temporary neighbour first, then one rename. Parents are made.

  Raises InputError where it cannot be written (disk full, no permission); what was at `path` before is then
  still there, whole.
  """
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
