"""The training step and the training loop, read top to bottom."""
import collections
import contextlib
import time
from functools import partial
from typing import Any, Callable, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion.data.dataset import read_batch
from diffusion.data.prefetch import feed
from diffusion.errors import InputError
from diffusion.objectives.base import mean_of_parts
from diffusion.setup.build import Weights
from diffusion.setup.optimizer import merged
from diffusion.system import multihost, sharding
from diffusion.system.log import no_progress, progress
from diffusion.system.run_control import finishing, stop_requests, stop_vote, trace
from diffusion.training.state import abstract_state, TrainState

LOGSNR_EDGES = (-9., -6., -3., 0., 3., 6., 9.)  # of the bins in which the training loss is reported
SLOW_DATA = .1  # fraction of the time spent waiting for data above which the user is warned


# ---- one step
def train_step(state, batch, key, frozen={}, *, encode, objective, optimizer, ema, averages=(), accumulate=1):
  """One update. Its randomness is derived from `key` and the step number, never carried.

  Args:
    state: TrainState.
    batch: arrays of the task's batch, leaves [B, ...].
    key: PRNG key of the run.
    frozen: given weights by owner.
    encode: (frozen, key, batch) -> (x0 [B, ...], cond), as Experiment.encode.
    objective: an Objective.
    optimizer: an optax transformation.
    ema: step -> decay of the averaged parameters.
    averages: the same for each of state.averages.
    accumulate: number of micro-batches, which divides B.
  Returns:
    (state, {'loss' [], 'grad_norm' []} and what the objective measures, see `reported`).
  """
  encode_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
  x0, cond = encode(frozen, encode_key, batch)

  def loss(params, part=None):
    return objective.loss(
      loss_key, merged(params, state.base), x0, cond, memory=state.memory, frozen=frozen.get('objective', ()),
      ema=state.ema, step=state.step, train=True, part=part)
  (value, measured), grads = (objective.gradient or mean_of_parts)(loss, state.params, accumulate)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = objective.after(optax.apply_updates(state.params, updates), state.step)
  average = lambda old, decay: optax.incremental_update(params, old, 1 - decay(state.step))
  metrics = dict(loss=value, grad_norm=optax.tree.norm(grads)) | reported(measured, objective.error[0])
  memory = objective.remember(state.memory, measured)
  others = tuple(average(old, decay) for old, decay in zip(state.averages, averages, strict=True))
  return TrainState(state.step + 1, params, average(state.ema, ema), opt_state, memory, others, state.base), metrics


def reported(measured, error):
  """What is logged of an objective's metrics {name: [] or [B]}: their means, and sums of `error` by log-SNR.

  'each', 'time' and 'logsnr' are not: the mean of the first is the loss, and the others say where it was measured.
  Nor is what begins with _, which is for the objective alone.
  """
  means = {name: jnp.mean(a) for name, a in measured.items()
           if name not in ('each', 'time', 'logsnr') and not name.startswith('_')}
  if 'logsnr' not in measured:
    return means
  total, count = error_by_logsnr(measured[error], measured['logsnr'])
  return means | {'error by logsnr': total, 'count by logsnr': count}


def error_by_logsnr(error, logsnr):
  """Sums and counts, ([bins], [bins]), of error [B] in the bins of logsnr [B] between LOGSNR_EDGES."""
  bins = jnp.searchsorted(jnp.asarray(LOGSNR_EDGES), logsnr)
  n = len(LOGSNR_EDGES) + 1
  return jax.ops.segment_sum(error, bins, n), jax.ops.segment_sum(jnp.ones_like(error), bins, n)


def make_train_step(run, abstract=None):
  """The compiled step of an Experiment: (state, batch, key, frozen, steps) -> (state, metrics). The state is donated.

  steps: of the whole run, int32; an argument, so that one program serves any number of them.

  Args:
    abstract: abstract_state(run), if it has been made already.
  """
  def train_step_of_run(state, batch, key, frozen={}, steps=run.plan.steps):
    return train_step(state, batch, key, frozen, encode=run.encode, objective=run.objective, ema=run.ema,
                      optimizer=run.optimizer(steps), averages=tuple(decay for _, decay in run.averages),
                      accumulate=run.plan.grad_accumulation)
  places = jax.tree.map(lambda a: a.sharding, abstract_state(run) if abstract is None else abstract)
  return jax.jit(train_step_of_run, donate_argnums=0, out_shardings=(places, sharding.replicated(run.mesh)))


