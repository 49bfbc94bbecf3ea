"""Weights against the forms in their papers, and the variational bound against the information that noise destroys."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import gaussian, lookup, schedules
from diffusion.core.gaussian import Noise, take
from diffusion.errors import InputError
from diffusion.objectives import denoising, timesteps, weighting

SCHEDULE = schedules.cosine()


def float32(levels):
  return Noise(*(jnp.asarray(a, jnp.float32) for a in levels))


def exact_eps_net(std):
  """The best eps-network for data N(0, std^2) on a VP schedule; its time input is the log-SNR."""
  def net(params, x, time, cond, train, rngs):
    logsnr = jnp.reshape(time, (-1,) + (1,) * (x.ndim - 1))
    a2, s2 = jax.nn.sigmoid(logsnr), jax.nn.sigmoid(-logsnr)
    return jnp.sqrt(s2) / (a2 * std ** 2 + s2) * x
  return net


def drawn_with_logsnr_as_time(table):
  def draw(key, batch):
    noise = timesteps.draw_levels(timesteps.stratified(), table)(key, batch)
    return noise._replace(time=noise.logsnr)
  return draw


def eps_error(std, noise):
  """E|eps - eps_hat|^2 of the exact network: Var[eps | x_t]."""
  return noise.alpha ** 2 * std ** 2 / (noise.alpha ** 2 * std ** 2 + noise.sigma ** 2)


def information(std, logsnr):
  """Nats that x_t holds of x0 ~ N(0, std^2)."""
  return .5 * np.log1p(std ** 2 * np.exp(logsnr))


@pytest.mark.parametrize('weight, expected', [
  (weighting.snr(), dict(eps=lambda snr: 1 + 0 * snr, x0=lambda snr: snr, v=lambda snr: snr / (snr + 1))),
  (weighting.min_snr(5.), dict(eps=lambda snr: np.minimum(snr, 5) / snr, x0=lambda snr: np.minimum(snr, 5),
                            v=lambda snr: np.minimum(snr, 5) / (snr + 1))),  # arXiv:2303.09556, section 3.4
  (weighting.max_snr(), dict(eps=lambda snr: np.maximum(1, 1 / snr), x0=lambda snr: np.maximum(snr, 1),
                             v=lambda snr: np.maximum(snr, 1) / (snr + 1))),    # arXiv:2202.00512, section 4
  (weighting.max_snr(.1), dict(x0=lambda snr: np.maximum(snr, .1))),
  (weighting.soft_min_snr(4.), dict(x0=lambda snr: 1 / (1 / snr + 1 / 4), eps=lambda snr: 4 / (snr + 4))),
  (weighting.inverse_variance(), dict(x0=lambda snr: 1 + snr, v=lambda snr: 1 + 0 * snr)),
  (weighting.p2(1., 1.), dict(eps=lambda snr: 1 / (1 + snr))),                  # arXiv:2204.00227, equation 8
  (weighting.one(), dict(eps=lambda snr: 1 + 0 * snr, v=lambda snr: 1 + 0 * snr)),
])
def test_weights_are_those_that_their_papers_state_for_each_target(weight, expected):
  table = Noise(*(a[50:950] for a in SCHEDULE))
  snr = table.alpha ** 2 / table.sigma ** 2
  for name, formula in expected.items():
    target = getattr(gaussian, f'predict_{name}')()(table)
    to_x0 = (table.sigma / gaussian.determinant(target, table)) ** 2
    np.testing.assert_allclose(weight(Noise(*map(jnp.asarray, table)), to_x0), formula(snr), rtol=2e-5)


def test_edm_weight_is_one_for_the_edm_target_and_lambda_for_x0():
  table = schedules.edm(T=50)
  level, sd = Noise(*map(jnp.asarray, table)), .5
  def weigh(target):
    return weighting.edm(sd)(level, (table.sigma / gaussian.determinant(target, table)) ** 2)
  np.testing.assert_allclose(weigh(gaussian.predict_edm(sd)(table)), 1., rtol=1e-5)
  np.testing.assert_allclose(weigh(gaussian.predict_x0()(table)),
                             (table.sigma ** 2 + sd ** 2) / (table.sigma * sd) ** 2, rtol=1e-5)


@pytest.mark.parametrize('sd', [.5, 1.])
def test_the_soft_minimum_is_that_of_k_diffusion_for_the_output_of_edm_and_lies_below_the_hard_one(sd):
  table = schedules.edm(T=50)
  level, s = Noise(*map(jnp.asarray, table)), table.sigma
  weight = weighting.soft_min_snr(sd ** -2)
  to_x0 = (s / gaussian.determinant(gaussian.predict_edm(sd)(table), table)) ** 2
  np.testing.assert_allclose(weight(level, to_x0), (s * sd) ** 2 / (s ** 2 + sd ** 2) ** 2, rtol=2e-5)
  hard = np.minimum(s ** -2., sd ** -2)
  soft = np.asarray(weight(level, jnp.ones(50)))
  assert np.all(soft <= hard * (1 + 1e-5)) and np.all(soft >= hard / 2 * (1 - 1e-5))


@pytest.mark.parametrize('schedule, same', [
  (schedules.flow(50), 'flow'), (schedules.edm(50), 'eps'), (schedules.cosine(50), 'v')])
def test_the_inverse_variance_of_each_scaling_leaves_the_error_of_its_own_target_as_it_is(schedule, same):
  to_x0 = (schedule.sigma / gaussian.determinant(getattr(gaussian, f'predict_{same}')()(schedule), schedule)) ** 2
  np.testing.assert_allclose(weighting.inverse_variance()(Noise(*map(jnp.asarray, schedule)), to_x0), 1., rtol=1e-5)


def test_weights_are_finite_where_there_is_no_signal():
  level = Noise(*(jnp.asarray(a[-1:], jnp.float32) for a in schedules.flow(50)))
  found = [float(w(level, jnp.ones(1))[0]) for w in (weighting.max_snr(), weighting.soft_min_snr(),
                                                     weighting.inverse_variance())]
  assert found == [1., 0., 1.]


@pytest.mark.parametrize('curve',
                         [schedules.cosine(None), schedules.linear(None), schedules.offset_cosine(), schedules.flow()],
                         ids=['cosine', 'linear', 'offset_cosine', 'flow'])
def test_the_bound_of_a_curve_is_the_information_lost_on_the_way(curve):
  """The integral of -dlogsnr/dt / 2 * Var[eps | x_t] is I(x0; x_0) - I(x0; x_1) (Guo, Shamai, Verdu 2005)."""
  std = .5
  t = 1 / (1 + np.exp(np.linspace(9, -9, 3001)))
  noise = schedules.evaluate(curve, t)
  weight = weighting.vlb(schedule=curve)(float32(noise), jnp.exp(-float32(noise).logsnr))
  integrand = np.asarray(weight, np.float64) * eps_error(std, noise)
  area = np.sum((integrand[1:] + integrand[:-1]) / 2 * np.diff(t))
  assert area == pytest.approx(information(std, noise.logsnr[0]) - information(std, noise.logsnr[-1]), rel=2e-4)


@pytest.mark.parametrize('T', [50, 1000])
def test_the_bound_of_a_table_is_the_sum_of_the_divergences_of_its_steps(T):
  """In float64: q(x_s | x_t, x0) against the same with x0_hat = E[x0 | x_t], both with the posterior's variance."""
  std, table = .5, schedules.cosine(T)
  t, s = take(table, slice(1, None)), take(table, slice(None, -1))
  beta = 1 - (t.alpha / s.alpha) ** 2
  variance = beta * s.sigma ** 2 / t.sigma ** 2                                 # DDPM, equation 7
  gap = (s.alpha * beta / t.sigma ** 2) ** 2 * eps_error(std, t) * t.sigma ** 2 / t.alpha ** 2
  steps = gap / (2 * variance)
  first = .5 * eps_error(std, take(table, 0))
  weight = weighting.vlb(schedule=table)(float32(table), jnp.exp(-float32(table).logsnr))
  mean = np.mean(np.asarray(weight) * eps_error(std, table))
  assert mean == pytest.approx(steps.sum() + first, rel=1e-4)
  if T == 1000:  # where steps are small, near the limit of infinitely many, and above it
    limit = information(std, table.logsnr[100]) - information(std, table.logsnr[-1])
    assert limit < steps[100:].sum() < 1.01 * limit


