"""Tables for tests."""
import numpy as np
from scipy.special import ndtr
from sklearn.datasets import load_breast_cancer

from diffusion.evaluation.metrics.tables import as_written, Table, take


def table(numbers=None, categories=None, sizes=None, decimals=6):
  """A Table of columns x0, x1, .. and c0, c1, ..; either may be left out."""
  rows = len(categories if numbers is None else numbers)
  numbers = np.zeros((rows, 0)) if numbers is None else np.asarray(numbers, np.float64)
  categories = np.zeros((rows, 0), np.int32) if categories is None else np.asarray(categories, np.int32)
  sizes = sizes or [int(c.max()) + 1 for c in categories.T]
  columns = [dict(name=f'x{i}', kind='number', place=i, decimals=decimals) for i in range(numbers.shape[1])]
  columns += [dict(name=f'c{i}', kind='category', place=i, categories=[f'{k}' for k in range(size)])
              for i, size in enumerate(sizes)]
  return Table(numbers, categories, tuple(columns))


def breast_cancer():
  """569 rows of 30 numbers, and the diagnosis between the second and the third of them."""
  data = load_breast_cancer()
  decimals = [next(d for d in range(9) if np.allclose(np.round(x, d), x, rtol=0, atol=1e-12)) for x in data.data.T]
  columns = [dict(name=str(name), kind='number', place=i, decimals=decimals[i])
             for i, name in enumerate(data.feature_names)]
  columns.insert(2, dict(name='diagnosis', kind='category', place=0, categories=['malignant', 'benign']))
  return as_written(Table(data.data.astype(np.float64), data.target[:, None].astype(np.int32), tuple(columns)))


def thirds(whole, seed=0):
  """Three random parts of a table, of equal size."""
  order = np.random.default_rng(seed).permutation(len(whole.numbers))
  size = len(order) // 3
  return [take(whole, order[k * size:(k + 1) * size]) for k in range(3)]


def mixed(n, seed):
  """Correlated columns: a number, one that a fifth of the rows lack, whole numbers; 2, 3 and 5 categories."""
  rng = np.random.default_rng(seed)
  z = rng.normal(size=(n, 1)) + .7 * rng.normal(size=(n, 6))
  numbers = np.stack([z[:, 0], np.where(rng.random(n) < .2, np.nan, z[:, 1]), np.round(4 * z[:, 2])], 1)
  u = ndtr(z[:, 3:] / np.hypot(1, .7))
  return as_written(table(numbers, np.floor(u * [2, 3, 5]), [2, 3, 5], decimals=3))
