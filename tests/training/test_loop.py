"""Training against hand computation, and what a run must survive."""
import gzip

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion.data.arrays import image_dataset
from diffusion.errors import InputError
from diffusion.objectives.base import Objective
from diffusion.setup.choices import CHOICES
from diffusion.setup.config import default, tiny
from diffusion.system.checkpoint import open_checkpoints
from diffusion.system.log import open_log, read_metrics
from diffusion.system.run_control import trace
from diffusion.training import loop
from diffusion.training.heldout import make_heldout_loss
from diffusion.training.loop import error_by_logsnr, fit, Hooks, LOGSNR_EDGES, train_step
from diffusion.training.state import abstract_state, init_state, make_state
from experiments.image_run import image_run, weights_of
from tests.linear_network import Linear


def random_images(n=64, seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 2, n).astype(np.int32)
  values = (rng.random((n, 8, 8, 1)) * 80 + 150 * labels[:, None, None, None]).astype(np.uint8)
  return image_dataset(values, labels, ('dark', 'light'))


TRAIN, HELDOUT = random_images(), random_images(20, 1)


@pytest.fixture(autouse=True)
def linear(monkeypatch):
  """config.net='linear': the loop is the same around any network."""
  monkeypatch.setitem(CHOICES['net'], 'linear', Linear)


def experiment(**changes):
  c = tiny(default())
  c.update(dict(net='linear', lr_schedule='constant(warmup=2)', batch=8) | changes)
  return image_run(c, (8, 8, 1), ('dark', 'light'))


def test_a_step_is_clipped_adamw_with_a_warmed_up_average_as_computed_by_hand_in_float64():
  rng = np.random.default_rng(0)
  data = rng.standard_normal((5, 4, 3)) * 3
  rate, b1, b2, decay, clip, eps = .05, .9, .95, .1, 1., 1e-8
  adamw = optax.adamw(rate, b1=b1, b2=b2, weight_decay=decay, eps=eps)
  optimizer = optax.chain(optax.clip_by_global_norm(clip), adamw)
  # loss = sum over parameters of (p - mean of the batch)^2: its gradient is 2 (p - mean)
  loss = lambda key, p, x0, cond, **options: (jnp.sum((p - x0.mean(0)) ** 2), {})
  ema = lambda step: jnp.minimum(.9, (1. + step) / (10. + step))
  state = init_state(jnp.array([1., -2., .5]), optimizer)
  p = average = np.array([1., -2., .5])
  m = v = np.zeros(3)
  for t in range(5):
    state, metrics = train_step(state, data[t].astype(np.float32), jax.random.key(0), optimizer=optimizer,
                                objective=Objective('test', None, loss, None), ema=ema,
                                encode=lambda frozen, key, batch: (batch, None))
    g = 2 * (p - data[t].mean(0))
    norm = np.sqrt(np.sum(g ** 2))
    assert float(metrics['grad_norm']) == pytest.approx(norm, rel=1e-5)
    g = g * min(1, clip / norm)
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    p = p - rate * (m / (1 - b1 ** (t + 1)) / (np.sqrt(v / (1 - b2 ** (t + 1))) + eps) + decay * p)
    d = min(.9, (1 + t) / (10 + t))
    average = d * average + (1 - d) * p
  np.testing.assert_allclose(state.params, p, rtol=1e-5)
  np.testing.assert_allclose(state.ema, average, rtol=1e-5)
  assert int(state.step) == 5


def test_errors_are_sorted_into_bins_of_log_snr():
  logsnr = np.array([-30., -8., -8., .5, 8.9, 9.1])
  error, count = error_by_logsnr(jnp.arange(6.), jnp.asarray(logsnr))
  expected = np.histogram(logsnr, [-np.inf, *LOGSNR_EDGES, np.inf])[0]
  np.testing.assert_array_equal(count, expected)
  np.testing.assert_allclose(error, np.histogram(logsnr, [-np.inf, *LOGSNR_EDGES, np.inf], weights=np.arange(6.))[0])
  assert len(loop.bin_names()) == len(expected)


def heldout_loss(run):
  return [(run.plan.val_every, make_heldout_loss(run, HELDOUT, run.plan.val_samples))]


def run_fit(run, folder, steps, measures=()):
  run = run._replace(plan=run.plan._replace(steps=steps))
  checkpoints = open_checkpoints(folder / 'checkpoints')
  restored = checkpoints.restore(abstract_state(run))
  state = restored.state if restored else make_state(run, jax.random.key(0))
  log = open_log(folder, int(state.step))
  hooks = Hooks(checkpoints, log.scalars, {}, measures=[*heldout_loss(run), *measures])
  state, complete = fit(run, TRAIN, state, hooks)
  log.close()
  checkpoints.close()
  return state, complete


