"""Whether rows of a table are copies of training rows, lie too near to them, or give away who was trained on.

None of these can show that a table is private. They find faults, if they are large enough for the number of rows.
"""
import math
from typing import Any, NamedTuple

import numpy as np
import scipy
from scipy.special import gammaln

from diffusion.evaluation.metrics.record import normal, share
from diffusion.evaluation.metrics.table_models import resampled, RESAMPLES, weighted_auc
from diffusion.evaluation.metrics.tables import count, take

PAIRS = 2 ** 22  # distances held at once
TIED = 1e-9      # relative difference of distances that count as equal
ALARM = .01      # false-positive rate at which the membership attack is looked at


# ---- exact copies
def identities(table):
  """A bytes object for each row, equal for equal rows. The table is as_written."""
  numbers = np.where(np.isnan(table.numbers), np.nan, table.numbers)  # one NaN of the many that there are
  return [a.tobytes() + b.tobytes() for a, b in zip(numbers, table.categories)]


def copied_rows(table, train):
  """The share of rows that are equal to a training row: an Estimate."""
  known = set(identities(train))
  return share(sum(row in known for row in identities(table)), count(table))


def natural_copies(train, heldout):
  """The share of new rows that would be equal to a training row by chance: an Estimate, from the real rows.

  Splits by content keep equal rows on one side, so that held-out rows have no copies by construction. So all real rows
  are taken, split anew by row: a row of which there are c has an equal one among n_train of the N - 1 others with
  probability 1 - C(N - c, n_train) / C(N - 1, n_train); the mean over rows is that of all splits.
  """
  _, group, copies = np.unique(identities(train) + identities(heldout), return_inverse=True, return_counts=True)
  c, N, n = copies[group], count(train) + count(heldout), count(train)
  choose = lambda top: gammaln(top + 1) - gammaln(n + 1) - gammaln(np.maximum(top - n, 0) + 1)
  none = np.where(N - c >= n, np.exp(np.minimum(choose(N - c) - choose(N - 1), 0)), 0.)
  none[c == 1] = 1.
  p, distinct = float(1 - none.mean()), len(copies)  # equal rows are found together: at most that many are independent
  return share(p * distinct, distinct)._replace(n=N)


def is_alarming(copied, natural):
  """Whether there are more copies than by chance: any where there would be none, else with intervals apart."""
  return copied.value > 0 if natural.value == 0 else copied.low > natural.high


# ---- nearness
class Metric(NamedTuple):
  """Scales of the distance of rows: of numbers, the interquartile range of the real rows."""
  centre: Any  # [Dn], medians
  scale: Any   # [Dn]


def metric_of(*tables):
  """The Metric of real rows; it treats training and held-out rows alike, or the share expected would not be exact."""
  numbers = np.concatenate([table.numbers for table in tables])
  numbers = np.where(np.isnan(numbers).all(0), 0., numbers)
  low, centre, high = (np.nanquantile(numbers, q, axis=0) for q in (.25, .5, .75))
  spread = np.where(high > low, high - low, np.nanstd(numbers, 0))
  return Metric(centre, np.where(spread > 0, spread, 1.))


def row_distances(a, b, metric):
  """Distances of rows, [n, m]: the mean over columns, as Gower's (1971), of |x - y| / (interquartile range) for
  numbers, and of 0 for equal and 1 for other categories. A missing number lies 1 from the median, 0 from another
  missing one."""
  def coordinates(table):
    missing = np.isnan(table.numbers)
    return np.hstack([np.where(missing, 0., (table.numbers - metric.centre) / metric.scale), missing])
  total = np.zeros((count(a), count(b)))
  if a.numbers.shape[1]:
    total += scipy.spatial.distance.cdist(coordinates(a), coordinates(b), 'cityblock')
  if a.categories.shape[1]:
    total += scipy.spatial.distance.cdist(a.categories, b.categories, 'hamming') * a.categories.shape[1]
  return total / len(a.columns)


def _blocks(table, number):
  step = max(1, PAIRS // max(number, 1))
  return (take(table, slice(first, first + step)) for first in range(0, count(table), step))


def closest(table, train, metric):
  """The distance of each row to the closest training row, [n]."""
  return np.concatenate([row_distances(part, train, metric).min(1) for part in _blocks(table, count(train))])


def _distinct(table):
  rows = identities(table)
  return take(table, np.sort(np.unique(rows, return_index=True)[1]))


def nearer_to_train(table, train, heldout, metric):
  """The share of rows whose closest real row is a training row, and what is expected if training rows are not
  favoured: two Estimates.

  Expected is n_train / (n_train + n_heldout), not 1/2. Of several closest rows, each counts alike. If no row is on both
  sides, as in splits by content, equal real rows count as one.

  The error is that of sampling all three tables: each real row adds a term, the sum over the rows nearest to it of
  (training or not) - share, and the terms are independent within either side. The binomial error is too small, since
  rows that share their closest row are not independent.
  """
  if not set(identities(train)) & set(identities(heldout)):
    train, heldout = _distinct(train), _distinct(heldout)
  n, m = count(train), count(heldout)
  nearest = np.zeros(n + m)  # rows of the table for which it is the closest; fractions where several are
  for part in _blocks(table, n + m):
    distances = np.hstack([row_distances(part, side, metric) for side in (train, heldout)])
    tied = distances <= distances.min(1, keepdims=True) * (1 + TIED) + 1e-12
    nearest += (tied / tied.sum(1, keepdims=True)).sum(0)
  p = nearest[:n].sum() / count(table)
  terms = nearest[:n] * (1 - p), nearest[n:] * -p
  error = math.sqrt(sum(len(side) * side.var(ddof=1) for side in terms if len(side) > 1)) / count(table)
  wide, own = normal(p, error, count(table)), share(p * count(table), count(table))  # the latter holds near 0 and 1
  found = wide._replace(error=max(error, own.error), low=max(0., min(wide.low, own.low)),
                        high=min(1., max(wide.high, own.high)))
  return found, normal(n / (n + m), 0., n + m)


# ---- membership
def membership_attack(members, others, seed):
  """How well the loss of the model tells training rows from others: {name: Estimate}.

  attack_auc: the probability that a member has the lower loss; .5 is a guess (Yeom et al. 2018, arXiv:1709.01604).
  attack_tpr: the share of members found when ALARM of the others are taken for members (Carlini et al. 2022,
  arXiv:2112.03570); a guess finds about as many; left out with fewer than 1 / ALARM others.
  The intervals are the bootstrap's, over both.

  Args:
    members: losses of training rows, [n].
    others: losses of held-out rows, measured with the same noise, [m].
  """
  members, others = (np.asarray(a, np.float64) for a in (members, others))
  n, m, rng = len(members), len(others), np.random.default_rng(seed)
  weights = np.hstack([np.vstack([np.ones(k), rng.multinomial(k, np.full(k, 1 / k), RESAMPLES)]) for k in (n, m)])
  auc = weighted_auc(-np.concatenate([members, others]), np.arange(n + m) < n, weights)
  found = dict(attack_auc=resampled(auc, n))
  if m >= 1 / ALARM:
    draws = [(members, others)] + [(rng.choice(members, n), rng.choice(others, m)) for _ in range(RESAMPLES)]
    rate = lambda a, b: np.mean(a < np.partition(b, int(ALARM * m))[int(ALARM * m)])
    found['attack_tpr'] = resampled(np.array([rate(*draw) for draw in draws]), n)
  return found
