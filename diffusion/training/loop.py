"""The training loop, readable top to bottom."""
import collections
import contextlib
import signal
import time
from functools import partial

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.data.prefetch import feed, host_batch
from diffusion.errors import InputError
from diffusion.system import multihost, sharding
from diffusion.system.log import no_progress, progress
from diffusion.training.state import init_state, LOGSNR_EDGES, train_step


def bin_names():
  """'loss_by_logsnr/below_-9', '.../-9_to_-6' .. '.../above_9'."""
  edges = [f'{edge:g}' for edge in LOGSNR_EDGES]
  middle = [f'{low}_to_{high}' for low, high in zip(edges, edges[1:])]
  return [f'loss_by_logsnr/{name}' for name in (f'below_{edges[0]}', *middle, f'above_{edges[-1]}')]


def make_state(run, key):
  """The state at step 0, made in its place on the mesh: nothing that is divided is ever whole on one device."""
  places = jax.tree.map(lambda a: a.sharding, abstract_state(run))
  params = sharding.put(run.init(key), places.params)
  make = lambda params, memory: init_state(params, run.optimizer, memory, len(run.averages))
  return jax.jit(make, out_shardings=places)(params, run.memory)


def abstract_state(run):
  """The shapes and places of a state, without making one."""
  make = lambda key: init_state(run.init(key), run.optimizer, run.memory, len(run.averages))
  shapes = jax.eval_shape(make, jax.random.key(0))
  return jax.tree.map(lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), shapes, sharding.by_shape(run.mesh, shapes))


def abstract_batch(run):
  """The shapes and places of a batch and of the key, as make_train_step's function takes them after the state."""
  placed = lambda shape, dtype, place: jax.ShapeDtypeStruct(shape, dtype, sharding=place(run.mesh))
  batch = dict(images=placed((run.plan.batch, *run.shape), np.uint8, sharding.batch_sharding))
  if run.classes:
    batch['cond'] = placed((run.plan.batch, len(run.classes)), np.float32, sharding.batch_sharding)
  return batch, jax.eval_shape(lambda: jax.random.key(0))


def make_train_step(run):
  """The compiled step: (state, batch, key) -> (state, metrics). The state is donated."""
  step = partial(train_step, encode=run.task.encode, loss=run.loss, optimizer=run.optimizer, ema=run.ema,
                 averages=tuple(decay for _, decay in run.averages), accumulate=run.plan.grad_accumulation)
  places = jax.tree.map(lambda a: a.sharding, abstract_state(run))
  return jax.jit(step, donate_argnums=0, out_shardings=(places, sharding.replicated(run.mesh)))


def make_heldout_loss(run, data, number):
  """A function (step, params) -> {'heldout_loss': ..}: the same pictures, times and noise at every call."""
  @partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
  def measure(params, batch, key):
    x0, cond = run.task.encode(None, batch)
    return run.loss(key, params, x0, cond, False)[0]

  batches = min(number, len(data.images)) // run.plan.batch or 1

  def heldout(step, params):
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
                       'training stopped, and the last good checkpoint is kept: lower config.learning_rate or set config.grad_clip')
  error, count = (sum(metrics[name] for metrics in window) for name in ('error', 'count'))
  bins = {name: e / c for name, e, c in zip(bin_names(), error, count) if c}
  return {name: float(np.mean([metrics[name] for metrics in window])) for name in ('loss', 'grad_norm')} | bins


