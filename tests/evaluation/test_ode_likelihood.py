"""Likelihood by the ODE of data with a known smoothed density, against SciPy; order of convergence in float64."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion import samplers
from diffusion.core import gaussian, grids, schedules
from diffusion.core.gaussian import flow, Noise, ve, vp
from diffusion.errors import InputError
from diffusion.evaluation import ode_likelihood
from experiments.mixture import mixture_denoiser
from tests.exact import correlated_denoiser, gaussian_denoiser
from tests.samplers.test_solvers import log_uniform

RNG = np.random.default_rng(0)
AXES = RNG.normal(size=(4, 4)) * .4
MEAN, COVARIANCE = np.array([.3, -.2, .1, 0.]), AXES @ AXES.T + .05 * np.eye(4)
NOISY, CLEAN = 2000., .01  # the model starts from N(0, NOISY^2), not N(MEAN, ..): a gap of MEAN / NOISY nats
LOG2 = np.log(2)
X0 = RNG.multivariate_normal(MEAN, COVARIANCE, 200)
SMOOTHED = stats.multivariate_normal(MEAN, COVARIANCE + CLEAN ** 2 * np.eye(4))  # with the noise of the cleanest level
TRUTH = -SMOOTHED.logpdf(X0) / 4 / LOG2
DENOISE = correlated_denoiser(MEAN, COVARIANCE)


def path(n, scaling=ve, noisiest=NOISY, cleanest=CLEAN):
  """A grid of n Runge-Kutta steps."""
  levels = log_uniform(2 * n, noisiest, cleanest, scaling)
  return Noise(*(np.append(a, c) for a, c in zip(levels, gaussian.CLEAN)))


def measure(levels, x0, denoise=DENOISE, seed=0, **options):
  keys, options = samplers.sample_keys(seed, np.arange(len(x0))), dict(steps=None) | options
  return jax.jit(lambda keys, x0: ode_likelihood.bits(keys, denoise, levels, x0, **options))(keys, jnp.asarray(x0))


def test_the_exact_trace_gives_the_density_of_a_gaussian_in_every_scaling():
  x0 = X0[:64].astype(np.float32)
  keys = samplers.sample_keys(0, np.arange(64))
  bits = lambda x0, scaling: ode_likelihood.bits(keys, DENOISE, path(60, scaling), x0, trace=ode_likelihood.exact(),
                                                 steps=None)
  each = jax.jit(lambda x0: [bits(x0, scaling) for scaling in (vp, ve, flow)])(x0)
  for got in each:
    np.testing.assert_allclose(got['total'], TRUTH[:64], atol=1e-3)
    np.testing.assert_array_equal(got['error'], 0)


def test_halving_the_steps_shows_order_four():
  spread, axes = np.linalg.eigh(COVARIANCE)
  grown = (spread + NOISY ** 2) / (spread + CLEAN ** 2)  # the exact path keeps every quantile
  end = MEAN + ((X0[:16] - MEAN) @ axes * np.sqrt(grown)) @ axes.T
  exact = -(stats.norm(0, NOISY).logpdf(end).sum(1) + .5 * np.log(grown).sum()) / 4 / LOG2
  np.testing.assert_allclose(exact, TRUTH[:16], atol=3e-4)
  with jax.enable_x64(True):
    totals = [measure(path(n), X0[:16], trace=ode_likelihood.exact())['total'] for n in (20, 40, 80)]
    errors = [np.abs(np.asarray(total) - exact).max() for total in totals]
  assert np.polyfit(np.log([20, 40, 80]), -np.log(errors), 1)[0] == pytest.approx(4, abs=.3)


def test_a_mixture_has_its_density():
  means, std = RNG.normal(size=(3, 2)), .3
  x0 = means[RNG.integers(3, size=64)] + std * RNG.normal(size=(64, 2))
  truth = -np.log2(np.mean([stats.multivariate_normal(m, std ** 2 + CLEAN ** 2).pdf(x0) for m in means], 0)) / 2
  denoise = mixture_denoiser(means.astype(np.float32), std)
  got = measure(path(100), x0.astype(np.float32), denoise, trace=ode_likelihood.exact())
  np.testing.assert_allclose(got['total'], truth, atol=1e-3)


PROBES = [(ode_likelihood.rademacher, .05), (samplers.gaussian, .5)]


@pytest.mark.parametrize('draw, most', PROBES, ids=['signs', 'gaussian'])
def test_hutchinsons_estimate_is_unbiased_and_knows_its_error(draw, most):
  got = measure(path(20), X0.astype(np.float32), trace=ode_likelihood.hutchinson(8, draw))
  gap, error = np.asarray(got['total']) - TRUTH, np.asarray(got['error'])
  assert np.std(gap) == pytest.approx(np.sqrt(np.mean(error ** 2)), rel=.15)
  assert abs(np.mean(gap)) < 4 * np.std(gap) / np.sqrt(200) + 2e-3
  assert np.mean(error) < most


def test_rademacher_probes_are_exact_where_the_jacobian_is_diagonal_and_one_probe_has_no_error():
  got = measure(path(80), X0[:8].astype(np.float32), gaussian_denoiser(.3, .5), trace=ode_likelihood.hutchinson(1))
  truth = -stats.norm(.3, np.hypot(.5, CLEAN)).logpdf(X0[:8]).mean(1) / LOG2
  np.testing.assert_allclose(got['total'], truth, atol=1e-3)
  assert np.isnan(got['error']).all()


def test_bits_of_quantised_data_are_just_above_the_entropy():
  steps, std = np.linspace(-1, 1, 256), .2
  p = np.diff(stats.norm(0., std).cdf(np.concatenate([[-np.inf], (steps[1:] + steps[:-1]) / 2, [np.inf]])))
  x0 = np.random.default_rng(0).choice(steps, (500, 8), p=p).astype(np.float32)
  own = -np.log2(p[np.round((x0 + 1) * 127.5).astype(int)]).mean(1)
  levels = path(50, noisiest=80., cleanest=.002)
  got = measure(levels, x0, gaussian_denoiser(0., std), trace=ode_likelihood.hutchinson(1), steps=256)
  gap = np.asarray(got['total']) - own
  error = np.std(gap) / np.sqrt(len(gap))
  assert error < 1e-3 and -4 * error < np.mean(gap) < 4 * error + 2e-3
  assert ode_likelihood.protocol(levels) == dict(
    method='probability-flow ODE, Runge-Kutta 4, 50 steps in log-SNR', sigma_min=.002, sigma_max=80.,
    dequantisation='uniform noise of one of 256 steps')


def test_grids_of_a_table_and_of_a_curve_that_ends_without_signal_are_accepted():
  for schedule in (schedules.linear(), schedules.flow()):
    protocol = ode_likelihood.protocol(grids.exponential(31)(schedule))
    assert 0 < protocol['sigma_min'] < protocol['sigma_max'] < 1000


GRIDS = [(grids.exponential(50), 50), (grids.trailing(51), 51), (grids.exponential(1), 1)]


@pytest.mark.parametrize('grid, steps', GRIDS, ids=['even', 'not in log-SNR', 'short'])
def test_other_grids_are_refused(grid, steps):
  with pytest.raises(InputError, match=f'a grid of {steps} steps: .* odd .* at least 3, even in log-SNR'):
    measure(grid(schedules.linear()), X0[:1])


def test_a_number_of_probes_below_one_is_refused():
  with pytest.raises(InputError, match=r'hutchinson\(0\)'):
    ode_likelihood.hutchinson(0)
