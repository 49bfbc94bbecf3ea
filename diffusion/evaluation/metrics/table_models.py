"""Tables judged by models trained on them: what a table is worth for training, and whether it can be told from another.

Features: standardised numbers (the median and a flag where missing) and one-hot categories for the linear models; the
numbers, missing ones among them, and categories as such for the boosted trees.
"""
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from diffusion.evaluation.metrics.record import Estimate
from diffusion.evaluation.metrics.tables import count, some, values

RESAMPLES = 400   # of the bootstrap
MOST_ROWS = 5000  # of each side of the two-sample test, and of the rows that a trained model is tested on
FOLDS = 5
MANY = 255        # categories that the trees can take; more are taken as a number

one_thread = threadpool_limits.wrap(limits=1)  # threads wait for each other: on a busy machine ten times as long


class Worth(NamedTuple):
  """What a table is worth for training: the mean score of a linear model and of boosted trees on real rows."""
  score: Any      # [1 + RESAMPLES], of all test rows, and of resamples of them, the same for all tables
  each: dict      # {'linear': score, 'trees': score}, of all test rows
  absent: tuple   # classes of the test rows that the table lacks
  number: int     # test rows


def resampled(scores, number):
  """The Estimate of scores[0], whose interval is given by resamples, scores[1:]; NaN among them are left out."""
  low, high = np.nanquantile(scores[1:], (.025, .975))
  return Estimate(float(scores[0]), float(np.nanstd(scores[1:], ddof=1)), float(low), float(high), int(number))


def weights_of_resamples(number, seed):
  """Ones, and how often the bootstrap draws each of `number` rows: [1 + RESAMPLES, number]."""
  drawn = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), RESAMPLES)
  return np.vstack([np.ones(number), drawn])


def weighted_auc(scores, positive, weights):
  """Areas under the ROC curve, [R]; ties count half; NaN without positives or without negatives.

  Args:
    scores: [n].   positive: bool [n].   weights: [R, n], how often each row counts.
  """
  order = np.argsort(scores, kind='stable')
  starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) > 0)
  groups = lambda chosen: np.add.reduceat((weights * chosen)[:, order], starts, axis=1)
  hits, others = groups(positive), groups(~positive)
  below = np.cumsum(others, 1) - others / 2
  with np.errstate(invalid='ignore'):
    return (hits * below).sum(1) / (hits.sum(1) * others.sum(1))


def weighted_r2(predicted, truth, weights):
  """Coefficients of determination, [R]; NaN where the truth is constant. weights: [R, n]."""
  middle = (weights @ truth / weights.sum(1))[:, None]
  with np.errstate(divide='ignore', invalid='ignore'):
    found = 1 - (weights * (truth - predicted) ** 2).sum(1) / (weights * (truth - middle) ** 2).sum(1)
  return np.where(np.isfinite(found), found, np.nan)


@one_thread
def worth(table, test, target, seed):
  """The Worth of a table for predicting a column: of categories, the mean over classes of the area under the ROC
  curve, one class against the rest; of numbers, R^2.

  A class that the table lacks counts as .5. Rows whose target is a missing number are left out. The test rows, and
  the resamples of them, depend on the seed alone.

  Args:
    table: the Table to train on.
    test: the Table of real rows to test on.
    target: the column, one of `columns`.
  """
  (x, y), (x_test, y_test) = (_split(t, target) for t in (table, some(test, MOST_ROWS, seed)))
  x, x_test = _without_empty(x, x_test)
  weights = weights_of_resamples(len(y_test), seed)
  make, measure = (_regressors, _r2_of) if target['kind'] == 'number' else (_classifiers, _auc_of)
  found = {name: measure(model, x, y, x_test, y_test, weights) for name, model in make(table, target, seed).items()}
  absent = () if target['kind'] == 'number' else tuple(target['categories'][k] for k in np.setdiff1d(y_test, y))
  each = {name: float(score[0]) for name, score in found.items()}
  return Worth(np.mean(list(found.values()), 0), each, absent, len(y_test))


def _r2_of(model, x, y, x_test, y_test, weights):
  if len(y) < 2:
    return weighted_r2(np.full(len(y_test), y.mean() if len(y) else 0.), y_test, weights)
  return weighted_r2(model.fit(x, y).predict(x_test), y_test, weights)


