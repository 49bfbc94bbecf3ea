"""Experiments for images of a given shape, without data: for benchmarks, compilers and tests."""
import jax
import numpy as np

from diffusion.data.arrays import image_dataset
from diffusion.setup import build
from diffusion.setup.choices import make
from diffusion.system import sharding
from diffusion.training.open_model import encoded_example


def image_run(config, shape, classes=(), mesh=None):
  """The Experiment of a config for images of `shape` [H, W, C] and these classes, on one device by default."""
  blank = image_dataset(np.zeros((1, *shape), np.uint8), np.zeros(1, np.int32), classes, [''])
  task = make('task', config.task, data=blank)
  mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1])
  return build.build(config, task, encoded_example(task, task.prepare(task.frozen, blank)), mesh)


def params_of(run, seed=0):
  """Fresh parameters."""
  return run.objective.init(jax.random.key(seed))[0]


def weights_of(run, seed=0):
  """Weights with fresh parameters."""
  return build.Weights(params_of(run, seed))
