"""Training options combined, from a config through checkpoints: learned variance, self-conditioning, learned
uncertainty, loss-aware timesteps."""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion.core.gaussian import take
from diffusion.errors import InputError
from diffusion.training.open_model import with_guide_model
from diffusion.objectives.base import Objective
from diffusion.setup.build import Weights
from diffusion.setup.config import default, tiny
from diffusion.system import sharding
from diffusion.system.checkpoint import open_checkpoints
from diffusion.training.loop import make_train_step, train_step
from diffusion.training.state import abstract_state, init_state, make_state, TrainState
from experiments.image_run import image_run, params_of

SHAPE, CLASSES = (8, 8, 1), ('dark', 'light')


def config(**changes):
  c = tiny(default())
  net = 'unet(channels=16, multipliers=(1,), blocks=1, attention=(), zero_init=False)'
  c.update(dict(net=net, lr_schedule='constant(warmup=1)', batch=8, save_every=100, log_every=100, val_every=100))
  c.update(changes)
  return c


def experiment(**changes):
  return image_run(config(**changes), SHAPE, CLASSES)


def batches(number):
  rng = np.random.default_rng(0)
  for _ in range(number):
    labels = rng.integers(0, 2, 8)
    images = (rng.random((8, *SHAPE)) * 80 + 150 * labels[:, None, None, None]).astype(np.uint8)
    yield dict(images=images, cond=np.eye(2, dtype=np.float32)[labels])


EVERYTHING = dict(variance='learned', self_condition=True, noise_type='paired', schedule='cosine(20)',
                  loss_weight='vlb',
                  timesteps='loss_aware(bins=4, least=2)', grid='trailing(4)')


@pytest.fixture(scope='module')
def run():
  return experiment(**EVERYTHING)


def test_a_run_with_everything_resumes_bit_for_bit_with_what_its_times_remember(tmp_path, run):
  step, key = make_train_step(run), jax.random.key(0)
  checkpoints = open_checkpoints(tmp_path)
  state = make_state(run, key)
  for done, batch in enumerate(batches(6), 1):
    state, metrics = step(state, sharding.put_batch(batch, run.mesh), key)
    if done == 3:
      checkpoints.save(3, state, {})
      checkpoints.wait()  # the state is donated
  assert np.isfinite(metrics['loss'])
  again = checkpoints.restore(abstract_state(run)).state
  checkpoints.close()
  for batch in list(batches(6))[3:]:
    again, _ = step(again, sharding.put_batch(batch, run.mesh), key)
  jax.tree.map(np.testing.assert_array_equal, state, again)
  mean_square, count = state.memory[0]
  assert int(count.sum()) == 6 * 8 and np.all(np.asarray(mean_square) > 0)
  fresh = make_state(run, key).memory[0]  # the step donates a copy
  jax.tree.map(np.testing.assert_array_equal, fresh, np.zeros((2, 4)))


def test_a_run_with_everything_samples_with_the_variance_it_learned(run):
  params = params_of(run)
  assert params['in']['kernel'].shape[2] == 2  # x and its own estimate
  x = jax.random.normal(jax.random.key(1), (2, *SHAPE))
  cond = np.eye(2, dtype=np.float32)
  level = take(run.levels, 0)
  pred = jax.jit(lambda params: run.denoise(Weights(params), cond)(x, level))(params)
  assert pred.x0.shape == pred.variance.shape == x.shape
  np.testing.assert_allclose(level.alpha * pred.x0 + level.sigma * pred.eps, x, atol=1e-4)


def test_a_network_that_learns_the_log_variance_trains_and_draws():
  run = experiment(variance='learned_log', schedule='cosine(20)', sampler="ddpm('learned')", grid='trailing(20)')
  state, metrics = make_train_step(run)(make_state(run, jax.random.key(0)),
                                        sharding.put_batch(next(batches(1)), run.mesh), jax.random.key(0))
  assert np.isfinite(metrics['loss'])
  level, cond = take(run.levels, 3), np.eye(2, dtype=np.float32)
  pred = run.plain(Weights(state.params), cond)(jnp.ones((2, *SHAPE)), level)
  assert pred.variance.shape == (2, *SHAPE) and np.isfinite(pred.variance).all()


def test_a_scaled_target_trains_on_exploding_variance_with_times_weight_and_averages_in_k_diffusions_ways():
  run = experiment(schedule='edm', predict='scaled(v)', timesteps='v_diffusion(sigma_min=.01, sigma_max=50.)',
                   loss_weight='soft_min_snr', grid='polyexponential(4, rho=2)', guide='',
                   extra_emas='halflife(16, rampup=None) | warmup(.9, power=1., after=1)')
  step, state, seen = make_train_step(run), make_state(run, jax.random.key(0)), []
  for batch in batches(3):
    state, metrics = step(state, sharding.put_batch(batch, run.mesh), jax.random.key(0))
    seen.append(np.asarray(state.params['in']['kernel'], np.float64))
    assert np.isfinite(metrics['loss'])
  half, warm = (np.asarray(tree['in']['kernel']) for tree in state.averages)
  start = np.asarray(make_state(run, jax.random.key(0)).params['in']['kernel'], np.float64)
  r = 2 ** -.5  # 8 images a step
  np.testing.assert_allclose(half, r ** 3 * start + (1 - r) * (r ** 2 * seen[0] + r * seen[1] + seen[2]), atol=1e-5)
  np.testing.assert_allclose(warm, (seen[1] + seen[2]) / 2, atol=1e-5)
  assert run.levels.sigma[0] == pytest.approx(80)


