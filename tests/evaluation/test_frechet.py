"""FD against scipy's matrix square root and closed forms; FD-infinity and its interval by simulation."""
import numpy as np
import pytest
from scipy import linalg, stats

from diffusion.errors import InputError
from diffusion.evaluation.metrics import frechet
from diffusion.evaluation.metrics.gaussian_stats import fixed, Moments, moments, total


def by_sqrtm(mean1, cov1, mean2, cov2):
  return np.sum((mean1 - mean2) ** 2) + np.trace(cov1 + cov2 - 2 * linalg.sqrtm(cov1 @ cov2).real)


def covariance(size, seed, rank=None):
  a = np.random.default_rng(seed).standard_normal((size, rank or 2 * size))
  return a @ a.T / size


def grouped(points, groups=8):
  """Moments in float64 by plain sums, to keep the simulation quick."""
  parts = [points[g::groups] for g in range(groups)]
  return Moments(np.array([float(len(p)) for p in parts]), np.array([p.mean(0) for p in parts]),
                 np.array([(p - p.mean(0)).T @ (p - p.mean(0)) for p in parts]))


@pytest.mark.parametrize('size', [1, 5, 40])
def test_distance_is_that_of_the_matrix_square_root(size):
  rng = np.random.default_rng(size)
  mean1, mean2, cov1, cov2 = *rng.standard_normal((2, size)), covariance(size, 1), covariance(size, 2)
  assert frechet.distance(mean1, cov1, mean2, cov2) == pytest.approx(by_sqrtm(mean1, cov1, mean2, cov2), rel=1e-9)
  forward, backward = frechet.distance(mean1, cov1, mean2, cov2), frechet.distance(mean2, cov2, mean1, cov1)
  assert backward == pytest.approx(forward, rel=1e-9)
  assert frechet.distance(mean1, cov1, mean1, cov1) == pytest.approx(0, abs=1e-9 * size)


def test_distance_of_singular_and_of_commuting_covariances_in_closed_form():
  axes = linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
  spread1, spread2 = np.array([0, 0, 1, 4, 9, 2.]), np.array([1, 0, 0, 1, 16, 2.])
  exact = np.sum((np.sqrt(spread1) - np.sqrt(spread2)) ** 2) + 9 * 6
  cov1, cov2 = axes * spread1 @ axes.T, axes * spread2 @ axes.T
  assert frechet.distance(np.zeros(6), cov1, 3 * np.ones(6), cov2) == pytest.approx(exact, rel=1e-6)
  v, w = np.random.default_rng(1).standard_normal((2, 30))  # rank one: |v|^2 + |w|^2 - 2 |v.w|
  expected = v @ v + w @ w - 2 * abs(v @ w)
  assert frechet.distance(0 * v, np.outer(v, v), 0 * w, np.outer(w, w)) == pytest.approx(expected, rel=1e-5)


def test_fd_of_features_is_the_plug_in_value():
  rng = np.random.default_rng(0)
  x = np.maximum(rng.standard_normal((700, 20)) + 20, 19.5).astype(np.float32)
  y = rng.standard_normal((400, 20)).astype(np.float32) + 20
  found = frechet.fd(moments([x[:50], x[50:]]), moments([y]))
  x, y = x.astype(np.float64), y.astype(np.float64)
  assert found.value == pytest.approx(by_sqrtm(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T)), rel=1e-4)
  assert found.n == 400


def simulate(draw, repeats):
  """[repeats, 5] of fd and of fd_infinity."""
  found = [frechet.both(*map(grouped, draw(np.random.default_rng(seed)))) for seed in range(repeats)]
  return np.array(found).swapaxes(0, 1)


def summary(found, truth):
  """(bias, standard deviation, mean half width of the interval, how often it holds the truth)."""
  value, _, low, high, _ = found.T
  return value.mean() - truth, value.std(), ((high - low) / 2).mean(), np.mean((low <= truth) & (truth <= high))


