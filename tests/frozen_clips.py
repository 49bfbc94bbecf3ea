"""A CLIP with random weights, as an open model and as a work directory."""
from types import SimpleNamespace

import jax
import numpy as np

from diffusion.setup import build
from diffusion.setup.build import Weights
from diffusion.setup.config import default
from diffusion.system import sharding
from diffusion.system.checkpoint import open_checkpoints
from diffusion.training.open_model import run_of
from diffusion.training.record import to_meta
from diffusion.training.state import make_state

DATA = 'sprites(size=16, n=64, heldout=24)'
NET = 'clip(size=8, patch=8, width=8, blocks=1, heads=1, text_width=16, text_blocks=2, text_heads=2, form={})'


def made(seed=0, form='clip', data=DATA):
  """(Experiment, parameters) of a CLIP."""
  config = default()
  config.data, config.task, config.objective, config.net = data, 'pairs', 'contrastive', NET.format(form)
  run, rng = run_of(config, build.load_data(config), sharding.make_mesh(1)), np.random.default_rng(seed)
  return run, jax.tree.map(lambda a: (rng.normal(size=a.shape) * .3).astype(np.float32), run.initial[0])


def opens(run, params):
  """open_model for it."""
  return lambda where: SimpleNamespace(run=run, weights=Weights(params), step=1)


def write(workdir, run, params):
  """Its work directory, with a checkpoint of step 0."""
  state = make_state(run, jax.random.key(0))
  params = jax.tree.map(lambda a, b: sharding.put(b, a.sharding), state.params, params)
  checkpoints = open_checkpoints(workdir / 'checkpoints')
  checkpoints.save(0, state._replace(params=params, ema=params), to_meta(run.config, run))
  checkpoints.close()
