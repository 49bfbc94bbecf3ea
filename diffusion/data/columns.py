"""One column of a table: what it holds, its texts as numbers or categories, and the texts of such values.

A column is described by a dict, the same in the facts of data and of checkpoints:
  name, kind ('number' or 'category'), place (index among the numbers, or among the categories)
  of a category: categories, a list of texts; '' stands for missing
  of a number: decimals, least (decimals that are always written), missing (whether any is), form ('plain' or 'date'),
    origin (what is subtracted; of a date the moment, as ISO text), cut (where decimals were left out), and how it is
    written:
    before, after (units), decimal, thousands; or date, padded, per_day (dates.py)
"""
from decimal import Decimal
import functools
import itertools
import re

import numpy as np

from diffusion.data import dates
from diffusion.errors import InputError, shown, unknown

MISSING = {'', 'na', 'n/a', '#n/a', '<na>', 'nan', 'null', 'none', '?', '-'}  # in numbers, in any case
MISSING_TEXT = MISSING - {'none', '-'}  # of texts these two may be answers: no treatment, a negative test
MOST_STEPS = 2 ** 23   # of the last decimal, which a 32-bit float still tells apart
MOST_DECIMALS = 300
UNIT = re.compile(r'(?P<before>(?:[€$£¥₹]|USD|EUR|GBP|CHF|JPY)\s?)?'
                  r"[-+−]?[\d.,'\u2019\xa0\u202f ]*\d[.,]?(?:[eE][-+]?\d+)?"
                  r'(?P<after>\s?[^\W\d_][^\s]*(?: [^\W\d][^\s]*)?|\s?[%‰°€$£¥₹][^\s\d]*)?')
SPACES = (' ', '\xa0', '\u202f')


@functools.cache
def _spellings(words):
  """The words in all mixtures of upper and lower case: looked up faster than each text is changed."""
  return {''.join(letters) for word in words for letters in itertools.product(*zip(word.lower(), word.upper()))}


def missing(texts, known=MISSING):
  """The set of those texts that stand for a missing value, in any case."""
  return _spellings(frozenset(known)).intersection(texts)


def number_style(texts, comma):
  """How these distinct texts are written, dict(before, after, decimal, thousands), or None: they are no numbers.

  Args:
    comma: whether decimal commas are expected, for texts such as 1,234 and 1.234.
  """
  first = UNIT.fullmatch(texts[0])
  joined = '\n'.join(texts) + '\n'
  if not first or joined.count('\n') != len(texts):
    return None
  before, after = first['before'] or '', first['after'] or ''
  dots = [('.', thousands) for thousands in ('', ',', *SPACES, "'", '’')]
  commas = [(',', thousands) for thousands in ('', '.', *SPACES, "'", '’')]
  for decimal, thousands in commas + dots if comma else dots + commas:
    if _pattern(before, after, decimal, thousands).fullmatch(joined):
      return dict(before=before, after=after, decimal=decimal, thousands=thousands)
  return None


def _pattern(before, after, decimal, thousands):
  """Of lines of numbers; a leading zero, as of a postal code, belongs to no number."""
  d, t = re.escape(decimal), re.escape(thousands)
  whole = rf'(?>[1-9]\d{{0,2}}(?:{t}\d{{3}})+(?!\d)|0(?!\d)|[1-9]\d*)' if thousands else r'(?>0(?!\d)|[1-9]\d*)'
  number = rf'[-+−]?(?:{whole}(?:{d}\d*)?|{d}\d+)(?:[eE][-+]?\d+)?'
  return re.compile(rf'(?>{re.escape(before)}{number}{re.escape(after)}\n)++')


def proves(texts):
  """',' or '.' where some text can only have a decimal comma or point, '' otherwise."""
  for sign, other in ((',', '.'), ('.', ',')):
    style = number_style(texts, sign == ',')
    if style and style['decimal'] == sign and any(sign in text for text in texts):
      return sign if (number_style(texts, sign != ',') or style)['decimal'] == sign else ''
  return ''


def plain(style, texts):
  """Numbers as Python writes them: ['€ 1.234,5'] -> ['1234.5']."""
  if style['before'] or style['after']:
    texts = [text[len(style['before']):len(text) - len(style['after'])] for text in texts]
  joined = '\n'.join(texts)
  if style['decimal'] == '.' and not style['thousands'] and '−' not in joined:
    return texts
  joined = joined.replace('−', '-')
  joined = joined.replace(style['thousands'], '') if style['thousands'] else joined
  return (joined.replace(',', '.') if style['decimal'] == ',' else joined).split('\n')


