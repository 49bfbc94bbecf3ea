"""The autoencoder's objective on linear networks: probabilistic PCA, two players, and what is remembered."""
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.objectives import adversarial, autoencoder as objective, bottlenecks
from diffusion.objectives.base import mean_of_parts
from diffusion.setup.choices import make

TASK = SimpleNamespace(levels=256)
rng = np.random.default_rng(0)


class LinearNet:
  """Images [B, 1, 1, D] to latents and back by matrices, and a linear critic."""
  def __init__(self, D, features, channels):
    self.D, self.features, self.channels = D, features, channels

  def __call__(self, moments, critic, out_channels):
    return self

  def init(self, key, shape):
    normal = lambda i, *shape: jax.random.normal(jax.random.fold_in(key, i), shape)
    return dict(encoder=dict(W=normal(0, self.D, self.features), b=jnp.zeros(self.features)),
                decoder=dict(inner=normal(1, self.channels, self.D),
                             conv_out=dict(kernel=normal(2, self.D, self.D), bias=jnp.zeros(self.D))),
                disc=dict(w=normal(3, self.D)))

  def call(self, params, name, x):
    if name == 'encode':
      return x @ params['encoder']['W'] + params['encoder']['b']
    if name == 'judge':
      return jnp.tanh(x @ params['disc']['w'])
    h = x @ params['decoder']['inner'] if name == 'decode' else x
    image = h @ params['decoder']['conv_out']['kernel'] + params['decoder']['conv_out']['bias']
    return (image, h) if name == 'decode' else image


def built(bottleneck, D=6, features=4, channels=2, likelihood=None, adversary=None):
  example = np.zeros((1, 1, 1, D), np.float32), None
  return objective.autoencoder(bottleneck, likelihood, adversary, net=LinearNet(D, features, channels),
                               example=example, task=TASK)


def test_the_loss_of_a_linear_vae_with_the_exact_posterior_is_the_likelihood_of_probabilistic_pca():
  """Tipping & Bishop 1999. The noise is a quadrature that is exact for quadratics: 2 d points for each x."""
  D, d, sigma2 = 6, 2, .3
  axes, _ = np.linalg.qr(rng.normal(size=(D, D)))
  spread = np.array([4., 2.] + [sigma2] * (D - d))
  W, mu = axes[:, :d] * np.sqrt(spread[:d] - sigma2), rng.normal(size=D)
  M = np.diag(W.T @ W) + sigma2
  points = np.concatenate([np.eye(d), -np.eye(d)]) * np.sqrt(d)
  x = rng.normal(size=(5, D)) * 2
  exact = -.5 * np.mean(np.sum(((x - mu) @ axes) ** 2 / spread, 1) + np.log(spread).sum() + D * np.log(2 * np.pi))
  encoder = dict(W=np.concatenate([W / M, np.zeros((D, d))], 1),
                 b=np.concatenate([-mu @ W / M, np.log(sigma2 / M)]))
  params = dict(encoder=encoder, decoder=dict(inner=W.T, conv_out=dict(kernel=np.eye(D), bias=mu)))
  eps = np.tile(points, (len(x), 1))[:, None, None]
  with jax.enable_x64(True):
    exactly = bottlenecks.gaussian()._replace(noise=lambda key, shape: jnp.asarray(eps))
    made = built(exactly, likelihood=objective.normal(np.sqrt(sigma2)))
    batch = jnp.asarray(np.repeat(x, len(points), 0)[:, None, None])
    value, metrics = made.loss(jax.random.key(0), jax.tree.map(jnp.asarray, params), batch, None)
    assert float(value) * D == pytest.approx(-exact, abs=1e-10)
    worse = params | dict(encoder=encoder | dict(b=encoder['b'] + .1))
    assert float(made.loss(jax.random.key(0), worse, batch, None)[0]) > float(value) + 1e-3
  np.testing.assert_allclose(np.mean(metrics['each']), value)


