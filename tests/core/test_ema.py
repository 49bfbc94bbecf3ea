"""Decay rates against closed forms: what is left of the parameters from before, and published values."""
import jax
import numpy as np
import pytest
from scipy.special import digamma

from diffusion.core import ema
from diffusion.setup.config import default, tiny
from diffusion.setup.validate import check


def decays(rule, start, end):
  return np.asarray(jax.jit(jax.vmap(rule))(np.arange(start, end)), np.float64)


def average_of_a_step(rule, at, n):
  """The average, n updates after parameters went from 0 to 1 at step `at`: 1 minus what is left of the 0."""
  average = 0.
  for beta in decays(rule, at, at + n):
    average = beta * average + (1 - beta)
  return average


def test_power_one_is_the_mean_of_all_parameters():
  rule, values = ema.warmup(1., power=1.), np.random.default_rng(0).normal(size=50)
  average = 100.
  for beta, value in zip(decays(rule, 0, 50), values):
    average = beta * average + (1 - beta) * value
  assert average == pytest.approx(values.mean(), abs=1e-6)
  assert average_of_a_step(rule, 30, 20) == pytest.approx(20 / 50, rel=1e-5)


@pytest.mark.parametrize('power, step, value', [(2 / 3, 31_600, .999), (2 / 3, 1_000_000, .9999), (.75, 10_000, .999),
                                                (.75, 215_400, .9999)])
def test_power_warm_up_reaches_the_published_values(power, step, value):
  """As the notes of k-diffusion and diffusers give them."""
  beta = float(ema.warmup(1., power=power)(step))
  assert (1 - beta) / (1 - value) == pytest.approx(1, abs=2e-3)


def test_power_warm_up_is_clipped_delayed_and_a_copy_before():
  t = np.arange(1, 400)
  plain = 1 - (1 + t / 3.) ** -.5
  got = decays(ema.warmup(.9, inv_gamma=3., power=.5, least=.3, after=20), 0, 420)
  np.testing.assert_array_equal(got[:21], 0)
  np.testing.assert_allclose(got[21:], np.clip(plain, .3, .9), rtol=1e-6)
  assert average_of_a_step(ema.warmup(.9, after=20), 5, 3) == 1


def test_a_delayed_decay_is_a_copy_and_then_the_same():
  got = decays(ema.decay(.95, after=30), 0, 300)
  np.testing.assert_array_equal(got[:30], 0)
  np.testing.assert_array_equal(got[30:], decays(ema.decay(.95), 0, 270))


@pytest.mark.parametrize('batch', [1, 64])
def test_half_of_an_old_value_is_left_after_the_half_life(batch):
  rule = ema.halflife(1280, rampup=None, batch=batch)
  assert average_of_a_step(rule, 17, 1280 // batch) == pytest.approx(.5, abs=2e-5)
  assert average_of_a_step(rule, 3, 3 * 1280 // batch) == pytest.approx(1 - 2 ** -3, abs=2e-5)


def test_the_half_life_rises_with_the_training_to_its_limit():
  """With h = r * images seen, what is left from step a to b is 2^(-(H_b - H_a) / r), H the harmonic numbers."""
  rule, r = ema.halflife(float('inf'), rampup=.09, batch=32), .09
  for a, n in ((1, 3), (10, 40), (500, 1000)):
    left = 2 ** (-(digamma(a + n) - digamma(a)) / r)
    assert 1 - average_of_a_step(rule, a, n) == pytest.approx(left, rel=1e-3, abs=1e-9)
  limited = ema.halflife(5000., rampup=.05, batch=100)
  assert float(limited(0)) == 0 and float(limited(500)) == pytest.approx(2 ** (-100 / 2500))
  assert float(limited(1000)) == float(limited(9000)) == pytest.approx(2 ** (-100 / 5000))


def test_a_config_gives_it_the_batch():
  c = tiny(default())
  c.extra_emas, c.batch = 'halflife(5_000, rampup=None) | warmup(.999)', 48
  (_, half), (name, _) = check(c).emas
  assert float(half(7)) == pytest.approx(2 ** (-48 / 5000)) and name == 'warmup(0.999)'


def test_power_is_edm2s_rate_in_images():
  """arXiv:2312.02696, equation 127, gamma = 6.94: (1 - batch / images)^(gamma + 1), images counted after the step."""
  for step in (0, 5, 999):
    images = 256. * (step + 1)
    assert float(ema.power(.1)(step)) == pytest.approx((1 - 256 / images) ** (6.94 + 1), abs=2e-4)
