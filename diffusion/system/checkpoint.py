"""Checkpoints that survive `kill -9`, a full disk and damaged files.

A step is one folder, written in the background under a temporary name and renamed when complete:
`<directory>/<step>/state` holds the arrays by path (`params/conv_in/kernel`), `<step>/meta` one JSON record
with the caller's meta, the layout {path: [shape, dtype]}, one checksum for each array (checksums.py) and the
number of this format. Orbax restores flipped bytes without complaint, so a restore computes the checksums
again and walks back to the newest step that is whole.
"""
import contextlib
import errno
import functools
import json
import os
import re
import time
from typing import Any, Callable, NamedTuple
import zlib

from absl import logging
from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from diffusion.errors import InputError
from diffusion.system.checksums import checksums, differences, flat, layout
from diffusion.system.consensus import all_gather_text, reason, run_together
from diffusion.system.files import try_writing

# Raise it when what a step holds changes in a way that older code cannot read; the record keeps its place and
# its seal in every format, so that older code can tell a newer step from a damaged one. 0: before there were numbers.
FORMAT = 1
TIMEOUT = 300  # seconds until a write, or a process that does not come to one, is given up; less than agree.LIMIT

# What is no damage of what is read; the second as tensorstore and jax say it.
_ACCESS = (MemoryError, PermissionError, TimeoutError, ConnectionError)
_ACCESS_CODE = re.compile('RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED')


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
  restore(abstract, step=None): the newest whole step, or exactly `step`, as `Restored`; None where there is no
    checkpoint. `abstract` is the tree of the state with a ShapeDtypeStruct (and its sharding; else the first
    device) for each array. InputError where the checkpoint has other arrays than `abstract`, where it is of a
    newer format, where it cannot be read for a reason that is no damage (memory, permissions, the network), where
    no step is whole or there is no such step, and where processes see different checkpoints.
  latest_meta(): (step, meta) of the newest step whose meta can be read, without touching arrays; None where
    there is no checkpoint. The same InputErrors.
  set_aside_after(step): renames the finished steps above `step`, of a run that goes on from there: what it saves
    is another course of training, and would not come where the old one is. What is being written comes first.
  steps(): the finished steps that this process sees, ascending, less those that a restore found damaged.
  wait(): until what was saved is on the disk.   close(): wait, and stop the threads.
  """
  save: Callable[[int, Any, dict], None]
  restore: Callable[..., Restored | None]
  latest_meta: Callable[[], tuple | None]
  set_aside_after: Callable[[int], None]
  steps: Callable[[], list]
  wait: Callable[[], None]
  close: Callable[[], None]


def open_checkpoints(directory, keep=2, keep_every=None, on_failure='stop') -> Checkpoints:
  """Opens a directory of checkpoints; it need not exist.

  Args:
    directory: local or gs://.
    keep: how many of the newest steps stay; an older one goes only when a newer one is complete.
    keep_every: steps that divide by it stay as well.
    on_failure: where a step cannot be written: 'stop' raises InputError; 'continue' logs one line, and the next
      save tries again.
  Raises:
    InputError: keep < 1, or another on_failure.
  """
  if keep < 1:
    raise InputError(f'keep must be at least 1 checkpoint, got {keep}')
  if on_failure not in ('stop', 'continue'):
    raise InputError(f"a save that fails can 'stop' or 'continue', got {on_failure!r}")
  # Orbax wants absolute paths; resolve() would mangle gs://bucket.
  root = epath.Path(directory if '://' in str(directory) else os.path.abspath(directory))
  damaged = {}  # step -> what is wrong with it
  newest = None  # the step that was saved last, or is still being written

  def steps():
    return [step for step in _finished(root) if step not in damaged]

  def shared():
    """The steps that all processes see."""
    def here():
      with _reading(root):
        return json.dumps(steps())
    every = [set(json.loads(text)) for text in all_gather_text(run_together(here))]
    if len({max(some, default=None) for some in every}) > 1:
      raise InputError(f'the processes see different checkpoints in {root}: '
                       '--workdir must be on a disk that all hosts share')
    return sorted(set.intersection(*every))

  @functools.cache
  def writer():
    # Made at the first save, because it clears away the unfinished folders of a run that was killed: a
    # process that only reads must not do so to a run that is still going on.
    return _manager(root, keep, keep_every)

  def made():
    return writer.cache_info().currsize

  def attempt(write, what=None) -> bool:
    """Whether write() went well, in every process; if not, what is half-written goes, and on_failure is followed."""
    try:
      run_together(write)
      return True
    except InputError:
      raise
    except Exception as error:  # also those of orbax's threads
      failure = error
    if any(map(int, all_gather_text(str(made())))):
      if made():
        _abandon(writer())
      writer.cache_clear()
      with contextlib.suppress(Exception):  # the next save will say so
        writer()  # a new one clears what is half-written
    if not isinstance(failure, (OSError, RuntimeError, ValueError)):
      raise failure  # a mistake of the program, or of who calls it
    kept = f'the finished steps {_finished(root)} are kept'
    problem = f'cannot {what or f"save checkpoint {newest}"} in {root}: {reason(failure)}; {kept}'
    if on_failure == 'stop':
      todo = 'make room there, or mend the access, and run the same command to go on'
      raise InputError(f'{problem}: {todo}') from failure
    logging.warning('%s; training goes on, and the next save tries again', problem)
    return False

  def move(some, word):
    """Whether the steps `some` are out of the way, so that their numbers are free; `word` says what they are."""
    if not some:
      return True
    if not attempt(lambda: _set_aside(root, some, word), f'set aside {word} checkpoints'):
      return False
    for step in some:
      damaged.pop(step, None)
    # It may remember those that were moved.
    return attempt(lambda: made() and writer().reload(), 'list the checkpoints')

  def save(step, state, meta):
    nonlocal newest
    wait()
    newest = step
    # Where no folder can be made, threads of orbax would wait for it for minutes, holding the state.
    there = []
    if not attempt(lambda: (try_writing(root), there.extend(steps()))):
      return
    if any(all_gather_text('there' if step in there else '')):
      return
    record = {'format': FORMAT, 'meta': meta, 'layout': layout(state), 'checksums': checksums(state)}
    items = ocp.args.Composite(state=ocp.args.StandardSave(flat(state)), meta=ocp.args.JsonSave(_seal(record)))
    if move(sorted(damaged), 'damaged'):
      attempt(lambda: writer().save(step, args=items, force=True))

  def restore(abstract, step=None):
    there = shared()
    if step is not None and step not in there:
      raise InputError(f'{root} holds no checkpoint of step {step}; there are {", ".join(map(str, there)) or "none"}')
    found = _newest(root, there if step is None else [step], damaged, lambda folder: _read(folder, abstract))
    notes = [f'checkpoint {bad} is damaged: {why}' for bad, why in damaged.items()]
    return found and Restored(found[0], *found[1], notes)

  def latest_meta():
    found = _newest(root, shared(), damaged, lambda folder: run_together(lambda: _unseal(folder)))
    return found and (found[0], found[1]['meta'])

  def set_aside_after(step):
    wait()
    move([later for later in shared() if later > step], 'superseded')

  def wait():
    attempt(lambda: made() and writer().wait_until_finished())  # nothing to wait for where nothing was saved

  def close():
    wait()
    if made():
      writer().close()
      writer.cache_clear()

  return Checkpoints(save, restore, latest_meta, set_aside_after, steps, wait, close)


def _seal(record) -> dict:
  """The record with a checksum of its canonical text; what is not JSON raises TypeError."""
  return {**record, 'crc32': zlib.crc32(json.dumps(record, sort_keys=True).encode())}


def _unseal(folder) -> dict:
  """The record of a step. InputError: it is of a newer format, or out of reach; any other exception: it is damaged."""
  with _reading(folder):
    record = json.loads((folder / 'meta' / 'metadata').read_text())
    if record.pop('crc32') != _seal(record)['crc32']:
      raise ValueError('its meta does not match its checksum')
    number = record.get('format', 0)
    if number > FORMAT:
      raise InputError(f'{folder} was written by a newer version (format {number}, this one reads up to {FORMAT}): '
                       'upgrade, or use another directory')
    return record


@contextlib.contextmanager
def _reading(folder):
  """Errors that tell nothing of the folder become InputErrors: a run must not fall back to an older step for them."""
  try:
    yield
  except Exception as error:
    refused = isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
    if refused or isinstance(error, _ACCESS) or _ACCESS_CODE.match(str(error)):
      raise InputError(f'cannot read {folder}: {reason(error)}; mend that and run again') from error
    raise


def _newest(root, steps, damaged, read) -> tuple | None:
  """(step, read(folder)) of the newest of the steps that is whole; others are logged and join `damaged`."""
  for step in reversed(steps):
    try:
      return step, read(root / str(step))
    except InputError:
      raise
    except Exception as error:  # damage raises whatever the reader stumbles on: KeyError, OSError, ...
      damaged[step] = reason(error)
      logging.warning('checkpoint %s is damaged, trying the one before: %s', root / str(step), damaged[step])
  if damaged:
    tried = ', '.join(f'step {step} ({why})' for step, why in damaged.items())
    raise InputError(f'no checkpoint in {root} is whole: {tried}; bring back a copy, or use a new directory')
  return None


def _read(folder, abstract) -> tuple:
  """(state, meta) of a step; InputError: it is another model's, or see _unseal; any other exception: it is damaged."""
  first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

  def target(leaf):
    if not hasattr(leaf, 'dtype') or isinstance(leaf, (np.ndarray, np.generic)):
      return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, 'sharding', None) or first)

  wanted = {path: target(leaf) for path, leaf in flat(abstract).items()}

  def read():
    record = _unseal(folder)
    different = differences(record['layout'], layout(abstract))
    if different:
      more = f' and {len(different) - 4} more' if len(different) > 4 else ''
      raise InputError(f'{folder} holds another model: {"; ".join(different[:4])}{more}; '
                       'use the config it was trained with, or another directory')
    with _reading(folder):  # the handler itself, for a Checkpointer waits for the other processes
      handler = ocp.StandardCheckpointHandler()
      leaves = handler.restore(folder / 'state', args=ocp.args.StandardRestore(wanted))
      return record, jax.block_until_ready(leaves)

  record, leaves = run_together(read)
  wrong = [path for path, value in checksums(leaves).items() if value != record['checksums'][path]]
  if wrong:
    raise ValueError(f'{wrong[0]} does not match its checksum ({len(wrong)} of {len(leaves)} arrays do not)')
  return jax.tree.unflatten(jax.tree.structure(abstract), [leaves[path] for path in wanted]), record['meta']


def _finished(root) -> list:
  """The finished steps in a directory, ascending; unfinished and set-aside folders are no steps."""
  names = ocp.path.step.standard_name_format()
  return sorted(item.step for item in names.find_all(root)) if root.exists() else []


def _set_aside(root, steps, word) -> None:
  """Process 0 renames steps, so that their numbers are free again and what they hold is not lost."""
  for step in steps if jax.process_index() == 0 else ():
    aside = root / f'{step}.{word}-{time.time_ns()}'
    if (root / str(step)).exists():  # after a failure half of them may be done
      (root / str(step)).rename(aside)
      logging.warning('the %s checkpoint %s is now %s; delete it when you like', word, root / str(step), aside)


def _manager(root, keep, keep_every) -> ocp.CheckpointManager:
  preserve = [policies.LatestN(keep)] + ([policies.EveryNSteps(keep_every)] if keep_every else [])
  return ocp.CheckpointManager(root, options=ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(preserve), cleanup_tmp_directories=True,
      async_options=ocp.AsyncOptions(timeout_secs=TIMEOUT)))


def _abandon(manager) -> None:
  """Closes a manager whose write failed; each part of it raises once what went wrong."""
  for _ in range(4):
    with contextlib.suppress(Exception):
      return manager.close()
