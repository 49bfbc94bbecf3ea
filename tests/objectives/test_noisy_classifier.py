"""The noisy classifier: its loss against Bayes' posterior by quadrature, and the network's promises on a tiny one."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import gaussian, schedules
from diffusion.core.gaussian import Noise
from diffusion.core.guidance import classifier
from diffusion.errors import InputError
from diffusion.nets import make
from diffusion.nets.classifier import Classifier
from diffusion.objectives import noisy_classifier
from experiments.mixture import mixture_denoiser
from tests.exact import gaussian_denoiser

# ---- the loss: two classes N(+-.5, .3^2) in one dimension, the first one three times as common
MEANS, STD, SHARES = np.array([.5, -.5]), .3, np.array([.75, .25])
TABLE = schedules.cosine(T=12)
N = 40_000
rng = np.random.default_rng(0)
WHICH = (rng.random(N) > SHARES[0]).astype(int)
X0 = jnp.asarray((MEANS[WHICH] + STD * rng.standard_normal(N)).reshape(N, 1, 1, 1), jnp.float32)
COND = jnp.eye(2)[WHICH]


RIGHT = dict(times=1., shift=0., smooth=0., scaled=0., table=tuple(np.asarray(a, np.float32) for a in TABLE))


def exact_net(params, x, time, cond, train, rngs):
  """The logits of p(k | x_t), for RIGHT. It knows the level by its row in the table, its time input."""
  n = Noise(*(jnp.asarray(a)[time.astype(jnp.int32), None] for a in params['table']))
  x = x.reshape(-1, 1) * jnp.where(params['scaled'], jnp.sqrt(n.sigma ** 2 + .25), 1.)  # undoes what predict_edm does
  log_likelihood = -.5 * (x - n.alpha * jnp.asarray(MEANS)) ** 2 / (n.alpha ** 2 * STD ** 2 + n.sigma ** 2)
  logits = params['times'] * (log_likelihood + jnp.log(jnp.asarray(SHARES)) + params['shift'] * jnp.array([1., 0.]))
  return jnp.log((1 - params['smooth']) * jax.nn.softmax(logits) + params['smooth'] / 2 + 1e-30)


def rows(table):
  """Draws the rows of a table in turn, each as often as the others."""
  def draw(key, batch):
    return Noise(*(jnp.asarray(a, jnp.float32)[jnp.arange(batch) % len(table.time)] for a in table))
  return draw


def call(params, smoothing=0., target=gaussian.predict_v(), table=TABLE, cond=COND):
  return noisy_classifier.loss(jax.random.key(0), exact_net, params, X0, cond, draw=rows(table), predict=target,
                       smoothing=smoothing)


@jax.jit
def value_and_slope(params):
  return jax.value_and_grad(call, has_aux=True)(params)


def value(**wrong):
  return float(value_and_slope(RIGHT | wrong)[0][0])


def by_quadrature(of_posterior):
  """The mean over levels and x_t of a function of the posterior p(k | x_t) [..., 2], in float64."""
  x = np.linspace(-8, 8, 20_001)
  total = 0
  for alpha, sigma in zip(TABLE.alpha, TABLE.sigma):
    variance = alpha ** 2 * STD ** 2 + sigma ** 2
    joint = SHARES * np.exp(-.5 * (x[:, None] - alpha * MEANS) ** 2 / variance) / np.sqrt(2 * np.pi * variance)
    density = joint.sum(1)
    total += np.sum(density * of_posterior(joint / np.maximum(density, 1e-300)[:, None])) * (x[1] - x[0])
  return total / len(TABLE.alpha)


def test_the_exact_posterior_reaches_the_expected_entropy_and_accuracy():
  entropy = by_quadrature(lambda p: -np.sum(p * np.log(np.maximum(p, 1e-300)), -1))
  (least, parts), _ = value_and_slope(RIGHT)
  assert float(least) == pytest.approx(entropy, rel=.02)
  assert float(parts['cross_entropy'].mean()) == pytest.approx(float(least), rel=1e-5)
  assert float(parts['accuracy'].mean()) == pytest.approx(by_quadrature(lambda p: p.max(-1)), abs=.01)
  at = lambda i: parts['cross_entropy'][np.isclose(parts['logsnr'], TABLE.logsnr[i])].mean()
  nearly_clean, nearly_noise = at(0), at(-1)
  assert float(nearly_noise) == pytest.approx(-np.sum(SHARES * np.log(SHARES)), rel=.05)
  assert nearly_clean < .3 * nearly_noise


@pytest.mark.parametrize('wrong', [dict(times=1.2), dict(times=.8), dict(shift=.3), dict(shift=-.3), dict(smooth=.05),
                                   dict(table=tuple(np.roll(a, 2) for a in RIGHT['table']))])
def test_any_other_posterior_has_a_higher_loss(wrong):
  assert value(**wrong) > value() + .001


def test_the_loss_is_stationary_at_the_exact_posterior():
  there, elsewhere = (value_and_slope(RIGHT | dict(shift=shift))[1] for shift in (0., 1.))
  assert abs(float(there['times'])) < .01 and abs(float(there['shift'])) < .01 and abs(float(elsewhere['shift'])) > .05


def test_label_smoothing_moves_the_minimum_to_the_smoothed_posterior():
  smoothed = jax.jit(lambda smooth: call(RIGHT | dict(smooth=smooth), smoothing=.2)[0])
  losses_at = {s: float(smoothed(s)) for s in (.1, .2, .3)}
  assert losses_at[.2] < min(losses_at[.1], losses_at[.3])
  def smoothed_entropy(p):
    p = .8 * p + .1
    return -np.sum(p * np.log(p), -1)
  assert losses_at[.2] == pytest.approx(by_quadrature(smoothed_entropy), rel=.02)


def test_the_input_is_scaled_as_for_the_network_that_is_guided():
  table = schedules.edm(T=12)._replace(time=np.arange(12.))
  params = RIGHT | dict(table=tuple(np.asarray(a, np.float32) for a in table))
  scaled = call(params | dict(scaled=1.), target=gaussian.predict_edm(.5), table=table)
  plain = call(params, target=gaussian.predict_x0(), table=table)
  np.testing.assert_allclose(scaled[1]['cross_entropy'], plain[1]['cross_entropy'], atol=1e-4)


def test_guidance_by_its_log_probability_is_the_denoiser_of_the_class():
  x = jnp.linspace(-1.5, 1.5, 12).reshape(12, 1)
  even = RIGHT | dict(shift=-float(np.log(3)))  # equal shares, as tests/exact.py has them
  null = mixture_denoiser(MEANS[:, None].astype(np.float32), STD)
  @jax.jit
  def guided(label, noise):
    return classifier(null, noisy_classifier.log_prob(exact_net, even, label, gaussian.predict_v()))(x, noise).x0
  for k in (0, 1):
    label, noise = jnp.eye(2)[np.full(12, k)], Noise(*RIGHT['table'])
    exact = gaussian_denoiser(MEANS[k], STD)(x, noise).x0
    np.testing.assert_allclose(guided(label, noise), exact, atol=1e-4)
    one_level = Noise(*(a[3] for a in noise))
    np.testing.assert_allclose(guided(label, one_level)[3], exact[3], atol=1e-4)


@pytest.mark.parametrize('options, message', [
  (dict(smoothing=1.), 'smoothing=1.0'), (dict(smoothing=-.1), 'smoothing=-0.1'),
  (dict(cond=None), 'with labels'), (dict(cond=jnp.zeros(4)), 'one row'),
])
def test_what_the_loss_cannot_use_is_named(options, message):
  with pytest.raises(InputError, match=message):
    call(RIGHT, **options)


# ---- the network
TINY = dict(classes=3, channels=8, multipliers=(1, 2), blocks=1, attention=(8,), groups=4)
SHAPE = (3, 8, 8, 1)


def build(**options):
  """(params, net): all parameters random, so that no path is silent."""
  net = make(Classifier(**{**TINY, **options}))
  params = net.init(jax.random.key(0), SHAPE, np.zeros((1, 3), np.float32))
  noise = np.random.default_rng(0)
  return jax.tree.map(lambda a: np.asarray(a) + .2 * noise.normal(size=a.shape).astype(np.float32), params), net.apply


@pytest.mark.parametrize('options', [
  {}, dict(resample='block', dropout=.5, dtype='bfloat16', patch=2, head_dim=4, film=False),
])
def test_logits_answer_to_every_parameter_time_and_pixel(options):
  params, net = build(**options)
  x, time = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32), np.array([3., 400., 900.], np.float32)
  def objective(params, x, time):
    out = net(params, x, time, None, True, {'dropout': jax.random.key(0)})
    return jnp.vdot(jnp.cos(jnp.arange(9.)), out.ravel()), out
  (slopes, pixels, times), out = jax.jit(jax.grad(objective, (0, 1, 2), has_aux=True))(params, x, time)
  assert out.shape == (3, 3) and out.dtype == np.float32
  for path, slope in jax.tree_util.tree_leaves_with_path(slopes):
    assert np.any(slope != 0), jax.tree_util.keystr(path)
  assert np.all(pixels != 0) and np.all(times != 0)


def test_a_few_steps_tell_bright_from_dark_images():
  net = make(Classifier(**{**TINY, 'classes': 2, 'multipliers': (1,), 'attention': ()}))
  noise = np.random.default_rng(0)
  cond = np.eye(2, dtype=np.float32)[np.arange(16) % 2]
  x0 = (.8 * (cond[:, 0] - cond[:, 1])[:, None, None, None] + .1 * noise.normal(size=(16, 4, 4, 1))).astype(np.float32)
  draw = rows(Noise(*(a[:8] for a in TABLE)))  # not the noisiest
  params = net.init(jax.random.key(0), x0.shape)
  @jax.jit
  def step(params, key):
    objective = lambda p: noisy_classifier.loss(key, net.apply, p, x0, cond, draw=draw, predict=gaussian.predict_v())
    (value, parts), slope = jax.value_and_grad(objective, has_aux=True)(params)
    return jax.tree.map(lambda p, g: p - .1 * g, params, slope), parts
  for i in range(60):
    params, parts = step(params, jax.random.key(i))
  assert parts['accuracy'].mean() > .9 and parts['cross_entropy'].mean() < .4


@pytest.mark.parametrize('options, shape, message', [
  (dict(classes=1), SHAPE, 'classes=1: expected at least 2'), (dict(classes='six'), SHAPE, "classes='six'"),
  (dict(groups=3), SHAPE, 'groups=3'), (dict(heads=3), SHAPE, 'heads=3'), (dict(resample='pool'), SHAPE, "'pool'"),
  ({}, (1, 9, 8, 1), 'height 9'), ({}, (8, 8, 1), r'\(8, 8, 1\)'),
])
def test_what_does_not_fit_is_refused_by_name_at_init(options, shape, message):
  with pytest.raises(InputError, match=message) as error:
    make(Classifier(**{**TINY, **options})).init(jax.random.key(0), shape)
  assert '\n' not in str(error.value)
