"""Checkpoints that survive `kill -9`, a full disk and damaged files.

A step is one folder, written in the background under a temporary name and renamed when complete:
`<directory>/<step>/state` holds the arrays by path (`params/conv_in/kernel`), `<step>/meta` one JSON record
with the caller's meta, the layout {path: [shape, dtype]}, one checksum for each array (checksums.py) and the
number of this format. Orbax restores flipped bytes without complaint, so a restore computes the checksums
again and walks back to the newest step that is whole.
"""
import contextlib
import functools
import json
import logging as stdlib_logging
import os
import sys
import time
from typing import Any, Callable, NamedTuple
import warnings
import zlib

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from diffusion.checksums import checksums, differences, flat, layout
from diffusion.errors import InputError
from diffusion.files import try_writing

# Raise it when what a step holds changes in a way that older code cannot read; the record keeps its place and
# its seal in every format, so that older code can tell a newer step from a damaged one. 0: before there were numbers.
FORMAT = 1


class Restored(NamedTuple):
  """What `restore` found: the step, the state as the abstract tree asked, the meta of that step, and one line
  for each newer step that had to be passed over."""
  step: int
  state: Any
  meta: dict
  notes: list


class Checkpoints(NamedTuple):
  """The checkpoints in one directory. Every process calls every function; the first save is the first write.

  save(step, state, meta): starts writing; a step that exists is left as it is. An error of the write comes up
    here, or at the next save, wait or close: as an InputError, or one line in the log (see on_failure). The
    finished steps are kept; what is half-written is cleared away.
  restore(abstract): the newest whole step as `Restored`, or None where there is no checkpoint. `abstract` is
    the tree of the state with a ShapeDtypeStruct (and its sharding; else the first device) for each array.
    InputError where the checkpoint has other arrays than `abstract`, where it is of a newer format, and where
    no step is whole.
  latest_meta(): (step, meta) of the newest step whose meta can be read, without touching arrays; None where
    there is no checkpoint.
  steps(): the finished steps, ascending, less those that a restore found damaged.
  wait(): until what was saved is on the disk.   close(): wait, and stop the threads.
  """
  save: Callable[[int, Any, dict], None]
  restore: Callable[[Any], Restored | None]
  latest_meta: Callable[[], tuple | None]
  steps: Callable[[], list]
  wait: Callable[[], None]
  close: Callable[[], None]


def open_checkpoints(directory, keep=2, keep_every=None, on_failure='stop') -> Checkpoints:
  """Opens a directory of checkpoints; it need not exist.

  Args:
    directory: local or gs://.
    keep: how many of the newest steps stay; an older one goes only when a newer one is complete.
    keep_every: steps that divide by it stay as well.
    on_failure: where a step cannot be written: 'stop' raises InputError; 'go on' logs one line, and the next
      save tries again.
  Raises:
    InputError: keep < 1, or another on_failure.
  """
  if keep < 1:
    raise InputError(f'keep must be at least 1 checkpoint, got {keep}')
  if on_failure not in ('stop', 'go on'):
    raise InputError(f"a save that fails can 'stop' or 'go on', got {on_failure!r}")
  # Orbax wants absolute paths; resolve() would mangle gs://bucket.
  root = epath.Path(directory if '://' in str(directory) else os.path.abspath(directory))
  damaged = {}  # step -> what is wrong with it
  newest = None  # the step that was saved last, or is still being written

  def steps():
    return [step for step in _finished(root) if step not in damaged]

  @functools.cache
  def writer():
    # Made at the first save, because it clears away the unfinished folders of a run that was killed: a
    # process that only reads must not do so to a run that is still going on.
    return _manager(root, keep, keep_every)

  def attempt(write) -> bool:
    """Whether write() went well, in every process; if not, what is half-written goes, and on_failure is followed."""
    failure = None
    try:
      write()
    except (OSError, RuntimeError, ValueError) as error:  # also those of orbax's threads
      failure = error
    if not _anywhere(failure):
      return True
    if writer.cache_info().currsize:
      _abandon(writer())
      writer.cache_clear()
      with contextlib.suppress(Exception):  # the next save will say so
        writer()  # a new one clears what is half-written
    kept = f'the finished steps {_finished(root)} are kept'
    problem = f'cannot save checkpoint {newest} in {root}: {_reason(failure)}; {kept}'
    if on_failure == 'stop':
      todo = 'make room there, or mend the access, and run the same command to go on'
      raise InputError(f'{problem}: {todo}') from failure
    logging.warning('%s; training goes on, and the next save tries again', problem)
    return False

  def save(step, state, meta):
    nonlocal newest
    wait()
    newest = step
    # Where no folder can be made, threads of orbax would wait for it for minutes, holding the state.
    if not attempt(lambda: try_writing(root)) or step in steps():
      return
    record = {'format': FORMAT, 'meta': meta, 'layout': layout(state), 'checksums': checksums(state)}
    items = ocp.args.Composite(state=ocp.args.StandardSave(flat(state)), meta=ocp.args.JsonSave(_seal(record)))

    def start():
      if damaged:
        _set_aside(root, damaged)
        damaged.clear()
        writer().reload()  # it may remember the steps that were moved
      writer().save(step, args=items, force=True)
    attempt(start)

  def restore(abstract, step=None):
    if step is not None and step not in steps():
      raise InputError(f'{root} holds no checkpoint of step {step}; there are {", ".join(map(str, steps())) or "none"}')
    found = _newest(root, steps() if step is None else [step], damaged, lambda folder: _read(folder, abstract))
    notes = [f'checkpoint {step} is damaged: {reason}' for step, reason in damaged.items()]
    return found and Restored(found[0], *found[1], notes)

  def latest_meta():
    found = _newest(root, steps(), damaged, _unseal)
    return found and (found[0], found[1]['meta'])

  def wait():
    if writer.cache_info().currsize:  # nothing to wait for where nothing was saved
      attempt(lambda: writer().wait_until_finished())

  def close():
    wait()
    if writer.cache_info().currsize:
      writer().close()
      writer.cache_clear()

  return Checkpoints(save, restore, latest_meta, steps, wait, close)


