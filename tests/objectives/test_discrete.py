"""The losses of tokens, and of numbers and tokens at once: against entropies, and against each other."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import categorical, gaussian, schedules
from diffusion.errors import InputError
from diffusion.nets import Net
from diffusion.objectives import denoising, discrete, mixed, timesteps, weighting
from diffusion.tasks.base import Task

CURVE = schedules.log_linear(None)
P = np.array([[.5, .3, .15, .05], [.1, .2, .3, .4]])  # of two independent places
ENTROPY = -np.sum(P * np.log(P)) / 2


def task(categories, null=lambda cond: jax.tree.map(jnp.zeros_like, cond)):
  return Task(None, None, null, None, None, None, None, categories=categories)


def exact_logits(kernel, seen=None):
  """logits [B, 2, 4] of the true p(x0 | x_t), from one-hot inputs and the time."""
  def apply(params, x, time, cond, *rest):
    log_p = jnp.log(P) + 0 * x[:, :1, None]
    if not kernel.absorbing:  # log q(x_t | x0)
      keep = jnp.clip(1 - time / 1000, 1e-6, 1)[:, None, None]
      log_p += jnp.log(keep * x.reshape(-1, 2, 4) + (1 - keep) / 4)
    return log_p.reshape(len(x), -1)
  return apply


def make(kernel='masked', weight='bound', net=None, schedule=CURVE, categories=4, cond=None, **options):
  made = discrete.make_kernel('', kernel, categories or 4)
  apply = net or exact_logits(made)
  network = lambda **sizes: Net(lambda key, shape, cond: {}, apply, lambda params, cond: cond)
  example = np.zeros((1, 2), np.int32), cond
  return discrete.discrete(kernel, weight, net=network, schedule=schedule, task=task(categories), example=example,
                           timesteps=timesteps.stratified(), condition_dropout=0., **options)


def tokens(number, seed=0):
  rng = np.random.default_rng(seed)
  return np.stack([rng.choice(4, number, p=p) for p in P], 1).astype(np.int32)


@pytest.mark.parametrize('kernel, schedule', [  # the exact network of uniform reads the level from the time of CURVE
  ('uniform', CURVE), ('masked', CURVE), ('masked', schedules.log_linear(500)), ('masked', schedules.cosine(None))])
def test_with_the_true_conditionals_the_loss_is_the_entropy(kernel, schedule):
  x0 = tokens(200_000)
  value, metrics = jax.jit(make(kernel, schedule=schedule).loss)(jax.random.key(0), {}, x0, None)
  error = np.std(metrics['each']) / np.sqrt(len(x0))
  assert error < .015 and abs(float(value) - ENTROPY) < 4 * error + 2e-3


def test_the_unweighted_loss_is_the_cross_entropy_of_the_tokens_that_are_lost():
  x0, key = tokens(50_000), jax.random.key(1)
  value, _ = jax.jit(make(weight='one').loss)(key, {}, x0, None)
  np.testing.assert_allclose(float(value), ENTROPY / 2, rtol=.02)  # half of all tokens are lost


def test_a_batch_in_parts_has_the_loss_of_the_whole_and_a_mask_takes_tokens_out():
  x0, key = tokens(64), jax.random.key(2)
  objective = make(cond=dict(x_mask=np.zeros((1, 2), np.float32)))
  mask = lambda which: dict(x_mask=np.tile(np.float32([which]), (64, 1)))
  loss = jax.jit(lambda x0, cond: objective.loss(key, {}, x0, cond)[0])
  of_part = jax.jit(lambda i, x0, cond: objective.loss(key, {}, x0, cond, part=(i, 4))[0])
  whole = loss(x0, mask([1., 1.]))
  np.testing.assert_allclose(np.mean([of_part(i, x0, mask([1., 1.])) for i in range(4)]), whole, rtol=1e-5)
  first = loss(x0, mask([1., 0.]))
  changed = loss(x0 * [1, 0], mask([1., 0.]))
  assert first == changed and first != whole


def test_known_tokens_are_taken_from_the_condition_and_guidance_keeps_them():
  seen = []
  def net(params, x, time, cond, *rest):
    seen.append((x, cond))
    return jnp.zeros((len(x), 8))
  cond = dict(cond=np.ones((2, 3)), known=np.array([[1, -1], [-1, 2]]))
  predict = make(net=net).model({}, (), ()).logits(cond)
  made, told = jax.jit(lambda x: (predict(x, CURVE(np.float32(.5))), seen[-1][0]))(np.full((2, 2), 4))
  assert set(seen[-1][1]) == {'cond'}
  np.testing.assert_array_equal(np.argmax(np.reshape(told, (2, 2, 5)), -1), [[1, 4], [4, 2]])
  np.testing.assert_array_equal(np.exp(np.asarray(made.log_p)[0, 0]), np.eye(4)[1])


# ---- numbers and categories
def separate_net(numbers, kernel):
  """A network whose numbers and categories do not depend on each other: (of the numbers, of both)."""
  def of_numbers(params, x, time, cond, *rest):
    return jnp.tanh(x) + time[:, None] / 1000
  def of_both(params, x, time, cond, *rest):
    logits = exact_logits(kernel)(params, x[:, numbers:], time, cond)
    return jnp.concatenate([of_numbers(params, x[:, :numbers], time, cond), logits], -1)
  return of_numbers, of_both


def make_mixed(net, kernel='masked', cond=None, share=1.):
  network = lambda **sizes: Net(lambda key, shape, cond: {}, net, lambda params, cond: cond)
  example = dict(numbers=np.zeros((1, 3), np.float32), categories=np.zeros((1, 2), np.int32)), cond
  return mixed.mixed(kernel, share=share, net=network, schedule=CURVE, task=task((4, 4)), example=example,
                     predict=gaussian.predict_v(), timesteps=timesteps.stratified(), loss_weight=weighting.min_snr(5.),
                     loss_type=denoising.mse(), condition_dropout=0.)


def test_the_mixed_loss_is_that_of_numbers_and_that_of_tokens_at_the_same_levels():
  x0 = dict(numbers=np.random.default_rng(0).normal(size=(40_000, 3)).astype(np.float32), categories=tokens(40_000))
  of_numbers, of_both = separate_net(3, categorical.masked((4, 4)))
  objective, draw = make_mixed(of_both, share=.5), timesteps.draw_levels(timesteps.stratified(), CURVE)
  @jax.jit
  def both(key, x0):
    return objective.loss(key, {}, x0, None), denoising.loss(
      key, of_numbers, {}, x0['numbers'], None, draw=draw, predict=gaussian.predict_v(), weight=weighting.min_snr(5.))
  (value, metrics), (_, alone) = jax.device_get(both(jax.random.key(3), x0))
  np.testing.assert_array_equal(metrics['logsnr'], alone['logsnr'])
  error = np.std(metrics['nats']) / 200
  assert abs(np.mean(metrics['nats']) - ENTROPY) < 4 * error  # the bound with the true conditionals
  np.testing.assert_allclose(np.mean(metrics['mse']), np.mean(alone['mse']), rtol=.02)  # other noise
  expected = (3 * np.mean(alone['each']) + .5 * 2 * np.mean(metrics['nats'])) / 5
  np.testing.assert_allclose(float(value), expected, rtol=.02)


def test_given_entries_are_hidden_from_the_network_and_do_not_count():
  weights = np.random.default_rng(1).normal(size=(18, 11)).astype(np.float32)
  net = lambda params, x, time, cond, *rest: x @ weights
  mask = np.array([[1, 0, 1, 1, 0]], np.float32)
  objective = make_mixed(net, cond=dict(x_mask=mask))
  cond = dict(x_mask=np.tile(mask, (8, 1)))
  x0 = dict(numbers=np.ones((8, 3), np.float32), categories=np.ones((8, 2), np.int32))
  other = dict(numbers=np.float32([1, 7, 1]) * x0['numbers'], categories=np.int32([1, 3]) * x0['categories'])
  loss = jax.jit(lambda x0: objective.loss(jax.random.key(4), {}, x0, cond)[0])
  np.testing.assert_array_equal(loss(x0), loss(other))
  assert loss(x0) != loss(dict(x0, numbers=np.float32([7, 1, 1]) * x0['numbers']))
  predict = jax.jit(lambda x: objective.model({}, (), ()).mixed(cond)(x, CURVE(np.float32(.5))))
  made, again = jax.device_get((predict(x0), predict(other)))
  np.testing.assert_array_equal(made.numbers.x0[:, 0], again.numbers.x0[:, 0])
  np.testing.assert_array_equal(made.categories.log_p, again.categories.log_p)


@pytest.mark.parametrize('make, message', [
  (lambda: make(kernel='maskd'), "did you mean 'masked'"), (lambda: make(weight='two'), 'bound, one'),
  (lambda: make(categories=None), 'takes an x0 of integers'),
  (lambda: make_mixed(None, share=0.), 'share')])
def test_what_does_not_fit_is_refused(make, message):
  with pytest.raises(InputError, match=message):
    make()
