"""What the columns of a table hold, found from their texts, and one line for each kind of them."""
import re

import numpy as np

from diffusion.data import columns, dates
from diffusion.errors import InputError, shown

FEW = 10               # fewer rows say nothing about which columns are identifiers
MOST_CATEGORIES = 200  # a text column with more is suspected of being none of categories
IDENTIFIER = re.compile(r'(?i:(^|[\W_])(id|ids|uid|uuid|index|mrn|nr|key|identifier)$|'
                        r'^(patient|subject|case|record|sample)s?[\W_]?(id|no|nr|num|number)?$)|'
                        r'(?<=[a-z])I[dD]$|^column 1$')
LISTED = 6             # names in a note


def found(name, texts, comma, kind=None):
  """(column, values) of a column, or (dict(name, kind, text), None) of one that is left out of the model.

  Args:
    texts: N texts.
    comma: whether decimal commas are expected.
    kind: None, to find it; 'number' or 'category', if the user said so.
  Returns:
    A column as in columns.py without its place, and values float64 [N] or int32 [N]; of a column that is left out, the
    kind is 'empty', 'constant' (its text is that of all) or 'identifier'.
  Raises:
    InputError: numbers among which some texts are none; ambiguous dates; numbers that cannot be.
  """
  distinct = list(dict.fromkeys(texts))
  gaps = columns.missing(distinct)
  present = [text for text in distinct if text not in gaps]
  if len(distinct) == 1:
    return dict(name=name, kind='constant' if distinct[0] else 'empty', text=distinct[0]), None
  if kind != 'category' and present:
    numbers = _numbers(name, texts, distinct, present, comma, kind)
    if numbers:
      return numbers
  if len(columns.missing(distinct, columns.MISSING_TEXT)) == len(distinct):
    return dict(name=name, kind='empty', text=''), None
  return _category(name, texts, distinct, kind)


def _numbers(name, texts, distinct, present, comma, kind):
  """What `found` returns where a column holds numbers or dates, otherwise None."""
  style = columns.number_style(present, comma) or dates.found(name, present)
  if style is None and kind == 'number':
    present = [text for text in present if columns.number_style([text], comma)]
    style = columns.number_style(present, comma) if present else None
    if style is None:
      raise InputError(f'column {name!r}: numbers={name}: no numbers in one format, such as {shown(texts[0][:40])!r}')
  if style is None:
    _refuse_nearly_numbers(name, texts, present, comma)
    return None
  if len(present) <= 2 and kind != 'number':
    return None
  column, values = columns.number_column(name, present, style, len(present) < len(distinct))
  if len(values) < len(distinct):
    values = dict.fromkeys(distinct, np.nan) | values
  values = np.array(list(map(values.__getitem__, texts)))
  if kind is None and column['form'] == 'plain' and not column['missing'] and _counts_rows(name, column, values):
    return dict(name=name, kind='identifier', text=''), None
  return column, values


def _refuse_nearly_numbers(name, texts, present, comma):
  """Raises InputError where nine texts of ten are numbers, or all are in up to 5 units: as categories they would be of
  no use, and leaving the column out is for the user to decide."""
  matches = [columns.UNIT.fullmatch(text) for text in present]
  units = {(match['before'], match['after']) for match in matches if match}
  odd = [text for text, match in zip(present, matches) if not match]
  if len(present) < 2 * FEW or len(odd) > len(present) / 10 or len(units) > 5:
    return
  odd = odd or [text for text in present if not columns.number_style([text], comma)]
  several = ' or '.join(sorted((before or '') + (after or '') for before, after in units)) if len(units) > 1 else ''
  example = f'{shown(odd[0][:40])!r} (row {texts.index(odd[0]) + 1}) is none' if odd else ''
  if len(odd) > len(present) / 10 or not (odd or several):
    return
  what = f'numbers, but {example}' if odd else f'numbers in several units ({several})'
  counted = f', or numbers={name!r} to count such values ({len(odd)}) as missing' if odd and not several else ''
  raise InputError(f'column {name!r}: nearly all values are {what}; mend the file, or set drop={name!r}{counted}')