@contextlib.contextmanager
def stop_requests():
  """A list that fills when SIGTERM or Ctrl-C arrives, so that the loop can save and leave; a second signal acts as usual."""
  asked, before = [], {}
  def ask(number, frame):
    asked.append(signal.Signals(number).name)
    signal.signal(number, before[number] or signal.SIG_DFL)
  for number in (signal.SIGTERM, signal.SIGINT):
    try:
      before[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread, as in a notebook's worker: signals are left to others
      break
  try:
    yield asked
  finally:
    for number, handler in before.items():
      signal.signal(number, handler or signal.SIG_DFL)  # None: it was not Python's


@contextlib.contextmanager
def _finishing(*written):
  """What was saved is on the disk when the loop is left, by whichever way; but for an error that one of several processes may be
  alone with, for the others would not come to agree on the end of a save."""
  with contextlib.ExitStack() as waits:
    for checkpoints in written:
      waits.callback(checkpoints.wait)
    try:
      yield
    except BaseException:
      if not multihost.is_only():
        waits.pop_all()
      raise


def votes(mesh, late):
  """A function asked -> whether any process was asked to stop, the same answer in all of them, `late` calls late so that none waits."""
  if jax.process_count() == 1:
    return lambda asked: asked
  rows, some = len(sharding.local_rows(mesh, mesh.size)), jax.jit(jnp.any, out_shardings=sharding.replicated(mesh))
  cast = collections.deque()
  def vote(asked):
    cast.append(some(sharding.put_rows(np.full(rows, asked), mesh, mesh.size)))
    return len(cast) > late and bool(cast.popleft())
  return vote


@contextlib.contextmanager
def trace(when, folder):
  """A function that is told each step before it is begun, with the metrics of those before it; it writes a profile of the steps
  `when`, (first, last) or None."""
  first, last = when or (0, -1)
  running = []
  def stop():
    if running:
      jax.block_until_ready(running)
      running.clear()
      jax.profiler.stop_trace()
  def before(step, window):
    if step == last + 1:
      stop()
    elif first <= step <= last and not running:
      jax.profiler.start_trace(str(folder))
    if first <= step <= last:
      running[:] = window[-1:] or [step]
  try:
    yield before
  finally:
    stop()


def fit(run, source, state, checkpoints, log, meta, look, curve=None, snapshots=None, usage=lambda rate: {}, profile=(None, None),
        step_fn=None):
  """Trains from the state's step to plan.steps, logging, looking and saving on the way. Every process calls it.

  Args:
    run: the Experiment.
    source: its data.
    state: a TrainState; it is donated.
    checkpoints, log: see checkpoint.py and log.py.
    meta: JSON record stored in every checkpoint.
    look: (step, params) -> None, draws the pictures that are followed during training.
    curve: None, or (every, (step, params) -> values): what else is measured of the averaged weights every so many steps, and logged.
    snapshots: None, or the Checkpoints that get state.averages every plan.snapshot_every steps.
    usage: images per second -> values that are logged with it.
    profile: ((first, last) step or None, folder) of a profile for TensorBoard.
    step_fn: what make_train_step has made, where it is there already.
  Returns:
    (state, whether it reached the last step); it stops early, after saving, where it is asked to (SIGTERM, Ctrl-C).
  Raises:
    InputError: the loss is not finite; the last good checkpoint is kept.
  """
  plan, key, step_fn, start = run.plan, jax.random.key(run.plan.seed), step_fn or make_train_step(run), int(state.step)
  measures = [curve] if curve else []
  if len(source.heldout.images):
    measures.insert(0, (plan.val_every, make_heldout_loss(run, source.heldout, plan.val_samples)))
  told = (plan.log_every, plan.save_every, *(every for every, _ in measures), *([plan.snapshot_every] if snapshots else []))
  window, bar, clock = [], progress(plan.steps, start, plan.batch) if multihost.is_main() else no_progress(), time.monotonic()
  # One step in flight on CPU, where simulated devices share the threads; one more in the queue elsewhere.
  ahead = 1 if jax.default_backend() == 'cpu' else 2
  vote, slow = votes(run.mesh, ahead - 1), False
  batches = feed(source.train, plan.batch, plan.seed, start, plan.steps, sharding.local_rows(run.mesh, plan.batch),
                 partial(sharding.put_rows, mesh=run.mesh, size=plan.batch), plan.data_workers)
  with (stop_requests() as asked, contextlib.closing(bar), _finishing(checkpoints, *([snapshots] if snapshots else [])), contextlib.closing(batches),
        trace(*profile) as profiled):
    for done in range(start + 1, plan.steps + 1):
      batch = batches.next()
      if len(window) >= ahead:
        jax.block_until_ready(window[-ahead])
      profiled(done, window)
      stopped = vote(bool(asked))
      state, metrics = step_fn(state, batch, key)
      window.append(metrics)
      last = done == plan.steps or stopped
      leaving = lambda: stopped or multihost.is_only() and bool(asked)  # of several processes, all do the same
      due = lambda every: done % every == 0 or done == plan.steps
      values = {}
      if last or any(map(due, told)):
        values = summarise(window, done)
        seconds = time.monotonic() - clock
        rate, window = len(window) * plan.batch / seconds, []
        values |= dict(learning_rate=float(run.rate(done - 1)), ema_decay=float(run.ema(done - 1)), images_per_second=rate,
                       data_wait=batches.waited() / seconds, **usage(rate))
        for every, measure in measures:
          values |= measure(done, state.ema) if due(every) and not leaving() else {}
        log.scalars(done, values)
        if values['data_wait'] > .1 and done > start + plan.log_every and not slow:
          slow = True  # said once
          logging.warning('%.0f %% of the time goes by waiting for data: raise config.data_workers, or put the data nearer', 100 * values['data_wait'])
      bar.update(done, values.get('loss'))
      if snapshots and due(plan.snapshot_every):
        snapshots.save(done, state.averages, meta)
        snapshots.wait()  # before the checkpoint: a run that is resumed from it has all of them
      if due(plan.save_every) or last:
        checkpoints.save(done, state, meta)
      if done % plan.sample_every == 0 and not last and not leaving():
        look(done, state.ema)
      if last:
        break
      if not window:
        batches.waited()
        clock = time.monotonic()  # what was logged, saved and drawn does not count as training
  return state, int(state.step) == plan.steps
