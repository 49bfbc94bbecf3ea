"""Numbers as N(0, 1): against scipy's tests and float64 references, and back to what they were."""
import jax
import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr, ndtri

from diffusion.tasks import quantiles

N = 20_000


def draws(n, seed):
  """{name: (numbers [n], decimals)} of distributions that are hard on a transform."""
  rng = np.random.default_rng(seed)
  clusters = np.where(rng.random(n) < .3, rng.normal(0, 1, n), rng.normal(1000, 2, n))
  return dict(
    normal=(rng.normal(size=n).round(5), 5), whole=(rng.integers(0, 10 ** 7, n), 0),
    negative=(rng.integers(-500, -3, n), 0),
    zeros=(np.where(rng.random(n) < .6, 0, rng.exponential(30, n)).round(1), 1),
    clusters=(clusters.round(3), 3), precise=(rng.uniform(-300, 8000, n).round(3), 3),
    heavy=(rng.pareto(1.2, n).clip(0, 1e4).round(1), 1), ages=(rng.integers(20, 91, n), 0),
    dates=(rng.integers(0, 15_000, n), 0), few=(rng.choice([0, 5, 10], n, p=[.2, .5, .3]), 0),
    wide=(np.exp(rng.normal(0, 2, n)).round(2), 2), skewed=(rng.gamma(.3, size=n).round(3), 3))


NAMES = list(draws(1, 0))
DECIMALS = [places for _, places in draws(1, 0).values()]


def numbers(n, seed):
  return np.stack([values for values, _ in draws(n, seed).values()], 1).astype(np.float64)


TRAIN = numbers(N, 0)
FITTED = quantiles.fit(TRAIN, DECIMALS)
NORMAL, INVERSE = jax.jit(quantiles.normal), jax.jit(quantiles.inverse(FITTED))
steps = lambda values, fitted=FITTED: np.rint(np.asarray(values, np.float64) / fitted['step']).astype(np.int64)


def to_z(fitted, values, u):
  low, high = (np.float32(ends) for ends in quantiles.intervals(fitted, values))
  return np.asarray(NORMAL(low, high, np.broadcast_to(np.float32(u), low.shape)))


def test_new_numbers_of_any_distribution_become_standard_normal():
  z = to_z(FITTED, numbers(N, 1), np.random.default_rng(2).random(TRAIN.shape))
  distance = {name: stats.kstest(column, 'norm').statistic for name, column in zip(NAMES, z.T)}
  critical = stats.kstwobign.ppf(1 - 1e-4 / len(NAMES)) * np.sqrt(2 / N)  # the training data are a sample as well
  assert max(distance.values()) < critical, distance


def test_the_training_numbers_are_nearer_to_it_than_a_sample_would_be():
  z = to_z(FITTED, TRAIN, np.random.default_rng(2).random(TRAIN.shape))
  assert max(stats.kstest(column, 'norm').statistic for column in z.T) < 1.2 / np.sqrt(N)


def test_a_value_that_many_rows_share_is_the_normal_distribution_within_its_interval():
  zero = NAMES.index('zeros')
  z = to_z(FITTED, TRAIN, np.random.default_rng(2).random(TRAIN.shape))[TRAIN[:, zero] == 0, zero]
  share = np.mean(TRAIN[:, zero] == 0)
  assert stats.kstest(z, stats.truncnorm(-np.inf, ndtri(share)).cdf).pvalue > 1e-3
  middle = to_z(FITTED, TRAIN[:3] * 0, .5)[:, zero]
  np.testing.assert_allclose(middle, ndtri(share / 2), atol=1e-3)


@pytest.mark.parametrize('fitted_to', [N, 380, 30])
@pytest.mark.parametrize('u', ['middle', 'drawn', 0., 1.])
def test_numbers_come_back_as_they_were_whatever_is_drawn(fitted_to, u):
  train = TRAIN[:fitted_to]
  fitted = quantiles.fit(train, DECIMALS)
  z = to_z(fitted, train, dict(middle=.5, drawn=np.random.default_rng(3).random(train.shape, np.float32)).get(u, u))
  np.testing.assert_array_equal(steps(jax.jit(quantiles.inverse(fitted))(z), fitted), steps(train, fitted))


@pytest.mark.parametrize('n', [1, 2, 7])
def test_a_handful_of_numbers_come_back_too(n):
  fitted = quantiles.fit(TRAIN[:n], DECIMALS)
  back = jax.jit(quantiles.inverse(fitted))(to_z(fitted, TRAIN[:n], np.random.default_rng(0).random((n, len(NAMES)))))
  np.testing.assert_array_equal(steps(back, fitted), steps(TRAIN[:n], fitted))