def quiet_orbax() -> None:
  """For programs, once at the start: keeps the dozens of tracebacks off stderr that the threads under orbax
  print for one failed read or write. The failure itself is raised and reported here, in one line."""
  def wanted(record):
    text = record.pathname + (record.getMessage() if record.name == 'asyncio' else '')
    return record.levelno < stdlib_logging.WARNING or not ('/orbax/' in text or 'tensorstore' in text)

  def unraisable(event, before=sys.unraisablehook):
    if str(event.exc_value) != 'Event loop is closed':  # the other reads, when the first has failed
      before(event)

  for log in (logging.get_absl_logger(), stdlib_logging.getLogger('asyncio')):
    log.addFilter(wanted)
  sys.unraisablehook = unraisable
  warnings.filterwarnings('ignore', 'coroutine .* was never awaited')  # what a failed write had still to do


def _seal(record) -> dict:
  """The record with a checksum of its canonical text; what is not JSON raises TypeError."""
  return {**record, 'crc32': zlib.crc32(json.dumps(record, sort_keys=True).encode())}


def _unseal(folder) -> dict:
  """The record of a step. InputError: it is of a newer format; an exception of any other type: it is damaged."""
  record = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(folder / 'meta')
  if record.pop('crc32') != _seal(record)['crc32']:
    raise ValueError('its meta does not match its checksum')
  number = record.get('format', 0)
  if number > FORMAT:
    raise InputError(f'{folder} was written by a newer version (format {number}, this one reads up to {FORMAT}): '
                     'upgrade, or use another directory')
  return record


def _newest(root, steps, damaged, read) -> tuple | None:
  """(step, read(folder)) of the newest of the steps that is whole; others are logged and join `damaged`."""
  for step in reversed(steps):
    try:
      return step, read(root / str(step))
    except InputError:
      raise
    except Exception as error:  # damage raises whatever the reader stumbles on: KeyError, OSError, ...
      damaged[step] = _reason(error)
      logging.warning('checkpoint %s is damaged, trying the one before: %s', root / str(step), damaged[step])
  if damaged:
    tried = ', '.join(f'step {step} ({reason})' for step, reason in damaged.items())
    raise InputError(f'no checkpoint in {root} is whole: {tried}; bring back a copy, or use a new directory')
  return None


def _read(folder, abstract) -> tuple:
  """(state, meta) of a step; InputError: it is another model's; any other exception: it is damaged."""
  record = _unseal(folder)
  different = differences(record['layout'], layout(abstract))
  if different:
    more = f' and {len(different) - 4} more' if len(different) > 4 else ''
    raise InputError(f'{folder} holds another model: {"; ".join(different[:4])}{more}; '
                     'use the config it was trained with, or another directory')
  first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

  def target(leaf):
    if not hasattr(leaf, 'dtype') or isinstance(leaf, (np.ndarray, np.generic)):
      return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, 'sharding', None) or first)

  wanted = {path: target(leaf) for path, leaf in flat(abstract).items()}
  reader = ocp.Checkpointer(ocp.StandardCheckpointHandler())
  failure = None
  try:
    leaves = reader.restore(folder / 'state', args=ocp.args.StandardRestore(wanted))
  except Exception as error:
    failure = error
  if _anywhere(failure):
    raise failure or OSError(_reason(None))
  wrong = [path for path, value in checksums(leaves).items() if value != record['checksums'][path]]
  if wrong:
    raise ValueError(f'{wrong[0]} does not match its checksum ({len(wrong)} of {len(leaves)} arrays do not)')
  return jax.tree.unflatten(jax.tree.structure(abstract), [leaves[path] for path in wanted]), record['meta']


def _finished(root) -> list:
  """The finished steps in a directory, ascending; unfinished and set-aside folders are no steps."""
  names = ocp.path.step.standard_name_format()
  return sorted(item.step for item in names.find_all(root)) if root.exists() else []


def _set_aside(root, damaged) -> None:
  """Renames damaged steps, so that their numbers are free again and what is left of them is not lost."""
  if jax.process_index() == 0:
    for step in damaged:
      aside = root / f'{step}.damaged-{time.time_ns()}'
      logging.warning('the damaged checkpoint %s is now %s; delete it when you like', root / str(step), aside)
      (root / str(step)).rename(aside)
  ocp.multihost.sync_global_processes('diffusion:set_aside')


def _manager(root, keep, keep_every) -> ocp.CheckpointManager:
  preserve = [policies.LatestN(keep)] + ([policies.EveryNSteps(keep_every)] if keep_every else [])
  return ocp.CheckpointManager(root, options=ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(preserve), cleanup_tmp_directories=True))


def _anywhere(failure) -> bool:
  """Whether this process, or any other, has failed: all must give up a step together."""
  if jax.process_count() == 1:
    return failure is not None
  return bool(multihost_utils.process_allgather(np.asarray(failure is not None)).any())


def _abandon(manager) -> None:
  """Closes a manager whose write failed; each part of it raises once what went wrong."""
  for _ in range(4):
    with contextlib.suppress(Exception):
      return manager.close()


def _reason(error) -> str:
  """What went wrong in one line, without the specifications that tensorstore adds in brackets."""
  if error is None:
    return 'another process failed'
  text = ' '.join(str(error).split(' [')[0].split()) or type(error).__name__
  return text if len(text) <= 240 else f'{text[:100]} ... {text[-130:]}'
