"""A learned variance against the true one of Gaussian data, and its bound against divergences written out."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion import samplers
from diffusion.core import gaussian, grids, schedules
from diffusion.core.gaussian import expand_to, Noise
from diffusion.errors import InputError
from diffusion.evaluation import elbo
from diffusion.objectives import denoising, timesteps, variance, weighting
from tests.conftest import RUN_FAST

STD = .5


def true_step_variance(table):
  """Var[x_s | x_t] of data N(0, STD^2), from the covariance of the two; of row 0, Var[x0 | x_t]."""
  s = Noise(0., *(np.append(first, a[:-1]) for first, a in zip((1., 0., np.inf), table[1:])))
  marginal = lambda n: n.alpha ** 2 * STD ** 2 + n.sigma ** 2
  a = table.alpha / s.alpha                                                   # x_t = a x_s + noise
  return marginal(s) - (a * marginal(s)) ** 2 / marginal(table)


@functools.partial(jax.jit, static_argnums=(1, 2))
def learned_case(schedule, examples=200, dims=500):
  """(noise, x0, gap) of the exact denoiser, `examples` of each row."""
  n = expand_to(Noise(*(jnp.repeat(jnp.asarray(a, jnp.float32), examples) for a in schedule)), np.zeros((1, 1)))
  x0 = STD * jax.random.normal(jax.random.key(0), (len(n.alpha), dims))
  x = n.alpha * x0 + n.sigma * jax.random.normal(jax.random.key(1), x0.shape)
  guess = n.alpha * STD ** 2 / (n.alpha ** 2 * STD ** 2 + n.sigma ** 2) * x
  return Noise(*(a[:, 0] for a in n)), x0, guess - x0


def bounds_of_variance(table):
  """(small, large): the posterior's variance and the forward step's; of row 0, those of x0 in its own units."""
  k = -np.expm1(np.diff(table.logsnr))
  ratio = (table.sigma[0] / table.alpha[0]) ** 2
  return np.append(ratio * k[0], table.sigma[:-1] ** 2 * k), np.append(ratio, table.sigma[1:] ** 2 * k)


@pytest.mark.parametrize('table', [schedules.cosine(12), schedules.offset_cosine(12)], ids=['cosine', 'offset_cosine'])
@pytest.mark.parametrize('learn', [variance.learned, variance.learned_log])
def test_the_learned_variance_is_best_at_the_true_variance_of_the_reverse_step(table, learn):
  """Gaussian data: the variance of q(x_s | x_t) is known and between the bounds; row 0 is that of the likelihood."""
  noise, x0, gap = learned_case(table)
  bound, share = learn(strength=1., levels=None, schedule=table)
  def of_output(out):
    return share(expand_to(noise, x0), jnp.repeat(out, 200)[:, None])
  def descended(noise, x0, gap):
    def step(out, _):
      slope = jax.grad(lambda out: jnp.sum(bound(noise, x0, gap, of_output(out))))(out) / 200 / 12
      return out - .6 * jnp.clip(slope, -.3, .3), None
    out = jax.lax.scan(step, jnp.zeros(12), None, 300)[0]
    return out, of_output(out)
  out, v = jax.device_get(jax.jit(descended, compiler_options=RUN_FAST)(noise, x0, gap))
  v = np.asarray(v[::200, 0], np.float64)
  small, large = bounds_of_variance(table)
  ours = np.exp(v * np.log(large) + (1 - v) * np.log(small))
  np.testing.assert_allclose(ours[1:], true_step_variance(table)[1:], rtol=.02)
  np.testing.assert_allclose(ours[0], true_step_variance(table)[0], rtol=.02)  # Var[x0 | x_t]: inside the bounds too
  assert np.all((v[1:] > 0) & (v[1:] < 1))
  np.testing.assert_allclose(ours, np.exp(out if learn is variance.learned_log else np.log(ours)), rtol=1e-5)


def step_of(keys, denoise, x, step):
  """(the step with the learned variance, its mean)."""
  return (samplers.ddpm(kind).step(keys, denoise, samplers.Sample(x), step).x for kind in ('learned', 'none'))


@pytest.mark.parametrize('table', [schedules.cosine(12), schedules.flow(12), schedules.edm(12), schedules.linear(1000)],
                         ids=['vp', 'flow', 've', 'linear'])
def test_a_step_has_the_variance_whose_logarithm_the_network_gave(table):
  """On the table's own steps; a grid of fewer steps keeps the position between its small and large variance."""
  predict = gaussian.with_variance(gaussian.predict_x0(), variance.learned_log(schedule=table).share)
  def net(params, x, *rest):
    return jnp.concatenate([0 * x, params + 0 * x], -1)
  x, keys = np.ones((2, 3, 1), np.float32), samplers.sample_keys(0, np.arange(2))
  @jax.jit
  def moved(wanted, step):
    drawn, mean = step_of(keys, gaussian.denoiser(net, wanted, None, predict), x, step)
    return drawn, mean, samplers.gaussian(keys, step.index, x)
  at = lambda steps, i: jax.tree.map(lambda a: a[i].astype(np.float32 if a.dtype == np.float64 else a.dtype), steps)
  def check(wanted, step, std):
    drawn, mean, z = jax.device_get(moved(np.float32(wanted), step))
    np.testing.assert_allclose(drawn - mean, std * z, rtol=1e-3)
  T = len(table.logsnr)
  steps = samplers.steps(grids.trailing(T)(table))
  for i in (0, T // 2, T - 3, T - 2):
    low, high = (np.log(bound[T - 1 - i]) for bound in bounds_of_variance(table))
    for wanted in (low, .5 * (low + high), high + .3 * (high - low)):
      check(wanted, at(steps, i), np.exp(wanted / 2))
  few = samplers.steps(grids.trailing(T // 2)(table))
  row = int(np.argmin(abs(table.logsnr - few.t.logsnr[2])))
  low, high = (np.log(bound[row]) for bound in bounds_of_variance(table))
  k = -np.expm1(-2 * few.h[2])
  std = few.s.sigma[2] ** .25 * few.t.sigma[2] ** .75 * np.sqrt(k)
  check(.25 * low + .75 * high, at(few, 2), std)


def test_an_untrained_log_variance_is_finite_where_small_and_large_nearly_agree():
  table = schedules.linear(1000)
  predict = gaussian.with_variance(gaussian.predict_x0(), variance.learned_log(schedule=table).share)
  net = lambda params, x, *rest: jnp.zeros((*x.shape[:-1], 2 * x.shape[-1]))
  keys = samplers.sample_keys(0, np.arange(2))
  denoise, levels = gaussian.denoiser(net, None, None, predict), grids.trailing(1000)(table)
  x = jax.jit(lambda x: samplers.sample(keys, denoise, samplers.ddpm('learned'), levels, x))(np.ones((2, 3, 1)))
  assert np.isfinite(x).all()


@pytest.mark.parametrize('schedule', [schedules.cosine(12), schedules.flow(12), schedules.edm(12)],
                         ids=['vp', 'flow', 've'])
def test_the_bound_of_a_step_is_the_divergence_of_its_two_gaussians(schedule):
  """Against means and variances written out in float64, in every scaling; the last row of `flow` has no signal."""
  noise, x0, gap = learned_case(schedule, 2, 3)
  v = np.asarray(jax.random.uniform(jax.random.key(2), x0.shape, minval=-.2, maxval=1.2))
  got = np.asarray(jax.jit(variance.learned(strength=1., schedule=schedule).bound)(noise, x0, gap, v))[2:]
  t, s = (Noise(*(np.repeat(a[part], 2)[:, None] for a in schedule)) for part in (slice(1, None), slice(None, -1)))
  a = t.alpha / s.alpha
  forward = t.sigma ** 2 - a ** 2 * s.sigma ** 2                              # of q(x_t | x_s)
  small = forward * s.sigma ** 2 / t.sigma ** 2
  log_model = v[2:] * np.log(small * t.sigma ** 2 / s.sigma ** 2) + (1 - v[2:]) * np.log(small)
  shift = s.alpha * forward / t.sigma ** 2 * np.asarray(gap, np.float64)[2:]  # x0's part of the posterior mean
  kl = .5 * (log_model - np.log(small) + (small + shift ** 2) / np.exp(log_model) - 1)
  np.testing.assert_allclose(got, 12 / np.log(2) * np.asarray(kl).mean(1), rtol=2e-4)


def test_the_decoder_is_one_in_training_and_evaluation_and_the_same_in_every_scaling():
  """On offset cosine, where sigma_0^2 and (sigma_0 / alpha_0)^2 differ by 10 %."""
  table, share = schedules.offset_cosine(1000), .3
  assert 1.10 < table.alpha[0] ** -2 < 1.12
  small, large = (bound[0] for bound in bounds_of_variance(table))
  x0 = np.asarray(jax.random.uniform(jax.random.key(3), (4, 6), minval=-1, maxval=1))
  guess = .9 * x0 + .02
  std = np.sqrt(small ** (1 - share) * large ** share)
  expected = -stats.norm(np.asarray(guess, np.float64), std).logpdf(np.asarray(x0, np.float64)).mean(1) / np.log(2)
  for scaling in (gaussian.vp, gaussian.ve, gaussian.flow):
    scaled = scaling(table.time, table.logsnr)
    row = Noise(*(np.full(4, a[0], np.float32) for a in scaled))
    bound = jax.jit(variance.learned(strength=1., levels=None, schedule=scaled).bound)
    trained = np.asarray(bound(row, x0, guess - x0, np.full_like(x0, share))) / 1000
    def denoise(x, noise):
      return gaussian.Pred(guess, jnp.zeros_like(x), jnp.full_like(x, share))
    keys = samplers.sample_keys(0, np.arange(4))
    measure = lambda x0: elbo.bound(keys, denoise, scaled, x0, steps=1, variance='learned', levels=None)
    measured = jax.jit(measure)(x0)[0]['decoder']
    np.testing.assert_allclose(trained, expected, rtol=2e-4)
    np.testing.assert_allclose(measured, expected, rtol=2e-4)


def test_the_bound_trains_the_variance_and_leaves_the_mean_to_the_loss():
  x0 = np.clip(.5 * np.asarray(jax.random.normal(jax.random.key(1), (64, 4, 4, 1))), -1, 1)
  net = lambda params, x, time, cond, train, rngs: jnp.concatenate([params[0] * x, jnp.tanh(params[1]) + 0 * x], -1)
  schedule = schedules.cosine()
  def value(params, strength):
    bound = variance.learned(strength, schedule=schedule).bound if strength else None
    return denoising.loss(jax.random.key(0), net, params, x0, None, weight=weighting.one(), variance=bound,
                          draw=timesteps.draw_levels(timesteps.uniform(), schedule),
                          predict=gaussian.with_variance(gaussian.predict_eps()))[0]
  slope, params = jax.jit(jax.grad(value), static_argnums=1), np.float32([.7, .2])
  plain, hybrid, more = (np.asarray(slope(params, strength)) for strength in (0, .001, .002))
  np.testing.assert_allclose([hybrid[0], more[0]], [plain[0], plain[0]], rtol=1e-6)
  assert plain[1] == 0 != hybrid[1]
  assert float(more[1]) == pytest.approx(2 * float(hybrid[1]), rel=1e-5)


def test_bad_input_is_named():
  for make, message in ((lambda: variance.learned(schedule=schedules.flow()), 'number of levels'),
                        (lambda: variance.learned_log(schedule=schedules.flow()), 'number of levels'),
                        (lambda: variance.learned(0., schedule=schedules.cosine()), 'above 0')):
    with pytest.raises(InputError, match=message):
      make()
