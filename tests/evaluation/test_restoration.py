"""PSNR, SSIM, ranks and coverage, against closed forms and distributions that are known."""
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy import stats

from diffusion.data.arrays import to_unit
from diffusion.data.dataset import Dataset, Source
from diffusion.data.pairs import from_unit_of
from diffusion.evaluation import restoration as report, sample_metrics
from diffusion.evaluation.metrics import restoration
from diffusion.evaluation.metrics.extractor import Extractor, Features
from diffusion.setup.config import default
from diffusion.system import sharding
from diffusion.tasks import degradations, restore


def test_psnr_is_that_of_noise_of_a_known_strength():
  rng = np.random.default_rng(0)
  truth = rng.integers(40, 200, (4, 64, 64, 3)).astype(np.uint8)
  noisy = truth + 5. * rng.standard_normal(truth.shape)
  np.testing.assert_allclose(restoration.psnr(noisy, truth, 255), 20 * np.log10(255 / 5), atol=.15)
  np.testing.assert_allclose(restoration.psnr(truth, truth, 255), 20 * np.log10(255 / .5))


def test_ssim_is_that_of_each_window_by_itself():
  rng = np.random.default_rng(1)
  truth = rng.integers(0, 256, (1, 14, 13, 1)).astype(np.float64)
  other = np.clip(truth + 20 * rng.standard_normal(truth.shape), 0, 255)
  r = np.arange(-5, 6)
  weight = np.exp(-(r[:, None] ** 2 + r ** 2) / (2 * 1.5 ** 2))
  weight /= weight.sum()
  found = []
  for i in range(5, 9):
    for j in range(5, 8):
      a, b = (image[0, i - 5:i + 6, j - 5:j + 6, 0] for image in (truth, other))
      ma, mb = np.sum(weight * a), np.sum(weight * b)
      a, b = a - ma, b - mb
      va, vb, vab = (np.sum(weight * p * q) for p, q in ((a, a), (b, b), (a, b)))
      c1, c2 = (.01 * 255) ** 2, (.03 * 255) ** 2
      found.append((2 * ma * mb + c1) * (2 * vab + c2) / ((ma ** 2 + mb ** 2 + c1) * (va + vb + c2)))
  assert restoration.ssim(other, truth, 255)[0] == pytest.approx(np.mean(found), abs=1e-9)
  assert restoration.ssim(truth, truth, 255)[0] == pytest.approx(1)


def test_ssim_is_that_of_scikit_image():
  metrics = pytest.importorskip('skimage.metrics', reason='scikit-image is not installed')
  rng = np.random.default_rng(2)
  truth = rng.integers(0, 256, (2, 20, 24, 3)).astype(np.uint8)
  other = rng.integers(0, 256, truth.shape).astype(np.uint8)
  for i, value in enumerate(restoration.ssim(other, truth, 255)):
    assert value == pytest.approx(metrics.structural_similarity(
      truth[i], other[i], channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False), abs=1e-6)


def made(n, m, spread, seed=0, levels=4.):
  """(samples [n, m, 6, 6, 1], truth) around a common mean of each, rounded, so that there are ties."""
  rng = np.random.default_rng(seed)
  mean = 100 + 10 * rng.standard_normal((n, 1, 6, 6, 1))
  draws = mean + levels * np.concatenate([spread * rng.standard_normal((n, m, 6, 6, 1)),
                                          rng.standard_normal((n, 1, 6, 6, 1))], 1)
  draws = np.round(draws)
  draws[..., :2, :] = 255  # a white margin
  return draws[:, :m], draws[:, m]


def test_samples_of_the_right_spread_have_uniform_ranks_and_cover_what_they_should():
  found = restoration.ranks(*made(400, 19, 1.), 0)
  share = np.bincount(found.ravel(), minlength=20) / found.size
  np.testing.assert_allclose(share, .05, atol=5 * (.05 * .95 / found.size) ** .5)
  assert restoration.inside(found, 19).mean() == pytest.approx(.9, abs=5 * (.09 / found.size) ** .5)


