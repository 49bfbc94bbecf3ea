"""The training loss against closed forms: known minimisers, known expectations, weights that are equal by algebra."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import gaussian, schedules
from diffusion.core.gaussian import expand_to, Noise
from diffusion.errors import InputError
from diffusion.objectives import denoising, timesteps, weighting

KEY = jax.random.key(0)
SCHEDULE = schedules.cosine()


def exact_gaussian_net(target, std):
  """A 'network' with the best possible output for data N(0, std^2), which gets its level from its time input."""
  table = Noise(*(jnp.asarray(a, jnp.float32) for a in SCHEDULE))
  def net(params, x, time, cond, train, rngs):
    n = expand_to(Noise(*(a[time.astype(jnp.int32)] for a in table)), x)
    variance = n.alpha ** 2 * std ** 2 + n.sigma ** 2
    row = target(n)
    return (row.a * n.alpha * std ** 2 + row.b * n.sigma) / variance * x
  return net


def call(net, target, x0, key=KEY, sampled=timesteps.uniform(), params=None, **options):
  options = dict(weight=weighting.one(), error=denoising.mse()) | options
  draw = timesteps.draw_levels(sampled, SCHEDULE)
  return jax.jit(lambda key, x0: denoising.loss(key, net, params, x0, None, draw=draw, predict=target, **options))(
    key, x0)


@pytest.mark.parametrize('target, name',
                         [(gaussian.predict_eps(), 'eps'), (gaussian.predict_x0(), 'x0'), (gaussian.predict_v(), 'v')])
def test_the_exact_network_reaches_the_bayes_error_of_gaussian_data(target, name):
  """The least possible error is the conditional variance: for x0 it is std^2 sigma^2 / (alpha^2 std^2 + sigma^2)."""
  std = .5
  x0 = std * jax.random.normal(jax.random.key(1), (40_000, 2, 2, 1))
  least, parts = call(exact_gaussian_net(target, std), target, x0)
  a2, s2 = SCHEDULE.alpha ** 2, SCHEDULE.sigma ** 2
  x0_error = std ** 2 * s2 / (a2 * std ** 2 + s2)
  # errors of the other targets follow from x_t
  bayes = dict(x0=x0_error, eps=x0_error * a2 / s2, v=x0_error / s2)[name]
  assert float(least) == pytest.approx(bayes.mean(), rel=.02)
  assert float(parts['mse'].mean()) == pytest.approx(bayes.mean(), rel=.02)
  worse = float(call(lambda *a: 0. * a[1], target, x0)[0])
  assert worse > 1.2 * float(least)


def test_loss_is_deterministic_in_its_key_and_new_under_another():
  x0 = np.ones((8, 2, 2, 1), np.float32)
  net = lambda params, x, time, cond, train, rngs: .3 * x
  value = jax.jit(lambda key: call(net, gaussian.predict_eps(), x0, key)[0])
  assert value(KEY) == value(KEY) != value(jax.random.key(1))


def test_a_loss_in_eps_space_is_the_snr_weighted_loss_of_the_same_denoiser_in_v_space():
  """One denoiser, x0 = 0.4 x, written as an eps and as a v network: its SNR-weighted losses must be equal."""
  def net_for(target):
    def net(params, x, time, cond, train, rngs):
      n = expand_to(Noise(*(jnp.asarray(a, jnp.float32)[time.astype(jnp.int32)] for a in SCHEDULE)), x)
      row, x0 = target(n), .4 * x
      return row.a * x0 + row.b * (x - n.alpha * x0) / n.sigma
    return net
  x0 = jax.random.normal(jax.random.key(1), (64, 2, 2, 1))
  middle = timesteps.histogram([0, 1, 1, 1, 0])  # away from the ends, where float32 runs out
  values = [float(call(net_for(t), t, x0, weight=weighting.snr(), sampled=middle)[0])
            for t in (gaussian.predict_eps(), gaussian.predict_v())]
  assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_errors_of_a_known_gap():
  gap = np.float32([-3., -.5, 0., .5, 3.])
  np.testing.assert_allclose(denoising.mse()(gap, 0.), gap ** 2)
  np.testing.assert_allclose(denoising.mae()(gap, 0.), np.abs(gap))
  for delta in (.1, 1., 10.):  # Huber is the integral of the clipped gap
    x = np.linspace(0, 3, 300_001)
    area = np.sum(np.clip((x[1:] + x[:-1]) / 2, -delta, delta)) * (x[1] - x[0])
    assert float(jax.jit(denoising.huber(delta))(gap, 0.)[-1]) == pytest.approx(area, rel=1e-4)


def test_conditions_are_dropped_as_often_as_asked_and_wholly():
  cond = dict(label=np.ones((20_000, 3)), extra=np.ones((20_000,)))
  drop = jax.jit(lambda cond: denoising.drop_condition(KEY, cond, lambda c: jax.tree.map(jnp.zeros_like, c), .2))
  dropped = jax.device_get(drop(cond))
  assert float(1 - dropped['extra'].mean()) == pytest.approx(.2, abs=.01)
  np.testing.assert_array_equal(dropped['label'], np.repeat(dropped['extra'][:, None], 3, 1))


def test_loss_works_under_jit_vmap_grad_and_pmap():
  net = lambda params, x, time, cond, train, rngs: params * x
  x0 = jax.random.normal(jax.random.key(1), (8, 2, 2, 1))
  def value(params, key, x0):
    return denoising.loss(key, net, params, x0, None, draw=timesteps.draw_levels(timesteps.uniform(), SCHEDULE),
                       predict=gaussian.predict_eps(), weight=weighting.one())[0]
  expected = value(.5, KEY, x0)
  assert float(jax.jit(value)(.5, KEY, x0)) == pytest.approx(float(expected), rel=1e-5)
  keys = jax.random.split(KEY, 3)
  each = [float(value(.5, k, x0)) for k in keys]
  np.testing.assert_allclose(jax.jit(jax.vmap(value, (None, 0, None)))(.5, keys, x0), each, rtol=1e-5)
  np.testing.assert_allclose(jax.pmap(value, in_axes=(None, 0, None))(.5, keys[:1], x0), each[:1], rtol=1e-5)
  slope = jax.jit(jax.grad(value))(.5, KEY, x0)
  assert float(slope) == pytest.approx(float(value(.51, KEY, x0) - value(.49, KEY, x0)) / .02, rel=1e-3)


# ---- self-conditioning
def test_a_self_conditioned_network_sees_its_own_first_estimate_in_half_of_the_batches():
  """The 'network' outputs .3 x + .5 times the estimate beside x: by hand, for the two kinds of batch."""
  x0 = np.asarray(jax.random.normal(jax.random.key(1), (4, 3, 2)))
  shapes = []
  def net(params, x, time, cond, train, rngs):
    shapes.append(x.shape)
    return params * x[..., :2] + .5 * x[..., 2:]
  options = dict(draw=lambda key, batch: Noise(*(jnp.full(batch, v) for v in (1., .6, .8, np.log(.36 / .64)))),
                 predict=gaussian.predict_x0(), weight=weighting.one(),
                 corrupt=lambda key, x0: (jnp.ones_like(x0), jnp.ones_like(x0)))
  x = .6 * x0 + .8
  estimates = dict(alone=0., beside=.3 * x)
  by_hand = {kind: float(np.mean((.3 * x + .5 * beside - x0) ** 2)) for kind, beside in estimates.items()}
  slopes = {kind: float(np.mean(2 * (.3 * x + .5 * beside - x0) * x)) for kind, beside in estimates.items()}
  counts = dict(alone=0, beside=0)
  loss = denoising.with_self_conditioning(denoising.loss)
  step = jax.jit(jax.value_and_grad(lambda params, key: loss(key, net, params, x0, None, **options)[0]))
  for i in range(60):
    value, slope = step(.3, jax.random.key(i))
    kind = min(by_hand, key=lambda k: abs(by_hand[k] - float(value)))
    counts[kind] += 1
    assert float(value) == pytest.approx(by_hand[kind], rel=1e-5)
    assert float(slope) == pytest.approx(slopes[kind], rel=1e-4)  # no gradient through the first estimate
  assert 18 <= counts['beside'] <= 42
  assert set(shapes) == {(4, 3, 4)}


# ---- wrappers
def test_every_wrapper_of_the_loss_is_what_is_written_out_by_hand():
  """All at once, for each of two micro-batches: five streams, condition dropout, an error weighed by e^-u, plus u."""
  x0 = np.asarray(jax.random.normal(jax.random.key(1), (8, 3, 2)))
  cond = dict(label=np.arange(1., 9., dtype=np.float32)[:, None])
  def net(params, x, time, cond, train, rngs):
    scale = 1. + jax.random.uniform(rngs['dropout']) if rngs else 1.
    return scale * params['w'] * (x[..., :2] + .5 * x[..., 2:]) + .1 * cond['label'][:, :, None]
  level = Noise(*(np.float32(v) for v in (1., .6, .8, np.log(.36 / .64))))
  draw = lambda key, batch: Noise(*(jnp.full(batch, v) for v in level))
  u = lambda params, logsnr: params * logsnr
  params, key = dict(w=jnp.float32(.3), uncertainty=jnp.float32(.7)), jax.random.key(5)
  wrapped = denoising.with_self_conditioning(denoising.with_uncertainty(denoising.loss, u))
  _, eps_key, cond_key, net_key, self_key = jax.random.split(key, 5)
  eps, dropped = np.asarray(jax.random.normal(eps_key, x0.shape)), np.asarray(jax.random.bernoulli(cond_key, .5, (8,)))
  assert 0 < dropped.sum() < 8
  label = np.where(dropped, 0., np.arange(1., 9.))[:, None, None]
  x, estimate = .6 * x0 + .8 * eps, .3 * (.6 * x0 + .8 * eps) + .1 * label
  estimate = estimate * bool(jax.random.bernoulli(self_key))
  for i in (0, 1):
    part = denoising.with_micro_batch(wrapped, i, 2)
    loss = denoising.with_condition_dropout(part, lambda c: jax.tree.map(jnp.zeros_like, c), .5)
    options = dict(draw=draw, predict=gaussian.predict_x0(), weight=weighting.snr())
    value, parts = jax.jit(lambda params: loss(key, net, params, x0, cond, **options))(params)
    scale = 1 + float(jax.random.uniform(jax.random.fold_in(net_key, i)))
    error = np.mean((scale * .3 * (x + .5 * estimate) + .1 * label - x0) ** 2, (1, 2))[i::2]
    exponent = .7 * level.logsnr
    np.testing.assert_allclose(parts['each'], .36 / .64 * error * np.exp(-exponent) + exponent, rtol=2e-5)
    np.testing.assert_allclose(parts['mse'], error, rtol=2e-5)
    assert float(value) == pytest.approx(float(parts['each'].mean()), rel=1e-6)


def test_bad_input_is_named():
  with pytest.raises(InputError, match='above 0'):
    denoising.huber(0)


def test_a_denoising_autoencoder_is_best_where_it_knows_the_score():
  """Vincent 2011: of N(0, S) with noise s, the best r is S (S + s^2)^-1, and r(x) - x = s^2 grad log p(x).

  Data and noise have exactly these second moments, so that the gradient is 0 but for rounding.
  """
  rng, D, s = np.random.default_rng(0), 4, .5
  design = np.linalg.qr(rng.normal(size=(64, 2 * D)))[0] * 8
  factor = rng.normal(size=(D, D))
  S = factor @ factor.T
  x0, eps = design[:, :D] @ factor.T, design[:, D:]
  best = S @ np.linalg.inv(S + s ** 2 * np.eye(D))
  np.testing.assert_allclose(best - np.eye(D), -s ** 2 * np.linalg.inv(S + s ** 2 * np.eye(D)), atol=1e-12)  # s^2 score
  net = lambda W, x, time, cond, train, rngs: x @ W.T
  level = lambda key, batch: Noise(*(jnp.full(batch, value) for value in (0., 1., s, -2 * np.log(s))))
  with jax.enable_x64(True):
    loss = lambda W: denoising.loss(KEY, net, W, x0, None, draw=level, predict=gaussian.predict_x0(),
                                    weight=weighting.one(), corrupt=lambda key, x0: (jnp.asarray(eps),) * 2)[0]
    value, slope = jax.jit(jax.value_and_grad(loss))(best)
  np.testing.assert_allclose(slope, 0, atol=1e-10)
  assert float(value) == pytest.approx(np.trace(S - best @ S) / D)
