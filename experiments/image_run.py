"""Experiments for images of a given shape, without data: for benchmarks, compilers and tests."""
import jax
import numpy as np

from diffusion.setup import build
from diffusion.setup.choices import make
from diffusion.system import sharding


def image_run(config, shape, classes=(), mesh=None):
  """The Experiment of a config for images of `shape` [H, W, C] and these classes, on one device by default."""
  task = make('task', config.task, facts=dict(shape=list(shape), classes=list(classes)))
  cond = np.zeros((1, len(classes)), np.float32) if len(classes) else None
  mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1])
  return build.build(config, task, (np.zeros((1, *shape), np.float32), cond), mesh)


def params_of(run, seed=0):
  """Fresh parameters."""
  return run.objective.init(jax.random.key(seed))[0]


def weights_of(run, seed=0):
  """Weights with fresh parameters."""
  return build.Weights(params_of(run, seed))