def test_training_is_the_same_bit_for_bit_when_it_is_interrupted_and_it_lowers_the_loss(tmp_path):
  run = experiment(steps=60, learning_rate=3e-3, save_every=10, log_every=10, val_every=10)
  whole, complete = run_fit(run, tmp_path / 'whole', 60)
  run_fit(run, tmp_path / 'parts', 20)
  parts, _ = run_fit(run, tmp_path / 'parts', 60)
  assert complete
  jax.tree.map(np.testing.assert_array_equal, whole, parts)
  a, b = (read_metrics(tmp_path / name / 'metrics.jsonl') for name in ('whole', 'parts'))
  timed = 'time', 'images_per_second', 'data_wait'
  timeless = lambda lines: [{k: v for k, v in line.items() if k not in timed} for line in lines]
  assert timeless(a) == timeless(b)
  assert a[-1]['heldout_loss'] < .7 * a[0]['heldout_loss']


def test_what_is_measured_on_the_way_sees_the_averaged_weights_and_is_logged(tmp_path):
  seen = {}
  def measure(step, weights):
    seen[step] = jax.device_get(weights.params)
    return dict(fd_infinity=10. / step)
  run = experiment(log_every=100, save_every=100, val_every=100)
  state, _ = run_fit(run, tmp_path, 10, measures=[(4, measure)])
  assert list(seen) == [4, 8, 10]
  jax.tree.map(np.testing.assert_array_equal, seen[10], jax.device_get(state.ema))
  assert [line['fd_infinity'] for line in read_metrics(tmp_path / 'metrics.jsonl')] == [2.5, 1.25, 1.]


def test_nothing_is_compiled_again_during_a_run(tmp_path, caplog):
  run = experiment(steps=12, log_every=2, save_every=6, val_every=4)
  with jax.log_compiles(), caplog.at_level('WARNING', logger='jax'):
    run_fit(run, tmp_path, 6)
    run_fit(run, tmp_path, 12)  # a state from a checkpoint must not look different to the compiler either
  compiled = [record.getMessage() for record in caplog.records if 'Finished XLA compilation' in record.getMessage()]
  steps = [message for message in compiled if 'train_step' in message]
  assert len(steps) == 2 and len([m for m in compiled if 'measure' in m]) == 2, compiled  # one each run


def test_a_loss_that_is_not_finite_stops_with_its_step_and_leaves_the_last_good_checkpoint(tmp_path):
  run = experiment(steps=40, save_every=4, log_every=10)
  good = run.objective.loss
  def bad_at_13(key, params, x0, cond, **options):
    value, parts = good(key, params, x0, cond, **options)
    return jnp.where(jnp.any(jax.random.key_data(key) == bad_key), jnp.nan, 1.) * value, parts
  step_key = jax.random.fold_in(jax.random.key(run.plan.seed), 13)
  bad_key = jax.random.key_data(jax.random.split(step_key, 2)[1])[0]
  with pytest.raises(InputError, match='nan.*at step 13'):
    run_fit(run._replace(objective=run.objective._replace(loss=bad_at_13)), tmp_path, 40)
  restored = open_checkpoints(tmp_path / 'checkpoints').restore(abstract_state(run))
  assert restored.step == 12
  assert all(np.isfinite(a).all() for a in jax.tree.leaves(restored.state.params))


def test_a_request_to_stop_saves_the_step_and_leaves(tmp_path):
  import os
  import signal
  run = experiment(steps=1000, save_every=500, log_every=1)
  checkpoints = open_checkpoints(tmp_path / 'checkpoints')
  sent = []
  def scalars(step, values):
    if step == 7:
      sent.append(step)
      os.kill(os.getpid(), signal.SIGTERM)
  hooks = Hooks(checkpoints, scalars, {}, measures=heldout_loss(run))
  state, complete = fit(run, TRAIN, make_state(run, jax.random.key(0)), hooks)
  assert sent and not complete and 7 <= int(state.step) <= 9
  assert checkpoints.steps() == [int(state.step)]
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_heldout_loss_is_a_function_of_the_weights_alone():
  run = experiment()
  heldout = make_heldout_loss(run, HELDOUT, 20)
  weights = weights_of(run)
  other = jax.tree.map(lambda p: p + .05, weights)
  assert heldout(0, weights) == heldout(9, weights) != heldout(0, other)


@pytest.mark.parametrize('when, traced', [((3, 4), {3, 4}), ((5, 9), {5, 6}), (None, set()), ((8, 9), set())])
def test_a_profile_has_the_steps_that_were_asked_for_and_no_others(when, traced, tmp_path):
  def named(n):
    def walk(x):
      return x @ x + n
    walk.__name__ = f'walk_{n}_'
    return jax.jit(walk)
  steps, x, window = {n: named(n) for n in range(1, 7)}, jnp.ones((64, 64)), []
  for step in steps.values():
    step(x).block_until_ready()  # compiled apart
  with trace(when, tmp_path) as before:
    for n, step in steps.items():
      before(n, window)
      window.append(step(x).block_until_ready())
  files = list(tmp_path.glob('plugins/profile/*/*.trace.json.gz'))  # where TensorBoard's plugin looks
  assert len(files) == bool(traced) == len(list(tmp_path.glob('plugins/profile/*/*.xplane.pb')))
  text = ''.join(gzip.decompress(file.read_bytes()).decode() for file in files)
  assert {n for n in steps if f'walk_{n}_' in text} == traced
