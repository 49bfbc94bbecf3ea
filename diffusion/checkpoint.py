"""Checkpoints that survive `kill -9`, a full disk and damaged files.

A step is one folder, written in the background under a temporary name and renamed when complete:
`<directory>/<step>/state` holds the arrays by path (`params/conv_in/kernel`), `<step>/meta` one JSON record
with the caller's meta, the layout {path: [shape, dtype]} and one checksum for each array. Orbax restores
flipped bytes without complaint, so a restore computes the checksums again and walks back to the newest step
that is whole.

The checksum: with w_i the i-th 32-bit word of the array in row-major order (or the i-th element, where they
are smaller), `sum_i mix(w_i + i * 0x9e3779b9) mod 2^32`. A sum does not depend on how the array is cut over
devices and processes. `mix` is a bijection (the finaliser of MurmurHash3, public domain), so that a change in
one word always shows; any other damage is missed once in 2^32.
"""
import contextlib
import functools
import json
import logging as stdlib_logging
import os
import sys
import time
from typing import Any, Callable, NamedTuple
import zlib

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from diffusion.errors import InputError


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
    here, or at the next save, wait or close, as an InputError; the finished steps are kept.
  restore(abstract): the newest whole step as `Restored`, or None where there is no checkpoint. `abstract` is
    the tree of the state with a ShapeDtypeStruct (and its sharding; else the first device) for each array.
    InputError where the checkpoint has other arrays than `abstract`, and where no step is whole.
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


def open_checkpoints(directory, keep=2, keep_every=None) -> Checkpoints:
  """Opens a directory of checkpoints; it need not exist.

  Args:
    directory: local or gs://.
    keep: how many of the newest steps stay; an older one goes only when a newer one is complete.
    keep_every: steps that divide by it stay as well.
  Raises:
    InputError: keep < 1.
  """
  if keep < 1:
    raise InputError(f'keep must be at least 1 checkpoint, got {keep}')
  # Orbax wants absolute paths; resolve() would mangle gs://bucket.
  root = epath.Path(directory if '://' in str(directory) else os.path.abspath(directory))
  damaged = {}  # step -> what is wrong with it

  def steps():
    return [step for step in _finished(root) if step not in damaged]

  @functools.cache
  def writer():
    # Made at the first save, because it clears away the unfinished folders of a run that was killed: a
    # process that only reads must not do so to a run that is still going on.
    return _manager(root, keep, keep_every)

  def save(step, state, meta):
    if step in steps():
      return
    record = {'meta': meta, 'layout': layout(state), 'checksums': checksums(state)}
    items = {'state': ocp.args.StandardSave(_flat(state)), 'meta': ocp.args.JsonSave(_seal(record))}
    with _one_line(root):
      if damaged:
        _set_aside(root, damaged)
        damaged.clear()
        writer().reload()  # it may remember the steps that were moved
      writer().save(step, args=ocp.args.Composite(**items), force=True)

  def restore(abstract, step=None):
    if step is not None and step not in steps():
      raise InputError(f'{root} holds no checkpoint of step {step}; there are {", ".join(map(str, steps())) or "none"}')
    found = _newest(root, steps() if step is None else [step], damaged, lambda folder: _read(folder, abstract))
    notes = [f'checkpoint {step} is damaged: {reason}' for step, reason in damaged.items()]
    return found and Restored(found[0], *found[1], notes)

  def latest_meta():
    found = _newest(root, steps(), damaged, _unseal)
    return found and (found[0], found[1]['meta'])

  def finish(name):
    if writer.cache_info().currsize:  # nothing to wait for where nothing was saved
      with _one_line(root):
        getattr(writer(), name)()

  wait = functools.partial(finish, 'wait_until_finished')
  return Checkpoints(save, restore, latest_meta, steps, wait, functools.partial(finish, 'close'))


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


def layout(tree) -> dict:
  """{path: [shape, dtype]} of a tree of arrays or of ShapeDtypeStructs, as JSON holds it."""
  return {path: [list(np.shape(leaf)), str(leaf.dtype if hasattr(leaf, 'dtype') else np.asarray(leaf).dtype)]
          for path, leaf in _flat(tree).items()}


def differences(saved: dict, here: dict) -> list:
  """One line for each array by which two layouts differ, such as
  `params/conv_in/kernel: (3, 3, 3, 32) float32 here, (3, 3, 1, 64) float32 in the checkpoint`."""
  def show(entry):
    return f'({", ".join(map(str, entry[0]))}) {entry[1]}' if entry else 'absent'
  return [f'{path}: {show(here.get(path))} here, {show(saved.get(path))} in the checkpoint'
          for path in {**here, **saved} if here.get(path) != saved.get(path)]