def _auc_of(model, x, y, x_test, y_test, weights):
  """The mean over the classes of the test rows; scores of a class that was not trained on are all equal."""
  scores, known = np.zeros((len(y_test), int(max(y.max(), y_test.max())) + 1)), np.unique(y)
  if len(known) > 1:
    scores[:, known] = model.fit(x, y).predict_proba(x_test)
  present = np.unique(y_test)
  areas = np.array([weighted_auc(scores[:, k], y_test == k, weights) for k in present])
  known = np.isfinite(areas)
  return np.where(known, areas, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)


# sklearn is imported where it is used: it takes a second, which nothing else needs.
def _classifiers(table, target, seed):
  from sklearn.ensemble import HistGradientBoostingClassifier
  from sklearn.linear_model import LogisticRegression
  return dict(linear=_linear(table, target, LogisticRegression(max_iter=1000)),
              trees=HistGradientBoostingClassifier(**_trees(table, target, seed)))


def _regressors(table, target, seed):
  from sklearn.ensemble import HistGradientBoostingRegressor
  from sklearn.linear_model import Ridge
  return dict(linear=_linear(table, target, Ridge()),
              trees=HistGradientBoostingRegressor(**_trees(table, target, seed)))


def _split(table, target):
  """(features [N, D], numbers first, target [N])."""
  keep = {kind: [c['place'] for c in table.columns if c['kind'] == kind and c != target]
          for kind in ('number', 'category')}
  x, y = _features(table, keep), values(table, target)
  there = ~np.isnan(y) if target['kind'] == 'number' else slice(None)
  return x[there], y[there]


def _features(table, keep):
  return np.hstack([table.numbers[:, keep['number']], table.categories[:, keep['category']]])


def _without_empty(x, other):
  """Both with 0 in columns that have no numbers in x: nothing can be learnt from them, and the trees refuse them."""
  empty = np.isnan(x).all(0)
  return np.where(empty, 0., x), np.where(empty, 0., other)


def _linear(table, target, model):
  from sklearn.compose import ColumnTransformer
  from sklearn.impute import SimpleImputer
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import OneHotEncoder, StandardScaler
  number = sum(c['kind'] == 'number' and c != target for c in table.columns)
  rest = len(table.columns) - number - (target is not None)
  scaled = make_pipeline(SimpleImputer(strategy='median', add_indicator=True, keep_empty_features=True),
                         StandardScaler())
  parts = [('numbers', scaled, slice(0, number))] * bool(number)
  parts += [('categories', OneHotEncoder(handle_unknown='ignore'), slice(number, number + rest))] * bool(rest)
  return make_pipeline(ColumnTransformer(parts), model)


def _trees(table, target, seed):
  """Options of boosted trees."""
  columns = sorted((c for c in table.columns if c != target), key=lambda c: (c['kind'] != 'number', c['place']))
  mask = [c['kind'] == 'category' and len(c['categories']) <= MANY for c in columns]
  return dict(categorical_features=mask if any(mask) else None, random_state=seed, early_stopping=False)


@one_thread
def two_sample_auc(a, b, seed):
  """How well boosted trees tell the rows of two tables apart: the area under the ROC curve, an Estimate.

  .5: not at all; 1: always. As many rows of both, FOLDS-fold cross-validation, the mean over folds (pooled scores of
  folds are not comparable, and biased below .5). The interval is the bootstrap's over rows, with the trees as they are.
  Classifier two-sample test: Lopez-Paz & Oquab 2017, arXiv:1610.06545.
  """
  from sklearn.ensemble import HistGradientBoostingClassifier
  from sklearn.model_selection import StratifiedKFold
  number = min(count(a), count(b), MOST_ROWS)
  a, b = some(a, number, seed), some(b, number, seed + 1)
  every = {kind: slice(None) for kind in ('number', 'category')}
  x, y = np.vstack([_features(a, every), _features(b, every)]), np.repeat([0, 1], number)
  weights, areas = weights_of_resamples(2 * number, seed), []
  for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, y):
    known, unseen = _without_empty(x[train], x[test])
    model = HistGradientBoostingClassifier(**_trees(a, None, seed)).fit(known, y[train])
    areas.append(weighted_auc(model.decision_function(unseen), y[test] == 1, weights[:, test]))
  return resampled(np.mean(areas, 0), number)