class Before(NamedTuple):
  """What a state held before it had a memory."""
  step: Any
  params: Any
  ema: Any
  opt_state: Any


def test_a_checkpoint_from_before_the_memory_is_restored(tmp_path):
  state = init_state({'w': jax.random.normal(jax.random.key(0), (3,))}, optax.adam(1e-3))
  checkpoints = open_checkpoints(tmp_path)
  checkpoints.save(7, Before(*state[:4])._replace(step=jnp.int32(7)), {})
  checkpoints.close()
  restored = open_checkpoints(tmp_path).restore(jax.eval_shape(lambda: state)).state
  assert isinstance(restored, TrainState) and restored.memory == () and int(restored.step) == 7
  np.testing.assert_array_equal(restored.params['w'], state.params['w'])


def test_the_step_hands_the_memory_to_the_loss_and_keeps_what_comes_back():
  def loss(key, params, x0, cond, *, memory, **options):
    return jnp.sum(params ** 2), dict(seen=sum(a.sum() for a in memory) + jnp.zeros(2))
  remember = lambda memory, metrics: tuple(a + 1 for a in memory)
  objective = Objective('test', None, loss, None, remember=remember)
  options = dict(encode=lambda frozen, key, batch: (batch, None), objective=objective, optimizer=optax.sgd(.1),
                 ema=lambda step: .9)
  for memory in ((), (jnp.zeros(3),)):
    state = init_state(jnp.ones(2), optax.sgd(.1), memory)
    for _ in range(2):
      state, metrics = train_step(state, np.zeros(2, np.float32), jax.random.key(0), **options)
    assert len(state.memory) == len(memory) and all(np.array_equal(a, np.full(3, 2.)) for a in state.memory)
    assert metrics['seen'] == 3 * len(memory)  # what came of the first step


@pytest.mark.parametrize('changes, message', [
  (dict(variance='learned', schedule='flow', predict='v'), "config.variance='learned': .*number of levels"),
  (dict(variance='learnt'), "did you mean 'learned'"), (dict(noise_type='ofset'), "did you mean 'offset'"),
  (dict(noise_type='perturbed(-1)'), 'above 0'), (dict(timesteps='loss_aware(bins=0)'), 'bins=0'),
  (dict(loss_weight='sigmoid(bias=x)'), "bias='x'"),
  (dict(logvar_channels=-1), 'config.logvar_channels=-1'),
])
def test_what_does_not_fit_is_named(changes, message):
  with pytest.raises(InputError, match=message):
    experiment(**changes)


def test_a_learned_schedule_moves_stays_monotone_and_is_what_samples_are_drawn_on(tmp_path):
  c = config(objective='vdm', schedule='learned(pieces=6)', predict='eps', loss_weight='vlb', grid='trailing(5)',
             guide='',
             learning_rate=3e-2)
  run = image_run(c, SHAPE, CLASSES)
  step, key = make_train_step(run), jax.random.key(0)
  state = make_state(run, key)
  before, losses = jax.device_get(state.params['curve']), []
  for batch in batches(12):
    state, metrics = step(state, sharding.put_batch(batch, run.mesh), key)
    losses.append(float(metrics['loss']))
  after = jax.device_get(state.params['curve'])
  assert np.isfinite(losses).all() and np.mean(losses[-3:]) < np.mean(losses[:3])
  assert all(np.abs(after[name] - before[name]).max() > .01 for name in ('ends', 'inner'))
  helped, _ = with_guide_model(run, Weights(state.params))
  assert np.all(np.diff(helped.levels.logsnr) > 0)
  end = -float(np.logaddexp(0, after['ends'][1]))  # of the learned curve
  assert helped.levels.logsnr[0] == pytest.approx(end, rel=1e-6)
  assert helped.levels.logsnr[0] != run.levels.logsnr[0] == pytest.approx(-5)


def test_a_learned_schedule_goes_with_the_bound_alone():
  for changes, fix in ((dict(loss_weight='one'), "loss_weight='vlb'"), (dict(logvar_channels=8), 'logvar_channels=0'),
                       (dict(timesteps='uniform'), "timesteps='stratified'")):
    with pytest.raises(InputError, match=f'variational bound; set config.{fix}'):
      experiment(**(dict(objective='vdm', schedule='learned', predict='eps', loss_weight='vlb', guide='') | changes))


def test_a_learned_uncertainty_moves_where_a_table_has_rows_without_signal_and_every_run_starts_anew():
  run = experiment(logvar_channels=8, schedule='flow(20)', predict='v', loss_weight='one')
  step, key = make_train_step(run), jax.random.key(0)
  starts = []
  for _ in range(2):  # the state of the first is donated
    state = make_state(run, key)
    starts.append(np.asarray(state.params['uncertainty']))
    for batch in batches(3):
      state, metrics = step(state, sharding.put_batch(batch, run.mesh), key)
    assert np.isfinite(metrics['loss'])
    assert np.any(np.asarray(state.params['uncertainty']) != starts[0])
  np.testing.assert_array_equal(*starts)
