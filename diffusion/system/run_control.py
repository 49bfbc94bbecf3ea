"""Controlling a run from outside its loop: stop requests, agreement on them, pending writes, profiles."""
import collections
import contextlib
import signal

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.system import multihost, sharding


@contextlib.contextmanager
def stop_requests():
  """Yields a list that is filled when SIGTERM or Ctrl-C arrives, so that a loop can save and return.

  A second signal has its usual effect. Handlers are restored on exit.
  """
  requests, before = [], {}
  def request(number, frame):
    requests.append(signal.Signals(number).name)
    signal.signal(number, before[number] or signal.SIG_DFL)
  for number in (signal.SIGTERM, signal.SIGINT):
    try:
      before[number] = signal.signal(number, request)
    except ValueError:  # not the main thread, as in a notebook's worker: signals are handled elsewhere
      break
  try:
    yield requests
  finally:
    for number, handler in before.items():
      signal.signal(number, handler or signal.SIG_DFL)  # None: the handler was not installed by Python


def stop_vote(mesh, delay):
  """A function requested -> whether any process requested a stop: the same answer, at the same call, in all processes.

  The answer is that of `delay` calls earlier, so that no process waits for another one. Every process must call it
  once per step. A single process gets its own request back at once.
  """
  if jax.process_count() == 1:
    return lambda requested: requested
  rows = len(sharding.local_rows(mesh, mesh.size))
  any_of = jax.jit(jnp.any, out_shardings=sharding.replicated(mesh))
  pending = collections.deque()
  def vote(requested):
    pending.append(any_of(sharding.put_rows(np.full(rows, requested), mesh, mesh.size)))
    return len(pending) > delay and bool(pending.popleft())
  return vote


@contextlib.contextmanager
def finishing(*checkpoints):
  """Waits for pending saves on exit, also after an error.

  Of several processes, one that raises may be the only one: it does not wait, since the others would never join it.
  """
  with contextlib.ExitStack() as waits:
    for each in checkpoints:
      waits.callback(each.wait)
    try:
      yield
    except BaseException:
      if not multihost.is_only():
        waits.pop_all()
      raise


@contextlib.contextmanager
def trace(steps, folder):
  """Writes a profile of `steps`, (first, last) or None, for TensorBoard.

  Yields a function to call before each step, with its number and the outputs of earlier steps, the latest last.
  """
  first, last = steps or (0, -1)
  running = []
  def stop():
    if running:
      jax.block_until_ready(running)
      running.clear()
      jax.profiler.stop_trace()
  def before(step, outputs):
    if step == last + 1:
      stop()
    elif first <= step <= last and not running:
      jax.profiler.start_trace(str(folder))
    if first <= step <= last:
      running[:] = [outputs[-1] if outputs else step]
  try:
    yield before
  finally:
    stop()
