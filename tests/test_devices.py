"""The same numbers on 1, 2 and 8 simulated devices."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = '''
import json, sys
from diffusion import platform
platform.start(int(sys.argv[1]))
import jax, jax.numpy as jnp, numpy as np
from diffusion import build, generate, losses, predict, samplers, schedules, sharding, times, train, weights
from diffusion.config import default, tiny
devices = int(sys.argv[1])
assert len(jax.devices()) == devices
c = tiny(default())
c.update(dict(net='unet(channels=16, multipliers=(1, 2), blocks=1, attention=(4,), zero_init=False)', batch=16, guidance=2., decay='constant'))
run = build.build(c, (8, 8, 1), ('a', 'b'), sharding.make_mesh())
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (16, 8, 8, 1), np.uint8)
cond = np.eye(2, dtype=np.float32)[np.arange(16) % 2]
state = train.make_state(run, jax.random.key(0))
cond13 = cond[np.arange(13) % 2]
pictures = lambda batch: generate.make_draw(run, 5, batch)(state.params, np.arange(13), cond13)[0].astype(int).tolist()
result = dict(pictures=pictures(16), alone=pictures(1))
noise = jax.jit(lambda ids: samplers.prior(samplers.sample_keys(5, ids), run.levels, run.shape))
result['noise'] = np.asarray(noise(sharding.put_batch(np.arange(16), run.mesh))).view(np.uint32).tolist()
step = train.make_train_step(run)
batch = sharding.put_batch(dict(images=images, cond=cond), run.mesh)
result['losses'], result['norms'] = [], []
for _ in range(5):
  state, metrics = step(state, batch, jax.random.key(1))
  result['losses'].append(float(metrics['loss']))
  result['norms'].append(float(metrics['grad_norm']))
level = schedules.at(schedules.cosine(), .5)
trained = jax.jit(lambda params, x: run.denoise(params, cond)(x, level).x0)(jax.device_get(state.params), images / np.float32(127.5) - 1)
result['trained'] = np.asarray(trained).ravel().tolist()
if devices > 1:  # the pure functions under pmap, one key a device
  keys = jax.random.split(jax.random.key(2), devices)
  x0 = jnp.stack([jnp.asarray(rng.standard_normal((4, 2, 2, 1)), jnp.float32)] * devices)
  net = lambda params, x, time, cond, train, rngs: params * x
  value = lambda key, x0: losses.loss(key, net, .5, x0, None, draw=times.drawn_from(times.uniform(), schedules.cosine()),
                                      predict=predict.eps(), weight=weights.one())[0]
  np.testing.assert_allclose(jax.pmap(value)(keys, x0), [jax.jit(value)(k, x) for k, x in zip(keys, x0)], rtol=1e-5)
print(json.dumps(result))
'''


@pytest.fixture(scope='module')
def results(cache_dir):
  env = dict(os.environ, DIFFUSION_CACHE=str(cache_dir))
  found = {}
  for devices in (1, 2, 8):
    done = subprocess.run([sys.executable, '-c', SCRIPT, str(devices)], env=env, capture_output=True, text=True, timeout=400,
                          cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    found[devices] = json.loads(done.stdout.splitlines()[-1])
  return found


def test_the_starting_noise_is_the_same_bit_for_bit(results):
  assert results[1]['noise'] == results[2]['noise'] == results[8]['noise']


def test_pictures_are_the_same_to_rounding_whatever_the_devices_and_the_batch(results):
  base = np.array(results[1]['pictures'])
  assert base.std() > 10
  for devices in (1, 2, 8):
    for batch in ('pictures', 'alone'):
      assert np.abs(np.array(results[devices][batch]) - base).max() <= 1  # of 255: one rounding of a pixel


def test_training_is_the_same_to_rounding(results):
  for devices in (2, 8):
    np.testing.assert_allclose(results[devices]['losses'], results[1]['losses'], rtol=1e-5)
    np.testing.assert_allclose(results[devices]['norms'], results[1]['norms'], rtol=1e-4)
    # The trained function, not its parameters: the bias of attention's keys has no gradient but rounding, of which Adam makes steps.
    np.testing.assert_allclose(results[devices]['trained'], results[1]['trained'], atol=1e-3)
