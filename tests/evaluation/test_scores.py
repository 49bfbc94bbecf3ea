"""Scores against closed forms."""
import numpy as np
import pytest
from scipy import stats

from diffusion.errors import InputError
from diffusion.evaluation.metrics import scores


def test_inception_score_of_known_tables():
  sure = np.where(np.eye(5)[np.arange(200) // 2 % 5] == 1, 0., -200.)  # certain, equal classes: their number
  assert scores.inception_score(sure, 2).value == pytest.approx(5)
  assert scores.inception_score(np.zeros((50, 7))).value == pytest.approx(1)
  p = np.array([[.5, .25, .25], [.25, .5, .25]])[np.arange(40) % 2]  # exp(H(3/8, 3/8, 1/4) - H(1/2, 1/4, 1/4))
  expected = np.exp(stats.entropy([.375, .375, .25]) - stats.entropy([.5, .25, .25]))
  assert scores.inception_score(np.log(p), 1).value == pytest.approx(expected)
  assert scores.inception_score(np.log(p) + 9, 1).value == pytest.approx(expected)  # logits
  assert np.isnan(scores.inception_score(np.log(p), 1).error)


def test_inception_score_streams_and_its_error_is_that_of_the_mean_over_splits():
  logits = 3 * np.random.default_rng(0).standard_normal((1003, 6))
  whole = scores.inception_score(logits)
  assert whole == pytest.approx(scores.inception_score(np.split(logits, [1, 17, 500])))
  parts = [scores.inception_score(logits[i::10], 1).value for i in range(10)]
  assert whole.value == pytest.approx(np.mean(parts)) and whole.error == pytest.approx(stats.sem(parts))


@pytest.mark.parametrize('n, m', [(7, 7), (5, 8), (4, 6), (9, 3)])
def test_transport_of_unequal_samples_is_that_of_samples_repeated_until_equal(n, m):
  rng = np.random.default_rng(n)
  x, y = np.sort(rng.standard_normal(n)), np.sort(rng.standard_normal(m))
  assert scores._transport(x, y) == pytest.approx(np.mean((np.repeat(x, m) - np.repeat(y, n)) ** 2))


def test_sliced_wasserstein_of_gaussians():
  """Along any direction u: (u.shift)^2 + (s - t)^2, of mean |shift|^2 / D + (s - t)^2."""
  rng = np.random.default_rng(0)
  for n, m in ((2000, 2000), (1500, 2500)):
    x, y = rng.standard_normal((n, 5)), 2 * rng.standard_normal((m, 5)) + [3, 0, 0, 0, 4]
    found, exact = scores.sliced_wasserstein(x, y, 0, 64, 6), np.sqrt(25 / 5 + 1)
    assert found.low < exact < found.high and found.error < .1 * exact and found.n == min(n, m)
  far = scores.sliced_wasserstein(x + 1000, y + 1000, 0, 64, 6)
  assert far.value == pytest.approx(found.value, rel=1e-4)
  assert scores.sliced_wasserstein(x, x[::-1], 0, 64, 6).value == pytest.approx(0, abs=1e-6)


def test_the_error_of_sliced_wasserstein_is_the_deviation_between_draws():
  found = []
  for seed in range(40):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((100, 3)), rng.standard_normal((150, 3)) + [1, 0, 0]
    found.append(scores.sliced_wasserstein(x, y, seed, directions=32, groups=8)[:2])
  values, errors = np.array(found).T
  assert errors.mean() == pytest.approx(values.std(ddof=1), rel=.35)  # 40 draws know a deviation to 11 %


def test_class_accuracy_counts_hits_with_wilsons_interval():
  logits = np.eye(3)[[0, 1, 2, 0, 0, 0, 0, 0, 0, 0]]
  found = scores.class_accuracy(logits, [0, 1, 2, 0, 0, 0, 0, 0, 0, 1])
  expected = stats.binomtest(9, 10).proportion_ci(method='wilson')
  assert found.value == .9
  assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-4)
  with pytest.raises(InputError, match=r'logits of shape .* and classes of shape'):
    scores.class_accuracy(logits, [0, 1])


def test_diversity_is_the_number_of_orthogonal_kinds():
  kinds = np.eye(6)[np.arange(120) % 6] * np.arange(1, 121)[:, None]  # length does not count
  assert scores.diversity(kinds, 0, groups=20).value == pytest.approx(6, rel=1e-5)
  assert scores.diversity(kinds[:6], 0, groups=3).value == pytest.approx(6, rel=1e-5)
  assert scores.diversity(np.ones((50, 4)), 0).value == pytest.approx(1, rel=1e-4)
  shares = np.repeat(np.arange(3), [10, 30, 60])
  assert scores.diversity(np.eye(3)[shares], 0).value == pytest.approx(np.exp(stats.entropy([.1, .3, .6])), rel=1e-5)


def test_diversity_is_the_entropy_of_the_similarities_of_samples_and_falls_when_kinds_go_missing():
  rng = np.random.default_rng(0)
  points = rng.standard_normal((90, 12)) + 3 * rng.standard_normal((9, 12))[np.arange(90) % 9]
  unit = points / np.linalg.norm(points, axis=1, keepdims=True)
  spread = np.linalg.eigvalsh(unit @ unit.T / 90)  # [n, n], as in the paper
  found = scores.diversity(points, 0)
  assert found.value == pytest.approx(np.exp(stats.entropy(spread[spread > 1e-12])), rel=1e-4)
  assert scores.diversity(points[np.arange(90) % 9 < 5], 0).high < found.low
  assert scores.diversity(np.concatenate([points, np.zeros((3, 12))]), 0).value == pytest.approx(found.value, rel=1e-4)
  with pytest.raises(InputError, match='3 of 5 samples'):
    scores.diversity(np.eye(5)[:, :3], 0)


def test_the_error_of_diversity_is_the_deviation_between_draws():
  rng, found = np.random.default_rng(0), []
  for _ in range(40):
    found.append(scores.diversity(rng.standard_normal((120, 6)) * [3, 2, 1, 1, .5, .5], 0)[:2])
  values, errors = np.array(found).T
  assert errors.mean() == pytest.approx(values.std(ddof=1), rel=.35)


def test_too_few_are_refused():
  with pytest.raises(InputError, match='9 samples in 10 parts'):
    scores.inception_score(np.zeros((9, 2)))
  with pytest.raises(InputError, match='at least 4'):
    scores.sliced_wasserstein(np.zeros((3, 2)), np.zeros((9, 2)), 0)
