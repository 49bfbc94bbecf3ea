"""What training carries from step to step."""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion.system import sharding


class TrainState(NamedTuple):
  step: jax.Array  # int32 [], number of completed updates
  params: Any  # those that are trained
  ema: Any  # averaged parameters
  opt_state: Any
  memory: Any = ()  # what the objective remembers
  averages: Any = ()  # further averaged parameters, one tree for each entry of config.extra_emas
  base: Any = ()  # parameters that config.trainable leaves as they are


def init_state(params, optimizer, memory=(), averages=0, base=()):
  """The state at step 0.

  Args:
    params: tree of parameters; every average starts as a copy of it.
    optimizer: an optax transformation.
    memory, base: see TrainState.
    averages: number of averages besides `ema`.
  """
  copy = lambda: jax.tree.map(jnp.copy, params)
  others = tuple(copy() for _ in range(averages))
  return TrainState(jnp.zeros((), jnp.int32), params, copy(), optimizer.init(params), memory, others, base)


def abstract_state(run):
  """Shapes, dtypes and shardings of an Experiment's state (ShapeDtypeStructs), without creating it."""
  def make(params, memory):
    params, base = run.split(params)
    return init_state(params, run.optimizer(run.plan.steps), memory, len(run.averages), base)
  shapes = jax.eval_shape(make, *run.initial)
  place = lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
  return jax.tree.map(place, shapes, sharding.by_shape(run.mesh, shapes))


def lean(state):
  """A state at step 0 without what follows from its parameters: what an import stores."""
  return state._replace(ema=(), opt_state=(), averages=())


def restore_state(run, checkpoints, step=None):
  """The newest intact state of an Experiment, or that of a step, as checkpoint.Restored; None without a checkpoint.

  Of a lean one the averages are the parameters themselves, held once, and there is no state of the optimizer: `whole`.
  """
  abstract = abstract_state(run)
  restored = checkpoints.restore(abstract, step, lean(abstract))
  if restored is None or jax.tree.leaves(restored.state.ema):
    return restored
  params = restored.state.params
  return restored._replace(state=restored.state._replace(ema=params, averages=(params,) * len(run.averages)))


def whole(run, state):
  """A restored state, donated, as training needs it: one that was lean gets its own averages and optimizer state."""
  abstract = abstract_state(run)
  if jax.tree.structure(state) == jax.tree.structure(abstract):
    return state
  make = lambda state: init_state(state.params, run.optimizer(run.plan.steps), state.memory, len(run.averages),
                                  state.base)
  return jax.jit(make, donate_argnums=0, out_shardings=jax.tree.map(lambda a: a.sharding, abstract))(lean(state))


def make_state(run, key):
  """The state of an Experiment at step 0, created sharded: no device ever holds a whole sharded array."""
  places = jax.tree.map(lambda a: a.sharding, abstract_state(run))
  params, memory = run.objective.init(key)
  params, base = run.split(params)
  params, base = sharding.put(params, places.params), sharding.put(base, places.base)
  make = lambda params, memory, base: init_state(params, run.optimizer(run.plan.steps), memory, len(run.averages), base)
  return jax.jit(make, out_shardings=places)(params, memory, base)