def relu_features(rng, n, size):
  """Neither Gaussian nor white."""
  mix = np.random.default_rng(5).standard_normal((size, size))
  x = rng.standard_normal((n, size)) + .5 * (rng.random((n, 1)) < .3)
  return np.maximum(x @ mix, 0) / np.arange(1, size + 1) ** .5


@pytest.mark.parametrize('size, n, m, repeats', [
  (8, 60, 60, 60), (8, 50, 500, 60), (64, 200, 200, 12), (64, 500, 5000, 8),
])
def test_two_halves_of_one_data_set_are_0_apart_within_the_interval(size, n, m, repeats):
  draw = lambda rng: (relu_features(rng, n, size), relu_features(rng, m, size))
  bias, deviation, half, covered = summary(simulate(draw, repeats)[1], 0.)
  assert covered >= .95 - 2 * np.sqrt(.05 * .95 / repeats)
  assert abs(bias) < deviation
  assert half < 5 * deviation  # not absurdly wide: an exact interval has 2, this one 3 to 4 in long simulations


@pytest.mark.parametrize('size, n, m, repeats', [(8, 60, 60, 60), (8, 100, 1000, 60), (64, 200, 200, 12)])
def test_the_interval_holds_the_known_distance_of_two_gaussians(size, n, m, repeats):
  mean, cov1, cov2 = np.full(size, .3), covariance(size, 1), covariance(size, 2)
  root1, root2 = np.linalg.cholesky(cov1), np.linalg.cholesky(cov2)
  draw = lambda rng: (rng.standard_normal((n, size)) @ root1.T, mean + rng.standard_normal((m, size)) @ root2.T)
  bias, deviation, half, covered = summary(simulate(draw, repeats)[1], by_sqrtm(0, cov1, mean, cov2))
  assert covered >= .95 - 2.5 * np.sqrt(.05 * .95 / repeats)
  assert abs(bias) < deviation and half < 5 * deviation


def test_the_plug_in_value_has_the_bias_that_fd_infinity_takes_off_and_an_error_of_its_own():
  draw = lambda rng: (rng.standard_normal((100, 8)), 1 + rng.standard_normal((100, 8)))
  plain, limit = simulate(draw, 60)
  standard = plain[:, 0].std() / np.sqrt(60)
  assert summary(plain, 8.)[0] > 4 * standard > abs(summary(limit, 8.)[0])
  assert summary(plain, plain[:, 0].mean())[3] >= .9


def test_given_statistics_are_taken_as_they_are():
  rng = np.random.default_rng(0)
  a, b = grouped(rng.standard_normal((300, 6))), grouped(rng.standard_normal((400, 6)) + 1)
  given = fixed(*total(b)[1:])
  assert frechet.fd(a, given).value == pytest.approx(frechet.fd(a, b).value, rel=1e-9)
  assert 0 < frechet.fd(a, given).error < frechet.fd(a, b).error and frechet.fd(a, given).n == 300
  known = fixed(np.ones(6), np.eye(6))
  found = frechet.fd_infinity(a, known)
  assert found.low < 6 < found.high
  alone = frechet.fd(known, given)
  assert np.isnan(alone.error) and np.isnan(frechet.fd_infinity(known, given).low)


def test_too_little_is_said_and_refused():
  assert frechet.warning(65, 64) == '' and '64 samples' in frechet.warning(64, 64)
  with pytest.raises(InputError, match='3 samples'):
    frechet.fd(moments([np.zeros((3, 2))]), moments([np.zeros((9, 2))]))
  with pytest.raises(InputError, match='2 and 3 features'):
    frechet.fd(moments([np.zeros((9, 2))]), moments([np.zeros((9, 3))]))
  few = np.random.default_rng(0).standard_normal((15, 16))  # singular covariances
  assert np.isfinite(frechet.both(grouped(few), grouped(few[::-1]))).all()


def test_one_distance_at_a_size_in_use_equals_scipy():
  x, y = np.random.default_rng(0).standard_normal((2, 200, 64)) * stats.expon(scale=2).ppf(np.linspace(.02, .98, 64))
  expected = by_sqrtm(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
  assert frechet.fd(grouped(x), grouped(y)).value == pytest.approx(expected, rel=1e-9)
