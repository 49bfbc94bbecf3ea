"""Tables as metrics take them, and distances between two of them: of single columns, of pairs of columns.

Distances are positive even between two samples of one distribution, and fall with the number of rows: compare with
those of as many real rows.
"""
from typing import Any, NamedTuple

import numpy as np
import scipy  # its parts are imported when they are used: --help and wrong arguments answer at once

from diffusion.evaluation.metrics.gaussian_stats import jackknife

GROUPS = 10   # of rows, for the error of a distance
COMMON = .01  # share of the rows above which a category must not vanish


class Table(NamedTuple):
  """N rows of Dn columns of numbers and Dc of categories."""
  numbers: Any     # float64 [N, Dn], NaN where missing
  categories: Any  # int32 [N, Dc], indices of categories; a missing one is a category of its own, ''
  columns: tuple   # dicts in the order of the file: name, kind ('number' | 'category'), place (column of numbers or of
                   # categories); of a number decimals, of a category categories (texts)


def count(table):
  """The number of rows."""
  return len(table.numbers)


def take(table, index):
  """The rows of an index."""
  return table._replace(numbers=table.numbers[index], categories=table.categories[index])


def some(table, number, seed):
  """At most `number` rows, drawn at random without repetition."""
  if count(table) <= number:
    return table
  return take(table, np.random.default_rng(seed).permutation(count(table))[:number])


def of(table, kind):
  """The columns of a kind, in the order of their places."""
  return sorted((column for column in table.columns if column['kind'] == kind), key=lambda column: column['place'])


def values(table, column):
  """The values [N] of a column: numbers, or indices of categories."""
  return (table.numbers if column['kind'] == 'number' else table.categories)[:, column['place']]


def sizes(table):
  """How many categories each column of categories has."""
  return [len(column['categories']) for column in of(table, 'category')]


def as_written(table):
  """The table with numbers as float32, which samples are, rounded to the decimals of their columns.

  So real rows and samples are treated alike, and a copy is equal to its original.
  """
  numbers = np.array(table.numbers, np.float32).astype(np.float64)
  for i, column in enumerate(of(table, 'number')):
    numbers[:, i] = np.round(numbers[:, i], column['decimals']) + 0.  # -0 becomes 0
  return table._replace(numbers=numbers, categories=np.asarray(table.categories, np.int32))


# ---- single columns
def column_distances(a, b):
  """How far the columns of two tables are apart, [D] in [0, 1], in the order of the file.

  Numbers: the Kolmogorov-Smirnov distance, the largest difference of the distribution functions, of what is not
  missing; 1 where only one table has any. Categories: the total variation, half the sum of the absolute differences
  of the shares.
  """
  return np.array([_number_distance(values(a, c), values(b, c)) if c['kind'] == 'number' else
                   _category_distance(values(a, c), values(b, c), len(c['categories'])) for c in a.columns])


def _number_distance(x, y):
  x, y = (values[~np.isnan(values)] for values in (x, y))
  if not len(x) or not len(y):
    return float(len(x) != len(y))
  return scipy.stats.ks_2samp(x, y, method='asymp').statistic


def _category_distance(x, y, number):
  shares = (np.bincount(values, minlength=number) / len(values) for values in (x, y))
  return np.abs(np.subtract(*shares)).sum() / 2


def missing_gaps(a, b):
  """Absolute differences of the shares of missing numbers, [Dn]."""
  return np.abs(np.isnan(a.numbers).mean(0) - np.isnan(b.numbers).mean(0))


def rare_categories(table, train):
  """Which categories that more than COMMON of the training rows have occur in the table.

  Returns:
    (the share of them, or NaN if there are none, [(column, category)] of those missing).
  """
  found, missing = 0, []
  for column in of(train, 'category'):
    names = column['categories']
    there, usual = (np.bincount(values(t, column), minlength=len(names)) for t in (table, train))
    common = np.flatnonzero(usual > COMMON * count(train))
    found += np.count_nonzero(there[common])
    missing += [(column['name'], names[k]) for k in common if not there[k]]
  return found / (found + len(missing)) if found or missing else np.nan, missing


