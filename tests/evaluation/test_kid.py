"""KID against plain double loops in float64."""
import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.evaluation.metrics import kid


def mmd(x, y):
  """The unbiased squared MMD, pair by pair."""
  x, y = x.astype(np.float64), y.astype(np.float64)
  k = lambda a, b: (a @ b / len(a) + 1) ** 3
  within = lambda z: sum(k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j) / (len(z) * (len(z) - 1))
  return within(x) + within(y) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


def draw(n, size, mean, scale, seed):
  return (mean + scale * np.random.default_rng(seed).standard_normal((n, size))).astype(np.float32)


@pytest.mark.parametrize('n, m, size, mean, shift', [
  (40, 40, 6, 0., .5), (31, 57, 6, 0., 0.), (40, 33, 3, 20., .1), (40, 40, 6, -300., .01), (6, 7, 2, 1., 1.)])
def test_kid_is_the_unbiased_mmd_of_all_pairs(n, m, size, mean, shift):
  x, y = draw(n, size, mean, 1., 0), draw(m, size, mean + shift, 1.2, 1)
  assert kid.kid(x, y, 0).value == pytest.approx(mmd(x, y), rel=1e-4)
  assert kid.kid(x, y, 1, groups=3).value == pytest.approx(mmd(x, y), rel=1e-4)


def test_the_error_is_the_jackknife_of_the_groups():
  x, y = draw(24, 4, 1., 1., 0), draw(36, 4, 1.4, 1., 1)
  rng = np.random.default_rng(7)
  a, b = rng.permutation(x), rng.permutation(y)
  without = [mmd(np.delete(a, np.s_[g::6], 0), np.delete(b, np.s_[g::6], 0)) for g in range(6)]
  expected = np.sqrt(5 / 6 * np.sum((without - np.mean(without)) ** 2))
  assert kid.kid(x, y, 7, groups=6).error == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize('shift', [0., .5])
def test_the_error_is_the_deviation_between_draws(shift):
  """Of a quadratic, as KID is where the sets are alike, jackknife errors are sqrt(2) too large."""
  pairs = ((draw(64, 3, 0., .5, 2 * s), draw(64, 3, shift, .5, 2 * s + 1)) for s in range(40))
  found = np.array([kid.kid(*pair, 0, groups=8) for pair in pairs])
  assert .8 < found[:, 1].mean() / found[:, 0].std() < 1.9
  assert np.mean((found[:, 2] <= found[:, 0].mean()) & (found[:, 0].mean() <= found[:, 3])) >= .85


def test_it_is_0_on_average_where_the_sets_are_alike():
  pairs = ((draw(64, 3, 5., 1., 2 * s), draw(64, 3, 5., 1., 2 * s + 1)) for s in range(50))
  found = np.array([kid.kid(*pair, 0, groups=4).value for pair in pairs])
  assert abs(found.mean()) < 3 * found.std() / np.sqrt(50)


def test_the_spread_over_subsets_is_that_of_their_size():
  x, y = draw(500, 3, 0., 1., 0), draw(500, 3, 1., 1., 1)
  mean, small = kid.spread(x, y, 0, subsets=40, size=20)
  assert mean == pytest.approx(kid.kid(x, y, 0).value, abs=4 * small / np.sqrt(40))
  assert small > 1.5 * kid.spread(x, y, 0, subsets=40, size=100)[1]
  assert kid.spread(x, y, 3, 5, 50) == kid.spread(x, y, 3, 5, 50) != kid.spread(x, y, 4, 5, 50)


def test_bad_features_are_refused():
  with pytest.raises(InputError, match='at least 6'):
    kid.kid(np.zeros((5, 2)), np.zeros((9, 2)), 0)
  with pytest.raises(InputError, match='features of shape'):
    kid.kid(np.zeros((9, 2)), np.zeros((9, 3)), 0)
  with pytest.raises(InputError, match='finite'):
    kid.kid(np.full((9, 2), np.nan), np.zeros((9, 2)), 0)
  with pytest.raises(InputError, match='at least 1000'):
    kid.spread(np.zeros((9, 2)), np.zeros((9, 2)), 0)
