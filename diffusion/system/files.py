"""Atomic writes, so that readers see the old or the new file and never a part; and checks that one can write."""
import codecs
import contextlib
import io
import os

from etils import epath
import numpy as np

from diffusion.errors import InputError
from diffusion.system.multihost import is_main, process_index


BYTE_ORDER = {codecs.BOM_UTF8: 'utf-8-sig', codecs.BOM_UTF32_LE: 'utf-32', codecs.BOM_UTF32_BE: 'utf-32',
              codecs.BOM_UTF16_LE: 'utf-16', codecs.BOM_UTF16_BE: 'utf-16'}  # marks at the start of a file


def read_text(path):
  """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark, which is left out.

  Raises:
    InputError: it cannot be read, or is no such text; names the file and the line.
  """
  try:
    data = path.read_bytes()
  except OSError as error:
    raise InputError(f'{path} cannot be read: {error.strerror or error}') from error
  encoding = next((name for mark, name in BYTE_ORDER.items() if data.startswith(mark)), 'utf-8')
  try:
    text = data.decode(encoding)
  except UnicodeDecodeError as error:
    line = data[:error.start].count(b'\n') + 1
    raise InputError(f'{path}, line {line}: this is not text in UTF-8; save it as UTF-8') from error
  if '\0' in text:
    line = text[:text.index('\0')].count('\n') + 1
    raise InputError(f'{path}, line {line}: a zero byte, as in UTF-16 without its mark; save it as UTF-8')
  return text


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


def user_path(path):
  """The epath.Path of what a user wrote, with ~ expanded; an unknown ~name stays as it is."""
  return epath.Path(os.path.expanduser(path))


def output_folder(path):
  """The folder that a user names for results, ~ expanded, made and tried before the work. InputError: it cannot be."""
  folder = user_path(path)
  writable(folder)
  return folder


def write_npz(path, arrays) -> None:
  """Writes {name: array} as a compressed .npz without pickles, whole or not at all."""
  buffer = io.BytesIO()
  np.savez_compressed(buffer, allow_pickle=False, **arrays)
  write_atomic(path, buffer.getvalue())


@contextlib.contextmanager
def numbered_folder(parent, step):
  """A new folder, 001_step_5000 then 002_.., made before the work whose results it gets: no place, no work.

  Processes that work in one `parent` at a time get folders of their own. If the work fails before anything is written,
  the folder is removed. Of the processes of one run only the first makes it.

  Raises:
    InputError: the folder cannot be made.
  """
  if not is_main():
    yield parent / f'step_{step}'  # nothing is written there
    return
  writable(parent)
  folder = None
  while folder is None:
    taken = [int(number) for path in parent.iterdir() if (number := path.name.partition('_')[0]).isdecimal()]
    try:
      folder = parent / f'{max(taken, default=0) + 1:03d}_step_{step}'
      folder.mkdir()
    except FileExistsError:  # another process took it
      folder = None
  try:
    yield folder
  except BaseException:
    if not any(folder.iterdir()):  # what is written stays
      folder.rmdir()
    raise
