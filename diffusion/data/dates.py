"""Dates and times in tables: which format they are in, as whole days, minutes or seconds, and back."""
from datetime import datetime, timedelta
import re

from diffusion.errors import InputError

DAYS = ('%Y-%m-%d', '%d.%m.%Y', '%m/%d/%Y', '%d/%m/%Y', '%Y/%m/%d', '%d-%m-%Y', '%m-%d-%Y', '%d %b %Y', '%d %B %Y',
        '%d-%b-%Y', '%Y.%m.%d')
TIMES = ('', ' %H:%M', ' %H:%M:%S', 'T%H:%M', 'T%H:%M:%S', 'T%H:%M:%SZ')
FORMATS = (*(day + time for day in DAYS for time in TIMES), '%H:%M', '%H:%M:%S')
LOOKS = re.compile(r'\d{1,4}[-./ ](\d{1,2}|[^\W\d]{3,9})[-./ ]\d{2,4}([ T]\d{1,2}:\d\d(:\d\d)?Z?)?|'
                   r'\d{1,2}:\d\d(:\d\d)?')
UNITS = {1440 * 60: 'seconds', 1440: 'minutes', 1: 'days'}  # in a day
EXAMPLE = datetime(2025, 12, 31, 13, 45)


def found(name, texts):
  """The fields of a column of dates, or None where these texts are none.

  The number of a date is its distance from `origin`, the start of a year, in days, or in minutes or seconds where
  there are times of the day.

  Args:
    name: of the column, for messages.   texts: distinct texts.
  Returns:
    dict(form='date', date=format, padded=bool, per_day=int, origin=ISO text), or None.
  Raises:
    InputError: they may be day/month or month/day.
  """
  if not all(map(LOOKS.fullmatch, texts[:20])):
    return None
  read = {}
  for form in FORMATS:
    try:
      read[form] = [datetime.strptime(text, form) for text in texts]
    except ValueError:
      continue
  if not read:
    return None
  if len(read) > 1 and len({tuple(moments) for moments in read.values()}) > 1:
    first = next(i for i in range(len(texts)) if len({moments[i] for moments in read.values()}) > 1)
    days = ' or '.join(sorted({f'{moments[first]:%Y-%m-%d}' for moments in read.values()}))
    raise InputError(f'column {name!r}: {texts[first]} may be {days}; write dates as 2025-12-31, or leave the column '
                     f'out with drop={name!r}')
  form, moments = next(iter(read.items()))
  per_day = next(unit for unit in (1, 1440, 86400) if unit == 86400 or not any(map(_rest(unit), moments)))
  padded = all(moment.strftime(form) == text for moment, text in zip(moments, texts))
  origin = datetime(min(moments).year, 1, 1).isoformat()
  return dict(form='date', date=form, padded=padded, per_day=per_day, origin=origin)


def _rest(per_day):
  """Whether a moment has a part smaller than the unit."""
  return lambda m: m.second if per_day == 1440 else m.hour or m.minute or m.second


def to_number(column, text):
  """The whole number of a date. Raises ValueError if it is not in the format of the column."""
  moment = datetime.strptime(text, column['date'])
  if _rest(column['per_day'])(moment) and column['per_day'] < 86400:
    raise ValueError(f'{text!r} is not a whole number of {UNITS[column["per_day"]]}')
  passed = moment - datetime.fromisoformat(column['origin'])
  return (passed.days * 86400 + passed.seconds) * column['per_day'] // 86400


def to_text(column, number):
  """The date of a number, in the format of the column."""
  seconds = round(number) * (86400 // column['per_day'])
  return _text(column, datetime.fromisoformat(column['origin']) + timedelta(seconds=seconds))


def _text(column, moment):
  text = moment.strftime(column['date'])
  return text if column['padded'] else re.sub(r'(?<![\d:])0(\d)(?=[-./ T]|$)', r'\1', text)  # 01.02.2025 -> 1.2.2025


def example(column):
  """How a date is written in the column."""
  return _text(column, EXAMPLE)
