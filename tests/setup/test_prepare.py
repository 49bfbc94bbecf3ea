"""A network prepares its condition once per sample and once per loss, not at every step."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import samplers
from diffusion.core.gaussian import predict_x0, take
from diffusion.objectives.denoising import with_self_conditioning
from diffusion.setup import build
from diffusion.setup.build import Weights
from diffusion.setup.config import default, tiny
from experiments.image_run import image_run, params_of

SHAPE, CLASSES, WIDTH = (4, 4, 1), ('a', 'b'), 3
COND = np.array([[1, 0], [0, 1], [1, 0], [.5, .5]], np.float32)
CALLS = []  # one entry per execution of `prepare`, also inside compiled programs


class Encoded(nn.Module):
  """x0 = scale * x + bias + the mean of a linear map of the condition, which `prepare` applies."""
  out_channels: int = 1

  def setup(self):
    self.encoder = nn.Dense(WIDTH, use_bias=False)
    self.layer = nn.Dense(1)

  def prepare(self, cond):
    jax.debug.callback(lambda: CALLS.append(len(cond)))
    return self.encoder(cond)

  def __call__(self, x, time, cond=None, train=False):
    assert cond.shape == (len(x), WIDTH)  # prepared
    return self.layer(x[..., :1]) + jnp.mean(cond, 1)[:, None, None, None]


@pytest.fixture
def make(monkeypatch):
  """make(**changes) -> (Experiment, params) of a model with that network."""
  monkeypatch.setitem(build.CHOICES['net'], 'encoded', Encoded)
  def make(**changes):
    c = tiny(default())
    c.update(dict(net='encoded', predict='x0', grid='trailing(4)', sampler='ddim', clip_x0=False) | changes)
    run = image_run(c, SHAPE, CLASSES)
    return run, params_of(run)
  return make


def executed(function, *args):
  """(result, how often it prepared a condition) of a compiled function."""
  CALLS.clear()
  out = jax.block_until_ready(jax.jit(function)(*args))
  jax.effects_barrier()
  return out, len(CALLS)


@pytest.mark.parametrize('changes, expected', [
  (dict(guide=''), 1), (dict(guide='cfg(3)'), 1), (dict(guide='cfg(3, negative=b)'), 1),
  (dict(guide='cfg(3)', self_condition=True), 1),
])
def test_sampling_prepares_its_conditions_once_before_its_steps(make, changes, expected):
  run, params = make(**changes)
  keys = samplers.sample_keys(0, np.arange(4))
  sampler = samplers.self_conditioned(run.sampler) if run.self_condition else run.sampler
  def sample(params):
    x = samplers.prior(keys, run.levels, SHAPE)
    return samplers.sample(keys, run.denoise(Weights(params), COND), sampler, run.levels, x)
  out, calls = executed(sample, params)
  assert calls == expected and np.isfinite(out).all()


@pytest.mark.parametrize('changes', [dict(), dict(self_condition=True)])
def test_guidance_prepares_both_conditions(make, changes):
  run, params = make(guide='cfg(3, negative=b)', **changes)
  x = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)
  out = run.denoise(Weights(params), COND)(x, take(run.levels, 0)).x0
  encoder, layer = np.asarray(params['encoder']['kernel'], np.float64), params['layer']
  def estimate(cond):
    return x * layer['kernel'][0, 0] + layer['bias'] + (cond @ encoder).mean(1)[:, None, None, None]
  null = estimate(np.array([[0., 1.]] * 4))
  np.testing.assert_allclose(out, null + 3 * (estimate(COND) - null), atol=1e-5)


@pytest.mark.parametrize('changes, part, expected', [
  (dict(), None, 1), (dict(), (1, 2), 1), (dict(self_condition=True), None, 1), (dict(timesteps='loss_aware'), None, 1),
])
def test_the_loss_prepares_its_condition_once_and_trains_the_encoder(make, changes, part, expected):
  run, params = make(condition_dropout=.5, **changes)
  x0 = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)
  memory = run.objective.init(jax.random.key(0))[1]
  def value(params):
    return run.objective.loss(jax.random.key(0), params, x0, COND, memory=memory, train=True, part=part)[0]
  grads, calls = executed(jax.grad(value), params)
  assert calls == expected and np.abs(grads['encoder']['kernel']).max() > 1e-3


def test_the_condition_is_dropped_before_it_is_prepared(make):
  x0 = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)
  (dropped, params), (kept, _) = make(condition_dropout=1.), make(condition_dropout=0., guide='')
  value = lambda run, cond: run.objective.loss(jax.random.key(0), params, x0, cond, train=True)[0]
  assert value(dropped, COND) == value(kept, 0 * COND) != value(kept, COND)


def test_no_gradient_reaches_the_condition_through_the_own_estimate():
  def net(params, x, time, cond, train, rngs):
    return x[..., :1] + x[..., 1:] + cond
  def estimate(key, net, params, x0, cond, **options):  # in place of the loss: what stands beside the network's input
    return net(params, 0 * x0, None, 0 * cond, True, {})
  noise = take(build.make('schedule', 'cosine'), 500)
  def total(cond, key):
    loss = with_self_conditioning(estimate)
    return loss(key, net, {}, jnp.ones((2, 1)), cond, draw=lambda *_: noise, predict=predict_x0()).sum()
  values, slopes = zip(*(jax.value_and_grad(total)(jnp.ones((2, 1)), jax.random.key(i)) for i in range(8)))
  assert max(values) > 1 and not np.any(slopes)  # some of the estimates are not zeros
