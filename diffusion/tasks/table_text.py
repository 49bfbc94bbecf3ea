"""Tables of a task as rows of texts in the format of the source, and as columns for Python."""
import csv
import io

import numpy as np

from diffusion.data import columns


def rows(facts, table):
  """Lists of texts in the order and format of the source, the header first.

  Identifiers are 1, 2, ..; constants are written again, empty columns stay empty, missing values are ''.

  Args:
    facts: of the task.   table: dict(numbers [N, Dn], categories [N, Dc]), as it is drawn.
  """
  number, texts = len(table['categories']), {}
  for column in facts['columns']:
    values, index = np.unique(_values(table, column), return_inverse=True)
    written = [columns.to_text(column, value) for value in values]
    texts[column['name']] = [written[i] for i in index]
  header = list(texts)
  for left in sorted(facts.get('left_out', ()), key=lambda left: left['at']):
    header.insert(left['at'], left['name'])
    identifiers = left['kind'] == 'identifier'
    texts[left['name']] = list(map(str, range(1, number + 1))) if identifiers else [left['text']] * number
  return [header, *map(list, zip(*(texts[name] for name in header)))]


def csv_bytes(facts, table):
  """The rows as a CSV file, with the separator and the encoding of the source."""
  buffer, file = io.StringIO(), facts.get('file', {})
  csv.writer(buffer, delimiter=file.get('separator', ','), lineterminator='\n').writerows(rows(facts, table))
  return buffer.getvalue().encode(file.get('encoding', 'utf-8'))


def as_columns(facts, table):
  """{name: array [N]}: float64 with NaN where missing, datetime64[s] of dates, texts of categories; without what the
  model leaves out."""
  found = {}
  for column in facts['columns']:
    values = np.asarray(_values(table, column))
    if column['kind'] == 'category':
      found[column['name']] = np.array(column['categories'])[values]
    elif column['form'] == 'date':
      seconds = np.nan_to_num(values.astype(np.float64)) * (86400 // column['per_day'])
      moments = np.datetime64(column['origin'], 's') + np.rint(seconds).astype('timedelta64[s]')
      found[column['name']] = np.where(np.isnan(values), np.datetime64('NaT', 's'), moments)
    else:
      found[column['name']] = np.round(values.astype(np.float64), column['decimals']) + column['origin']
  return found


def _values(table, column):
  return table['numbers' if column['kind'] == 'number' else 'categories'][:, column['place']]
