"""The learned schedule on Gaussian data with the exact network, where the bound and its least variance are known."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion import samplers
from diffusion.core import gaussian, grids
from diffusion.errors import InputError
from diffusion.objectives import denoising, vdm
from tests.exact import gaussian_denoiser, gaussian_flow

STD, DIMS = .5, 16


def net(params, x, time, cond, train, rngs):
  """The best eps-network for N(0, STD^2), which gets its log-SNR from its time input."""
  logsnr = 20. - time[:, None] / 25.
  a2, s2 = jax.nn.sigmoid(logsnr), jax.nn.sigmoid(-logsnr)
  return params.get('factor', 1.) * jnp.sqrt(s2) / (a2 * STD ** 2 + s2) * x


def value(key, params, examples=256, levels=None):
  """(bound, parts) of fresh data."""
  data_key, bound_key, loss_key = jax.random.split(key, 3)
  x0 = STD * jax.random.normal(data_key, (examples, DIMS))
  def call(params, draw, weight):
    return denoising.loss(loss_key, net, params, x0, None, draw=draw, weight=weight, predict=gaussian.predict_eps())
  return vdm.bound(bound_key, params, x0, call, levels)


def random_curve(seed):
  rng = np.random.default_rng(seed)
  return dict(ends=rng.normal(0, 6, 2), inner=rng.normal(0, 4, 12))


def information(logsnr):
  return .5 * np.log1p(STD ** 2 * np.exp(logsnr))


@pytest.mark.parametrize('seed', range(5))
def test_the_curve_falls_for_any_parameters_and_is_one_on_the_host_and_traced(seed):
  curve, t = random_curve(seed), np.linspace(0, 1, 1001)
  level, slope = vdm.logsnr(curve, t)
  assert level.dtype == np.float64 and np.all(np.diff(level) < 0) and np.all(slope < 0)
  traced = jax.jit(vdm.logsnr)(jax.tree.map(jnp.float32, curve), jnp.asarray(t, jnp.float32))
  np.testing.assert_allclose(traced[0], level, atol=2e-4 * np.ptp(level))
  middle = (np.arange(500) + .5) / 500  # no knot of the 12 pieces is this close
  by_steps = (vdm.logsnr(curve, middle + 1e-6)[0] - vdm.logsnr(curve, middle - 1e-6)[0]) / 2e-6
  np.testing.assert_allclose(vdm.logsnr(curve, middle)[1], by_steps, rtol=1e-6, atol=1e-8)


def test_a_new_curve_falls_evenly_between_its_ends():
  level, slope = vdm.logsnr(vdm.init_curve(7, 12., -4.), np.linspace(0, 1, 9))
  np.testing.assert_allclose(level, np.linspace(12, -4, 9), atol=1e-5)
  np.testing.assert_allclose(slope, -16, rtol=1e-6)


def diffusion_terms(curve, batches=60):
  """The diffusion part of many examples: [N]."""
  each = jax.jit(lambda keys: jax.lax.map(lambda key: value(key, dict(curve=curve))[1]['each'], keys))
  return np.asarray(each(jax.random.split(jax.random.key(99), batches)), np.float64).ravel()


def test_training_the_inside_of_the_curve_lowers_the_variance_to_its_least_and_leaves_the_mean():
  """An example's term is -slope/2 times the mean of DIMS squares of N(0, m), m = Var[eps | x_t]. Its mean is the
  information I for any curve; its mean square is least where slope is proportional to 1/m, and then (1 + 2/DIMS) I^2,
  so that Var = 2 I^2 / DIMS."""
  start = jax.tree.map(jnp.asarray, vdm.init_curve(24, 12., -6.))
  optimizer = optax.adam(optax.cosine_decay_schedule(.05, 300))
  def step(carry, key):
    inner, state = carry
    slope = jax.grad(lambda inner: value(key, dict(curve=dict(start, inner=inner)))[0])(inner)
    updates, state = optimizer.update(slope, state)
    return (optax.apply_updates(inner, updates), state), None
  keys = jax.random.split(jax.random.key(0), 300)
  (inner, _), _ = jax.jit(lambda inner: jax.lax.scan(step, (inner, optimizer.init(inner)), keys))(start['inner'])
  before, after = diffusion_terms(start), diffusion_terms(dict(start, inner=inner))
  expected = information(12.) - information(-6.)
  assert before.mean() == pytest.approx(expected, rel=.02) and after.mean() == pytest.approx(expected, rel=.02)
  least = 2 * expected ** 2 / DIMS
  assert before.var() > 3 * after.var()
  assert least * .95 < after.var() < 1.35 * least  # 24 straight pieces, and a batch of 256 at a time


def test_the_gradient_of_the_inside_is_that_of_the_mean_square_and_of_the_rest_that_of_the_bound():
  """Against the two plain objectives, differentiated as they are."""
  params = dict(curve=jax.tree.map(jnp.asarray, vdm.init_curve(6, 8., -3.)), factor=jnp.float32(.8))
  params['curve']['inner'] = params['curve']['inner'] + jnp.array([0., .5, -.3, .2, 1., -1.])
  key = jax.random.key(3)
  got = jax.jit(jax.grad(lambda p: value(key, p)[0]))(params)

  def terms(params):
    """Written out: the same data, times and noises, without any of the gradient rules of vdm."""
    data_key, bound_key, loss_key = jax.random.split(key, 3)
    x0 = STD * jax.random.normal(data_key, (256, DIMS))
    time_key, eps_key = jax.random.split(bound_key)
    offset_key, order_key = jax.random.split(time_key)
    t = (jax.random.uniform(offset_key) + jax.random.permutation(order_key, 256)) / 256
    level, slope = vdm.logsnr(params['curve'], t)
    level, slope = level[:, None], slope[:, None]
    eps = jax.random.normal(jax.random.split(loss_key, 5)[1], x0.shape)
    x = jnp.sqrt(jax.nn.sigmoid(level)) * x0 + jnp.sqrt(jax.nn.sigmoid(-level)) * eps
    each = -.5 * jnp.mean(slope * (eps - net(params, x, 25. * (20. - level[:, 0]), None, True, None)) ** 2, 1)
    first, last = vdm.logsnr(params['curve'], jnp.array([0., 1.]))[0]
    a2, s2 = jax.nn.sigmoid(last), jax.nn.sigmoid(-last)
    prior = .5 * jnp.mean(a2 * x0 ** 2 + s2 - 1 - jnp.log(s2))
    z = jax.random.normal(eps_key, x0.shape)
    decoder = jnp.mean(.5 * z ** 2 + .5 * jnp.log(2 * jnp.pi) - .5 * first)
    return each, prior + decoder

  total, bound = jax.jit(jax.value_and_grad(lambda p: jnp.mean(terms(p)[0]) + terms(p)[1]))(params)
  square = jax.jit(jax.grad(lambda p: jnp.mean(terms(p)[0] ** 2)))(params)
  assert float(jax.jit(value)(key, params)[0]) == pytest.approx(float(total), rel=1e-4)
  np.testing.assert_allclose(got['curve']['inner'], square['curve']['inner'], rtol=2e-3, atol=2e-4)
  np.testing.assert_allclose(got['curve']['ends'], bound['curve']['ends'], rtol=2e-3, atol=2e-5)
  np.testing.assert_allclose(got['factor'], bound['factor'], rtol=2e-3)


def test_the_bound_lies_just_above_the_entropy_of_the_data():
  """Continuous data, exact network: the bound is the entropy plus the cost of the ends, small from 10 to -8."""
  bound = jax.jit(lambda keys: jax.lax.map(lambda key: value(key, dict(curve=vdm.init_curve(4, 10., -8.)))[0], keys))
  entropy = .5 * np.log(2 * np.pi * np.e * STD ** 2)
  assert float(bound(jax.random.split(jax.random.key(0), 200)).mean()) == pytest.approx(entropy, abs=.015)


def test_the_ends_follow_the_bound():
  """A curve that starts with too much noise and ends with too much signal learns to start and end with less."""
  curve = vdm.init_curve(4, 1., -1.)
  gradient = jax.jit(jax.grad(lambda p: value(jax.random.key(0), p, examples=4096)[0]))(dict(curve=curve))
  slope, ends = np.asarray(gradient['curve']['ends']), np.array([0., 1.])
  before, after = (vdm.logsnr(dict(curve, ends=curve['ends'] - rate * slope), ends)[0] for rate in (0., .1))
  assert after[0] > before[0] and after[1] < before[1]


def test_a_learned_curve_samples_like_any_continuous_schedule():
  curve = random_curve(1) | dict(ends=np.array([11., 6.]))
  levels = grids.trailing(200)(vdm.curve_schedule(curve))
  x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
  out = samplers.sample(samplers.sample_keys(0, range(3)), gaussian_denoiser(.3, STD), samplers.ddim(), levels, x)
  first = levels._replace(**{name: getattr(levels, name)[0] for name in levels._fields})
  np.testing.assert_allclose(out, gaussian_flow(.3, STD, x, first), atol=.05)


def test_bad_input_is_named():
  for options in (dict(pieces=0), dict(start=-6.), dict(end=1.)):
    with pytest.raises(InputError, match='at least 1 piece and start > 0 > end'):
      vdm.init_curve(**options)
