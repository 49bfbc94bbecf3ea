"""What training carries from step to step."""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion.system import sharding


class TrainState(NamedTuple):
  step: jax.Array  # int32 [], number of completed updates
  params: Any
  ema: Any  # averaged parameters
  opt_state: Any
  memory: Any = ()  # statistics of the losses that loss-aware timesteps keep: () or a tuple of one array
  averages: Any = ()  # further averaged parameters, one tree for each entry of config.extra_emas


def init_state(params, optimizer, memory=(), averages=0):
  """The state at step 0.

  Args:
    params: tree of parameters; every average starts as a copy of it.
    optimizer: an optax transformation.
    memory: see TrainState.
    averages: number of averages besides `ema`.
  """
  copy = lambda: jax.tree.map(jnp.copy, params)
  others = tuple(copy() for _ in range(averages))
  return TrainState(jnp.zeros((), jnp.int32), params, copy(), optimizer.init(params), memory, others)


def abstract_state(run):
  """Shapes, dtypes and shardings of an Experiment's state (ShapeDtypeStructs), without creating it."""
  make = lambda key: init_state(run.init(key), run.optimizer, run.memory, len(run.averages))
  shapes = jax.eval_shape(make, jax.random.key(0))
  place = lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
  return jax.tree.map(place, shapes, sharding.by_shape(run.mesh, shapes))


def make_state(run, key):
  """The state of an Experiment at step 0, created sharded: no device ever holds a whole sharded array."""
  places = jax.tree.map(lambda a: a.sharding, abstract_state(run))
  params = sharding.put(run.init(key), places.params)
  make = lambda params, memory: init_state(params, run.optimizer, memory, len(run.averages))
  return jax.jit(make, out_shardings=places)(params, run.memory)
