"""Distances of tables against brute force and scipy; the baselines keep what they should and lose what they should."""
import numpy as np
import pytest
from scipy import stats

from diffusion.evaluation.metrics import tables
from diffusion.evaluation.metrics.table_baselines import gaussian_copula, independent
from tests.evaluation.made_tables import mixed, table


def test_column_distances_are_the_largest_gap_of_distribution_functions_and_the_total_variation():
  a, b = mixed(150, 0), mixed(90, 1)
  b.numbers[:, 0] += .5
  for column, found in zip(a.columns, tables.column_distances(a, b)):
    x, y = tables.values(a, column), tables.values(b, column)
    if column['kind'] == 'number':
      x, y = x[~np.isnan(x)], y[~np.isnan(y)]
      expected = max(abs(np.mean(x <= t) - np.mean(y <= t)) for t in np.concatenate([x, y]))
    else:
      expected = sum(max(np.mean(x == k) - np.mean(y == k), 0) for k in range(len(column['categories'])))
    assert found == pytest.approx(expected, abs=1e-12) and found > 0


def test_missing_numbers_have_a_distance_of_their_own():
  x = np.random.default_rng(0).normal(size=(1000, 2))
  holes = x.copy()
  holes[:300, 0] = np.nan
  a, b, none = table(holes), table(x), table(np.full((10, 2), np.nan))
  assert tables.column_distances(a, b)[0] < .05
  assert tables.missing_gaps(a, b) == pytest.approx([.3, 0])
  assert tables.column_distances(a, none).tolist() == [1, 1] and tables.column_distances(none, none).tolist() == [0, 0]


def test_associations_of_numbers_are_spearmans_and_of_a_number_and_a_category_follow_from_kruskal():
  t = mixed(200, 3)
  found = tables.associations(t)
  assert found[0, 2] == pytest.approx(stats.spearmanr(t.numbers[:, 0], t.numbers[:, 2])[0], abs=1e-12)
  both = ~np.isnan(t.numbers[:, 1])
  ranks = stats.rankdata(t.numbers[:, 1], nan_policy='omit')  # among all that are there
  expected = np.corrcoef(ranks[both], stats.rankdata(t.numbers[:, 0])[both])[0, 1]
  assert found[0, 1] == found[1, 0] == pytest.approx(expected, abs=1e-12)
  groups = [t.numbers[t.categories[:, 2] == k, 2] for k in range(5)]
  h, n = stats.kruskal(*groups)[0], len(t.numbers)
  assert found[2, 5] == found[5, 2] == pytest.approx(np.sqrt((h - 4) / (n - 5)), abs=1e-9)


def test_cramers_v_is_that_of_scipy_for_many_rows_and_free_of_bias_for_few():
  rng = np.random.default_rng(0)
  c = rng.integers(0, 4, 20000)
  other = np.where(rng.random(20000) < .5, c, rng.integers(0, 4, 20000))
  found = tables.associations(table(categories=np.stack([c, other, c[::-1]], 1)))
  expected = stats.contingency.association(np.histogram2d(c, other, 4)[0].astype(int), method='cramer')
  assert found[0, 1] == pytest.approx(expected, abs=2e-3) and found[0, 2] < .02
  few = [rng.integers(0, 12, (150, 2)) for _ in range(20)]
  counts = [np.histogram2d(*x.T, 12)[0].astype(int) for x in few]
  plain = np.mean([stats.contingency.association(c, method='cramer') for c in counts])
  ours = np.mean([tables.associations(table(categories=x))[0, 1] for x in few])
  assert plain > .2 and ours < .06
  same = tables.associations(table(categories=np.stack([c, 3 - c], 1)[:50]))
  assert same[0, 1] == pytest.approx(1, abs=1e-12)


def test_associations_are_in_the_order_of_the_file_and_0_for_constant_columns():
  t = mixed(300, 0)
  order = [5, 0, 3, 1, 4, 2]
  shuffled = t._replace(columns=tuple(t.columns[i] for i in order))
  np.testing.assert_array_equal(tables.associations(shuffled), tables.associations(t)[np.ix_(order, order)])
  constant = t._replace(numbers=np.where([True, False, False], 3., t.numbers), categories=t.categories * [0, 1, 1])
  found = tables.associations(constant)
  assert np.count_nonzero(found[0]) == np.count_nonzero(found[3]) == 1 and np.isfinite(found).all()


