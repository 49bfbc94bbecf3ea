"""The variational bound of data with a known density, denoiser and chain, against dense Gaussian algebra and SciPy."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion import samplers
from diffusion.core import grids, likelihood, schedules
from diffusion.core.gaussian import flow, take, ve, vp
from diffusion.errors import InputError
from diffusion.evaluation import elbo
from experiments.mixture import mixture_denoiser
from tests.exact import correlated_denoiser, gaussian_denoiser

MEAN, STD = .3, .5
LOG2 = np.log(2)
ENTROPY = .5 * np.log2(2 * np.pi * np.e * STD ** 2)  # bits of one continuous N(MEAN, STD^2)


def learned_denoiser(share):
  """The exact denoiser, with `share` as its learned variance."""
  def denoise(x, noise):
    return gaussian_denoiser(MEAN, STD)(x, noise)._replace(variance=jnp.full_like(x, share))
  return denoise


def data(n, D=8, seed=1):
  return (MEAN + STD * np.random.default_rng(seed).normal(size=(n, D))).astype(np.float32)


def measure(schedule, x0, denoise, seed=0, **options):
  keys = samplers.sample_keys(seed, np.arange(len(x0)))
  return jax.jit(lambda keys, x0: elbo.bound(keys, denoise, schedule, x0, **options))(keys, jnp.asarray(x0))


def mean(values):
  values = np.asarray(values, np.float64)
  return values.mean(), values.std(ddof=1) / np.sqrt(len(values))


def joint(first, steps):
  """(mean [n], covariance [n, n]) of a linear Gaussian chain: first variable, then (gain, offset, variance)."""
  means, rows, noise = [first[0]], [np.eye(1)[0]], [first[1]]
  for gain, offset, variance in steps:
    means.append(gain * means[-1] + offset)
    rows.append(np.append(gain * rows[-1], 1.))
    noise.append(variance)
  weights = np.array([np.pad(row, (0, len(noise) - len(row))) for row in rows])
  return np.array(means), weights @ np.diag(noise) @ weights.T


def exact_bound(table, share):
  """The bound of the chain for one dimension: entropy of the data, and the KL of the joint laws of (x0 .. x_T)."""
  a, v = np.asarray(table.alpha), np.asarray(table.sigma) ** 2
  forward = [(a[0], 0., v[0])]
  backward = []
  for i in range(1, len(a)):
    ratio, extra = a[i] / a[i - 1], v[i] - (a[i] / a[i - 1]) ** 2 * v[i - 1]
    forward.append((ratio, 0., extra))
    gain = a[i] * STD ** 2 / (a[i] ** 2 * STD ** 2 + v[i])  # of x0 given x_t
    to_x0, to_xt = a[i - 1] * extra / v[i], ratio * v[i - 1] / v[i]  # the posterior's mean as DDPM writes it
    small = v[i - 1] * extra / v[i]
    variance = small ** (1 - share[i]) * extra ** share[i]
    backward.append((to_xt + to_x0 * gain, to_x0 * (1 - gain * a[i]) * MEAN, variance))
  gain = a[0] * STD ** 2 / (a[0] ** 2 * STD ** 2 + v[0])
  large = v[0] / a[0] ** 2
  small = large * (1 - a[1] ** 2 / v[1] * large)
  backward.insert(0, (gain, (1 - gain * a[0]) * MEAN, small ** (1 - share[0]) * large ** share[0]))
  m, q = joint((MEAN, STD ** 2), forward)
  n, p = (array[(slice(None, None, -1),) * array.ndim] for array in joint((0., v[-1]), backward[::-1]))
  log_determinants = np.linalg.slogdet(p)[1] - np.linalg.slogdet(q)[1]
  kl = .5 * (np.trace(np.linalg.solve(p, q)) - len(m) + (n - m) @ np.linalg.solve(p, n - m) + log_determinants)
  return ENTROPY + kl / LOG2


def test_a_chain_of_few_steps_has_the_bound_of_its_joint_gaussian():
  table, keys = elbo.chain(grids.trailing(6)(schedules.cosine())), samplers.sample_keys(0, np.arange(20_000))
  denoisers = dict(small=gaussian_denoiser(MEAN, STD), learned=learned_denoiser(.3))
  bounds = jax.jit(lambda x0: [elbo.bound(keys, denoise, table, x0, variance=variance, levels=None)[0]
                               for variance, denoise in denoisers.items()])(jnp.asarray(data(20_000)))
  for got, share in zip(bounds, (0., .3)):
    value, error = mean(got['total'])
    assert error < .008
    assert value == pytest.approx(exact_bound(table, np.full(6, share)), abs=4 * error)


def test_with_fitted_variances_any_number_of_levels_gives_the_density_of_a_gaussian():
  table, x0, denoise = elbo.chain(grids.trailing(6)(schedules.cosine())), data(20_000), gaussian_denoiser(MEAN, STD)
  errors = elbo.errors(samplers.sample_keys(5, np.arange(20_000)), denoise, table, data(20_000, seed=2))
  shares = elbo.fit_variances(table, errors)
  got, _ = measure(table, x0, denoise, variance=shares, levels=None)
  value, error = mean(np.asarray(got['total']) + stats.norm(MEAN, STD).logpdf(x0).mean(1) / LOG2)
  assert error < .008 and abs(value) < 4 * error
  assert exact_bound(table, shares) == pytest.approx(ENTROPY, abs=2e-4)  # which 'small' misses by
  assert exact_bound(table, np.zeros(6)) > ENTROPY + .3


def test_row_0_and_its_variance_are_those_of_the_code_of_ddpm():
  table = schedules.linear(1000)
  betas = -np.expm1(np.diff(2 * np.log(np.append(1., table.alpha))))
  posterior = betas[1] * table.sigma[0] ** 2 / table.sigma[1] ** 2
  steps = likelihood.reverse(table)
  assert np.exp(steps.log_small[0]) == pytest.approx(posterior / table.alpha[0] ** 2, rel=1e-9)
  assert np.exp(steps.log_small[0] + steps.log_ratio[0]) == pytest.approx(betas[0] / table.alpha[0] ** 2, rel=1e-9)
  np.testing.assert_allclose(np.exp(steps.log_small + steps.log_ratio)[1:], betas[1:], rtol=1e-9)


def test_a_random_part_of_the_rows_is_an_unbiased_estimate():
  table, x0, denoise = schedules.cosine(30), jnp.asarray(data(4000)), gaussian_denoiser(MEAN, STD)
  keys = samplers.sample_keys(0, np.arange(len(x0)))
  bound = lambda x0, steps: elbo.bound(keys, denoise, table, x0, steps=steps, levels=None)[0]
  every, part = jax.jit(lambda x0: [bound(x0, steps) for steps in (None, 7)])(x0)
  value, error = mean(np.asarray(part['diffusion']) - np.asarray(every['diffusion']))
  assert 0 < error < .05 and abs(value) < 4 * error
  np.testing.assert_allclose(part['prior'], every['prior'])


CURVES = [(schedules.linear(None), 1e-3), (schedules.flow(), .005)]


@pytest.mark.parametrize('curve, smallest', CURVES, ids=['vp', 'flow'])
def test_the_continuous_bound_of_an_exact_denoiser_is_the_density_itself(curve, smallest):
  covariance = np.array([[.25, .15], [.15, .2]])
  x0 = np.random.default_rng(0).multivariate_normal([.3, -.2], covariance, 8000).astype(np.float32)
  truth = -stats.multivariate_normal([.3, -.2], covariance).logpdf(x0) / 2 / LOG2
  denoise = correlated_denoiser(np.array([.3, -.2]), covariance)
  got, rates = measure(curve, x0, denoise, levels=None, smallest=smallest, steps=100)
  value, error = mean(np.asarray(got['total']) - truth)
  assert error < .015 and abs(value) < 4 * error + .002  # and the noise at the smallest time
  area = float(np.trapezoid(np.mean(rates['rate'], 1), -np.mean(rates['logsnr'], 1)))
  assert area == pytest.approx(float(np.mean(got['diffusion'])), rel=.05)


def test_a_mixture_is_bounded_tightly_too_on_a_schedule_of_exploding_variance():
  means, std = np.random.default_rng(0).normal(size=(4, 2)), .3
  rng = np.random.default_rng(1)
  x0 = (means[rng.integers(4, size=10_000)] + std * rng.normal(size=(10_000, 2))).astype(np.float32)
  truth = -np.log2(np.mean([stats.multivariate_normal(m, std ** 2).pdf(x0) for m in means], 0)) / 2
  got, _ = measure(schedules.edm(), x0, mixture_denoiser(means.astype(np.float32), std), levels=None, steps=100)
  value, error = mean(np.asarray(got['total']) - truth)
  assert error < .015 and abs(value) < 4 * error + .002


def test_bits_of_quantised_data_are_never_below_the_entropy():
  steps, std = np.linspace(-1, 1, 256), .2
  edges = np.concatenate([[-np.inf], (steps[1:] + steps[:-1]) / 2, [np.inf]])
  p = np.diff(stats.norm(0., std).cdf(edges))
  x0 = np.random.default_rng(0).choice(steps, (2000, 8), p=p).astype(np.float32)
  own = -np.log2(p[np.round((x0 + 1) * 127.5).astype(int)]).mean(1)
  table, denoise = schedules.edm(40, .01), gaussian_denoiser(0., std)
  best = elbo.fit_variances(table, elbo.errors(samplers.sample_keys(5, np.arange(len(x0))), denoise, table, x0))
  for variance, low, high in ((best, 0., .02), ('small', .5, 4.)):
    value, error = mean(np.asarray(measure(table, x0, denoise, variance=variance)[0]['total']) - own)
    assert error < .03 and low - 3 * error < value < high + 3 * error


def test_the_scaling_does_not_matter_and_a_last_level_without_signal_costs_no_prior():
  logsnr, x0 = np.linspace(8, -8, 12), data(16)
  tables = [scaling(np.arange(12.), logsnr) for scaling in (vp, ve, flow)]
  tables.append(elbo.chain(grids.trailing(12)(schedules.flow())))
  keys, denoise = samplers.sample_keys(0, np.arange(16)), gaussian_denoiser(MEAN, STD)
  bounds = jax.jit(lambda x0: [elbo.bound(keys, denoise, table, x0) for table in tables])(x0)
  (first, _), *others, (got, rates) = bounds
  for terms, _ in others:
    np.testing.assert_allclose(terms['total'], first['total'], rtol=2e-4)
  assert np.isfinite(got['total']).all() and np.isfinite(rates['rate']).all()
  np.testing.assert_array_equal(got['prior'], 0)


def test_the_bits_of_an_image_do_not_depend_on_its_place_in_the_batch():
  x0, denoise = jnp.asarray(data(6)), gaussian_denoiser(MEAN, STD)
  keys = samplers.sample_keys(3, np.arange(6))
  bits = jax.jit(lambda keys, x0: [elbo.bound(keys, denoise, schedule, x0, steps=5)[0]['total']
                                   for schedule in (schedules.cosine(20), schedules.cosine(None))])
  order = jnp.array([2, 2, 5, 0, 1, 4])
  for moved, before in zip(bits(keys[order], x0[order]), bits(keys, x0)):
    np.testing.assert_allclose(moved, before[order], rtol=1e-5)


@pytest.mark.parametrize('options, text', [
  (dict(schedule=take(schedules.cosine(5), slice(0, 1))), 'at least 2 levels'),
  (dict(variance='medium'), "variance='medium': expected small"), (dict(variance=np.zeros(4)), 'each of the 5'),
  (dict(variance='learned'), "variance='learned'"), (dict(steps=0), 'steps=0'),
  (dict(schedule=schedules.flow(), smallest=0.), 'smallest=0.0'),
  (dict(schedule=schedules.cosine(None), smallest=1.), 'smallest=1')])
def test_bad_input_is_named(options, text):
  options = dict(schedule=schedules.cosine(5)) | options
  with pytest.raises(InputError, match=text):
    elbo.bound(samplers.sample_keys(0, [0]), gaussian_denoiser(MEAN, STD), x0=jnp.zeros((1, 2)), **options)
