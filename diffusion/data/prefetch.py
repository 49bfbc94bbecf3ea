"""Batches for the training loop, read ahead of it and put onto the devices while the step before is at work.

The batch of a step is a pure function of the data and (seed, step): `batch_indices`, a permutation of all pictures for
each epoch. So there is no iterator whose state would have to be saved. The step in the checkpoint is the position in
the data, and a run goes on exactly, with any number of hosts, worker processes and batches read ahead.
"""
import contextlib
import gc
import os
import queue
import signal
import threading
import time
from functools import partial
from multiprocessing import parent_process
from typing import Callable, NamedTuple

import numpy as np

from diffusion.data.dataset import batch_indices, host_batch, in_memory
from diffusion.errors import InputError


class Feed(NamedTuple):
  next: Callable    # () -> the device batch of the next step; StopIteration after the last
  waited: Callable  # () -> seconds that next() has waited since waited() was last called
  close: Callable   # () -> None; ends the thread and the processes, and may be called again


def feed(data, batch, seed, start, stop, rows, put, workers=0, depth=2) -> Feed:
  """Starts to read the batches of steps start .. stop - 1, in order.

  Args:
    data: a Dataset.
    batch: examples in a batch, of all hosts together.
    seed: of the order, 0 or above.
    start, stop: the first step and the one after the last.
    rows: whole numbers, which rows of every batch this process reads.
    put: host batch of those rows -> device batch; called in a thread.
    workers: processes that read and decode a Stream; 0: this one, in threads. Data in memory need none. A program
      that asks for them guards its main module by `if __name__ == '__main__'`, as each of them imports it.
    depth: device batches, at most, that wait to be taken; 2 is double buffering.
  Raises:
    InputError: workers below 0 or depth below 1; and from next() what was raised while reading: a picture that has
      gone or is damaged, a worker that died.
  """
  if workers < 0 or depth < 1:
    raise InputError(f'{workers=} must be 0 or more, and {depth=} at least 1')
  read = partial(_read, data, batch, seed, np.asarray(rows))
  if in_memory(data):
    batches = (read(step) for step in range(start, stop))
  else:
    batches = _streamed(read, start, stop, workers)
  ready, room, leaving, waiting = queue.SimpleQueue(), threading.Semaphore(depth), threading.Event(), [0.]

  def fill():
    end = StopIteration()
    try:
      with contextlib.closing(batches):
        for item in batches:
          room.acquire()
          if leaving.is_set():
            break
          ready.put((put(item), None))
    except BaseException as error:   # is raised by next(), on the thread that can act on it
      end = error
    ready.put((None, end))

  def take():
    begun = time.perf_counter()
    item, end = ready.get()
    waiting[0] += time.perf_counter() - begun
    if end is not None:
      ready.put((None, end))   # for whoever asks again
      raise end
    room.release()
    return item

  def waited():
    seconds, waiting[0] = waiting[0], 0.
    return seconds

  def close():
    leaving.set()
    room.release()
    thread.join()   # until the batch that it is reading is complete

  thread = threading.Thread(target=fill, name='feed', daemon=True)
  thread.start()
  return Feed(take, waited, close)


def _read(data, batch, seed, rows, step):
  return host_batch(data, batch_indices(len(data.images), batch, seed, step)[rows])


def _streamed(read, start, stop, workers):
  """The batches of steps in order; of several processes, the k-th reads every k-th of them."""
  from absl import flags
  import grain
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()   # grain asks its own, which are at their defaults outside absl's app.run
  data, *rest = read.args
  if workers:
    data = data._replace(images=data.images.alone(), captions=(), attributes=())   # what a worker takes with it
  # One batch after the other: the pictures of a batch are decoded side by side, and so are the processes' batches.
  one = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  several = grain.MultiprocessingOptions(num_workers=min(workers, stop - start), per_worker_buffer_size=1)
  steps = grain.MapDataset.range(start, stop).map(partial(_read, data, *rest)).to_iter_dataset(one)
  batches, failed = iter(steps.mp_prefetch(several, worker_init_fn=_start_worker)), None
  try:
    yield from map(_copied, batches)
  except Exception as error:
    failed = _alone(error) if workers else error
  finally:
    batches.close()
    if workers:
      del batches
      gc.collect()   # pipes and semaphores of the workers are part of reference cycles
  if isinstance(failed, RuntimeError) and 'Worker process' in str(failed):
    raise InputError(f'a process that reads pictures has died ({failed.args[0]}); where memory is short, lower config.data_workers')
  if failed:
    raise failed


def _alone(error):
  """The error without the frames that it and those before it have been through: they keep alive what is closed then."""
  before = error
  while before is not None:
    before.__traceback__ = None
    before = before.__cause__ or before.__context__
  return error


def _copied(batch):
  """The same in memory of its own: what workers share is given back at once."""
  return {name: np.array(values) for name, values in batch.items()}


def _start_worker(index, count):
  """Runs first in each worker: it must neither touch the devices nor end before, or live longer than, the run."""
  import jax   # grain has imported it
  jax.config.update('jax_platforms', 'cpu')
  for number in (signal.SIGINT, signal.SIGTERM):   # may come to the whole group; the run saves, then ends its workers
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