def test_p_is_uniform_where_the_spread_is_right_and_small_where_it_is_not():
  def p(spread, seed):
    samples, truth = made(100, 19, spread, seed)
    found = restoration.ranks(samples, truth, seed)
    return restoration.rank_test(restoration.one_each(samples, truth, found, seed), 19)
  right = [p(1., seed) for seed in range(60)]
  assert stats.kstest(right, 'uniform').pvalue > .01
  assert max(p(.5, seed) for seed in range(5)) < 1e-3
  assert np.isnan(restoration.rank_test(np.arange(4), 19))
  samples, truth = made(300, 19, .5)
  assert restoration.inside(restoration.ranks(samples, truth, 0), 19)[:, :, 2:].mean() < .75  # too sure


def pixels_as_features(monkeypatch):
  """Eight pixels of an image, in [-1, 1], become its features; a list of how many images they were taken of."""
  def see(params, images):
    return Features(to_unit(images[:, 0, :8, 0]))
  extractor = Extractor('pixels', 'eight pixels', 'none', 8, (), {}, see)
  monkeypatch.setattr(sample_metrics, 'make_features', lambda config: lambda data, mesh: extractor)
  seen, make_extract = [], sample_metrics.make_extract
  def counted(*args):
    extract = make_extract(*args)
    return lambda images: (seen.append(len(images)), extract(images))[1]
  monkeypatch.setattr(sample_metrics, 'make_extract', counted)
  return seen


def test_a_report_of_exact_posterior_samples_says_so(monkeypatch, tmp_path, tmp_path_factory):
  """Independent pixels N(0, .3^2) with noise .3: the posterior is N(y / 2, .3^2 / 2), and every number is known."""
  rng, std = np.random.default_rng(0), .3
  pixels = lambda n: np.clip(np.round(127.5 * (1 + std * rng.standard_normal((n, 8, 10, 1)))), 0, 255).astype(np.uint8)
  data = Source(Dataset(dict(images=pixels(400))), Dataset(dict(images=pixels(120))))
  task = restore.restore(degradations.denoise(std), data=data.train)
  config = default()
  config.evaluate.num_samples = 19 * 110
  run = SimpleNamespace(config=config, task=task, frozen={}, draws=True, encode=task.encode, decode=task.decode,
                        mesh=sharding.make_mesh(devices=jax.devices()[:1]))
  def exact(run, weights, cond, seed, each):
    mean = cond['image'][:, None] / 2
    return from_unit_of(mean + std / 2 ** .5 * rng.standard_normal((len(mean), each, 8, 10, 1)), 255)
  monkeypatch.setattr(report, 'draw', exact)
  monkeypatch.setenv('DIFFUSION_CACHE', str(tmp_path_factory.mktemp('cache')))
  seen = pixels_as_features(monkeypatch)
  assert report.EVALUATOR.needs(run, data) == ''
  measured = report.EVALUATOR.measure(run, None, data, tmp_path, lambda label, text: None)
  db = lambda variance: 10 * np.log10(4 / variance)
  assert measured.metrics['psnr_mean'].value == pytest.approx(db(std ** 2 / 2 * (1 + 1 / 8)), abs=.15)
  assert measured.metrics['psnr'].value == pytest.approx(db(std ** 2), abs=.15)
  assert measured.metrics['psnr_gain'].value == pytest.approx(10 * np.log10(2 / (1 + 1 / 8)), abs=.15)
  details = measured.details['restoration']
  assert details['coverage']['low'] - .01 < .9 < details['coverage']['high'] + .01 and details['rank_p'] > .001
  assert sum(details['ranks']) == 110 * 80 and measured.protocol['psnr']['number'] == 110
  assert {path.name for path in tmp_path.iterdir()} == {'ranks.png', 'restoration.png'}
  # samples of the posterior are distributed as the data; those with noise have a spread of .3 sqrt(2) in 8 pixels
  restored, noisy = (measured.metrics[name] for name in ('fd_infinity', 'input_fd_infinity'))
  assert restored.low < 0 < restored.high < .06 and noisy.low < 8 * .09 * (2 ** .5 - 1) ** 2 < noisy.high
  assert noisy.low > restored.high and measured.heldout['fd_infinity'].high < .06 and restored.n == 110
  fine = Source(*(Dataset(dict(high=np.minimum(257 * side.arrays['images'].astype(int) + 100, 65535).astype(np.uint16)))
                 for side in data[:2]))
  np.testing.assert_array_equal(report._pictures(fine).heldout.arrays['images'], data.heldout.arrays['images'])
  assert sum(seen) == 400 + 120 + 110 + 110  # the data once, and what is compared with them
