"""Writing to a checkpoint directory: orbax's manager, and what follows when a write fails in any of the processes."""
import contextlib
import functools
import time
from typing import Callable, NamedTuple

from absl import logging
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from diffusion.errors import InputError
from diffusion.system.consensus import all_gather_text, reason, run_together

TIMEOUT = 300  # seconds until a write is given up, or waiting for a process to join it; less than consensus.LIMIT

SLICE = 1 << 24  # bytes of an array that all devices have, from which on they share the work of writing it


class Writer(NamedTuple):
  """attempt(act, what): calls act(orbax's manager, or None before the first save); whether it succeeded in all
    processes. If not, incomplete steps are removed and on_failure is followed; what: 'save checkpoint 3', in messages.
  save(step, items): starts to write.   wait(): until everything is written.   close(): waits, and stops the threads.
  """
  attempt: Callable
  save: Callable
  wait: Callable
  close: Callable


def open_writer(root, keep, keep_every, on_failure) -> Writer:
  """See open_checkpoints. Nothing is written before the first save."""
  pending = None  # the step that is being written, or was written last
  # Created by the first save, because it removes the incomplete folders of a run that was killed: a process that
  # only reads must not do that to a run that is still active.
  manager = functools.cache(lambda: _manager(root, keep, keep_every))

  current = lambda: manager() if manager.cache_info().currsize else None

  def attempt(act, what) -> bool:
    try:
      run_together(lambda: act(current()))
      return True
    except InputError:
      raise
    except Exception as error:  # also those of orbax's threads
      failure = error
    if any(map(int, all_gather_text(str(int(current() is not None))))):
      if current():
        _abandon(manager())
      manager.cache_clear()
      with contextlib.suppress(Exception):  # the next save will report it
        manager()  # a new one removes what is incomplete
    _report(failure, f'cannot {what} in {root}', finished_steps(root), on_failure)
    return False

  def save(step, items):
    nonlocal pending
    pending = step
    attempt(lambda _: manager().save(step, args=items, force=True), f'save checkpoint {step}')

  def wait():
    attempt(lambda manager: manager and manager.wait_until_finished(), f'save checkpoint {pending}')

  def close():
    wait()
    if current():
      manager().close()
      manager.cache_clear()
  return Writer(attempt, save, wait, close)


def _report(failure, problem, kept, on_failure):
  if not isinstance(failure, (OSError, RuntimeError, ValueError)):
    raise failure  # a bug in the program or its caller
  problem = f'{problem}: {reason(failure)}; the finished steps {kept} are kept'
  if on_failure == 'stop':
    todo = 'free disk space or check permissions, and run the same command to resume'
    raise InputError(f'{problem}: {todo}') from failure
  logging.warning('%s; training continues, and the next save tries again', problem)


def finished_steps(root) -> list:
  """The finished steps in a directory, ascending; incomplete folders and those set aside do not count."""
  names = ocp.path.step.standard_name_format()
  return sorted(item.step for item in names.find_all(root)) if root.exists() else []


def set_aside(root, steps, why) -> None:
  """Process 0 renames steps, so that their numbers are free and their contents not lost."""
  for step in steps if jax.process_index() == 0 else ():
    aside = root / f'{step}.{why}-{time.time_ns()}'
    if (root / str(step)).exists():  # after a failure, some may have been renamed already
      (root / str(step)).rename(aside)
      logging.warning('the %s checkpoint %s is now %s; delete it when you like', why, root / str(step), aside)


def _manager(root, keep, keep_every) -> ocp.CheckpointManager:
  # Otherwise each device writes a slice of every array that all have, and the slices of each shape are a program of
  # their own, compiled at the first save: 5 seconds for a small network.
  handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SLICE)
  ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
  preserve = [policies.LatestN(keep)] + ([policies.EveryNSteps(keep_every)] if keep_every else [])
  return ocp.CheckpointManager(root, options=ocp.CheckpointManagerOptions(
    preservation_policy=policies.AnyPreservationPolicy(preserve), cleanup_tmp_directories=True,
    async_options=ocp.AsyncOptions(timeout_secs=TIMEOUT)))


def _abandon(manager) -> None:
  """Closes a manager whose write failed; each of its parts raises the failure once."""
  for _ in range(4):
    with contextlib.suppress(Exception):
      return manager.close()
