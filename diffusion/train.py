"""The training loop, readable top to bottom."""
import contextlib
import signal
import time
from functools import partial

import jax
import numpy as np

from diffusion import sharding
from diffusion.data.dataset import batch_indices, context
from diffusion.errors import InputError
from diffusion.log import progress
from diffusion.state import LOGSNR_EDGES, TrainState, init_state, train_step


def bin_names():
  """'loss_by_logsnr/below_-9', '.../-9_to_-6' .. '.../above_9'."""
  edges = [f'{edge:g}' for edge in LOGSNR_EDGES]
  middle = [f'{low}_to_{high}' for low, high in zip(edges, edges[1:])]
  return [f'loss_by_logsnr/{name}' for name in (f'below_{edges[0]}', *middle, f'above_{edges[-1]}')]


def host_batch(data, indices):
  """The examples at `indices` as the arrays that a task encodes."""
  batch = dict(images=data.images[indices])
  if data.classes:
    batch['cond'] = context(data.labels[indices], data.classes)
  return batch


def make_state(run, key):
  """The state at step 0, laid out on the mesh."""
  make = lambda: init_state(key, run.init, run.optimizer, run.memory)
  return jax.device_put(make(), sharding.replicated(run.mesh))


def abstract_state(run):
  """The shapes and places of a state, without making one."""
  shapes = jax.eval_shape(lambda key: init_state(key, run.init, run.optimizer, run.memory), jax.random.key(0))
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding.replicated(run.mesh)), shapes)


def make_train_step(run):
  """The compiled step: (state, batch, key) -> (state, metrics). The state is donated."""
  step = partial(train_step, encode=run.task.encode, loss=run.loss, optimizer=run.optimizer, ema=run.ema)
  place = sharding.replicated(run.mesh)
  return jax.jit(step, donate_argnums=0, out_shardings=(place, place))


def make_heldout_loss(run, data, number):
  """A function params -> {'heldout_loss': ..}: the same pictures, times and noise at every call."""
  @partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
  def measure(params, batch, key):
    x0, cond = run.task.encode(None, batch)
    return run.loss(key, params, x0, cond, False)[0]

  batches = min(number, len(data.images)) // run.plan.batch or 1

  def heldout(params):
    results = []
    for i in range(batches):  # a set smaller than a batch is repeated to fill it
      indices = np.arange(i * run.plan.batch, (i + 1) * run.plan.batch) % len(data.images)
      batch = sharding.put_batch(host_batch(data, indices), run.mesh)
      results.append(jax.device_get(measure(params, batch, jax.random.fold_in(jax.random.key(run.plan.seed), 2 ** 31 + i))))
    return dict(heldout_loss=float(np.mean(results)))
  return heldout


def summarise(window, end):
  """Means over the steps of a window that ends before step `end`; raises InputError at the first loss that is not finite."""
  window = jax.device_get(window)
  for i, metrics in enumerate(window):
    if not (np.isfinite(metrics['loss']) and np.isfinite(metrics['grad_norm'])):
      raise InputError(f'the loss is {metrics["loss"]} and the gradient norm {metrics["grad_norm"]} at step {end - len(window) + i}; '
                       'training stopped, and the last good checkpoint is kept: lower config.learning_rate or set config.clip_norm')
  error, count = (sum(metrics[name] for metrics in window) for name in ('error', 'count'))
  bins = {name: e / c for name, e, c in zip(bin_names(), error, count) if c}
  return {name: float(np.mean([metrics[name] for metrics in window])) for name in ('loss', 'grad_norm')} | bins


@contextlib.contextmanager
def stop_requests():
  """A list that fills when SIGTERM or Ctrl-C arrives, so that the loop can save and leave; a second signal acts as usual."""
  asked, before = [], {}
  def ask(number, frame):
    asked.append(signal.Signals(number).name)
    signal.signal(number, before[number])
  for number in (signal.SIGTERM, signal.SIGINT):
    try:
      before[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread, as in a notebook's worker: signals are left to others
      break
  try:
    yield asked
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def _finishing(checkpoints):
  """What was saved is on the disk when the loop is left, by whichever way."""
  try:
    yield
  finally:
    checkpoints.wait()


def fit(run, source, state, checkpoints, log, meta, look, curve=None) -> tuple[TrainState, bool]:
  """Trains from the state's step to plan.steps, logging, looking and saving on the way.

  Args:
    run: the Experiment.
    source: its data.
    state: a TrainState; it is donated.
    checkpoints, log: see checkpoint.py and log.py.
    meta: JSON record stored in every checkpoint.
    look: (step, params) -> None, draws the pictures that are followed during training.
    curve: None, or (every, (step, params) -> values): what else is measured of the averaged weights every so many steps, and logged.
  Returns:
    (state, whether it reached the last step); it stops early, after saving, where it is asked to (SIGTERM, Ctrl-C).
  Raises:
    InputError: the loss is not finite; the last good checkpoint is kept.
  """
  plan, key = run.plan, jax.random.key(run.plan.seed)
  step_fn = make_train_step(run)
  heldout = make_heldout_loss(run, source.heldout, plan.heldout_number) if len(source.heldout.images) else None
  every, measure = curve or (plan.steps + 1, None)
  start = int(state.step)
  window, bar, clock = [], progress(plan.steps, start, plan.batch), time.monotonic()
  # One step in flight on CPU, where simulated devices share the threads; one more in the queue elsewhere.
  ahead = 1 if jax.default_backend() == 'cpu' else 2
  with stop_requests() as stopped, contextlib.closing(bar), _finishing(checkpoints):
    for done in range(start + 1, plan.steps + 1):
      indices = batch_indices(len(source.train.images), plan.batch, plan.seed, done - 1)
      batch = sharding.put_batch(host_batch(source.train, indices), run.mesh)
      if len(window) >= ahead:
        jax.block_until_ready(window[-ahead])
      state, metrics = step_fn(state, batch, key)
      window.append(metrics)
      last = done == plan.steps or bool(stopped)
      due = lambda every: done % every == 0 or done == plan.steps
      values = {}
      if any(map(due, (plan.log_every, plan.save_every, plan.heldout_every, every))) or last:
        values = summarise(window, done)
        seconds = time.monotonic() - clock
        values |= dict(learning_rate=float(run.rate(done - 1)), ema_decay=float(run.ema(done - 1)),
                       images_per_second=len(window) * plan.batch / seconds)
        window = []
        if heldout and due(plan.heldout_every) and not stopped:
          values |= heldout(state.ema)
        if measure and due(every) and not stopped:
          values |= measure(done, state.ema)
        log.scalars(done, values)
      bar.update(done, values.get('loss'))
      if due(plan.save_every) or last:
        checkpoints.save(done, state, meta)
      if done % plan.sample_every == 0 and not last:
        look(done, state.ema)
      if last:
        break
      if not window:
        clock = time.monotonic()  # what was logged, saved and drawn does not count as training
  return state, int(state.step) == plan.steps
