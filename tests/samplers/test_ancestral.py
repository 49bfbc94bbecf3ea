"""Samplers on data whose denoiser is known: orders of convergence, means, variances, identities, reproducibility."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import samplers
from diffusion.core import grids, schedules
from diffusion.core.gaussian import CLEAN, expand_to, from_x0, Noise, Pred, take, vp
from diffusion.errors import InputError
from tests import exact
from tests.conftest import RUN_FAST
from tests.exact import gaussian_flow

MEAN, STD = .3, .5
# Without the offset cosine: it ends at a signal rate of 0.95, and the jump to clean does not shrink with more steps.
CURVES = dict(linear=schedules.linear(None), cosine=schedules.cosine(None), sigmoid=schedules.sigmoid(),
              flow=schedules.flow())
BOTH = [samplers.ddim(), samplers.ddim(.5), samplers.ddim(1.), samplers.ddpm(), samplers.ddpm('large')]


gaussian_denoiser = functools.cache(exact.gaussian_denoiser)


@functools.cache
def program(sampler, denoise, fast):
  """sample() with its plan for an argument, so that another schedule compiles nothing."""
  def sample(keys, x, plan):
    return samplers.sample(keys, denoise, sampler._replace(plan=lambda levels: plan), None, x)
  return jax.jit(sample, compiler_options=RUN_FAST if fast else None)


def run(sampler, levels, denoise, n=64, shape=(), x=None, keys=None, fast=False):
  keys = samplers.sample_keys(0, np.arange(n)) if keys is None else keys
  x = samplers.prior(keys, levels, shape) if x is None else x
  return np.asarray(program(sampler, denoise, fast)(keys, x, sampler.plan(levels)))


@pytest.mark.parametrize('curve', CURVES)
def test_ddim_converges_to_the_exact_ode_with_order_one(curve):
  errors = []
  for S in (32, 64, 128, 256):
    levels = grids.trailing(S)(CURVES[curve])
    x = samplers.prior(samplers.sample_keys(0, np.arange(64)), levels, ())
    end = gaussian_flow(MEAN, STD, x, take(levels, 0))
    errors.append(np.sqrt(np.mean((run(BOTH[0], levels, gaussian_denoiser(MEAN, STD), x=x) - end) ** 2)))
  assert np.polyfit(np.log([32, 64, 128, 256]), -np.log(errors), 1)[0] == pytest.approx(1, abs=.1)
  assert errors[-1] < .01


@pytest.mark.parametrize('sampler', BOTH[1:])
@pytest.mark.parametrize('schedule', [schedules.linear(), schedules.cosine()])
def test_stochastic_samplers_at_all_levels_give_the_mean_and_spread_of_the_data(sampler, schedule):
  n = 20_000
  x = run(sampler, grids.trailing(1000)(schedule), gaussian_denoiser(MEAN, STD), n, fast=True)
  assert float(x.mean()) == pytest.approx(MEAN, abs=4 * STD / np.sqrt(n))
  assert float(x.std()) == pytest.approx(STD, rel=4 / np.sqrt(2 * n) + .01)  # sampling error + discretisation


@pytest.mark.parametrize('S', [2, 5, 23])
def test_small_variance_is_exact_for_one_data_point_at_any_number_of_steps(S):
  levels = grids.trailing(S)(schedules.cosine())
  n, middle = 20_000, S // 2
  part = Noise(*(a[:middle + 1] for a in levels))
  keys = samplers.sample_keys(0, np.arange(n))
  x = run(samplers.ddpm(), part, gaussian_denoiser(MEAN, 0.), keys=keys, x=samplers.prior(keys, levels, ()))
  s = take(levels, middle)  # every marginal on the way is N(alpha mean, sigma^2)
  assert float(x.mean()) == pytest.approx(s.alpha * MEAN, abs=5 * s.sigma / np.sqrt(n))
  assert float(x.std()) == pytest.approx(s.sigma, rel=5 / np.sqrt(2 * n))


@pytest.mark.parametrize('S', [2, 5, 23])
def test_large_variance_is_exact_for_unit_gaussian_data_at_any_number_of_steps(S):
  levels = grids.trailing(S)(schedules.cosine())
  part, n = Noise(*(a[:-1] for a in levels)), 20_000
  x = run(samplers.ddpm('large'), part, gaussian_denoiser(0., 1.), n)
  assert float(x.std()) == pytest.approx(1, rel=5 / np.sqrt(2 * n))


@pytest.mark.parametrize('t, s', [(999, 998), (500, 499), (700, 100), (1, 0)])
def test_posterior_mean_and_variances_agree_with_bayes_in_float64(t, s):
  """Product of two Gaussians, prior N(alpha_s x0, sigma_s^2) and likelihood N(ratio x_s, beta), by precisions."""
  table = schedules.linear()
  bar = np.cumprod(1 - np.linspace(1e-4, .02, 1000).astype(np.longdouble))
  ratio2 = bar[t] / bar[s]
  beta = 1 - ratio2
  variance = 1 / (1 / (1 - bar[s]) + ratio2 / beta)
  levels = Noise(*(np.array([a[t], a[s]]) for a in table))
  step = jax.tree.map(lambda a: jnp.asarray(a[0]), samplers.steps(levels))
  keys = samplers.sample_keys(0, [0])
  def moved(sampler, x0, eps):
    fixed = lambda x, noise: Pred(jnp.full((1,), x0, jnp.float32), jnp.full((1,), eps, jnp.float32))
    return float(sampler.step(keys, fixed, samplers.Sample(jnp.zeros(1)), step).x[0])
  z = float(samplers.gaussian(keys, step.index, jnp.zeros(1))[0])
  for x0, eps in ((.8, 0.), (0., .9)):
    x_t = np.sqrt(bar[t]) * x0 + np.sqrt(1 - bar[t]) * eps
    mean = variance * (np.sqrt(bar[s]) * x0 / (1 - bar[s]) + np.sqrt(ratio2) * x_t / beta)
    assert moved(samplers.ddpm('none'), x0, eps) == pytest.approx(float(mean), rel=1e-6)
  assert moved(samplers.ddpm('small'), 0., 0.) == pytest.approx(float(np.sqrt(variance)) * z, rel=1e-6)
  assert moved(samplers.ddpm('large'), 0., 0.) == pytest.approx(float(np.sqrt(beta)) * z, rel=1e-6)
  for share in (0., .3, 1.):  # learned: between them in the logarithm (improved DDPM, equation 15)
    std = np.exp(.5 * (share * np.log(beta) + (1 - share) * np.log(variance)))
    fixed = lambda x, noise: Pred(jnp.zeros(1), jnp.zeros(1), jnp.full(1, share))
    after = samplers.ddpm('learned').step(keys, fixed, samplers.Sample(jnp.zeros(1)), step).x[0]
    assert float(after) == pytest.approx(float(std) * z, rel=1e-6)


@pytest.mark.parametrize('S', [1, 7, 50])
def test_ddim_with_eta_one_is_ddpm(S):
  levels, denoise = grids.trailing(S)(schedules.cosine()), gaussian_denoiser(MEAN, STD)
  np.testing.assert_allclose(run(samplers.ddim(1.), levels, denoise), run(samplers.ddpm(), levels, denoise), atol=2e-6)


def test_leaving_out_the_noise_collapses_samples_towards_the_mean():
  levels, denoise = grids.trailing(1000)(schedules.linear()), gaussian_denoiser(MEAN, STD)
  assert float(run(samplers.ddpm('none'), levels, denoise).std()) < .1 * STD


def test_every_number_of_steps_lands_on_the_data_point():
  """One data point: DDIM is exact in one step and in any number, on every grid, divisor or not."""
  table, keys, denoise = schedules.linear(T=41), samplers.sample_keys(0, np.arange(3)), gaussian_denoiser(MEAN, 0.)
  moves = [jax.jit(lambda x, step, s=sampler: s.step(keys, denoise, samplers.Sample(x), step).x)
           for sampler in (samplers.ddim(), samplers.ddpm())]
  for grid in (grids.trailing, grids.leading, grids.linspace):
    for S in range(1, 42):
      steps = jax.tree.map(np.asarray, samplers.steps(grid(S)(table)))
      for move in moves:
        x = jnp.array([-1., .2, 1.])
        for i in range(S):
          x = move(x, jax.tree.map(lambda a: a[i], steps))
        np.testing.assert_allclose(x, MEAN, atol=1e-5)


@pytest.mark.parametrize('sampler', BOTH)
@pytest.mark.parametrize('schedule', [schedules.linear(), schedules.cosine(), schedules.flow(), schedules.edm()])
def test_finite_at_awkward_numbers_of_steps_and_at_zero_signal(sampler, schedule):
  for S in (1, 2, 3, 999):
    x = run(sampler, grids.trailing(S)(schedule), gaussian_denoiser(MEAN, STD), 4)
    assert np.isfinite(x).all()


def test_image_k_does_not_depend_on_the_batch():
  def denoise(x, noise):  # nonlinear, pixel by pixel
    return from_x0(expand_to(noise, x), x, jnp.tanh(2 * x))
  levels = grids.trailing(9)(schedules.cosine())
  def draw(ids):
    keys = samplers.sample_keys(7, ids)
    x = samplers.prior(keys, levels, (4, 4, 3))
    return np.asarray(x), run(samplers.ddim(.7), levels, denoise, len(ids), x=x, keys=keys)
  start, all64 = draw(np.arange(64))
  for ids in ([5], [1, 2, 3, 5, 8, 13, 21], np.arange(63, -1, -1)):
    noise, x = draw(np.asarray(ids))
    np.testing.assert_array_equal(noise, start[ids])
    np.testing.assert_allclose(x, all64[ids], atol=1e-6)
  assert len(np.unique(start.round(4))) > .9 * start.size  # and no two share their noise


def test_fresh_noise_is_new_at_every_step_and_not_the_starting_noise():
  keys, x = samplers.sample_keys(0, np.arange(2000)), jnp.zeros((2000,))
  draws = np.stack([samplers.gaussian(keys, i, x) for i in range(4)])
  np.testing.assert_allclose(np.corrcoef(draws), np.eye(4), atol=.1)


def test_trace_follows_the_samples_and_ends_with_them():
  levels = grids.trailing(6)(schedules.cosine())
  keys = samplers.sample_keys(0, np.arange(3))
  x = samplers.prior(keys, levels, (2,))
  denoise = gaussian_denoiser(MEAN, STD)
  final, trace = samplers.sample(keys, denoise, samplers.ddim(), levels, x, trace=lambda state: state.x)
  assert trace.shape == (6, 3, 2)
  np.testing.assert_array_equal(trace[-1], final)
  half = samplers.sample(keys, denoise, samplers.ddim(), Noise(*(a[:4] for a in levels)), x)
  np.testing.assert_allclose(trace[2], half, rtol=1e-6)


def test_reversing_the_grid_inverts_ddim_with_an_error_that_halves_as_steps_double():
  keys, denoise, x = samplers.sample_keys(0, np.arange(32)), gaussian_denoiser(MEAN, STD), jnp.linspace(-1.5, 1.5, 32)
  gaps = []
  for S in (50, 100, 200):
    levels = Noise(*(a[:-1] for a in grids.trailing(S)(CURVES['linear'])))  # clean itself cannot be left
    down = samplers.steps(levels)
    up = samplers.Step(down.s, down.t, -down.h, down.index)
    clean = samplers.sample(keys, denoise, samplers.ddim(), levels, x)
    body = lambda state, step: (samplers.ddim_step(keys, denoise, state, step), None)
    noise = jax.lax.scan(body, samplers.Sample(clean), up, reverse=True)[0].x
    gaps.append(float(jnp.abs(noise - x).max()))
  assert gaps[0] / gaps[1] == pytest.approx(2, rel=.25) and gaps[1] / gaps[2] == pytest.approx(2, rel=.25)


@pytest.mark.parametrize('step',
                         [samplers.ddim_step, functools.partial(samplers.ddim_step, eta=.5), samplers.ddpm_step])
def test_steps_work_under_jit_vmap_grad_and_pmap(step):
  levels = grids.trailing(4)(schedules.cosine())
  middle = jax.tree.map(lambda a: a[2], samplers.steps(levels))
  denoise, keys = gaussian_denoiser(MEAN, STD), samplers.sample_keys(0, np.arange(6))
  x = jnp.linspace(-1, 1, 6)
  plain = lambda keys, x: step(keys, denoise, samplers.Sample(x), middle).x
  expected = plain(keys, x)
  np.testing.assert_allclose(jax.jit(plain)(keys, x), expected, rtol=1e-5)
  stacked = jax.vmap(plain)(keys.reshape(2, 3), x.reshape(2, 3))
  np.testing.assert_allclose(stacked.ravel(), expected, rtol=1e-5)
  np.testing.assert_allclose(jax.pmap(plain)(keys[None], x[None])[0], expected, rtol=1e-5)
  slope = jax.grad(lambda x: plain(keys, x).sum())(x)
  np.testing.assert_allclose(slope, (plain(keys, x + 1e-2) - plain(keys, x - 1e-2)) / 2e-2, rtol=1e-3)


def test_a_sampler_is_traced_once_whatever_the_number_of_steps():
  traces = []
  def denoise(x, noise):
    traces.append(0)
    return gaussian_denoiser(MEAN, STD)(x, noise)
  run(samplers.ddim(), grids.trailing(200)(schedules.cosine()), denoise)
  assert len(traces) <= 2  # scan may trace its body once more to settle types


@pytest.mark.parametrize('call, message', [
  (lambda: samplers.ddim(1.5), 'eta'), (lambda: samplers.ddpm('huge'), 'huge'),
  (lambda: samplers.steps(vp(np.zeros(3), np.array([1., 0., 2.]))), 'noise to clean'),
  (lambda: samplers.steps(Noise(*(jnp.zeros(3) for _ in range(4)))), 'float64'),
  (lambda: samplers.steps(Noise(*(np.array([a]) for a in CLEAN))), 'noise to clean'),
])
def test_bad_input_is_named(call, message):
  with pytest.raises(InputError, match=message):
    call()