def test_the_loss_of_the_exact_network_is_the_bound():
  """Through the loss, with drawn data and noise."""
  std, table = .5, schedules.cosine(50)
  draw = drawn_with_logsnr_as_time(table)
  x0 = std * jax.random.normal(jax.random.key(1), (5000, 64))
  weight = weighting.vlb(schedule=table)
  options = dict(draw=draw, predict=gaussian.predict_eps(), weight=weight)
  value, parts = jax.jit(lambda: denoising.loss(jax.random.key(0), exact_eps_net(std), None, x0, None, **options))()
  expected = np.mean(np.asarray(weight(float32(table), jnp.exp(-float32(table).logsnr))) * eps_error(std, table))
  assert float(value) == pytest.approx(expected, rel=.01)
  assert float(parts['each'].mean()) == pytest.approx(float(value), rel=1e-5)


def test_the_bound_weighs_the_same_whatever_the_network_is_asked_for():
  flow = schedules.flow()
  level = float32(schedules.evaluate(flow, np.linspace(.05, .95, 19)))
  weight = weighting.vlb(schedule=flow)
  t = np.linspace(.05, .95, 19)
  fall = 2 / (t * (1 - t))                          # logsnr = 2 log((1 - t) / t)
  # x0 and v errors: eps = x + (1 - t) v
  for name, per_output in (('eps', 1.), ('x0', (1 - t) ** 2 / t ** 2), ('flow', (1 - t) ** 2)):
    to_x0 = (level.sigma / gaussian.determinant(getattr(gaussian, f'predict_{name}')()(level), level)) ** 2
    np.testing.assert_allclose(weight(level, to_x0), .5 * fall * per_output, rtol=1e-3)


