"""Requests for rows of a table: columns that are given, or a file whose empty cells are to be filled."""
import re

import jax
import numpy as np

from diffusion.data import columns, csv_text
from diffusion.errors import InputError, shown, unknown
from diffusion.tasks import quantiles
from diffusion.tasks.base import Asked

TAKES = ('given', 'impute')
QUOTED = r'''"[^"]*"|'[^']*\''''
CLAUSE = re.compile(rf'\s*(?P<name>{QUOTED}|[^=,]*?)\s*=(?P<values>(?:(?<=[=/\s])(?:{QUOTED})|[^,])*)(?:,|$)')
ALTERNATIVE = re.compile(rf'\s*({QUOTED}|.*?)\s*(?:\s/\s|$)')
NAMES = 12  # of columns in a message


def ask_columns(facts, fitted, condition):
  """The `ask` of a task of tables. Sample k has alternative k of each given column, or completes row k, in turn.

  request: 'given', such as 'outcome=malignant / benign, age=50'; or 'impute', the path of a CSV file.

  Args:
    condition: (z, categories, given) -> cond, as in table.py.
  """
  flags, texts = category_sizes(facts)[1], count(facts, 'category')
  build = jax.jit(lambda low, high, categories, given: condition(quantiles.normal(low, high, .5), categories, given))

  def ask(request, ids, seed):
    for name in TAKES:
      if not isinstance(request.get(name, ''), str):
        raise InputError(f'{name}={request[name]!r}: expected text')
    if request.get('given') and request.get('impute'):
      raise InputError('given and impute: use one of them; what is known of a row can stand in its file')
    ids, labels = np.asarray(ids), None
    numbers = np.full((len(ids), count(facts, 'number')), np.nan)
    gone, categories = np.zeros(numbers.shape, bool), np.full((len(ids), texts), -1, np.int32)
    if request.get('impute'):
      cells = known(facts, fitted, request['impute'])
      numbers, categories = (array[ids % len(array)] for array in cells)
      labels = [f'row {k % len(cells[0]) + 1}' for k in ids]
    if request.get('given'):
      clauses = given(facts, fitted, request['given'])
      for column, values in clauses:
        chosen = np.array([value for value, _ in values])[ids % len(values)]
        (numbers if column['kind'] == 'number' else categories)[:, column['place']] = chosen
        if column['kind'] == 'number':
          gone[:, column['place']] = np.isnan(chosen)
      labels = [', '.join(f'{c["name"]}={values[k % len(values)][1]}' for c, values in clauses) for k in ids]
    present = ~np.isnan(numbers)
    flagged = present | gone | bool(request.get('impute'))  # a cell to fill is not to stay missing
    low, high = (np.float32(ends) for ends in quantiles.intervals(fitted, np.nan_to_num(numbers)))
    every = np.concatenate([np.maximum(categories, 0), gone[:, flags]], 1).astype(np.int32)
    asked = np.concatenate([present | gone, categories >= 0, flagged[:, flags]], 1)
    return Asked(jax.device_get(build(low, high, every, asked)), labels)
  return ask


def count(facts, kind):
  """The number of columns of a kind."""
  return sum(c['kind'] == kind for c in facts['columns'])


def category_sizes(facts):
  """(sizes of the categories of x0, a tuple [Dc'], and the places of the numbers that have a flag)."""
  flags = [c['place'] for c in facts['columns'] if c['kind'] == 'number' and c['missing']]
  return tuple(len(c['categories']) for c in facts['columns'] if c['kind'] == 'category') + (2,) * len(flags), flags


def given(facts, fitted, text):
  """'outcome=malignant / benign, age=50' -> [(column, [(value, text), ..]), ..]: numbers and indices of categories.

  Names and values that hold a comma or an equals sign are written in quotes; alternatives are separated by ' / '.

  Raises:
    InputError: another form, an unknown column or category, a number outside the range of the training data.
  """
  found, position, text = [], 0, text.strip().rstrip(',')
  while position < len(text):
    clause = CLAUSE.match(text, position)
    if not clause or not clause['name']:
      raise InputError(f"given={text!r}: expected column=value, .., such as {example(facts)}; alternatives as in "
                       'column=a / b, names with commas in quotes')
    column = _column(facts, _bare(clause['name']), f'given={text!r}')
    if column['name'] in [other['name'] for other, _ in found]:
      raise InputError(f'given={text!r}: {column["name"]!r} is given twice; alternatives are written a / b')
    values = [_bare(match) for match in ALTERNATIVE.findall(clause['values'].strip())]
    values = values[:-1] if len(values) > 1 and not values[-1] else values  # the empty match at the end
    found.append((column, [(_value(fitted, column, value, f'given={text!r}'), value) for value in values]))
    position = clause.end()
  return found