def _counts_rows(name, column, values):
  """Whether whole numbers say which row it is: all different, and one after the other or called so."""
  if len(values) < FEW or column['decimals'] or len(np.unique(values)) < len(values):
    return False
  return np.ptp(values) == len(values) - 1 or bool(IDENTIFIER.search(name))


def _category(name, texts, distinct, kind):
  missing = columns.missing(distinct, columns.MISSING_TEXT)
  names = sorted(set(distinct) - missing, key=_order)
  if kind is None and len(texts) >= FEW and (len(names) > .9 * len(texts) or
                                             len(names) > max(MOST_CATEGORIES, len(texts) / 5)):
    return dict(name=name, kind='identifier', text=''), None
  names += [''] * bool(missing)
  index = {text: k for k, text in enumerate(names)} | dict.fromkeys(missing, len(names) - 1)
  return dict(name=name, kind='category', categories=names), np.array([index[text] for text in texts], np.int32)


def _order(text):
  """Numbers by their size, before texts."""
  try:
    return 0, float(text), text
  except ValueError:
    return 1, 0., text


def notes(described, values, left_out, target):
  """Lines that say what was found.

  Args:
    described: columns of the model.   values: of each, [N].
    left_out: the other ones.   target: a name or ''.
  """
  every = list(zip(described, values))
  shares = {c['name']: np.mean(np.isnan(v)) if c['kind'] == 'number' else
            np.mean(np.array(c['categories'])[v] == '') for c, v in every}
  kinds = [('numbers', _number, [c for c in described if c['kind'] == 'number' and c['form'] == 'plain']),
           ('dates', lambda c: f'{shown(c["name"])} (as {dates.example(c)})',
            [c for c in described if c['kind'] == 'number' and c['form'] == 'date']),
           ('with more digits than a 32-bit float holds, rounded', _number, [c for c in described if c.get('cut')]),
           ('categories', _categories, [c for c in described if c['kind'] == 'category']),
           ('with missing values, which are kept', lambda c: f'{shown(c["name"])} ({shares[c["name"]]:.1%})',
            [c for c in described if shares[c['name']]]),
           ('left out, written as 1 to N (identifiers)', lambda c: shown(c['name']),
            [c for c in left_out if c['kind'] == 'identifier']),
           ('left out, the same in all rows', lambda c: f'{shown(c["name"])} ({shown(c["text"][:20])})',
            [c for c in left_out if c['kind'] == 'constant']),
           ('left out, empty', lambda c: shown(c['name']), [c for c in left_out if c['kind'] == 'empty'])]
  lines = [f'{title} ({len(some)}): {_listed(list(map(describe, some[:LISTED])), len(some))}'
           for title, describe, some in kinds if some]
  many = [c['name'] for c in described if c['kind'] == 'category' and len(c['categories']) > MOST_CATEGORIES]
  if many:
    lines += [f'more than {MOST_CATEGORIES} categories, of which rare ones are hardly learned; drop= leaves a column '
              f'out: {_listed(list(map(shown, many[:LISTED])), len(many))}']
  return lines + [f'the target is {shown(target)}'] * bool(target)


def _listed(names, number):
  return ', '.join(names) + (f' and {number - len(names)} more' if number > len(names) else '')


def _number(column):
  unit = (column.get('before', '') + column.get('after', '')).strip()
  how = f'{column["decimals"]} decimal{"s" * (column["decimals"] != 1)}' if column['decimals'] else 'whole'
  return f'{shown(column["name"])} ({how}{f", {unit}" if unit else ""})'


def _categories(column):
  names = [shown(name) or 'missing' for name in column['categories']]
  return f'{shown(column["name"])} ({"/".join(names) if len("/".join(names)) <= 24 else len(names)})'
