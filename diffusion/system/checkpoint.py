"""Checkpoints that survive `kill -9`, a full disk and damaged files.

A step is one folder, written in the background under a temporary name and renamed when complete:
`<directory>/<step>/state` holds the arrays by path (`params/conv_in/kernel`), `<step>/meta` one JSON record
(checkpoint_reading.py) with the caller's meta and one checksum per array. Orbax restores flipped bytes without
complaint, so a restore recomputes the checksums and walks back to the newest intact step.
"""
from functools import partial
import json
import os
from typing import Any, Callable, NamedTuple

from etils import epath
import orbax.checkpoint as ocp

from diffusion.errors import InputError
from diffusion.system.checkpoint_reading import make_record, newest_intact, read_record, read_step, reading
from diffusion.system.checkpoint_writing import finished_steps, open_writer, set_aside, Writer
from diffusion.system.checksums import flat
from diffusion.system.consensus import all_gather_text, run_together
from diffusion.system.files import try_writing


class Restored(NamedTuple):
  """A restored checkpoint."""
  step: int
  state: Any  # as the abstract tree describes it
  meta: dict  # of that step
  notes: list  # one line for each damaged newer step


class Checkpoints(NamedTuple):
  """The checkpoints in one directory. Every process calls every function; the first save is the first write.

  save(step, state, meta): starts writing; an existing step is left as it is. An error of the write is reported here,
    or by the next save, wait or close: raised as InputError, or logged in one line (see on_failure). Finished steps
    are kept; incomplete ones are removed.
  restore(abstract, step=None, other=None): the newest intact step, or exactly `step`, as `Restored`; None if there is
    no checkpoint. `abstract` is the tree of the state with a ShapeDtypeStruct for each array (without a sharding: on
    the first device), `other` one that a step may hold instead. Raises InputError if the checkpoint has other arrays
    than these or a newer format, if it cannot be read for another reason than damage (memory, permissions, network),
    if no step is intact, if `step` does not exist, and if processes see different checkpoints.
  latest_meta(): (step, meta) of the newest step with a readable record, without reading arrays; None if there is no
    checkpoint. Raises the same InputErrors.
  set_aside_after(step): waits for pending writes, then renames the finished steps above `step`, which a run that
    resumes from `step` would not overwrite.
  steps(): the finished steps that this process sees, ascending, without those that a restore found damaged.
  wait(): waits until everything is on the disk.   close(): waits, and stops the threads.
  """
  save: Callable[[int, Any, dict], None]
  restore: Callable[..., Restored | None]
  latest_meta: Callable[[], tuple | None]
  set_aside_after: Callable[[int], None]
  steps: Callable[[], list]
  wait: Callable[[], None]
  close: Callable[[], None]


def open_checkpoints(directory, keep=2, keep_every=None, on_failure='stop') -> Checkpoints:
  """Opens a directory of checkpoints, which need not exist.

  Args:
    directory: local or gs://.
    keep: number of newest steps to keep; an older one is removed only when a newer one is complete.
    keep_every: multiples of this step are kept as well.
    on_failure: what to do when a step cannot be written: 'stop' raises InputError; 'continue' logs one line, and the
      next save tries again.
  Raises:
    InputError: keep < 1, or another on_failure.
  """
  if keep < 1:
    raise InputError(f'keep must be at least 1 checkpoint, got {keep}')
  if on_failure not in ('stop', 'continue'):
    raise InputError(f"on_failure must be 'stop' or 'continue', got {on_failure!r}")
  # Orbax needs absolute paths; resolve() would mangle gs://bucket.
  root = epath.Path(directory if '://' in str(directory) else os.path.abspath(directory))
  store = _Store(root, open_writer(root, keep, keep_every, on_failure), {})
  return Checkpoints(partial(_save, store), partial(_restore, store), partial(_latest_meta, store),
                     partial(_set_aside_after, store), partial(_steps, store), store.writer.wait, store.writer.close)


class _Store(NamedTuple):
  root: epath.Path
  writer: Writer
  damaged: dict  # step -> what is wrong with it


def _steps(store):
  return [step for step in finished_steps(store.root) if step not in store.damaged]


def _move(store, some, why):
  """Renames steps, so that their numbers are free; returns whether it succeeded. why: 'damaged' or 'superseded'."""
  if not some:
    return True
  if not store.writer.attempt(lambda _: set_aside(store.root, some, why), f'set aside {why} checkpoints'):
    return False
  for step in some:
    store.damaged.pop(step, None)
  return store.writer.attempt(lambda manager: manager and manager.reload(), 'list the checkpoints')


def _save(store, step, state, meta):
  store.writer.wait()
  existing, what = [], f'save checkpoint {step}'
  # In a directory that cannot be created, orbax's threads would wait for minutes, holding the state.
  if not store.writer.attempt(lambda _: (try_writing(store.root), existing.extend(_steps(store))), what):
    return
  if any(all_gather_text('exists' if step in existing else '')):
    return
  record = make_record(state, meta)
  items = ocp.args.Composite(state=ocp.args.StandardSave(flat(state)), meta=ocp.args.JsonSave(record))
  if _move(store, sorted(store.damaged), 'damaged'):
    store.writer.save(step, items)


def _restore(store, abstract, step=None, other=None):
  available = _common_steps(store)
  if step is not None and step not in available:
    listed = ', '.join(map(str, available)) or 'none'
    raise InputError(f'{store.root} holds no checkpoint of step {step}; available: {listed}')
  wanted = available if step is None else [step]
  newest = newest_intact(store.root, wanted, store.damaged, lambda folder: read_step(folder, abstract, other))
  notes = [f'checkpoint {bad} is damaged: {why}' for bad, why in store.damaged.items()]
  return newest and Restored(newest[0], *newest[1], notes)


def _latest_meta(store):
  read = lambda folder: run_together(lambda: read_record(folder))
  newest = newest_intact(store.root, _common_steps(store), store.damaged, read)
  return newest and (newest[0], newest[1]['meta'])


def _set_aside_after(store, step):
  store.writer.wait()
  _move(store, [later for later in _common_steps(store) if later > step], 'superseded')


def _common_steps(store):
  """The steps that all processes see, ascending. Raises InputError if their newest ones differ."""
  def own():
    with reading(store.root):
      return json.dumps(_steps(store))
  every = [set(json.loads(text)) for text in all_gather_text(run_together(own))]
  if len({max(each, default=None) for each in every}) > 1:
    raise InputError(f'the processes see different checkpoints in {store.root}: '
                     '--workdir must be on a disk that all hosts share')
  return sorted(set.intersection(*every))