def test_the_sigmoid_weight_is_that_of_simpler_diffusion_up_to_a_constant_and_cuts_the_bound():
  curve, bias = schedules.cosine(None), -2.
  level = float32(schedules.evaluate(curve, np.linspace(.02, .98, 33)))
  bound, ours = (w(level, jnp.ones(33)) for w in (weighting.vlb(schedule=curve),
                                                  weighting.sigmoid(bias, schedule=curve)))
  t, d = np.linspace(.02, .98, 33), 1e-5
  slope = (curve(t + d).logsnr - curve(t - d).logsnr) / (2 * d)
  # of the x0 error, arXiv:2410.19324
  theirs = -.5 * slope * np.exp(bias) / (1 + np.exp(bias - np.float64(level.logsnr)))
  np.testing.assert_allclose(ours, theirs, rtol=1e-3)
  np.testing.assert_allclose(weighting.sigmoid(40., schedule=curve)(level, jnp.ones(33)), bound, rtol=1e-5)


def test_a_learned_uncertainty_is_least_at_the_log_of_the_expected_loss_of_each_level():
  """One free u for each of ten levels, with the exact network, whose expected loss is Var[eps | x_t]."""
  std, table = .5, schedules.cosine(10)
  draw = drawn_with_logsnr_as_time(table)
  free = lambda params, logsnr: params[lookup.nearest_row(table)(logsnr)]
  def step(u, key):
    x0 = std * jax.random.normal(jax.random.fold_in(key, 9), (100, 128))
    objective = lambda u: denoising.with_uncertainty(denoising.loss, free)(
      key, exact_eps_net(std), dict(uncertainty=u), x0, None, draw=draw, predict=gaussian.predict_eps(),
      weight=weighting.one())[0]
    return u - .3 * jnp.clip(10 * jax.grad(objective)(u), -2, 1), None
  u, _ = jax.jit(lambda: jax.lax.scan(step, jnp.zeros(10), jax.random.split(jax.random.key(0), 120)))()
  np.testing.assert_allclose(u, np.log(eps_error(std, table)), atol=.1)


def test_the_uncertainty_can_take_the_shape_of_a_loss_and_starts_as_no_weight():
  start, u = weighting.uncertainty(64)
  logsnr = jnp.linspace(-9, 9, 200)
  np.testing.assert_array_equal(u(jnp.asarray(start), logsnr), 0)
  features = np.stack([np.asarray(u(jnp.eye(64)[i], logsnr), np.float64) for i in range(64)], 1)
  target = np.log(eps_error(.5, schedules.at_logsnr(schedules.cosine(None), np.asarray(logsnr, np.float64))))
  solution = np.linalg.lstsq(features, target, rcond=1e-4)[0]
  np.testing.assert_allclose(features @ solution, target, atol=.05)


def test_bad_input_is_named():
  for make, message in ((lambda: weighting.edm(-1), 'above 0'), (lambda: weighting.max_snr(0), 'least=0'),
                        (lambda: weighting.soft_min_snr(-4), 'gamma=-4'),
                        (lambda: weighting.sigmoid(float('nan'), schedule=SCHEDULE), 'bias=nan')):
    with pytest.raises(InputError, match=message):
      make()