def abstract_inputs(run, data):
  """The step's arguments after the state, (batch, key, frozen), as ShapeDtypeStructs with shardings.

  Args:
    run: the Experiment.
    data: a Dataset of at least one example, of which shapes and dtypes are taken.
  """
  place = sharding.batch_sharding(run.mesh)
  struct = lambda a: jax.ShapeDtypeStruct((run.plan.batch, *a.shape[1:]), a.dtype, sharding=place)
  batch = jax.tree.map(struct, run.task.batch(data, np.zeros(1, np.int64)))
  given = lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place)
  frozen = jax.tree.map(given, run.frozen, sharding.by_shape(run.mesh, run.frozen))
  return batch, jax.eval_shape(lambda: jax.random.key(0)), frozen


# ---- what is reported
def bin_names():
  """'loss_by_logsnr/below_-9', '.../-9_to_-6' .. '.../above_9'."""
  edges = [f'{edge:g}' for edge in LOGSNR_EDGES]
  middle = [f'{low}_to_{high}' for low, high in zip(edges, edges[1:])]
  return [f'loss_by_logsnr/{name}' for name in (f'below_{edges[0]}', *middle, f'above_{edges[-1]}')]


def summarise(window, end):
  """Means of the metrics of the consecutive steps before step `end`; waits for them.

  Raises:
    InputError: a loss or gradient norm is not finite; names the first such step.
  """
  window = jax.device_get(window)
  for i, metrics in enumerate(window):
    if not (np.isfinite(metrics['loss']) and np.isfinite(metrics['grad_norm'])):
      raise InputError(f'the loss is {metrics["loss"]} and the gradient norm {metrics["grad_norm"]} '
                       f'at step {end - len(window) + i}; training stopped, and the last good checkpoint is kept: '
                       'lower config.learning_rate or set config.grad_clip')
  error, count = (sum(metrics.pop(f'{what} by logsnr', np.zeros(0)) for metrics in window)
                  for what in ('error', 'count'))
  bins = {name: e / c for name, e, c in zip(bin_names(), error, count) if c}
  return {name: float(np.mean([metrics[name] for metrics in window])) for name in window[0]} | bins


def _speed(run, hooks, done, steps, seconds, waited):
  """Learning rate, EMA decay and speed of the last `steps` steps up to `done`, of which `waited` seconds for data."""
  rate = steps * run.plan.batch / seconds
  return dict(learning_rate=float(run.rate(run.plan.steps)(done - 1)), ema_decay=float(run.ema(done - 1)),
              images_per_second=rate, data_wait=waited / seconds, **hooks.usage(rate))


# ---- the loop
class Hooks(NamedTuple):
  """What `fit` calls. Everything but `look` is due at multiples of its number of steps and at the last step.

  checkpoints: Checkpoints; saves the state every plan.save_every steps, and when training stops early.
  log: (step, {name: number}) -> None; every plan.log_every steps, and whenever something is saved or measured.
  meta: JSON record stored in every checkpoint.
  look: (step, averaged Weights) -> None; draws samples to follow training, every plan.sample_every steps.
  measures: pairs (every, (step, averaged Weights) -> {name: number}), logged under these names.
  snapshots: None, or Checkpoints; saves state.averages every plan.snapshot_every steps.
  usage: images per second -> {name: number}, logged as well.
  profile: ((first, last) step or None, folder), as trace takes it.
  """
  checkpoints: Any
  log: Callable
  meta: dict
  look: Callable = lambda step, weights: None
  measures: tuple = ()
  snapshots: Any = None
  usage: Callable = lambda rate: {}
  profile: tuple = (None, None)


