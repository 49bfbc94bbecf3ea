"""Reading a CSV file as texts: its encoding, its separator and its fields, with refusals that name the line."""
import csv
from typing import NamedTuple

from diffusion.data.arrays import as_path
from diffusion.errors import InputError, shown
from diffusion.system.files import BYTE_ORDER

SEPARATORS = ',;\t|'
LOOKED_AT = 50  # lines, by which the separator is found


class Texts(NamedTuple):
  """A table as it is written."""
  header: list           # names of the columns
  columns: list          # a tuple of N stripped texts for each
  lines: list            # N numbers of lines in the file, for messages
  separator: str = ','
  encoding: str = 'utf-8'
  notes: tuple = ()


def read(path, source='csv', least=1, several=True):
  """The Texts of a CSV file. Lines without any entry are skipped, and blanks around a
  field.

  Args:
    least: rows that there must be.   several: whether there must be more than one column.
  Raises:
    InputError: no such file, not text, no header, no rows, rows of several lengths, a name used twice.
  """
  path = as_path(path, source)
  text, encoding, notes = _decoded(path)
  if not text.strip():
    raise InputError(f'{path}: the file is empty')
  separator = _separator(text)
  rows, lines = _rows(path, text, separator)
  if several and len(rows[0]) == 1:
    raise InputError(f'{path}: one column found, {shown(rows[0][0][:40])!r}; columns are separated by , ; tab or |')
  header, named = _header(path, rows[0], lines[0])
  if len(rows) - 1 < least:
    found = 'a header and no rows' if len(rows) == 1 else f'{len(rows) - 1} row{"s" * (len(rows) > 2)}'
    raise InputError(f'{path}: {found}; expected at least {least}')
  columns = [tuple(map(str.strip, column)) for column in zip(*rows[1:])]
  return Texts(header, columns, lines[1:], separator, encoding, (*notes, *named))


def _decoded(path):
  """(text, encoding to write in, notes) of a file."""
  try:
    data = path.read_bytes()
  except OSError as error:
    raise InputError(f'{path}: {"no such file" if not path.exists() else error.strerror or error}') from error
  encoding = next((name for mark, name in BYTE_ORDER.items() if data.startswith(mark)), 'utf-8')
  written = 'utf-8' if encoding == 'utf-8' else 'utf-8-sig'  # spreadsheets tell UTF-8 by its mark
  notes = ()
  try:
    text = data.decode(encoding)
  except UnicodeDecodeError:
    try:
      text, notes = data.decode('cp1252'), ('the file is not UTF-8 and was read as Windows-1252 (Western Europe)',)
    except UnicodeDecodeError as error:
      raise InputError(f'{path}: not a text file in UTF-8, UTF-16 or Windows-1252; save the table as CSV') from error
  if '\0' in text:
    raise InputError(f'{path}: not a text file, it holds zero bytes; save the table as CSV in UTF-8')
  return text, written, notes


def _separator(text):
  """The separator that divides the first lines into most fields, equally many in each."""
  head = [line for line in text.splitlines()[:LOOKED_AT] if line.strip()]
  def score(separator):
    counts = [len(row) for row in csv.reader(head, delimiter=separator)]
    return len(set(counts)) == 1 and counts[0] > 1, counts[0], -SEPARATORS.index(separator)
  return max(SEPARATORS, key=score)


def _rows(path, text, separator):
  """(rows, their line numbers), the header first, all of one length."""
  rows, lines = [], []
  reader = csv.reader(text.splitlines(keepends=True), delimiter=separator, strict=True)
  before = 0
  try:
    for row in reader:
      if any(field.strip() for field in row):
        rows.append(row)
        lines.append(before + 1)
      before = reader.line_num
  except csv.Error as error:
    raise InputError(f'{path}, line {before + 1}: not readable as CSV ({error}); check its quotes') from error
  for row, line in zip(rows, lines):
    if len(row) != len(rows[0]):
      fields = f'{len(row)} field{"s" * (len(row) != 1)}'
      raise InputError(f'{path}, line {line}: {fields}, expected the {len(rows[0])} of the header (separator '
                       f'{separator!r}); put fields that hold a separator in quotes')
  return rows, lines


def _header(path, row, line):
  """(names, notes); a column without a name is called by its number."""
  names = [field.strip() for field in row]
  empty = [i for i, name in enumerate(names) if not name]
  names = [name or f'column {i + 1}' for i, name in enumerate(names)]
  if len({*names}) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    where = [str(i + 1) for i, name in enumerate(names) if name == twice]
    raise InputError(f'{path}, line {line}: columns {" and ".join(where)} are both called {shown(twice)!r}; '
                     'give each a name of its own')
  if sum(map(_is_number, names)) > len(names) / 2:
    raise InputError(f'{path}, line {line}: {", ".join(names[:3])}, ..: numbers where names of columns were expected; '
                     'add a first line of names')
  called = ', '.join(names[i] for i in empty[:3])
  return names, (f'without a name in the header, called by number: {called}',) if empty else ()


def _is_number(text):
  try:
    float(text)
  except ValueError:
    return False
  return text.lower() not in ('nan', 'inf', 'infinity')