def test_pair_distance_is_the_mean_over_pairs_and_unknown_for_a_single_column():
  rng = np.random.default_rng(0)
  z = rng.normal(size=(4000, 3))
  a, b = table(z), table(np.stack([z[:, 0], z[:, 0], z[:, 2]], 1))
  assert tables.pair_distance(a, b) == pytest.approx(1 / 3, abs=.03) and tables.pair_distance(a, a) == 0
  assert np.isnan(tables.pair_distance(table(z[:, :1]), table(z[:, :1])))


def test_the_error_of_a_distance_is_no_smaller_than_its_spread_over_draws():
  distance = lambda a, b: tables.column_distances(a, b).mean()
  found = [tables.estimated(distance, mixed(120, 2 * k), mixed(60, 2 * k + 1), k) for k in range(30)]
  spread = np.std([e.value for e in found])
  assert .9 * spread < np.mean([e.error for e in found]) < 3 * spread
  assert all(0 <= e.low <= e.value <= e.high <= 1 for e in found)


def test_common_categories_that_vanish_are_named_and_rare_ones_may():
  rng = np.random.default_rng(0)
  train = table(categories=rng.choice(4, (2000, 1), p=[.6, .37, .025, .005]))
  drawn = table(categories=rng.choice(2, (100, 1)), sizes=[4])
  assert tables.rare_categories(drawn, train) == (2 / 3, [('c0', '2')])
  assert np.isnan(tables.rare_categories(table(rng.normal(size=(9, 1))), table(rng.normal(size=(9, 1))))[0])


def test_float32_samples_of_real_values_are_equal_to_them_as_written():
  x = np.array([[1234567.89, .1, -0.], [7., .2, 0.]])
  real, drawn = table(x, decimals=2), table(x.astype(np.float32), decimals=2)
  np.testing.assert_array_equal(tables.as_written(real).numbers, tables.as_written(drawn).numbers)
  assert not np.signbit(tables.as_written(real).numbers[0, 2]) and tables.as_written(real).numbers[0, 1] == .1


# ---- baselines
def test_a_copula_keeps_columns_and_the_correlation_of_gaussian_numbers():
  rng, rho = np.random.default_rng(0), .8
  z = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], 20000)
  train = table(np.stack([np.exp(z[:, 0]), z[:, 1] ** 3], 1))
  drawn = gaussian_copula(train, 20000, rng)
  assert stats.spearmanr(*drawn.numbers.T)[0] == pytest.approx(6 / np.pi * np.arcsin(rho / 2), abs=.01)
  assert tables.column_distances(drawn, train).max() < 1.9 * np.sqrt(2 / 20000)  # p = .001 of two samples
  assert np.isin(drawn.numbers[:, 0], train.numbers[:, 0]).all()


@pytest.mark.parametrize('baseline', [gaussian_copula, independent])
def test_baselines_keep_categories_missing_numbers_and_repeated_values(baseline):
  train = mixed(5000, 0)
  drawn = baseline(train, 8000, np.random.default_rng(1))
  assert len(drawn.numbers) == len(drawn.categories) == 8000 and drawn.categories.dtype == np.int32
  assert tables.column_distances(drawn, train).max() < .03 and tables.missing_gaps(drawn, train).max() < .02


def test_columns_on_their_own_go_together_with_nothing_and_a_copula_lies_between():
  train, fresh = mixed(3000, 0), mixed(3000, 1)
  far, between, near = (tables.pair_distance(t, fresh) for t in (
    independent(train, 3000, np.random.default_rng(2)), gaussian_copula(train, 3000, np.random.default_rng(2)), train))
  assert np.abs(tables.associations(independent(train, 3000, np.random.default_rng(3)))
                [np.triu_indices(6, 1)]).max() < .06
  assert near < between < .5 * far


@pytest.mark.parametrize('train', [table(np.zeros((30, 1))), table(categories=np.ones((30, 2), int)),
                                   table(np.full((30, 2), np.nan)), table(np.arange(30.)[:, None])])
def test_baselines_take_constant_missing_and_single_columns(train):
  for baseline in (gaussian_copula, independent):
    drawn = baseline(train, 50, np.random.default_rng(0))
    assert np.isin(drawn.numbers[np.isfinite(drawn.numbers)], train.numbers).all()
    assert np.isnan(drawn.numbers).all(0).tolist() == np.isnan(train.numbers).all(0).tolist()
    assert (drawn.categories == 1).all()
