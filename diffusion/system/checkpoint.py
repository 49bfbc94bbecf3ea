"""Checkpoints that survive `kill -9`, a full disk and damaged files.

A step is one folder, written in the background under a temporary name and renamed when complete:
`<directory>/<step>/state` holds the arrays by path (`params/conv_in/kernel`), `<step>/meta` one JSON record
(checkpoint_reading.py) with the caller's meta and one checksum per array. Orbax restores flipped bytes without
complaint, so a restore recomputes the checksums and walks back to the newest intact step.
"""
import json
import os
from typing import Any, Callable, NamedTuple

from etils import epath
import orbax.checkpoint as ocp

from diffusion.errors import InputError
from diffusion.system.checkpoint_reading import make_record, newest_intact, read_record, read_step, reading
from diffusion.system.checkpoint_writing import finished_steps, open_writer, set_aside
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
  damaged = {}  # step -> what is wrong with it
  writer = open_writer(root, keep, keep_every, on_failure)

  def steps():
    return [step for step in finished_steps(root) if step not in damaged]

  def move(some, why):
    """Renames steps, so that their numbers are free; returns whether it succeeded. why: 'damaged' or 'superseded'."""
    if not some:
      return True
    if not writer.attempt(lambda _: set_aside(root, some, why), f'set aside {why} checkpoints'):
      return False
    for step in some:
      damaged.pop(step, None)
    return writer.attempt(lambda manager: manager and manager.reload(), 'list the checkpoints')

  def save(step, state, meta):
    writer.wait()
    existing, what = [], f'save checkpoint {step}'
    # In a directory that cannot be created, orbax's threads would wait for minutes, holding the state.
    if not writer.attempt(lambda _: (try_writing(root), existing.extend(steps())), what):
      return
    if any(all_gather_text('exists' if step in existing else '')):
      return
    record = make_record(state, meta)
    items = ocp.args.Composite(state=ocp.args.StandardSave(flat(state)), meta=ocp.args.JsonSave(record))
    if move(sorted(damaged), 'damaged'):
      writer.save(step, items)

  def restore(abstract, step=None, other=None):
    available = _common_steps(root, steps)
    if step is not None and step not in available:
      listed = ', '.join(map(str, available)) or 'none'
      raise InputError(f'{root} holds no checkpoint of step {step}; available: {listed}')
    wanted = available if step is None else [step]
    newest = newest_intact(root, wanted, damaged, lambda folder: read_step(folder, abstract, other))
    notes = [f'checkpoint {bad} is damaged: {why}' for bad, why in damaged.items()]
    return newest and Restored(newest[0], *newest[1], notes)

  def latest_meta():
    read = lambda folder: run_together(lambda: read_record(folder))
    newest = newest_intact(root, _common_steps(root, steps), damaged, read)
    return newest and (newest[0], newest[1]['meta'])

  def set_aside_after(step):
    writer.wait()
    move([later for later in _common_steps(root, steps) if later > step], 'superseded')

  return Checkpoints(save, restore, latest_meta, set_aside_after, steps, writer.wait, writer.close)


def _common_steps(root, steps):
  """The steps that all processes see, ascending. Raises InputError if their newest ones differ."""
  def own():
    with reading(root):
      return json.dumps(steps())
  every = [set(json.loads(text)) for text in all_gather_text(run_together(own))]
  if len({max(each, default=None) for each in every}) > 1:
    raise InputError(f'the processes see different checkpoints in {root}: '
                     '--workdir must be on a disk that all hosts share')
  return sorted(set.intersection(*every))
