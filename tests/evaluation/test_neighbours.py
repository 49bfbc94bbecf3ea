"""Neighbours, shares and copies against plain tables of distances in float64."""
import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.evaluation.metrics import neighbours


def gaps(a, b):
  """All distances, by differences."""
  return np.sqrt(np.sum((a[:, None].astype(np.float64) - b) ** 2, 2))


def radii(points, k):
  return np.array([sorted(np.delete(row, i))[k - 1] for i, row in enumerate(gaps(points, points))])


def hits(query, base, k):
  return gaps(query, base) <= radii(base, k)


def draw(n, size=4, shift=0., seed=0, mean=0.):
  return (np.random.default_rng(seed).standard_normal((n, size)) + shift + mean).astype(np.float32)


@pytest.mark.parametrize('k, mean', [(3, 0.), (5, 0.), (3, 1000.)])
def test_shares_are_those_of_plain_tables(k, mean):
  real, made = draw(53, mean=mean), draw(41, shift=1., seed=1, mean=mean)
  real[7] = real[3]  # ties and balls of radius 0
  precision, recall = neighbours.precision_recall(real, made, k)
  assert precision.value == np.mean(hits(made, real, k).any(1)) and precision.n == 41
  assert recall.value == np.mean(hits(real, made, k).any(1)) and recall.n == 53
  density, coverage = neighbours.density_coverage(real, made, k)
  counts = hits(made, real, k).sum(1) / k
  assert density[:2] == pytest.approx((counts.mean(), counts.std() / np.sqrt(41)), rel=1e-12)
  assert coverage.value == np.mean(hits(made, real, k).any(0))
  assert 0 < precision.value < 1 and 0 < recall.value < 1 and 0 < coverage.value < 1


def test_density_and_coverage_of_alike_sets_are_as_expected():
  """Density 1 and coverage 1 - 2^-k (arXiv:2002.09797, section 3)."""
  real, made = draw(1000), draw(1000, seed=1)
  density, coverage = neighbours.density_coverage(real, made, 5)
  assert density.value == pytest.approx(1, abs=.06)
  assert coverage.value == pytest.approx(1 - 2 ** -5, abs=.02)


def test_neighbours_are_the_nearest_in_order_and_never_the_sample_itself(k=4):
  query, base = draw(300, seed=1), draw(700)
  for chosen, itself in (query, False), (base[:300], True):
    found = neighbours.neighbours(chosen, base, k, itself)
    table = gaps(chosen, base)
    if itself:
      table[np.arange(300), np.arange(300)] = np.inf
    order = np.argsort(table, 1)[:, :k]
    np.testing.assert_array_equal(found[0], order)
    np.testing.assert_allclose(found[1], np.take_along_axis(table, order, 1), rtol=1e-6)


@pytest.mark.parametrize('mean', [0., -3000.])
def test_a_planted_copy_is_found_at_distance_0_and_a_near_copy_at_its_own(mean):
  base, rng = draw(400, 32, mean=mean), np.random.default_rng(3)
  query = draw(50, 32, seed=1, mean=mean)
  query[11] = base[123]
  near = np.float32(2 ** -9)  # a sum that float32 holds exactly
  query[12] = base[200]
  query[12, 5] = base[200, 5] + near
  base[201:215] = base[200] + 3e-3 * rng.standard_normal((14, 32))  # others so near that products confuse them
  index, distance = neighbours.nearest(query, base)
  assert (index[11], distance[11]) == (123, 0.)
  assert index[12] == 200 and distance[12] == abs(query[12, 5] - base[200, 5])
  assert np.all(np.delete(distance, [11, 12]) > 1)
  twice = np.concatenate([base[:5], base[:1]])
  index, distance = neighbours.nearest(twice, twice, exclude_self=True)
  assert (index[0], index[5]) == (5, 0) and distance[0] == distance[5] == 0 and np.all(distance[1:5] > 0)


def test_authenticity_is_that_of_plain_tables_and_tells_copies_from_fresh_draws():
  train, made = draw(60), draw(45, seed=1)
  made[:9] = train[:9]
  train[50] = train[4]
  table = gaps(made, train)
  expected = np.mean(table.min(1) > radii(train, 1)[table.argmin(1)])
  assert neighbours.authenticity(train, made).value == expected
  assert neighbours.authenticity(train, train + np.float32(1e-4)).value < .05
  fresh = neighbours.authenticity(draw(600, 8), draw(600, 8, seed=5))
  assert fresh.low > .3 and fresh.high < .7


@pytest.mark.parametrize('name', ['precision', 'density'])
def test_the_error_is_the_deviation_between_sets_of_generated_samples(name):
  real, found = draw(100, 2), []
  for seed in range(40):
    made = draw(100, 2, shift=1.5, seed=1 + seed)
    measure = neighbours.precision_recall if name == 'precision' else neighbours.density_coverage
    found.append(measure(real, made, 3)[0])
  values, errors = np.array(found)[:, :2].T
  assert errors.mean() == pytest.approx(values.std(ddof=1), rel=.35)  # 40 draws know a deviation to 11 %


def test_too_few_are_refused():
  with pytest.raises(InputError, match='9 samples among 3: expected at least 4'):
    neighbours.precision_recall(draw(3), draw(9))
  with pytest.raises(InputError, match='features of shape'):
    neighbours.nearest(draw(3, 4), draw(9, 5))
  with pytest.raises(InputError, match='0 samples'):
    neighbours.authenticity(draw(9), draw(0))