def fit(run, data, state, hooks, frozen={}, step_fn=None):
  """Trains from the state's step to plan.steps. Every process calls it.

  Args:
    run: the Experiment.
    data: the Dataset to train on.
    state: a TrainState; it is donated.
    hooks: Hooks.
    frozen: given weights by owner, on the devices (open_model.placed_frozen).
    step_fn: make_train_step(run), if it has been made already.
  Returns:
    (state, whether it reached the last step): SIGTERM and Ctrl-C make it save and return early.
  Raises InputError if the loss is not finite; the last good checkpoint is kept.
  """
  plan, start, step_fn = run.plan, int(state.step), step_fn or make_train_step(run)
  logged, window, clock, slow = _logged(plan, hooks), [], time.monotonic(), False
  averaged = lambda state: Weights(merged(state.ema, state.base), state.memory, frozen)
  due = lambda every: done % every == 0 or done == plan.steps
  with _beside(run, data, hooks, start) as (requests, bar, batches, profiled):
    step_fn = partial(step_fn, frozen=frozen, steps=np.int32(plan.steps))
    for done, state, metrics, stopped in _steps(run, state, start, step_fn, batches, requests, profiled):
      window.append(metrics)
      last, values = done == plan.steps or stopped, {}
      leaving = lambda: stopped or multihost.is_only() and bool(requests)  # several processes must all do the same
      if last or any(map(due, logged)):
        values = summarise(window, done)
        values |= _speed(run, hooks, done, len(window), time.monotonic() - clock, batches.waited())
        for measure in [measure for every, measure in hooks.measures if due(every)]:
          values |= {} if leaving() else measure(done, averaged(state))
        hooks.log(done, values)
        slow = slow or done > start + plan.log_every and _warn_of_slow_data(values['data_wait'])
        window = []
      bar.update(done, values.get('loss'))
      _save(hooks, done, state, hooks.snapshots and due(plan.snapshot_every), last or due(plan.save_every))
      if done % plan.sample_every == 0 and not last and not leaving():
        hooks.look(done, averaged(state))
      if not window:
        batches.waited()
        clock = time.monotonic()  # logging, saving and sampling do not count as training time
  return state, int(state.step) == plan.steps


def _logged(plan, hooks):
  """After how many steps each there is something to log."""
  every = [plan.log_every, plan.save_every, *(every for every, _ in hooks.measures)]
  return every + ([plan.snapshot_every] if hooks.snapshots else [])


def _save(hooks, done, state, snapshot, checkpoint):
  if snapshot:
    hooks.snapshots.save(done, state.averages, hooks.meta)
    hooks.snapshots.wait()  # before the checkpoint: a run resumed from it has all earlier snapshots
  if checkpoint:
    hooks.checkpoints.save(done, state, hooks.meta)


def _steps(run, state, start, step_fn, batches, requests, profiled):
  """Dispatches one step after the other; yields (steps done, state, metrics, whether it is the last on request)."""
  key = jax.random.key(run.plan.seed)
  # One step in flight on CPU, where simulated devices share the threads; one more in the queue elsewhere.
  ahead = 1 if jax.default_backend() == 'cpu' else 2
  vote, in_flight = stop_vote(run.mesh, ahead - 1), collections.deque(maxlen=ahead)
  for done in range(start + 1, run.plan.steps + 1):
    batch = batches.next()
    if len(in_flight) == ahead:
      jax.block_until_ready(in_flight[0])
    profiled(done, in_flight)
    stopped = vote(bool(requests))
    state, metrics = step_fn(state, batch, key)
    in_flight.append(metrics)
    yield done, state, metrics, stopped
    if stopped:
      return


@contextlib.contextmanager
def _beside(run, data, hooks, start):
  """What runs beside the steps: (stop requests, progress bar, batches, profiler); all of it has ended on exit."""
  plan, rows = run.plan, sharding.local_rows(run.mesh, run.plan.batch)
  put = partial(sharding.put_rows, mesh=run.mesh, size=plan.batch)
  bar = progress(plan.steps, start, plan.batch) if multihost.is_main() else no_progress()
  read = partial(read_batch, run.task.batch, data, plan.batch, plan.seed, rows)
  batches = feed(read, start, plan.steps, put, plan.data_workers)  # reads ahead, in a thread
  saving = [hooks.checkpoints] + ([hooks.snapshots] if hooks.snapshots else [])
  with (stop_requests() as requests, contextlib.closing(bar), finishing(*saving), contextlib.closing(batches),
        trace(*hooks.profile) as profiled):
    yield requests, bar, batches, profiled


def _warn_of_slow_data(waiting):
  """Warns if the fraction `waiting` of the time is spent waiting for data; whether it did."""
  if waiting > SLOW_DATA:
    logging.warning('%.0f %% of the time is spent waiting for data: raise config.data_workers, or move the data '
                    'closer', 100 * waiting)
  return waiting > SLOW_DATA