def test_the_learned_scale_is_best_at_the_mean_absolute_error():
  """The maximum-likelihood scale of a Laplace distribution."""
  made = built(bottlenecks.kl(0.))
  params, _ = made.init(jax.random.key(0))
  x0 = rng.normal(size=(64, 1, 1, 6)).astype(np.float32)
  image = jax.jit(lambda: made.model(params, (), ()).reconstruct(None, x0, None))()
  params |= dict(log_scale=jnp.log(jnp.mean(jnp.abs(x0 - image))))
  still = built(bottlenecks.kl(0.)._replace(noise=lambda key, shape: jnp.zeros(shape)))
  loss = jax.jit(lambda params: still.loss(jax.random.key(0), params, x0, None)[0])
  assert float(jax.grad(loss)(params)['log_scale']) == pytest.approx(0, abs=1e-5)


# ---- two players
COMPILED = {}  # objective -> its gradient
ADVERSARY = adversarial.hinge(weight=.5, start=10, warmup=4)


def parts_of(made, params, x0, step):
  """(gradients of the loss, metrics)."""
  if made not in COMPILED:
    loss = lambda params, x0, step: made.loss(jax.random.key(0), params, x0, None, step=step)
    COMPILED[made] = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (_, metrics), grads = COMPILED[made](params, x0, jnp.int32(step))
  return grads, metrics


@pytest.fixture(scope='module')
def game():
  """(objective with and without a critic, parameters, images)."""
  made, alone = (built(bottlenecks.kl(), adversary=adversary) for adversary in (ADVERSARY, None))
  params, _ = made.init(jax.random.key(1))
  params |= dict(disc=dict(w=params['disc']['w'] * .1))
  return made, alone, params, rng.normal(size=(16, 1, 1, 6)).astype(np.float32)


def test_the_hinge_loss_is_1_for_a_critic_that_says_nothing_and_0_for_a_sure_one():
  assert float(adversarial.critic_loss(np.zeros(5), np.zeros(5))) == 1
  assert float(adversarial.critic_loss(np.full(5, 1.5), np.full(5, -1.))) == 0
  assert float(adversarial.generator_loss(np.array([1., 3.]))) == -2


def test_each_player_gets_the_gradient_of_its_own_term_alone(game):
  made, alone, params, x0 = game
  plain, _ = parts_of(alone, params, x0, 0)
  warm, metrics = parts_of(made, params, x0, 8)  # the critic learns, and the autoencoder does not feel it
  for name in ('encoder', 'decoder', 'log_scale'):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), warm[name], plain[name])
  z = made.model(params, (), ())
  eps = bottlenecks.kl().noise(jax.random.key(0), (16, 1, 1, 2))
  moments = z.encode(x0)
  image = z.decode(bottlenecks.sample(*bottlenecks.posterior(moments), eps))
  judge = lambda w, x: jnp.tanh(x @ w)
  over = lambda a: jnp.mean(jnp.maximum(0, a))
  critic = lambda w: .5 * over(1 - judge(w, x0)) + .5 * over(1 + judge(w, image))
  np.testing.assert_allclose(warm['disc']['w'], jax.grad(critic)(params['disc']['w']), rtol=1e-5, atol=1e-7)
  both, _ = parts_of(made, params, x0, 12)  # the autoencoder's term moves the critic not at all
  np.testing.assert_allclose(both['disc']['w'], warm['disc']['w'], rtol=1e-6)
  assert np.abs(np.asarray(both['encoder']['W'] - warm['encoder']['W'])).max() > 1e-4
  gap = np.mean(judge(params['disc']['w'], x0)) - np.mean(judge(params['disc']['w'], image))
  assert float(metrics['critic_gap']) == pytest.approx(float(gap), rel=1e-4)


