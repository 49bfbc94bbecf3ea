"""What training carries from step to step, and the step itself."""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

LOGSNR_EDGES = (-9., -6., -3., 0., 3., 6., 9.)  # of the bins in which the loss is reported


class TrainState(NamedTuple):
  step: jax.Array  # int32 [], updates done
  params: Any
  ema: Any         # averaged parameters
  opt_state: Any
  memory: Any = ()  # what the draw of times remembers of the losses: () or one array in a tuple


def init_state(key, init, optimizer, memory=()):
  """Parameters, their average (a copy) and the optimizer's state, at step 0."""
  params = init(key)
  return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params), memory)


def by_logsnr(parts):
  """Sums and counts of the squared error in bins of log-SNR: ([bins], [bins])."""
  bins = jnp.searchsorted(jnp.asarray(LOGSNR_EDGES), parts['logsnr'])
  n = len(LOGSNR_EDGES) + 1
  return jax.ops.segment_sum(parts['mse'], bins, n), jax.ops.segment_sum(jnp.ones_like(parts['mse']), bins, n)


def train_step(state, batch, key, *, encode, loss, optimizer, ema):
  """One update. Randomness is derived from `key` and the step, never carried.

  Args:
    state: TrainState.
    batch: what the task encodes, leaves [B, ...].
    key: the key of the run.
    encode: (key, batch) -> (x0, cond).
    loss: (key, params, x0, cond, train, *memory) -> (scalar, {'mse', 'logsnr', and 'memory' where the state has one}).
    optimizer: an optax transformation.
    ema: step -> decay of the average.
  Returns:
    (state, {'loss', 'grad_norm', 'error', 'count'}): scalars, and the squared error by log-SNR.
  """
  encode_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
  x0, cond = encode(encode_key, batch)
  objective = lambda params: loss(loss_key, params, x0, cond, True, *state.memory)
  (value, parts), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  average = optax.incremental_update(params, state.ema, 1 - ema(state.step))
  error, count = by_logsnr(parts)
  metrics = dict(loss=value, grad_norm=optax.tree.norm(grads), error=error, count=count)
  memory = (parts['memory'],) if state.memory else ()
  return TrainState(state.step + 1, params, average, opt_state, memory), metrics