def example(facts):
  """A request that the model takes."""
  for column in facts['columns']:
    if column['kind'] == 'category':
      return f'{_quoted(column["name"])}={_quoted(column["categories"][0])}'
  return f'{_quoted(facts["columns"][0]["name"])}=..' if facts['columns'] else 'column=value'


def _quoted(text):
  return f'"{text}"' if re.search(r"""[,=]|^['"]|\s/\s""", text) else text


def _bare(text):
  text = text.strip()
  return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in '\'"' else text


def _column(facts, name, setting):
  for column in facts['columns']:
    if column['name'] == name:
      return column
  if name in [left['name'] for left in facts.get('left_out', ())]:
    raise InputError(f'{setting}: {shown(name)!r} is not in the model: it was an identifier, the same in all rows, or '
                     'empty')
  names = [column['name'] for column in facts['columns']]
  listed = names if len(names) <= NAMES else names[:NAMES] + ['..']
  raise InputError(f'{setting}: column: ' + unknown(name, names).partition('alid: ')[0] + 'alid: ' + ', '.join(listed))


def _value(fitted, column, text, setting):
  try:
    if column['kind'] == 'category':
      return columns.to_category(column, text)
    value = columns.to_number(column, text)
  except InputError as error:
    raise InputError(f'{setting}: {shown(column["name"])}: {error}') from error
  if np.isnan(value):
    if not column['missing']:
      raise InputError(f'{setting}: {shown(column["name"])} has no missing values; expected '
                       f'{columns.expected(column)}')
    return value
  low, high = quantiles.ends(fitted, column['place'])
  if not low - 1e-9 * abs(low) <= value <= high + 1e-9 * abs(high):
    raise InputError(f'{setting}: {shown(column["name"])}={shown(text)} is outside the range of the training data, '
                     f'{columns.to_text(column, low)} to {columns.to_text(column, high)}')
  return value


def known(facts, fitted, path):
  """The cells of a CSV file that are known: (numbers float64 [R, Dn], categories int32 [R, Dc]), NaN and -1 where they
  are empty and to be generated.

  Its columns are some of those of the source; identifiers, constants and empty ones may be among them. Numbers may lie
  beyond those of the training data, by at most their range.

  Raises:
    InputError: no such file or table, unknown columns, cells that are not understood; names the line.
  """
  table = csv_text.read(path, 'impute', several=False)
  numbers = np.full((len(table.lines), count(facts, 'number')), np.nan)
  categories = np.full((len(table.lines), count(facts, 'category')), -1, np.int32)
  ignored = {left['name'] for left in facts.get('left_out', ())}
  for name, texts in zip(table.header, table.columns):
    if name in ignored:
      continue
    column = _column(facts, name, f'impute={path}')
    place, first = column['place'], dict(zip(reversed(texts), reversed(table.lines)))
    read = {text: _cell(fitted, column, text, f'impute={path}, line {line}') for text, line in first.items()}
    (numbers if column['kind'] == 'number' else categories)[:, place] = [read[text] for text in texts]
  if np.isnan(numbers).all() and (categories < 0).all():
    raise InputError(f'impute={path}: nothing in it is known; leave impute out to draw whole rows')
  return numbers, categories


def _cell(fitted, column, text, where):
  """The value of a cell; NaN or -1 where it is to be generated."""
  try:
    if column['kind'] == 'category':
      gone = text not in column['categories'] and columns.missing([text], columns.MISSING_TEXT)
      return -1 if gone or not text else columns.to_category(column, text)
    value = columns.to_number(column, text)
  except InputError as error:
    raise InputError(f'{where}: {shown(column["name"])}: {error}') from error
  low, high = quantiles.ends(fitted, column['place'])
  if value < 2 * low - high or value > 2 * high - low:
    raise InputError(f'{where}: {shown(column["name"])}={shown(text)} is far outside the range of the training data, '
                     f'{columns.to_text(column, low)} to {columns.to_text(column, high)}')
  return value
