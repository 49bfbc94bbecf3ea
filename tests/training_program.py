"""20 steps of a small U-Net, and its samples, in a process with a number of devices.

  python training_program.py DEVICES FSDP ACCUMULATE OUT [COORDINATOR PROCESSES PROCESS]

Process 0 writes the results to OUT, an .npz file.
"""
import re
import sys
from functools import partial

from diffusion import samplers
from diffusion.core import gaussian, schedules
from diffusion.data.arrays import image_dataset
from diffusion.data.dataset import read_batch
from diffusion.data.prefetch import feed
from diffusion.generation import sampling
from diffusion.objectives import denoising, timesteps, weighting
from diffusion.setup.build import Weights
from diffusion.setup.config import default, tiny
from diffusion.system import multihost, platform, sharding
from diffusion.training import loop
from diffusion.training.state import abstract_state, make_state
from experiments.image_run import image_run

devices, fsdp, accumulate = map(int, sys.argv[1:4])
platform.start(devices)
if len(sys.argv) > 5:
  multihost.start(sys.argv[5], int(sys.argv[6]), int(sys.argv[7]), seconds=120)

import jax
import jax.numpy as jnp
import numpy as np

assert jax.local_device_count() == devices
B = 16
c = tiny(default())
c.update(dict(net='unet(channels=16, multipliers=(1,), blocks=1, attention=(), zero_init=False)', batch=B,
              guide='cfg(2)', lr_schedule='constant(warmup=2)', fsdp=fsdp, grad_accumulation=accumulate,
              extra_emas='power(.1)'))
mesh = sharding.make_mesh(fsdp)
run = image_run(c, (8, 8, 1), ('a', 'b'), mesh)
rng = np.random.default_rng(0)
data = image_dataset(rng.integers(0, 256, (100, 8, 8, 1), np.uint8), np.arange(100, dtype=np.int32) % 2, ('a', 'b'))
state = make_state(run, jax.random.key(0))
shards = [shard for a in jax.tree.leaves(state) for shard in a.addressable_shards]
on_one = sum(shard.data.nbytes for shard in shards if shard.device == jax.local_devices()[0])
step = loop.make_train_step(run).lower(abstract_state(run), *loop.abstract_inputs(run, data)).compile()
moved = [(m[2], m[1]) for m in re.finditer(r'= (\S+) (all-gather|all-to-all|collective-permute)\(', step.as_text())]

read = partial(read_batch, run.task.batch, data, B, 0, sharding.local_rows(mesh, B))
batches = feed(read, 0, 20, lambda rows: sharding.put_rows(rows, mesh, B))
values, norms = [], []
for _ in range(20):
  state, metrics = step(state, batches.next(), jax.random.key(1), run.frozen)
  values.append(float(metrics['loss']))
  norms.append(float(metrics['grad_norm']))
batches.close()

cond = np.eye(2, dtype=np.float32)[np.arange(13) % 2]
weights = Weights(state.params)
pictures = sampling.make_draw(run, 5, 16)(weights, np.arange(13), cond)[0]['images']
alone = pictures[:3]
if devices == 8 and fsdp == 1:
  alone = sampling.make_draw(run, 5, 1)(weights, np.arange(3), cond[:3])[0]['images']
prior = lambda ids: samplers.prior(samplers.sample_keys(5, ids), run.levels, run.shape)
noise = jax.jit(prior, out_shardings=sharding.replicated(mesh))(sharding.put_batch(np.arange(16), mesh))
drawn = dict(pictures=pictures, alone=alone, noise=np.asarray(noise))
fetched = sharding.fetch(dict(p=state.params, e=state.averages))
leaves = {jax.tree_util.keystr(path): a for path, a in jax.tree_util.tree_leaves_with_path(fetched)}

if devices == 8 and fsdp == accumulate == 1:  # pure functions under pmap, one key per device
  keys = jax.random.split(jax.random.key(2), 8)
  x0 = jnp.asarray(rng.standard_normal((8, 4, 2, 2, 1)), jnp.float32)
  net = lambda params, x, time, cond, train, rngs: params * x
  kind = dict(predict=gaussian.predict_eps(), weight=weighting.one(),
              draw=timesteps.draw_levels(timesteps.uniform(), schedules.cosine()))
  value = lambda key, x0: denoising.loss(key, net, .5, x0, None, **kind)[0]
  np.testing.assert_allclose(jax.pmap(value)(keys, x0), [jax.jit(value)(k, x) for k, x in zip(keys, x0)], rtol=1e-5)
if multihost.is_main():
  moved = np.array(moved).reshape(-1, 2)
  np.savez(sys.argv[4], losses=values, norms=norms, **drawn, bytes=on_one, moved=moved, **leaves)
