"""Samplers given a measurement: DDRM, DDNM+ and particles."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import samplers
from diffusion.core import grids, operators, schedules
from diffusion.core.gaussian import expand_to, from_x0, vp
from diffusion.errors import InputError
from diffusion.samplers import spectral, twisted

COSINE = schedules.cosine(1000)
SHAPE = (4, 4, 3)
FACE = np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)
LINES = np.tile(np.array([1, 1, 0, 1], bool), (4, 1))
OPERATORS = dict(kept=operators.known_pixels(FACE[..., :1] > 0), blocks=operators.block_average(2),
                 blur=operators.blur(.6), kspace=operators.kspace(LINES))


def run(sampler, denoise, levels, n=3):
  keys = samplers.sample_keys(0, np.arange(n))
  draw = jax.jit(lambda x: samplers.sample(keys, denoise, sampler, levels, x))
  return draw(samplers.prior(keys, levels, SHAPE))


def bent(x, noise):
  """A denoiser that is no linear function."""
  return from_x0(expand_to(noise, x), x, jnp.tanh(x / noise.alpha + .3))


@pytest.mark.parametrize('name', OPERATORS)
def test_ddrm_is_ddnm_where_they_coincide(name):
  """Without noise and with eta = eta_b = 1 both put entirely fresh noise on x0 with the measured part of y."""
  operator, levels = OPERATORS[name], grids.trailing(7)(COSINE)
  y = operator.forward(FACE[None])
  ours = run(spectral.ddrm(operator, y, 0., 1., 1.), bent, levels)
  svd = operators.Linear(operator.forward, lambda y: inverse_by_svd(operator, y))
  np.testing.assert_allclose(ours, run(samplers.consistency(), operators.ddnm(bent, svd, y), levels), atol=3e-5)


@pytest.mark.parametrize('name', OPERATORS)
def test_ddnm_plus_without_noise_is_ddnm(name):
  operator, levels = OPERATORS[name], grids.trailing(7)(COSINE)
  y = operator.forward(FACE[None])
  ours = run(spectral.ddnm_plus(operator, y, 0.), bent, levels)
  np.testing.assert_allclose(ours, run(samplers.ddpm(), operators.ddnm(bent, operator, y), levels), atol=5e-5)


def inverse_by_svd(operator, y):
  svd = operator.svd(SHAPE)
  return svd.image(np.divide(1., svd.s, out=np.zeros(SHAPE), where=svd.s > 0).astype(np.float32) * svd.measured(y))


@functools.cache
def coordinates_after(make, name, n=3000):
  """The compiled function (start, t, s) -> x after a step with noisy measurements of FACE, in singular vectors."""
  operator = OPERATORS[name]
  y = np.asarray(operator.forward(np.tile(FACE, (n, 1, 1, 1))))
  y = y + .3 * np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
  denoise = lambda x, noise: from_x0(noise, x, jnp.broadcast_to(FACE, x.shape))
  def step(start, t, s, keys, y):
    step = samplers.Step(t, s, np.float32(.5), np.uint32(1))
    x = make(operator, y).step(keys, denoise, samplers.Sample(start), step).x
    return operator.svd(SHAPE).coordinates((x - s.alpha * FACE) / s.sigma)
  compiled = jax.jit(step)
  return lambda start, t, s: np.asarray(compiled(start, t, s, samplers.sample_keys(0, np.arange(n)), y))


@pytest.mark.parametrize('name', OPERATORS)
@pytest.mark.parametrize('logsnr', [-2., 4.])
@pytest.mark.parametrize('make', [
  lambda operator, y: spectral.ddrm(operator, y, .3), lambda operator, y: spectral.ddrm(operator, y, .3, .5, .7),
  lambda operator, y: spectral.ddnm_plus(operator, y, .3)], ids=['ddrm', 'ddrm2', 'ddnm_plus'])
def test_with_the_true_x0_a_step_ends_at_the_noise_of_its_level(make, logsnr, name):
  """The noise of y takes the place of the step's: x_s ~ N(alpha x0, sigma^2) (DDRM, proposition 3.1)."""
  n, t, s = 3000, vp(0., np.float32(logsnr - 1)), vp(0., np.float32(logsnr))
  eps = np.random.default_rng(2).standard_normal((n, *SHAPE)).astype(np.float32)
  z = coordinates_after(make, name)(t.alpha * FACE + t.sigma * eps, t, s)
  np.testing.assert_allclose(np.mean(z, 0), 0., atol=5 / n ** .5)
  np.testing.assert_allclose(np.std(z, 0), 1., atol=5 / (2 * n) ** .5)