def test_samples_have_the_distribution_of_the_data_within_its_range_and_do_not_pile_up_at_the_ends():
  z = np.random.default_rng(4).normal(size=(100_000, len(NAMES))).astype(np.float32)
  z[:3] = [[-40.] * len(NAMES), [40.] * len(NAMES), [np.nan] * len(NAMES)]
  drawn, known = steps(INVERSE(z)), steps(TRAIN)
  for d, name in enumerate(NAMES):
    assert stats.ks_2samp(drawn[:, d], known[:, d]).statistic < 2 * 1.63 / np.sqrt(N), name
    low, high = np.rint(np.array(quantiles.ends(FITTED, d)) / FITTED['step'][d])
    assert drawn[0, d] == drawn[:, d].min() == low and drawn[1, d] == drawn[:, d].max() == high
    for end in (low, high):
      assert np.mean(drawn[:, d] == end) < np.mean(known[:, d] == end) * 1.1 + 1e-3
    reach = np.ptp(known[:, d])  # the range is a little wider than that of the data
    assert known[:, d].min() - .1 * reach <= low <= known[:, d].min() <= known[:, d].max() <= high <= \
      known[:, d].max() + .1 * reach
  heavy = NAMES.index('heavy')
  top = np.sort(TRAIN[:, heavy])[-N // 1000:].mean()  # of tails only 5 rows and a mean are known
  assert np.sort(drawn[3:, heavy])[-100:].mean() / 10 == pytest.approx(top, rel=.3)


def test_no_sample_lies_in_a_gap_between_clusters():
  z = np.random.default_rng(4).normal(size=(100_000, len(NAMES))).astype(np.float32)
  drawn, known = np.asarray(INVERSE(z))[:, NAMES.index('clusters')], TRAIN[:, NAMES.index('clusters')]
  below, above = known[known < 500].max(), known[known > 500].min()
  assert np.mean((drawn > below + .5) & (drawn < above - .5)) == 0


def test_knots_are_few_rise_and_are_no_rows_own_number():
  for n in (N, 380):
    fitted = quantiles.fit(TRAIN[:n], DECIMALS)
    assert fitted['x'].shape == fitted['z'].shape == (len(NAMES), 200)
    for x, z, step, column in zip(fitted['x'], fitted['z'], fitted['step'], TRAIN[:n].T):
      own = x[:np.searchsorted(x, x[-1]) + 1]
      assert (np.diff(own) > 0).all() and (np.diff(z) >= 0).all()
      np.testing.assert_allclose(own / step % 1, .5, atol=1e-3)  # in the middle between two numbers of the grid
  digits = np.random.default_rng(0).integers(-9, 10, TRAIN.shape) * FITTED['step']
  others = quantiles.fit(TRAIN[:380] + digits[:380], DECIMALS)['x']  # other last digits: knots do not tell them
  for name in ('normal', 'whole', 'clusters', 'wide'):
    d = NAMES.index(name)
    assert np.mean(np.isin(fitted['x'][d], others[d])) > .5, name
  for name in ('normal', 'whole'):  # most numbers occur once: knots are rounded far more than the data
    d = NAMES.index(name)
    whole = np.rint(FITTED['x'][d] / FITTED['step'][d] - .5)
    assert np.mean(np.isin(whole, np.rint(TRAIN[:, d] / FITTED['step'][d]))) < .25
    ends = np.array([TRAIN[:, d].min(), TRAIN[:, d].max()])
    assert not np.isin(np.rint(ends / FITTED['step'][d]), whole + np.array([[0], [1]])).any()


def test_the_tail_is_the_exponential_distribution_with_the_mean_of_its_rows():
  for mean in (.2, .5, .7):
    x, z = quantiles._tail(100_000., mean * 100_000, .02)
    fractions = 1 - ndtr(z[:-1]) / .02  # of the tail that lies nearer
    rate = {.2: 4.80100, .5: 1e-9, .7: -2.67214}[mean]  # of scipy.stats.truncexpon, by its mean
    truth = np.log1p(fractions * np.expm1(-rate)) / -rate
    np.testing.assert_allclose(x[:-1] / 100_000, truth, atol=2e-4)
    if rate > .1:
      assert stats.truncexpon(rate, scale=1 / rate).mean() == pytest.approx(mean, abs=1e-4)


def test_draws_within_an_interval_are_those_of_float64_in_both_tails():
  rng = np.random.default_rng(0)
  low = rng.uniform(-5.2, 4.5, 4000)
  high, u = low + rng.exponential(.5, 4000).clip(.01), rng.random(4000).astype(np.float32)
  tail = np.where(low > 0, -1, 1)  # the exact value, where 1 - Phi has all its digits
  a, b = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
  w = np.where(low > 0, 1 - np.float64(u), u)
  truth = tail * ndtri(ndtr(a) + w * (ndtr(b) - ndtr(a)))
  np.testing.assert_allclose(NORMAL(np.float32(low), np.float32(high), u), truth, atol=2e-3)


def test_numbers_beyond_the_range_are_continued_where_they_are_given():
  fitted = quantiles.fit(np.arange(20., 91)[:, None].repeat(5, 0), [0])
  beyond = np.array([[91.], [120.], [19.], [-20.], [160.]])
  z = to_z(fitted, beyond, .5)
  inverse = jax.jit(quantiles.inverse(fitted))
  np.testing.assert_array_equal(inverse(z, True), beyond)
  assert np.asarray(inverse(z)).min() == 20 and np.abs(z).max() < 8


def test_missing_numbers_are_left_out_of_the_knots():
  column = TRAIN[:, :1].copy()
  gaps = np.concatenate([column, np.full((5000, 1), np.nan)])
  np.testing.assert_array_equal(quantiles.fit(gaps, [5])['x'], quantiles.fit(column, [5])['x'])
  assert np.isnan(quantiles.intervals(quantiles.fit(gaps, [5]), gaps)[0]).sum() == 5000
