"""The objectives of Gaussian diffusion: adapted times, learned schedules, micro-batches, masks."""
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import gaussian, schedules
from diffusion.nets import Net
from diffusion.objectives import denoising, gaussian_diffusion, timesteps, vdm, weighting

KEY = jax.random.key(0)
SCHEDULE = schedules.cosine()


def test_a_loss_with_memory_has_the_expectation_of_the_loss_without():
  x0 = .5 * jax.random.normal(jax.random.key(1), (256, 2, 2, 1))
  level = timesteps.levels_at(SCHEDULE)
  apply = lambda params, x, time, cond, train, rngs: .2 * x
  memory = jnp.stack([jnp.linspace(1, 30, 10), jnp.full(10, 100.)])
  def objective(sampled):
    return gaussian_diffusion.denoising(
      net=lambda **needs: Net(None, apply, lambda params, cond: cond), schedule=lambda u: level(.1 + .8 * u),
      task=SimpleNamespace(null=None, project=None), example=(np.zeros((1, 2, 2, 1)), None),
      predict=gaussian.predict_x0(), timesteps=sampled, loss_weight=weighting.snr(), loss_type=denoising.mse(),
      noise_type=denoising.gaussian_noise(), variance=None, logvar_channels=0, self_condition=False,
      condition_dropout=0.)
  without, aware = objective(timesteps.uniform()), objective(timesteps.loss_aware(bins=10))
  def one(key):
    value, metrics = aware.loss(jax.random.fold_in(key, 1), {}, x0, None, memory=(memory,), train=True)
    return without.loss(key, {}, x0, None, train=True)[0], value, aware.remember((memory,), metrics)[0][0]
  plain, value, after = jax.jit(lambda: jax.lax.map(one, jax.random.split(KEY, 300)))()
  assert float(value.mean()) == pytest.approx(float(plain.mean()), rel=.03)
  assert not np.array_equal(after[0], memory[0])


@pytest.mark.parametrize('kind', ['loss_aware', 'learned schedule'])
def test_a_loss_with_memory_and_a_learned_schedule_are_the_mean_over_their_micro_batches(kind):
  x0 = .5 * jax.random.normal(jax.random.key(1), (16, 2, 2, 1))
  common = dict(net=lambda **needs: Net(None, lambda params, x, *_: params['a'] * x, lambda params, cond: cond),
                task=SimpleNamespace(null=None, project=None, levels=256), example=(np.zeros((1, 2, 2, 1)), None),
                self_condition=False, condition_dropout=0.)
  params, memory = dict(a=jnp.float32(.3)), ()
  if kind == 'loss_aware':
    memory = (jnp.stack([jnp.linspace(1, 30, 10), jnp.full(10, 100.)]),)
    objective = gaussian_diffusion.denoising(
      schedule=SCHEDULE, predict=gaussian.predict_x0(), timesteps=timesteps.loss_aware(bins=10), variance=None,
      loss_weight=weighting.min_snr(), loss_type=denoising.mse(), noise_type=denoising.gaussian_noise(),
      logvar_channels=0, **common)
  else:
    schedule = vdm.learned(4)
    objective = vdm.vdm(schedule=schedule, predict=gaussian.predict_eps(), **common)
    params |= dict(curve=jax.tree.map(jnp.asarray, schedule.curve))
  loss = lambda params, part=None: objective.loss(KEY, params, x0, None, memory=memory, train=True, part=part)
  of_parts = jax.jit(lambda params, parts: objective.gradient(loss, params, parts), static_argnums=1)
  (whole, metrics), gradient = of_parts(params, 1)
  (mean, in_parts), accumulated = of_parts(params, 4)
  assert float(mean) == pytest.approx(float(whole), rel=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), accumulated, gradient)
  remember = jax.jit(objective.remember)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), remember(memory, in_parts),
               remember(memory, metrics))


def test_entries_that_are_masked_neither_count_nor_matter():
  x0 = np.asarray(jax.random.normal(KEY, (6, 5, 3)))
  mask = (np.arange(5) < np.array([1, 2, 3, 4, 5, 5])[:, None])[..., None]
  net = lambda params, x, time, cond, train, rngs: .2 * x
  loss = jax.jit(lambda x0, mask: denoising.loss(
    KEY, net, None, x0, None, draw=timesteps.draw_levels(timesteps.stratified(), SCHEDULE), mask=mask,
    predict=gaussian.predict_x0(), weight=weighting.one())[1])
  value = lambda *args: jax.device_get(loss(*args))
  masked = value(x0, mask)
  other = x0 + np.float32(7) * ~mask
  np.testing.assert_allclose(value(other, mask)['mse'], masked['mse'], rtol=1e-6)  # whatever stands there
  whole = value(x0, None)['mse']
  np.testing.assert_allclose(masked['mse'][4:], whole[4:], rtol=1e-6)
  def first_only(x0):  # the first row of an example, by an x0 that has no other; with the same noise
    corrupt = lambda key, _: (jax.random.normal(key, (6, 5, 3))[:, :1],) * 2
    return denoising.loss(KEY, net, None, x0[:, :1], None, corrupt=corrupt, predict=gaussian.predict_x0(),
                          draw=timesteps.draw_levels(timesteps.stratified(), SCHEDULE), weight=weighting.one())[1]
  np.testing.assert_allclose(masked['mse'][0], np.asarray(jax.jit(first_only)(x0)['mse'])[0], rtol=1e-5)
