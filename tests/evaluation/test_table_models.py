"""Scores against sklearn's own; what is learnt from tables against what can be known."""
import numpy as np
import pytest
from scipy.special import ndtr
from sklearn.metrics import r2_score, roc_auc_score

from diffusion.evaluation.metrics import table_models as models
from diffusion.evaluation.metrics.tables import take
from tests.evaluation.made_tables import breast_cancer, mixed, table, thirds


def target(t, name):
  return next(c for c in t.columns if c['name'] == name)


def test_weighted_scores_are_those_of_sklearn():
  rng = np.random.default_rng(0)
  truth, weights = rng.random(80) < .3, rng.integers(0, 4, (5, 80)).astype(float)
  scores = np.round(rng.normal(size=80) + truth, 1)  # ties
  expected = [roc_auc_score(truth, scores, sample_weight=w) for w in weights]
  np.testing.assert_allclose(models.weighted_auc(scores, truth, weights), expected, atol=1e-12)
  expected = [r2_score(truth.astype(float), scores, sample_weight=w) for w in weights]
  np.testing.assert_allclose(models.weighted_r2(scores, truth.astype(float), weights), expected, atol=1e-12)
  assert np.isnan(models.weighted_auc(scores, np.zeros(80, bool), weights)).all()
  assert np.isnan(models.weighted_r2(scores, np.ones(80), weights)).all()


def test_the_error_of_an_area_is_its_spread_over_draws():
  truth, found = np.arange(150) < 60, []
  for seed in range(200):
    scores = np.random.default_rng(seed).normal(size=150) + truth
    area = models.weighted_auc(scores, truth, models.weights_of_resamples(150, seed))
    found.append(models.resampled(area, 150))
  values, errors = (np.array([getattr(e, name) for e in found]) for name in ('value', 'error'))
  assert values.mean() == pytest.approx(ndtr(1 / np.sqrt(2)), abs=.01)
  assert errors.mean() == pytest.approx(values.std(), rel=.2)
  assert np.mean([e.low < ndtr(1 / np.sqrt(2)) < e.high for e in found]) > .9


class Known:
  """A model with given probabilities."""
  def __init__(self, p):
    self.p = p

  def fit(self, x, y):
    return self

  def predict_proba(self, x):
    return self.p


def test_areas_of_several_classes_are_sklearns_macro_average():
  rng = np.random.default_rng(0)
  p, y = rng.dirichlet(np.ones(4), 200), rng.integers(0, 4, 200)
  found = models._auc_of(Known(p), None, np.arange(4), None, y, np.ones((1, 200)))
  assert found[0] == pytest.approx(roc_auc_score(y, p, multi_class='ovr', average='macro'), abs=1e-12)


def test_a_copy_is_worth_what_the_original_is():
  train, heldout, _ = thirds(breast_cancer())
  column = target(train, 'diagnosis')
  real, copy = (models.worth(t, heldout, column, 0) for t in (train, train._replace(numbers=train.numbers.copy())))
  np.testing.assert_array_equal(real.score, copy.score)
  shuffled = train._replace(categories=np.random.default_rng(0).permutation(train.categories))
  assert real.score[0] > .97 and abs(models.worth(shuffled, heldout, column, 0).score[0] - .5) < .2
  assert real.each['linear'] > .97 and real.each['trees'] > .97 and real.number == len(heldout.numbers)


def test_r2_of_a_number_is_that_of_its_noise_and_rows_without_it_are_left_out():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(3000, 2))
  x = np.hstack([x, (x[:, :1] - x[:, 1:] + rng.normal(size=(3000, 1)))])  # R^2 = 2/3
  x[::10, 2] = np.nan
  t = table(x)
  found = models.worth(take(t, slice(0, 2000)), take(t, slice(2000, None)), target(t, 'x2'), 0)
  assert found.each['linear'] == pytest.approx(2 / 3, abs=.05) and found.number == 900
  assert found.each['trees'] == pytest.approx(2 / 3, abs=.1)


def test_that_a_number_is_missing_is_something_to_learn_from():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(400, 2)), rng.integers(0, 2, 400)
  x[y == 1, 0] = np.nan
  t = table(x, y[:, None])
  found = models.worth(take(t, slice(0, 200)), take(t, slice(200, None)), target(t, 'c0'), 0)
  assert found.each == dict(linear=1., trees=1.)


@pytest.mark.parametrize('kept', [(0,), (0, 1)])
def test_a_class_that_a_table_lacks_counts_as_a_guess(kept):
  rng = np.random.default_rng(0)
  y = rng.integers(0, 3, 600)
  t = table(y[:, None] + .01 * rng.normal(size=(600, 1)), y[:, None])
  drawn = take(t, np.flatnonzero(np.isin(y, kept)))
  found = models.worth(drawn, t, target(t, 'c0'), 0)
  assert found.absent == tuple(str(k) for k in range(3) if k not in kept)
  if len(kept) == 1:
    assert found.score[0] == .5
  else:  # class 0 is told from all, and class 2 from none
    assert .5 + 1 < 3 * found.score[0] <= 1 + 1 + .5


def test_columns_may_be_empty_unknown_or_of_one_kind():
  t, fresh = mixed(150, 0), mixed(120, 1)
  empty = t._replace(numbers=np.full_like(t.numbers, np.nan), categories=np.minimum(t.categories, [1, 0, 1]))
  assert np.isfinite(models.worth(empty, fresh, target(t, 'c0'), 0).score).all()
  numbers, categories = table(t.numbers[:, [0, 2]]), table(categories=t.categories)
  assert models.worth(numbers, table(fresh.numbers[:, [0, 2]]), target(numbers, 'x1'), 0).score[0] > .2
  assert models.worth(categories, table(categories=fresh.categories), target(categories, 'c0'), 0).score[0] > .6
  without = models.worth(t._replace(numbers=t.numbers * [1, np.nan, 1]), fresh, target(t, 'x1'), 0)
  assert without.score[0] <= 0  # nothing to learn the target from


def test_rows_of_one_distribution_cannot_be_told_apart():
  found = [models.two_sample_auc(mixed(100, 2 * k), mixed(130, 2 * k + 1), k) for k in range(8)]
  values = np.array([e.value for e in found])
  assert abs(values.mean() - .5) < 3 * values.std() / np.sqrt(8) + .01 and found[0].n == 100
  assert sum(e.low <= .5 <= e.high for e in found) >= 6


def test_shifted_rows_are_told_apart_as_well_as_possible_and_holes_are_seen():
  rng, d = np.random.default_rng(0), 1.5
  a, b = rng.normal(size=(1500, 1)), rng.normal(size=(1500, 1)) + d
  assert models.two_sample_auc(table(a), table(b), 0).value == pytest.approx(ndtr(d / np.sqrt(2)), abs=.04)
  holes = np.where(rng.random((1500, 1)) < .5, np.nan, rng.normal(size=(1500, 1)))
  assert models.two_sample_auc(table(a), table(holes), 0).value == pytest.approx(.75, abs=.04)
