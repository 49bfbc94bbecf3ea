"""Tables: any CSV file, and patients whose tables packages ship. Numbers, dates and categories in one Dataset."""
import importlib.util
import pathlib

import numpy as np

from diffusion.data import column_kinds, columns, csv_text, holdout
from diffusion.data.dataset import Dataset
from diffusion.errors import InputError, shown, unknown

LEAST = 10  # rows
PATIENTS = ('breast_cancer', 'diabetes', 'gbsg2')


def csv(path, target='', categories=(), numbers=(), drop=(), heldout=1 / 3, seed=0):
  """A table in a CSV file with a header: what its columns hold is found, and shown before training.

  Columns `numbers` float64 [N, Dn], NaN where missing, and `categories` int32 [N, Dc]; facts `columns` (columns.py),
  `target`, `left_out` (identifiers, constants and empty columns, with their place `at`) and `file`.

  Args:
    path: of the file, in UTF-8, UTF-16 or Windows-1252, separated by commas, semicolons, tabs or |.
    target: the column to predict, if there is one.
    categories, numbers: names of columns whose kind is to be this one; in numbers=, texts that are none are missing.
    drop: names of columns to leave out altogether.
    heldout: a number of rows (int) or a fraction of them (float). Which ones depends on their content,
      not on their order.
    seed: other seeds hold out other rows.
  Raises:
    InputError: a file that is no such table (csv_text.read), fewer than 10 rows, names that are not there.
  """
  return from_texts(csv_text.read(path, least=LEAST), target, categories, numbers, drop, heldout, seed, str(path))


def patients(name='breast_cancer', heldout=1 / 3, seed=0):
  """Tables of patients: breast_cancer (569 x 30 numbers; the target, diagnosis, is malignant or benign) and diabetes
  (442 x 10; the target, progression, is a number) of scikit-learn; gbsg2 (686 x 10, numbers and categories; the
  German breast cancer study), a file that lifelines ships.

  Args: heldout, seed: as for csv.
  """
  if name == 'gbsg2':
    return from_texts(csv_text.read(_gbsg2()), 'cens', heldout=heldout, seed=seed, name='patients(gbsg2)')
  if name not in PATIENTS:
    raise InputError(f'patients(name={name!r}): expected one of {", ".join(PATIENTS)}')
  from sklearn import datasets  # half a second to import
  if name == 'breast_cancer':
    found = datasets.load_breast_cancer()
    header, target, answers = list(found.feature_names), 'diagnosis', found.target_names[found.target]
  else:
    found = datasets.load_diabetes(scaled=False)
    header, target, answers = list(found.feature_names), 'progression', found.target
  texts = [[f'{value:.10g}' for value in column] for column in found.data.T]
  texts += [[value if isinstance(value, str) else f'{value:g}' for value in answers.tolist()]]
  table = csv_text.Texts([*map(str, header), target], texts, [])
  return from_texts(table, target, heldout=heldout, seed=seed, name=f'patients({name})')


def _gbsg2():
  """The path of the file, found without running any code of the package."""
  spec = importlib.util.find_spec('lifelines')
  path = pathlib.Path(spec.origin).parent / 'datasets' / 'gbsg2.csv' if spec and spec.origin else None
  if path is None or not path.is_file():
    raise InputError('patients(gbsg2): the table is part of the package lifelines; install it: pip install lifelines')
  return path


def from_texts(table, target='', categories=(), numbers=(), drop=(), heldout=1 / 3, seed=0, name='table'):
  """The Source of csv_text.Texts; arguments as for csv, `name` for messages."""
  drop, categories, numbers = (_names(name, table.header, option, value) for option, value in
                               (('drop', drop), ('categories', categories), ('numbers', numbers)))
  both = [column for column in categories if column in numbers]
  if both:
    raise InputError(f'{name}: {both[0]!r} is in categories= and in numbers=; choose one')
  target = str(target)  # one that looks like a number
  if target and (target not in table.header or target in drop):
    raise InputError(f'{name}: target: {_unknown(target, [column for column in table.header if column not in drop])}')
  kept = [(column, texts) for column, texts in zip(table.header, table.columns) if column not in drop]
  comma, kinds = _decimal_comma(table, kept), dict.fromkeys(categories, 'category') | dict.fromkeys(numbers, 'number')
  described, values, left_out = [], [], []
  for at, (column, texts) in enumerate(kept):
    try:
      found, value = column_kinds.found(column, texts, comma, kinds.get(column))
    except InputError as error:
      raise InputError(f'{name}: {error}') from error
    if value is None:
      left_out.append(found | dict(at=at))
    else:
      found['place'] = sum(c['kind'] == found['kind'] for c in described)
      described.append(found)
      values.append(value)
  _check_kept(name, described, left_out, target)
  rows = len(values[0])
  stack = lambda kind, dtype: np.array([value for column, value in zip(described, values) if column['kind'] == kind],
                                       dtype).reshape(-1, rows).T.copy()
  arrays = dict(numbers=stack('number', np.float64), categories=stack('category', np.int32))
  file = dict(separator=table.separator, encoding=table.encoding)
  facts = dict(columns=described, target=target, left_out=left_out, file=file)
  notes = (*table.notes, *column_kinds.notes(described, values, left_out, target), *_warnings(rows, described))
  return holdout.split(Dataset(arrays, facts), heldout, seed, name, notes, together=False)


def _names(name, header, option, value):
  """The names in an option: one, or several as a tuple or as 'a, b'."""
  if isinstance(value, str) and value not in header:
    value = value.strip('()[]').split(',')
  names = [value] if isinstance(value, str) or not isinstance(value, (tuple, list)) else value
  names = [str(one).strip(' \'"') for one in names]
  for one in filter(None, names):
    if one not in header:
      raise InputError(f'{name}: {option}: {_unknown(one, header)}')
  return [one for one in names if one]


def _unknown(name, header):
  """The end of a message, without all names of a wide table."""
  text = unknown(name, header)
  return text if len(text) < 400 else text[:400].rpartition(',')[0] + ', ..'


def _decimal_comma(table, kept):
  """Whether numbers have a decimal comma: by those that can have nothing else, or by the separator."""
  some = [dict.fromkeys(texts[:200]) for _, texts in kept]
  proofs = [columns.proves([text for text in texts if not columns.missing([text])] or ['x']) for texts in some]
  difference = proofs.count(',') - proofs.count('.')
  return difference > 0 or (difference == 0 and table.separator == ';')


def _check_kept(name, described, left_out, target):
  away = next((column for column in left_out if column['name'] == target), None)
  if away:
    why = dict(constant='the same in all rows', empty='empty', identifier='different in nearly all rows')[away['kind']]
    mend = f'; set categories={target!r} if it is none' * (away['kind'] == 'identifier')
    raise InputError(f'{name}: target={shown(target)!r} is {why} and nothing to predict{mend}')
  if not described:
    raise InputError(f'{name}: no column is left to model; identifiers, constants and empty columns are left out')


def _warnings(rows, described):
  """Notes on what cannot go well."""
  if rows >= len(described):
    return ()
  return (f'{rows} rows and {len(described)} columns: a model of so few rows repeats them; judge its privacy first',)
