"""What a checkpoint step records of itself, and reading a step: telling damage from everything else.

`<step>/meta/metadata` is a JSON record: the caller's `meta`, the `layout` {path: [shape, dtype]} of the state, its
`checksums` (checksums.py), the `format` number, and `crc32`, a checksum of the record itself.
"""
import contextlib
import errno
import json
import re
import zlib

from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from diffusion.errors import InputError
from diffusion.system.checksums import checksums, differences, flat, layout
from diffusion.system.consensus import reason, run_together

# Increment it when older code cannot read what a step holds. The record keeps its location and its seal in every
# format, so that older code can tell a newer step from a damaged one. 0: before formats were numbered. 2: a step may
# hold parameters alone (training/state.lean).
FORMAT = 2

# Errors that do not mean the data is damaged: Python's types, then tensorstore's and JAX's status codes.
_ACCESS = (MemoryError, PermissionError, TimeoutError, ConnectionError)
_ACCESS_CODE = re.compile('RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED')


@contextlib.contextmanager
def reading(folder):
  """Raises InputError for failures unrelated to the folder's contents: a run must not fall back to an older step."""
  try:
    yield
  except Exception as error:
    refused = isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
    if refused or isinstance(error, _ACCESS) or _ACCESS_CODE.match(str(error)):
      raise InputError(f'cannot read {folder}: {reason(error)}; resolve that and run again') from error
    raise


def make_record(state, meta) -> dict:
  """The sealed record of a step that holds `state`; every process calls it."""
  return seal({'format': FORMAT, 'meta': meta, 'layout': layout(state), 'checksums': checksums(state)})


def seal(record) -> dict:
  """The record with a checksum of its canonical text. Raises TypeError for anything that is not JSON."""
  return {**record, 'crc32': zlib.crc32(json.dumps(record, sort_keys=True).encode())}


def read_record(folder) -> dict:
  """The record of a step. Raises InputError if its format is newer or it is inaccessible; anything else is damage."""
  with reading(folder):
    record = json.loads((folder / 'meta' / 'metadata').read_text())
    if record.pop('crc32') != seal(record)['crc32']:
      raise ValueError('its meta does not match its checksum')
    number = record.get('format', 0)
    if number > FORMAT:
      raise InputError(f'{folder} was written by a newer version (format {number}, this one reads up to {FORMAT}): '
                       'upgrade, or use another directory')
    return record


def read_step(folder, abstract, other=None) -> tuple:
  """(state, meta) of a step, by all processes together.

  Args:
    folder: of the step.
    abstract: tree of the state, see Checkpoints.restore.
    other: a tree that the step may hold instead.
  Raises:
    InputError: as read_record, or the checkpoint is of another model. Any other exception means damage.
  """
  first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

  def target(leaf):
    if not hasattr(leaf, 'dtype') or isinstance(leaf, (np.ndarray, np.generic)):
      return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, 'sharding', None) or first)

  def read():
    record = read_record(folder)
    held = other if other is not None and record['layout'] == layout(other) else abstract
    different = differences(record['layout'], layout(held))
    if different:
      more = f' and {len(different) - 4} more' if len(different) > 4 else ''
      raise InputError(f'{folder} holds another model: {"; ".join(different[:4])}{more}; '
                       'use the config it was trained with, or another directory')
    with reading(folder):  # the handler itself, since a Checkpointer waits for the other processes
      handler = ocp.StandardCheckpointHandler()
      targets = {path: target(leaf) for path, leaf in flat(held).items()}
      leaves = handler.restore(folder / 'state', args=ocp.args.StandardRestore(targets))
      return record, held, jax.block_until_ready(leaves)

  record, held, leaves = run_together(read)
  wrong = [path for path, value in checksums(leaves).items() if value != record['checksums'][path]]
  if wrong:
    raise ValueError(f'{wrong[0]} does not match its checksum ({len(wrong)} of {len(leaves)} arrays do not)')
  return jax.tree.unflatten(jax.tree.structure(held), [leaves[path] for path in flat(held)]), record['meta']


def newest_intact(root, steps, damaged, read) -> tuple | None:
  """(step, read(folder)) of the newest intact step; the damaged ones are logged and added to `damaged`.

  Returns None if there is no step at all. Raises InputError if all are damaged.
  """
  for step in reversed(steps):
    try:
      return step, read(root / str(step))
    except InputError:
      raise
    except Exception as error:  # damage raises whatever the reader comes across: KeyError, OSError, ...
      damaged[step] = reason(error)
      logging.warning('checkpoint %s is damaged, trying the one before: %s', root / str(step), damaged[step])
  if damaged:
    tried = ', '.join(f'step {step} ({why})' for step, why in damaged.items())
    raise InputError(f'no checkpoint in {root} is intact: {tried}; restore a backup, or use a new directory')
  return None