# ---- pairs of columns
def associations(table):
  """How strongly columns go together, [D, D] in the order of the file; 0 where a column is constant.

  Two numbers: the correlation of their ranks (Spearman), in [-1, 1], over rows in which neither is missing. A number
  and a category: the correlation ratio of ranks, corrected for its bias (Kelley 1935). Two categories: Cramer's V,
  corrected for its bias (Bergsma 2013, J. Korean Stat. Soc. 42(3)). The corrected ones are in [0, 1] and near
  0 for independent columns, whatever the number of categories.
  """
  present = (~np.isnan(table.numbers)).astype(np.float64)
  ranks = scipy.stats.rankdata(table.numbers, axis=0, nan_policy='omit') / max(count(table), 1)
  ranks = np.where(present, ranks - .5, 0.)
  hot, member = _one_hot(table)
  by_kind = np.block([[_spearman(ranks, present), _ratios(ranks, present, hot, member)],
                      [_ratios(ranks, present, hot, member).T, _cramer(hot, member)]])
  Dn = table.numbers.shape[1]
  order = [c['place'] + Dn * (c['kind'] == 'category') for c in table.columns]
  found = by_kind[np.ix_(order, order)]
  np.fill_diagonal(found, 1.)
  return found


def pair_distance(a, b):
  """The mean absolute difference of the associations of two tables, over pairs of columns; NaN for a single column."""
  pairs = np.triu_indices(len(a.columns), 1)
  return np.abs(associations(a) - associations(b))[pairs].mean() if len(pairs[0]) else np.nan


def _one_hot(table):
  """(one-hot categories of all columns [N, K], which column each of the K belongs to [K, Dc]), both sparse."""
  counts = np.array(sizes(table), int)
  N, Dc = table.categories.shape
  places = table.categories + np.r_[0, np.cumsum(counts)[:-1]].astype(int)[:Dc]
  K, rows = int(counts.sum()), np.repeat(np.arange(N), Dc)
  hot = scipy.sparse.csr_array((np.ones(N * Dc), (rows, places.ravel())), (N, K))
  return hot, scipy.sparse.csr_array((np.ones(K), (np.arange(K), np.repeat(np.arange(Dc), counts))), (K, Dc))


def _spearman(ranks, present):
  n, one, two = present.T @ present, ranks.T @ present, (ranks ** 2).T @ present
  with np.errstate(divide='ignore', invalid='ignore'):
    covariance, variance = ranks.T @ ranks - one * one.T / n, two - one ** 2 / n
    found = covariance / np.sqrt(variance * variance.T)
  return np.clip(np.where(np.minimum(variance, variance.T) > 1e-9, found, 0.), -1, 1)


def _ratios(ranks, present, hot, member):
  """[Dn, Dc]: roots of 1 - (variance within categories) / (variance), both unbiased."""
  n, square = present.sum(0), (ranks ** 2).sum(0) - ranks.sum(0) ** 2 / np.maximum(present.sum(0), 1)
  counts, sums = hot.T @ present, hot.T @ ranks
  between = member.T @ (sums ** 2 / np.maximum(counts, 1)) - ranks.sum(0) ** 2 / np.maximum(n, 1)
  kinds = member.T @ (counts > 0).astype(float)
  with np.errstate(divide='ignore', invalid='ignore'):
    found = 1 - (square - between) / (n - kinds) / (square / (n - 1))
  return np.sqrt(np.clip(np.where((n > kinds) & (square > 1e-9) & (kinds > 1), found, 0.), 0, 1)).T


def _cramer(hot, member):
  """[Dc, Dc]; n phi^2 is the chi-squared statistic of a contingency table."""
  n, counts = max(hot.shape[0], 1), np.asarray(hot.sum(0)).ravel()
  scale = scipy.sparse.diags_array(1 / np.maximum(counts, 1))
  phi = (member.T @ (scale @ (hot.T @ hot).power(2) @ scale) @ member).toarray() - 1
  kinds = member.T @ (counts > 0).astype(float)
  phi = np.maximum(0, phi - np.outer(kinds - 1, kinds - 1) / max(n - 1, 1))
  kinds = kinds - (kinds - 1) ** 2 / max(n - 1, 1)
  least = np.minimum.outer(kinds, kinds) - 1
  return np.sqrt(np.clip(phi / np.where(least > 1e-9, least, np.inf), 0, 1))


# ---- with an error
def estimated(distance, a, b, seed, high=1.):
  """The Estimate of a distance in [0, high], by the jackknife over random groups of rows left out on both sides at
  once.

  Args:
    distance: (Table, Table) -> number.
    seed: of the groups.
  """
  rng, K = np.random.default_rng(seed), min(GROUPS, count(a), count(b))
  parts = [np.array_split(rng.permutation(count(table)), K) for table in (a, b)]
  keep = lambda table, group: take(table, np.delete(np.arange(count(table)), group))
  found = jackknife(distance(a, b), [distance(keep(a, i), keep(b, j)) for i, j in zip(*parts)], count(a))
  return found._replace(low=max(0., found.low), high=min(high, found.high))