def test_a_sampler_of_singular_values_refuses_a_measurement_without():
  radon = operators.radon((0, 45), SHAPE)
  for make in (spectral.ddrm, spectral.ddnm_plus):
    with pytest.raises(InputError, match='singular values .* use tmpd'):
      make(radon, np.zeros(1))
  with pytest.raises(InputError, match='eta=2.0'):
    spectral.ddrm(OPERATORS['blocks'], np.zeros(1), eta=2.)


# ---- particles
MODES, WIDTH, SEEN, NOISE = np.array([-1., 1.]), .2, .3, .7


def two_modes(x, noise):
  """E[x0 | x_t] of an equal mixture of N(-1, .2^2) and N(1, .2^2)."""
  n = expand_to(noise, x)
  spread = n.alpha ** 2 * WIDTH ** 2 + n.sigma ** 2
  w = jax.nn.softmax(jnp.stack([-(x - n.alpha * m) ** 2 / (2 * spread) for m in MODES]), 0)
  means = jnp.stack([m + n.alpha * WIDTH ** 2 / spread * (x - n.alpha * m) for m in MODES])
  return from_x0(n, x, jnp.sum(w * means, 0))


def exact_share():
  """P(right mode | y), by quadrature over x0."""
  x = np.linspace(-4, 4, 200_001)
  density = sum(np.exp(-(x - m) ** 2 / (2 * WIDTH ** 2)) for m in MODES) * np.exp(-(SEEN - x) ** 2 / (2 * NOISE ** 2))
  return density[x > 0].sum() / density.sum(), (density * x).sum() / density.sum()


def test_particles_find_the_weights_of_two_modes():
  operator = operators.Linear(lambda x: x, lambda y: y)
  y = np.full((1, 1), SEEN, np.float32)
  share, mean = exact_share()
  assert share == pytest.approx(.756, abs=.001)
  levels, sampler = grids.trailing(80)(COSINE), twisted.twisted(operator, y, NOISE)
  draw = jax.jit(lambda keys: samplers.sample(keys, two_modes, sampler, levels, samplers.prior(keys, levels, (1,)),
                                              lambda state: state.ess))
  shares, means, least = [], [], []
  for seed in range(6):
    x, ess = draw(samplers.sample_keys(seed, np.arange(512)))
    shares.append(np.mean(x > 0))
    means.append(np.mean(x))
    least.append(ess.min())
  assert abs(np.mean(shares) - share) < .02 and np.std(shares) < .04
  assert abs(np.mean(means) - mean) < .03 and min(least) > .3


def test_equal_weights_keep_every_particle_and_one_weight_takes_all():
  key = jax.random.key(0)
  np.testing.assert_array_equal(twisted.resampled(key, 1, jnp.zeros(7)), np.arange(7))
  one = jnp.where(jnp.arange(7) == 3, 0., -1e9)
  np.testing.assert_array_equal(twisted.resampled(key, 1, one), np.full(7, 3))
  assert float(twisted.effective(one)) == pytest.approx(1 / 7)
  assert float(twisted.effective(jnp.ones(7))) == pytest.approx(1)
  counts = np.zeros(3)
  drawn = jax.jit(lambda number: twisted.resampled(key, number, np.log(np.float32([.5, .3, .2]))))
  for number in range(400):
    counts += np.bincount(drawn(number), minlength=3)
  np.testing.assert_allclose(counts / counts.sum(), [.5, .3, .2], atol=.03)


def test_particles_need_noise():
  with pytest.raises(InputError, match='noise=0'):
    twisted.twisted(OPERATORS['blocks'], np.zeros(1), 0.)
