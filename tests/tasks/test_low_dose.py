"""Noise of photons: its moments, black pixels, and posterior sampling beside the exact posterior by quadrature."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import samplers
from diffusion.core import grids, posterior, schedules
from diffusion.data.dataset import Dataset
from diffusion.data.pairs import as_unit
from diffusion.errors import InputError
from diffusion.generation import restoring
from diffusion.tasks import degradations, restore
from tests.exact import gaussian_denoiser


@pytest.mark.parametrize('counts', [.5, 3, 40, 5000, 100_000])
def test_mean_and_variance_are_those_of_photons(counts):
  """E y = x and Var y = 4 intensity / counts in units of [-1, 1]; the chance of no photon is exp(-mean number)."""
  dose, n, intensities = degradations.low_dose(counts), 20_000, np.array([.02, .5, 1.])
  x0 = jnp.broadcast_to(jnp.float32(2 * intensities - 1)[:, None, None, None], (3, n, 1, 1))
  drawn = np.asarray(degradations.measured(dose, jax.random.key(1), x0), np.float64).reshape(3, n)
  for intensity, y in zip(intensities, drawn):
    variance, rate = 4 * intensity / counts, intensity * counts
    assert y.mean() == pytest.approx(2 * intensity - 1, abs=5 * (variance / n) ** .5)
    assert y.var() == pytest.approx(variance, rel=5 * (2 / n + 1 / (rate * n)) ** .5)
    photons = (y + 1) * counts / 2
    np.testing.assert_allclose(photons, np.round(photons), atol=.02 if counts > 1e4 else 1e-3)
    assert np.mean(photons < .5) == pytest.approx(np.exp(-rate), abs=.02)
    if rate >= 1:
      assert float(degradations.strength(dose, 2 * intensity - 1)) == pytest.approx(variance ** .5, rel=1e-5)


def test_black_pixels_send_no_photons_and_pairs_are_fixed_without_a_key():
  dose = degradations.low_dose(7)
  black = -jnp.ones((5, 8, 8, 1))
  np.testing.assert_array_equal(degradations.measured(dose, jax.random.key(0), black), black)
  assert float(degradations.strength(dose, -1.)) == pytest.approx(2 / 7)  # that of one photon, as one may still come
  images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)
  task = restore.restore(dose, data=Dataset(dict(images=images)))
  one, two = (task.encode((), None, task.batch(Dataset(dict(images=images)), np.arange(5)))[1]['image'] for _ in 'ab')
  np.testing.assert_array_equal(one, two)
  y = degradations.measured(dose, jax.random.key(3), as_unit(images))
  np.testing.assert_array_equal(degradations.check_measurement(dose, y[0], (8, 8, 1), 'y'), y[0])


def exact(photons, counts, std):
  """(mean, standard deviation) of x given a number of photons, for x ~ N(0, std^2) cut at -1, by quadrature."""
  intensity = np.linspace(1e-6, 1.5, 100_001)
  x = 2 * intensity - 1
  log = -x ** 2 / (2 * std ** 2) + photons * np.log(intensity) - counts * intensity
  weight = np.exp(log - log.max())
  mean = np.sum(weight * x) / weight.sum()
  return mean, np.sqrt(np.sum(weight * (x - mean) ** 2) / weight.sum())


def test_posterior_samples_are_nearly_those_of_the_exact_posterior():
  """With 10 photons for white. A variance fixed at y, photons / counts^2, is off by .13 at 2 photons."""
  dose, photons, std = degradations.low_dose(10), np.array([2., 5., 8.]), .3
  y = jnp.asarray(2 * photons / 10 - 1, jnp.float32).reshape(1, 3, 1, 1)
  arguments = gaussian_denoiser(0., std), dose.operator((3, 1, 1)), y, dose.noise
  denoise, by_variance = posterior.tmpd(*arguments, iterations=3), posterior.pigdm(*arguments, variance=std ** 2)
  keys = samplers.sample_keys(0, np.arange(1500))
  x = jax.vmap(lambda key: jax.random.normal(key, (3, 1, 1)))(keys)
  levels = grids.trailing(150)(schedules.cosine(1000))
  x = np.asarray(jax.jit(lambda x: samplers.sample(keys, denoise, samplers.ddpm(), levels, x))(x))[..., 0, 0]
  means, spreads = np.transpose([exact(k, 10, std) for k in photons])
  np.testing.assert_allclose(x.mean(0), means, atol=.035)
  np.testing.assert_allclose(x.std(0), spreads, rtol=.1)
  level = jax.tree.map(lambda a: a[75], levels)
  np.testing.assert_allclose(by_variance(x[:2, ..., None, None], level).x0, denoise(x[:2, ..., None, None], level).x0,
                             rtol=1e-4, atol=1e-5)  # pixels of one variance: the same


def test_dps_takes_the_gradient_of_the_likelihood_of_photons():
  """d/dx [k log(intensity) - counts intensity] at x0, by automatic differentiation, in the change that dps makes."""
  dose, level = degradations.low_dose(20), jax.tree.map(lambda a: a[500], schedules.cosine(1000))
  x, photons = jnp.array([-.2, .1, .6]).reshape(1, 3, 1, 1), jnp.array([5., 11., 16.]).reshape(1, 3, 1, 1)
  denoise, y = gaussian_denoiser(.1, .3), 2 * photons / 20 - 1
  x0 = denoise(x, level).x0
  log_p = lambda x0: jnp.sum(photons * jnp.log((x0 + 1) / 2) - 20 * (x0 + 1) / 2)
  spread = level.sigma ** 2 * .09 / (level.alpha ** 2 * .09 + level.sigma ** 2)  # of x0 given x_t
  moved = posterior.dps(denoise, dose.operator((3, 1, 1)), y, dose.noise)(x, level).x0
  np.testing.assert_allclose(moved - x0, spread * jax.grad(log_p)(x0), rtol=1e-4)


@pytest.mark.parametrize('method', ['ddrm', 'ddnm_plus', 'smc', 'ddnm'])
def test_methods_of_gaussian_noise_refuse_photons(method):
  with pytest.raises(InputError, match='use tmpd') as raised:
    restoring.conditioned(restoring.parse(f'restore(low_dose(10), {method})'), (4, 4, 1), jnp.zeros((1, 4, 4, 1)))
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize('counts', [0, -1, float('nan'), 1e6, True, 'many'])
def test_counts_out_of_range_are_refused(counts):
  with pytest.raises(InputError, match='counts='):
    degradations.low_dose(counts)