def checksums(tree) -> dict:
  """{path: int} in [0, 2^32): equal for equal bits, on any number of devices and processes (see the top)."""
  flat = _flat(tree)
  parts = np.zeros(len(flat), np.uint32)
  for k, (path, leaf) in enumerate(flat.items()):
    for data, start in _shards(path, leaf):
      parts[k] += _checksum(data, start, np.shape(leaf))
  if jax.process_count() > 1:
    parts = multihost_utils.process_allgather(parts).sum(0, dtype=np.uint32)
  return dict(zip(flat, parts.tolist()))


def _shards(path, leaf):
  """The parts of an array that this process answers for, on the host, each with the index where it starts."""
  if not isinstance(leaf, jax.Array):
    return [(np.asarray(leaf), [0] * np.ndim(leaf))] if jax.process_index() == 0 else []
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
    raise InputError(f'{path} is a typed PRNG key, which has no bits to store; put jax.random.key_data there')
  own = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
  return [(np.asarray(shard.data), [part.start or 0 for part in shard.index]) for shard in own]


def _checksum(data, start, shape) -> np.uint32:
  """What the part `data`, at index `start` of an array of this shape, adds to the checksum of the array."""
  # On the host, where orbax copies the arrays anyway: compiled, it took 0.1 s and more for each new shape.
  size = data.dtype.itemsize
  words = np.ascontiguousarray(data).view({1: np.uint8, 2: np.uint16}.get(size, np.uint32)).reshape(-1)
  stride = max(1, size // 4)  # words in an element
  offsets = [np.arange(stride, dtype=np.uint32)]
  for axis in reversed(range(data.ndim)):
    where = np.arange(data.shape[axis], dtype=np.uint64) + np.uint64(start[axis])
    offsets.append((where * np.uint64(stride)).astype(np.uint32))
    stride = stride * shape[axis] % 2**32
  index = functools.reduce(np.add.outer, offsets[::-1]).reshape(-1)
  total = np.zeros((), np.uint32)
  for i in range(0, words.size, 65536):  # in pieces that stay in the cache
    h = index[i:i + 65536]
    h *= np.uint32(0x9e3779b9)
    h += words[i:i + 65536]
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x85ebca6b)
    h ^= h >> np.uint32(13)
    h *= np.uint32(0xc2b2ae35)
    h ^= h >> np.uint32(16)
    total += h.sum(dtype=np.uint32)
  return total


def _flat(tree) -> dict:
  """{path: leaf}, in the order of the leaves."""
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _seal(record) -> dict:
  """The record with a checksum of its canonical text; what is not JSON raises TypeError."""
  return {**record, 'crc32': zlib.crc32(json.dumps(record, sort_keys=True).encode())}


def _unseal(folder) -> dict:
  """The record of a step; an exception of any type where it is damaged."""
  record = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(folder / 'meta')
  if record != _seal({key: record[key] for key in ('meta', 'layout', 'checksums')}):
    raise ValueError('its meta does not match its checksum')
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

  wanted = {path: target(leaf) for path, leaf in _flat(abstract).items()}
  reader = ocp.Checkpointer(ocp.StandardCheckpointHandler())
  flat = reader.restore(folder / 'state', args=ocp.args.StandardRestore(wanted))
  wrong = [path for path, value in checksums(flat).items() if value != record['checksums'][path]]
  if wrong:
    raise ValueError(f'{wrong[0]} does not match its checksum ({len(wrong)} of {len(flat)} arrays do not)')
  return jax.tree.unflatten(jax.tree.structure(abstract), [flat[path] for path in wanted]), record['meta']


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
  root.mkdir(parents=True, exist_ok=True)
  return ocp.CheckpointManager(root, options=ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(preserve), cleanup_tmp_directories=True))


def _reason(error) -> str:
  """What went wrong in one line, without the specifications that tensorstore adds in brackets."""
  text = ' '.join(str(error).split(' [')[0].split()) or type(error).__name__
  return text if len(text) <= 240 else f'{text[:100]} ... {text[-130:]}'


@contextlib.contextmanager
def _one_line(root):
  """An error of writing, also of orbax's threads, as the InputError that says what is left and what to do."""
  try:
    yield
  except (OSError, RuntimeError, ValueError) as error:
    raise InputError(
      f'cannot save a checkpoint in {root}: {_reason(error)}; the finished steps {_finished(root)} are kept: '
      'make room there, or mend the access, and run the same command to go on') from error
