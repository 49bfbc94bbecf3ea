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
  averages: Any = ()  # more averaged copies, one for each of config.extra_emas


def init_state(params, optimizer, memory=(), averages=0):
  """The state at step 0: parameters, copies of them as their averages (`averages` besides the first), and the optimizer's state."""
  copy = lambda: jax.tree.map(jnp.copy, params)
  return TrainState(jnp.zeros((), jnp.int32), params, copy(), optimizer.init(params), memory, tuple(copy() for _ in range(averages)))


def gradient(objective, params, accumulate):
  """Value, parts and gradient of an objective, from the whole batch or from one micro-batch after the other.

  Args:
    objective: (params, part=None) -> (mean over the rows of `part`, {name: [rows]}), as losses.loss is; part None, or (i, n).
    params: where.
    accumulate: n; the activations of one micro-batch are in memory at a time.
  """
  slope = jax.value_and_grad(objective, has_aux=True)
  if accumulate == 1:
    return slope(params)

  def add(total, i):
    (value, parts), grads = slope(params, part=(i, accumulate))
    return jax.tree.map(jnp.add, total, (value, grads)), parts
  total, parts = jax.lax.scan(add, (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)), jnp.arange(accumulate))
  value, grads = jax.tree.map(lambda a: a / accumulate, total)
  return (value, {name: jnp.ravel(a) for name, a in parts.items()}), grads


def by_logsnr(parts):
  """Sums and counts of the squared error in bins of log-SNR: ([bins], [bins])."""
  bins = jnp.searchsorted(jnp.asarray(LOGSNR_EDGES), parts['logsnr'])
  n = len(LOGSNR_EDGES) + 1
  return jax.ops.segment_sum(parts['mse'], bins, n), jax.ops.segment_sum(jnp.ones_like(parts['mse']), bins, n)


def train_step(state, batch, key, *, encode, loss, optimizer, ema, averages=(), accumulate=1):
  """One update. Randomness is derived from `key` and the step, never carried.

  Args:
    state: TrainState.
    batch: what the task encodes, leaves [B, ...].
    key: the key of the run.
    encode: (key, batch) -> (x0, cond).
    loss: (key, params, x0, cond, train, *memory, part=None) -> (scalar, {'mse', 'logsnr', and 'memory' where the state has one}).
    optimizer: an optax transformation.
    ema: step -> decay of the average.
    averages: the same for each of state.averages.
    accumulate: micro-batches into which the batch is divided.
  Returns:
    (state, {'loss', 'grad_norm', 'error', 'count'}): scalars, and the squared error by log-SNR.
  """
  encode_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
  x0, cond = encode(encode_key, batch)
  objective = lambda params, **part: loss(loss_key, params, x0, cond, True, *state.memory, **part)
  (value, parts), grads = gradient(objective, state.params, accumulate)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  average = lambda old, decay: optax.incremental_update(params, old, 1 - decay(state.step))
  error, count = by_logsnr(parts)
  metrics = dict(loss=value, grad_norm=optax.tree.norm(grads), error=error, count=count)
  memory = (parts['memory'],) if state.memory else ()
  others = tuple(average(old, decay) for old, decay in zip(state.averages, averages, strict=True))
  return TrainState(state.step + 1, params, average(state.ema, ema), opt_state, memory, others), metrics