def test_at_the_last_kernel_the_adversary_pulls_half_as_much_as_the_likelihood(game):
  made, _, params, x0 = game
  warm, both = (parts_of(made, params, x0, step)[0]['decoder']['conv_out']['kernel'] for step in (8, 12))
  size = lambda a: float(np.linalg.norm(np.asarray(a)))
  assert size(both - warm) == pytest.approx(.5 * size(warm), rel=5e-3)  # 1e-4 is added to its norm


def test_before_the_critic_is_trained_nothing_of_it_counts(game):
  made, alone, params, x0 = game
  idle, metrics = parts_of(made, params, x0, 5)
  assert float(jnp.abs(idle['disc']['w']).max()) == 0 and float(metrics['critic_loss']) == 0
  plain, _ = parts_of(alone, params, x0, 5)
  np.testing.assert_allclose(idle['encoder']['W'], plain['encoder']['W'], rtol=1e-6)
  assert made.gradient is None and made.group('disc/conv_0/kernel') == 'disc' != made.group('decoder/conv_out/kernel')


# ---- memory
def test_a_codebook_moves_the_same_whether_a_batch_is_whole_or_accumulated():
  made = built(bottlenecks.vq(8, decay=.5, least=0.), features=2)
  params, book = made.init(jax.random.key(0))
  book = book._replace(codes=jnp.asarray(rng.normal(size=(8, 2)) * 3, jnp.float32))
  x0 = jnp.asarray(rng.normal(size=(12, 1, 1, 6)), jnp.float32)
  loss = lambda params, part=None: made.loss(jax.random.key(0), params, x0, None, memory=book, part=part)
  found = {}
  for parts in (1, 3):
    (_, metrics), grads = jax.jit(lambda params: mean_of_parts(loss, params, parts))(params)
    found[parts] = made.remember(book, metrics), grads
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found[1], found[3])
  assert np.abs(found[1][0].codes - book.codes).max() > .1


def test_what_a_decoder_gets_of_latents_is_their_codes():
  """Diffusion models latents before they are rounded; rounding is the decoder's part."""
  made = built(bottlenecks.vq(8), features=2)
  params, book = made.init(jax.random.key(0))
  book = book._replace(codes=rng.normal(size=(8, 2)).astype(np.float32))
  model, x0 = made.model(params, book, ()), rng.normal(size=(5, 1, 1, 6)).astype(np.float32)
  z = model.latent(None, model.encode(x0))
  np.testing.assert_array_equal(z, model.encode(x0))
  nearest = np.asarray(book.codes)[((np.asarray(z)[..., None, :] - book.codes) ** 2).sum(-1).argmin(-1)]
  np.testing.assert_array_equal(model.decode(z), model.decode(nearest))
  np.testing.assert_array_equal(model.reconstruct(None, x0, None), model.decode(z))
  assert model.draw is None and built(bottlenecks.gaussian()).model(params, (), ()).draw


@pytest.mark.parametrize('spec, message', [
  ('autoencoder(kll)', r"config.objective='autoencoder\(kll\)': bottleneck='kll': unknown 'kll'; did you mean 'kl'"),
  ('autoencoder(vq(codes=1))', r"config.objective=.*: bottleneck='vq\(codes=1\)': vq\(codes=1\)"),
  ('autoencoder(kl, adversarial=hinge(start=5, warmup=9))', 'warmup of at most start'),
  ('autoencoder(kl, likelihood=logistic(0))', 'scale=0'),
  ('autoencoder(fsq((8, 8)))', 'fsq has 2 levels and the network 4 channels')])
def test_wrong_options_are_refused_by_name(spec, message):
  with pytest.raises(InputError, match=message):
    make('objective', spec, net=LinearNet(6, 4, 4), example=(np.zeros((1, 1, 1, 6)), None), task=TASK)


def test_whole_numbers_of_levels_need_data_of_such():
  with pytest.raises(InputError, match='256 levels'):
    objective.autoencoder(bottlenecks.kl(), objective.logistic(), net=LinearNet(6, 4, 2),
                          example=(np.zeros((1, 1, 1, 6)), None), task=SimpleNamespace(levels=None))
