"""The training loss against closed forms: known minimisers, known expectations, weights that are equal by algebra."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import losses, predict, schedules
from diffusion.errors import InputError
from diffusion.noise import Noise, like

KEY = jax.random.key(0)
SCHEDULE = schedules.cosine()


def exact_gaussian_net(target, std):
  """A 'network' that outputs the best possible a * x0 + b * eps for data N(0, std^2), and knows its level by its time."""
  table = Noise(*(jnp.asarray(a, jnp.float32) for a in SCHEDULE))
  def net(params, x, time, cond, train, rngs):
    n = like(Noise(*(a[time.astype(jnp.int32)] for a in table)), x)
    variance = n.alpha ** 2 * std ** 2 + n.sigma ** 2
    row = target(n)
    return (row.a * n.alpha * std ** 2 + row.b * n.sigma) / variance * x
  return net


def call(net, target, x0, key=KEY, times=losses.uniform(), **options):
  options = dict(weight=losses.one(), error=losses.mse()) | options
  return losses.loss(key, net, None, x0, None, draw=losses.drawn_from(times, SCHEDULE), predict=target, **options)


@pytest.mark.parametrize('target, name', [(predict.eps(), 'eps'), (predict.x0(), 'x0'), (predict.v(), 'v')])
def test_the_exact_network_reaches_the_bayes_error_of_gaussian_data(target, name):
  """The least possible error is the conditional variance: for x0 it is std^2 sigma^2 / (alpha^2 std^2 + sigma^2)."""
  std = .5
  x0 = std * jax.random.normal(jax.random.key(1), (40_000, 2, 2, 1))
  least, parts = jax.jit(lambda x0: call(exact_gaussian_net(target, std), target, x0))(x0)
  a2, s2 = SCHEDULE.alpha ** 2, SCHEDULE.sigma ** 2
  x0_error = std ** 2 * s2 / (a2 * std ** 2 + s2)
  bayes = dict(x0=x0_error, eps=x0_error * a2 / s2, v=x0_error / s2)[name]  # errors of the other targets follow from x_t
  assert float(least) == pytest.approx(bayes.mean(), rel=.02)
  assert float(parts['mse'].mean()) == pytest.approx(bayes.mean(), rel=.02)
  worse = float(call(lambda *a: 0. * a[1], target, x0)[0])
  assert worse > 1.2 * float(least)


def test_loss_is_deterministic_in_its_key_and_new_under_another():
  x0 = jnp.ones((8, 2, 2, 1))
  net = lambda params, x, time, cond, train, rngs: .3 * x
  value = lambda key: float(call(net, predict.eps(), x0, key)[0])
  assert value(KEY) == value(KEY) != value(jax.random.key(1))


@pytest.mark.parametrize('weight, expected', [
  (losses.snr(), dict(eps=lambda snr: 1 + 0 * snr, x0=lambda snr: snr, v=lambda snr: snr / (snr + 1))),
  (losses.min_snr(5.), dict(eps=lambda snr: np.minimum(snr, 5) / snr, x0=lambda snr: np.minimum(snr, 5),
                            v=lambda snr: np.minimum(snr, 5) / (snr + 1))),  # arXiv:2303.09556, section 3.4
  (losses.p2(1., 1.), dict(eps=lambda snr: 1 / (1 + snr))),                  # arXiv:2204.00227, equation 8
  (losses.one(), dict(eps=lambda snr: 1 + 0 * snr, v=lambda snr: 1 + 0 * snr)),
])
def test_weights_are_those_that_their_papers_state_for_each_target(weight, expected):
  table = Noise(*(a[50:950] for a in SCHEDULE))
  snr = table.alpha ** 2 / table.sigma ** 2
  for name, formula in expected.items():
    row = getattr(predict, name)()(table)
    to_x0 = (table.sigma / predict.determinant(row, table)) ** 2
    np.testing.assert_allclose(weight(Noise(*map(jnp.asarray, table)), to_x0), formula(snr), rtol=2e-5)


def test_edm_weight_is_one_for_the_edm_target_and_lambda_for_x0():
  table = schedules.edm(T=50)
  level, sd = Noise(*map(jnp.asarray, table)), .5
  def weigh(row):
    return losses.edm(sd)(level, (table.sigma / predict.determinant(row, table)) ** 2)
  np.testing.assert_allclose(weigh(predict.edm(sd)(table)), 1., rtol=1e-5)
  np.testing.assert_allclose(weigh(predict.x0()(table)), (table.sigma ** 2 + sd ** 2) / (table.sigma * sd) ** 2, rtol=1e-5)


def test_a_loss_in_eps_space_is_the_snr_weighted_loss_of_the_same_denoiser_in_v_space():
  """One denoiser, x0 = 0.4 x, written as an eps and as a v network: its SNR-weighted losses must be the same number."""
  def net_for(target):
    def net(params, x, time, cond, train, rngs):
      n = like(Noise(*(jnp.asarray(a, jnp.float32)[time.astype(jnp.int32)] for a in SCHEDULE)), x)
      row, x0 = target(n), .4 * x
      return row.a * x0 + row.b * (x - n.alpha * x0) / n.sigma
    return net
  x0 = jax.random.normal(jax.random.key(1), (64, 2, 2, 1))
  times = losses.table([0, 1, 1, 1, 0])  # away from the ends, where float32 runs out
  values = [float(call(net_for(t), t, x0, weight=losses.snr(), times=times)[0]) for t in (predict.eps(), predict.v())]
  assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_errors_of_a_known_gap():
  gap = jnp.array([-3., -.5, 0., .5, 3.])
  np.testing.assert_allclose(losses.mse()(gap, 0.), gap ** 2)
  np.testing.assert_allclose(losses.mae()(gap, 0.), jnp.abs(gap))
  for delta in (.1, 1., 10.):  # Huber is the integral of the clipped gap
    x = np.linspace(0, 3, 300_001)
    area = np.sum(np.clip((x[1:] + x[:-1]) / 2, -delta, delta)) * (x[1] - x[0])
    assert float(losses.huber(delta)(gap, 0.)[-1]) == pytest.approx(area, rel=1e-4)


def test_uniform_and_stratified_times_are_uniform_and_the_second_spread_evenly():
  for times in (losses.uniform(), losses.stratified()):
    u = np.concatenate([times(jax.random.key(i), 64) for i in range(200)])
    assert 0 <= u.min() and u.max() < 1
    assert np.histogram(u, 8, (0, 1))[0] / len(u) == pytest.approx(np.full(8, 1 / 8), abs=.015)
  u = np.asarray(losses.stratified()(KEY, 64))
  np.testing.assert_array_equal(np.histogram(u, 32, (0, 1))[0], np.full(32, 2))  # two in each 32nd


def test_table_times_follow_their_histogram():
  u = np.asarray(losses.table([1, 0, 3])(KEY, 30_000))
  np.testing.assert_allclose(np.histogram(u, 3, (0, 1))[0] / 30_000, [.25, 0, .75], atol=.01)


def test_draws_from_a_table_cover_its_rows_and_curves_stay_finite():
  rows = np.asarray(losses.drawn_from(losses.uniform(), schedules.linear(T=50))(KEY, 20_000).time)
  np.testing.assert_allclose(np.bincount(rows.astype(int), minlength=50), 400, atol=120)
  for curve in (schedules.flow(), schedules.cosine(None), schedules.linear(None), schedules.sigmoid()):
    assert np.isfinite(losses.drawn_from(losses.uniform(), curve)(KEY, 10_000).logsnr).all()


def test_conditions_are_dropped_as_often_as_asked_and_wholly():
  cond = dict(label=jnp.ones((20_000, 3)), extra=jnp.ones((20_000,)))
  dropped = losses.drop_condition(KEY, cond, lambda c: jax.tree.map(jnp.zeros_like, c), .2)
  assert float(1 - dropped['extra'].mean()) == pytest.approx(.2, abs=.01)
  np.testing.assert_array_equal(dropped['label'], np.repeat(np.asarray(dropped['extra'])[:, None], 3, 1))


def test_loss_works_under_jit_vmap_grad_and_pmap():
  net = lambda params, x, time, cond, train, rngs: params * x
  x0 = jax.random.normal(jax.random.key(1), (8, 2, 2, 1))
  def value(params, key, x0):
    return losses.loss(key, net, params, x0, None, draw=losses.drawn_from(losses.uniform(), SCHEDULE),
                       predict=predict.eps(), weight=losses.one())[0]
  expected = value(.5, KEY, x0)
  assert float(jax.jit(value)(.5, KEY, x0)) == pytest.approx(float(expected), rel=1e-5)
  keys = jax.random.split(KEY, 3)
  each = [float(value(.5, k, x0)) for k in keys]
  np.testing.assert_allclose(jax.vmap(value, (None, 0, None))(.5, keys, x0), each, rtol=1e-5)
  np.testing.assert_allclose(jax.pmap(value, in_axes=(None, 0, None))(.5, keys[:1], x0), each[:1], rtol=1e-5)
  slope = jax.grad(value)(.5, KEY, x0)
  assert float(slope) == pytest.approx(float(value(.51, KEY, x0) - value(.49, KEY, x0)) / .02, rel=1e-3)


def test_bad_input_is_named():
  for make, message in ((lambda: losses.table([-1, 2]), 'none negative'), (lambda: losses.table([]), 'list of weights'),
                        (lambda: losses.huber(0), 'above 0')):
    with pytest.raises(InputError, match=message):
      make()
