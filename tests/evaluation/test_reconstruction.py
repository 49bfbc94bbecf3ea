"""PSNR, SSIM and principal components against closed forms and brute force; what is said of latents, codes, critics."""
import numpy as np
import pytest

from diffusion.evaluation import reconstruction as evaluator
from diffusion.evaluation.metrics import frechet, reconstruction
from diffusion.evaluation.metrics.gaussian_stats import moments

rng = np.random.default_rng(0)


def test_psnr_is_that_of_the_added_noise():
  """10 log10(255^2 / s^2); the same in [-1, 1] is 10 log10(4 / s^2)."""
  images = np.full((50, 32, 32, 3), 128, np.uint8)
  noisy = np.round(images + rng.normal(0, 12, images.shape)).astype(np.uint8)
  variance = 12 ** 2 + 1 / 12  # and that of rounding
  assert reconstruction.psnr(images, noisy).mean() == pytest.approx(10 * np.log10(255 ** 2 / variance), abs=.05)


def windows(a, b):
  """SSIM by its definition, window by window."""
  at = np.arange(-5, 6)
  w = np.exp(-(at[:, None] ** 2 + at ** 2) / (2 * 1.5 ** 2))
  w /= w.sum()
  found = []
  for i in range(a.shape[0] - 10):
    for j in range(a.shape[1] - 10):
      x, y = a[i:i + 11, j:j + 11].astype(float), b[i:i + 11, j:j + 11].astype(float)
      mx, my = (w * x).sum(), (w * y).sum()
      vx, vy, cov = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum(), (w * (x - mx) * (y - my)).sum()
      c1, c2 = 2.55 ** 2, 7.65 ** 2
      found.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx ** 2 + my ** 2 + c1) * (vx + vy + c2)))
  return np.mean(found)


def test_ssim_is_its_definition_and_1_for_equal_images():
  a = rng.integers(0, 256, (2, 14, 13, 2)).astype(np.uint8)
  b = np.clip(a + rng.normal(0, 30, a.shape), 0, 255).astype(np.uint8)
  exact = [np.mean([windows(x[..., c], y[..., c]) for c in range(2)]) for x, y in zip(a, b)]
  np.testing.assert_allclose(reconstruction.ssim(a, b), exact, rtol=1e-9)
  np.testing.assert_allclose(reconstruction.ssim(a, a), 1)
  flat = lambda value: np.full((1, 8, 8, 1), value, np.uint8)  # smaller than the window
  c1 = 2.55 ** 2
  assert reconstruction.ssim(flat(50), flat(90))[0] == pytest.approx((9000 + c1) / (2500 + 8100 + c1))


def test_principal_components_lose_exactly_the_discarded_variance():
  scales = np.array([40., 20., 10., 5., 2.])
  axes, _ = np.linalg.qr(rng.normal(size=(12, 5)))
  train = np.clip(np.round(128 + (rng.normal(size=(4000, 5)) * scales) @ axes.T), 0, 255).astype(np.uint8)
  train = train.reshape(-1, 2, 2, 3)
  made = reconstruction.principal_components(train, train, 2)
  spread = np.linalg.eigvalsh(np.cov(train.reshape(4000, -1).T.astype(float), bias=True))[::-1]
  error = np.mean((made.astype(float) - train) ** 2) * 12
  assert error == pytest.approx(spread[2:].sum() + 1, rel=.02)  # and that of rounding, 12 / 12
  np.testing.assert_array_equal(reconstruction.principal_components(train, train[:9], 12), train[:9])


def test_the_distance_of_images_to_themselves_is_0():
  points = rng.normal(size=(400, 8)).astype(np.float32)
  for value in frechet.both(moments([points]), moments([points])):
    assert value.value == pytest.approx(0, abs=1e-6)


# ---- alarms
def seen(**more):
  return dict(latent=rng.normal(size=(20, 4, 4, 2)) * [2, 3] + [1, -1]) | more


def test_healthy_latents_raise_no_alarm_and_are_described():
  kl = rng.uniform(1, 2, (20, 4, 4, 2))
  metrics, details, warnings = evaluator.inside(seen(kl=kl, real=np.full(20, .6), made=np.full(20, -.2)), 0)
  assert not warnings and not metrics
  np.testing.assert_allclose(details['kl_per_channel'], kl.mean((0, 1, 2)))
  np.testing.assert_allclose(details['latent_std'], [2, 3], rtol=.15)


@pytest.mark.parametrize('more, codes, message', [
  (dict(kl=np.array([1., .001]) * np.ones((20, 4, 4, 2))), 0, '1 of 2 channels of the latents say nothing'),
  (dict(codes=rng.integers(0, 9, (20, 4, 4))), 64, 'collapsed: 14% of 64 codes'),
  (dict(real=np.full(20, .01), made=np.full(20, .0)), 0, 'tells nothing apart'),
  (dict(real=np.full(20, 5.), made=np.full(20, -5.)), 0, 'is far ahead')])
def test_what_has_died_is_named(more, codes, message):
  _, _, warnings = evaluator.inside(seen(**more), codes)
  assert len(warnings) == 1 and message in warnings[0] and warnings[0].startswith('WARNING')


def test_even_use_of_all_codes_has_their_number_as_perplexity():
  metrics, details, warnings = evaluator.inside(seen(codes=np.arange(320).reshape(20, 4, 4) % 32), 32)
  assert metrics['code_usage'].value == 1 and details['perplexity'] == pytest.approx(32) and not warnings