def decimals_of(texts):
  """Digits after the decimal point of numbers as Python writes them: int [N]."""
  array = np.array(texts)
  point = np.strings.find(array, '.')
  digits = np.where(point >= 0, np.strings.str_len(array) - point - 1, 0)
  powers = np.strings.find(array, 'e') + np.strings.find(array, 'E') > -2 if 'e' in ''.join(texts).lower() else ()
  for i in np.flatnonzero(powers):
    digits[i] = max(-Decimal(texts[i]).normalize().as_tuple().exponent, 0)
  return digits


def number_column(name, texts, style, gaps):
  """(column, {text: number}) of distinct texts in one style, of a number or of a date (dates.found).

  Numbers have at most as many steps as a 32-bit float tells apart: further decimals are left out, and numbers far
  from 0 have an `origin`. gaps: whether some are missing.
  """
  column = dict(name=name, kind='number', missing=gaps, decimals=0, least=0, origin=0, form='plain') | style
  if column['form'] == 'date':
    moments = {text: float(dates.to_number(column, text)) for text in texts}
    return column | (dict(cut=True) if max(moments.values()) > 2 ** 24 else {}), moments
  plains = plain(style, texts)
  values = np.array(list(map(float, plains)))
  if not np.isfinite(values).all():
    raise InputError(f'column {name!r}: {texts[int(np.argmin(np.isfinite(values)))]} is too large a number')
  digits = decimals_of(plains)
  low, high, decimals = values.min(), values.max(), min(int(digits.max()), MOST_DECIMALS)
  while (high - low) * 10. ** decimals > MOST_STEPS and decimals > 0:
    decimals -= 1
    column['cut'] = True
  largest = max(abs(low), abs(high))
  if largest > high - low and largest * 10. ** decimals > MOST_STEPS:  # the origin is round: no one's own number
    unit = 10. ** np.ceil(np.log10(max(high - low, 1)))
    column['origin'] = float(np.floor(low / unit) * unit)
  values = np.round(values - column['origin'], decimals) + 0.  # no negative zeros
  if decimals == 0 and np.abs(values).max() > 2 ** 24:  # the whole numbers of a 32-bit float
    column['cut'] = True
  column |= dict(decimals=decimals, least=int(min(digits.min(), MOST_DECIMALS)))
  return column, dict(zip(texts, values.tolist()))


def to_number(column, text):
  """The number of a text in the format of the column, or as Python writes it: a float, NaN where it is missing.

  Raises:
    InputError: it is no such number, or not one of the column's grid; the message follows the name of the column.
  """
  if missing([text]):
    return np.nan
  try:
    if column['form'] == 'date':
      return float(dates.to_number(column, text))
    before, after = column['before'], column['after']
    bare = text.removeprefix(before.strip()).removesuffix(after.strip()).strip()
    own = _pattern('', '', column['decimal'], column['thousands']).fullmatch(bare + '\n')
    value = float(plain(column | dict(before='', after=''), [bare])[0] if own else bare)
    if not np.isfinite(value):
      raise ValueError('not finite')
  except ValueError:
    raise InputError(f'{shown(text[:40])!r} is not {expected(column)}') from None
  if round(value, column['decimals']) != value and 'cut' not in column:
    rounded = to_text(column, value - column['origin'])
    raise InputError(f'{shown(text[:40])!r} has more decimals than the training data, {column["decimals"]}; round it, '
                     f'such as {rounded}')
  return float(np.round(value - column['origin'], column['decimals']) + 0.)


def expected(column):
  """What a text of the column should be, for messages."""
  if column['form'] == 'date':
    return f'a date such as {dates.example(column)}'
  return f'a number such as {to_text(column, 12 if column["least"] == 0 else 12.5)}'


def to_category(column, text):
  """The index of a text among the categories. Raises InputError: it is none of them."""
  if text not in column['categories']:
    text = '' if missing([text], MISSING_TEXT) else text
  if text not in column['categories']:
    names = [name or '(empty)' for name in column['categories']]
    raise InputError(unknown(text or '(empty)', names[:20]) + (', ..' if len(names) > 20 else ''))
  return column['categories'].index(text)


def to_text(column, value):
  """How a number, or the index of a category, is written in the column; '' where it is missing."""
  if column['kind'] == 'category':
    return column['categories'][int(value)]
  if np.isnan(value):
    return ''
  if column['form'] == 'date':
    return dates.to_text(column, value)
  exact = round(float(value), column['decimals']) + column['origin']
  text = f'{exact:{"," if column["thousands"] else ""}.{max(column["decimals"], column["least"])}f}'
  whole, _, part = text.partition('.')
  part = part[:column['least']] + part[column['least']:].rstrip('0')
  sign = '-' if whole.startswith('-') and (whole + part).strip('-0,') else ''  # no -0
  whole = whole.lstrip('-').replace(',', column['thousands'])
  return column['before'] + sign + whole + (column['decimal'] + part if part else '') + column['after']
