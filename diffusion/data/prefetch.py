"""Batches for the training loop, read ahead and put onto the devices while the previous step runs.

The batch of a step is a pure function of the data and (seed, step): `batch_indices`, a permutation of all examples per
epoch. So there is no iterator state to save: the step in the checkpoint is the position in the data, and a run resumes
exactly, with any number of hosts, worker processes and prefetched batches.
"""
import contextlib
import gc
import os
import queue
import signal
import threading
import time
from collections.abc import Mapping
from functools import partial
from multiprocessing import parent_process
from typing import Callable, NamedTuple

import numpy as np

from diffusion.data.dataset import in_memory, read_batch
from diffusion.data.stream import Stream
from diffusion.errors import InputError


class Feed(NamedTuple):
  next: Callable  # () -> the device batch of the next step; StopIteration after the last
  waited: Callable  # () -> seconds that next() has waited since waited() was last called
  close: Callable  # () -> None; ends the thread and the processes, and may be called again


def feed(read, start, stop, put, workers=0, depth=2) -> Feed:
  """Starts to read the batches of steps start .. stop - 1, in order.

  Args:
    read: step -> host batch, a partial of dataset.read_batch.
    start, stop: the first step, and the one after the last.
    put: host batch of those rows -> device batch; called in a thread.
    workers: number of processes that read and decode a Stream; 0: threads of this process. Data in memory need none. A
      program that uses workers guards its main module by `if __name__ == '__main__'`, since each worker imports it.
    depth: maximum number of device batches that wait to be taken; 2 is double buffering.
  Raises:
    InputError: workers below 0 or depth below 1. next() raises whatever was raised while reading: an image that is
      missing or damaged, a worker that died.
  """
  if workers < 0 or depth < 1:
    raise InputError(f'{workers=} must be at least 0, and {depth=} at least 1')
  if in_memory(read.args[1]):
    batches = (read(step) for step in range(start, stop))
  else:
    batches = _streamed(read, start, stop, workers)
  return _read_ahead(batches, put, depth)


def _read_ahead(batches, put, depth) -> Feed:
  """A Feed of put(batch) for each batch of a generator, which runs in a thread."""
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
    except BaseException as error:  # raised by next(), in the thread that can act on it
      end = error
    ready.put((None, end))

  def take():
    start = time.perf_counter()
    item, end = ready.get()
    waiting[0] += time.perf_counter() - start
    if end is not None:
      ready.put((None, end))  # for later calls
      raise end
    room.release()
    return item

  def waited():
    seconds, waiting[0] = waiting[0], 0.
    return seconds

  def close():
    leaving.set()
    room.release()
    thread.join()  # until the batch that it is reading is complete

  thread = threading.Thread(target=fill, name='feed', daemon=True)
  thread.start()
  return Feed(take, waited, close)


def _streamed(read, start, stop, workers):
  """Generates the batches of steps in order; the workers read them in turn."""
  from absl import flags
  import grain
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain reads its own flags, which keep their defaults outside absl's app.run
  batch_of, data, *rest = read.args
  if workers:  # the data are copied to each
    single = lambda column: column.single_threaded() if isinstance(column, Stream) else column
    used = used_columns(batch_of, data)
    data = data._replace(arrays={name: single(column) for name, column in data.arrays.items() if name in used})
  # One batch at a time: the images of a batch are decoded in parallel, and so are the batches of the workers.
  one = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  several = grain.MultiprocessingOptions(num_workers=min(workers, stop - start), per_worker_buffer_size=1)
  steps = grain.MapDataset.range(start, stop).map(partial(read_batch, batch_of, data, *rest)).to_iter_dataset(one)
  batches, failed = iter(steps.mp_prefetch(several, worker_init_fn=_start_worker)), None
  try:
    yield from map(_copied, batches)
  except Exception as error:
    failed = _without_frames(error) if workers else error
  finally:
    batches.close()
    if workers:
      del batches
      gc.collect()  # pipes and semaphores of the workers are part of reference cycles
  if isinstance(failed, RuntimeError) and 'Worker process' in str(failed):
    raise InputError(f'a process that reads images has died ({failed.args[0]}); '
                     'if memory is short, lower config.data_workers')
  if failed:
    raise failed


class _Noting(Mapping):
  """Columns that note which of them are asked for, in whatever way: Mapping does all by these three."""

  def __init__(self, columns):
    self.columns = columns
    self.asked = {next(iter(columns))}  # which says how many examples there are

  def __getitem__(self, name):
    column = self.columns[name]
    self.asked.add(name)
    return column

  def __iter__(self):
    for name in self.columns:
      self.asked.add(name)
      yield name

  def __len__(self):
    return len(self.columns)


def used_columns(batch_of, data):
  """The names of the columns that a task's batch reads: no others need to be sent to workers."""
  columns = _Noting(data.arrays)
  batch_of(data._replace(arrays=columns), np.zeros(1, np.int64))
  return columns.asked


def _without_frames(error):
  """The error without tracebacks, also of its causes: their frames keep alive what is about to be closed."""
  cause = error
  while cause is not None:
    cause.__traceback__ = None
    cause = cause.__cause__ or cause.__context__
  return error


def _copied(batch):
  """A copy, so that the memory shared with the workers is released at once."""
  return {name: np.array(values) for name, values in batch.items()}


def _start_worker(index, count):
  """Runs first in each worker, which must not touch the devices, end before the run or outlive it."""
  import jax  # grain has imported it
  jax.config.update('jax_platforms', 'cpu')
  # These may go to the whole process group; the run saves, then ends its workers.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
