"""What a data source returns, and the pure functions between it and the training step.

A Dataset is named columns of one length. They stay on the host, in memory or on disk (stream.py); the batch of a step
is `task.batch(data, batch_indices(...))`, and what is computed of it, on the device. Batch indices are a pure function
of (seed, step), so the position in the data is one integer and resuming needs no iterator state.
"""
import functools
import hashlib
import json
from typing import NamedTuple

import numpy as np

from diffusion.data.stream import Stream
from diffusion.errors import InputError, shown


class Dataset(NamedTuple):
  """N examples as named columns.

  A column has a length, N, and column[integers or slice] are examples of it. It is a NumPy array of any dtype and rank,
  texts among them (NumPy's StringDType), a Stream of images on disk, or a Ragged of examples of different lengths.
  """
  arrays: dict      # name -> column; the first one is what the data are about
  facts: dict = {}  # what the source says about them, as in JSON: classes, the names of labels; ..


class Source(NamedTuple):
  train: Dataset
  heldout: Dataset  # may be empty
  notes: tuple[str, ...] = ()  # one line each: what the user should know about how the data was read


def size(data):
  """The number of examples."""
  return len(next(iter(data.arrays.values())))


def condition_vectors(labels, classes):
  """The conditions of the network, float32 [B, K]; NumPy and JAX arrays.

  labels: int [B] class indices, which become one-hot rows, or [B, K] vectors, which are returned as they are.
  """
  if labels.ndim == 2:
    return labels.astype('float32')
  return (labels[:, None] == np.arange(len(classes))).astype('float32')


def read_batch(batch_of, data, batch, seed, rows, step):
  """The rows of the batch at `step` that this process reads, as the task makes them.

  Args:
    batch_of: (Dataset, indices) -> dict of arrays, Task.batch.
    data: a Dataset.   batch: examples in a batch, over all hosts.   seed: of the order.
    rows: integers, of the batch.
  """
  return batch_of(data, batch_indices(size(data), batch, seed, step)[np.asarray(rows)])


def batch_indices(n, batch, seed, step):
  """Indices of the batch at `step`: int64 [batch], values in [0, n).

  Consecutive batches are the concatenation of one permutation per epoch; a batch may span epochs.
  """
  if n < 1 or batch < 1 or seed < 0 or step < 0:
    raise InputError('batch_indices needs n and batch of at least 1, seed and step of at least 0; '
                     f'got {n=}, {batch=}, {seed=}, {step=}')
  position = step * batch + np.arange(batch, dtype=np.int64)
  epochs, offset = np.divmod(position, n)
  indices = np.empty(batch, np.int64)
  for epoch in np.unique(epochs):
    within = epochs == epoch
    indices[within] = _permutation(n, seed, int(epoch))[offset[within]]
  return indices


def padded_batches(n, size):
  """Yields (indices int [size], count) of the batches that cover 0 .. n - 1 in order, all of one size.

  The last batch is filled up by repeating index n - 1; only the first `count` of its results are to be used.
  """
  for first in range(0, n, size):
    yield np.minimum(np.arange(first, first + size), n - 1), min(size, n - first)


@functools.lru_cache(maxsize=4)
def _permutation(n, seed, epoch):
  # Raw bits of a bit generator are the only random stream that NumPy guarantees never to change.
  bits = np.random.Philox(np.random.SeedSequence((seed, epoch))).random_raw(n)
  permutation = np.argsort(bits, kind='stable')
  permutation.flags.writeable = False
  return permutation


def in_memory(data):
  """Whether no column is a Stream, which is read on access."""
  return not any(isinstance(column, Stream) for column in data.arrays.values())


def take(data, index):
  """The examples selected by `index` (integers or a boolean mask), as a Dataset; nothing is read from disk."""
  positions = np.arange(size(data))[index]
  pick = lambda column: column.take(positions) if isinstance(column, Stream) else column[positions]
  return data._replace(arrays={name: pick(column) for name, column in data.arrays.items()})


def captions(data, index):
  """Texts to write under examples: their classes, or else what a column `captions` says; None without either."""
  labels, classes = data.arrays.get('labels'), data.facts.get('classes', ())
  if labels is not None and labels.ndim == 1 and classes:
    return [classes[i] for i in labels[index]]
  return [str(text) for text in first_captions(data)[index]] if 'captions' in data.arrays else None


def first_captions(data):
  """The column `captions`, of examples with several the first."""
  column = data.arrays['captions']
  return column if len(column.shape) == 1 else column[:, 0]


def check(data, name):
  """Returns data, if columns are of one length, labels are consistent and facts are JSON.

  Raises:
    InputError: they are not; starts with `name`.
  """
  if not data.arrays:
    raise InputError(f'{name}: data without columns; give at least one')
  first, column = next(iter(data.arrays.items()))
  count = len(column)
  for what, values in data.arrays.items():
    if len(values) != count:
      raise InputError(f'{name}: {len(values)} {what} for {count} {first}; give one for each')
  if 'labels' in data.arrays:
    one = 'image' if 'images' in data.arrays else 'example'
    _check_labels(data.arrays['labels'], data.facts.get('classes', ()), name, one)
  for fact, value in data.facts.items():
    try:
      json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
      raise InputError(f'{name}: the fact {fact}={value!r} cannot be stored as JSON ({error}); '
                       'give texts, finite Python numbers, or tuples of them') from error
  return data


def _check_labels(labels, classes, name, one):
  if labels.ndim == 2:
    if labels.shape[1] != len(classes):
      raise InputError(f'{name}: label vectors have {labels.shape[1]} entries, '
                       f'but {len(classes)} classes have names')
    finite = np.isfinite(labels).all(1)
    if not finite.all():
      raise InputError(f'{name}: label vectors must be finite; row {finite.argmin()} is not')
  elif len(labels) and not 0 <= labels.min() <= labels.max() < max(len(classes), 1):
    bad = int(np.argmax((labels < 0) | (labels >= max(len(classes), 1))))
    raise InputError(f'{name}: label {labels[bad]} of {one} {bad} is out of range; '
                     f'{len(classes)} classes have labels 0 to {max(len(classes), 1) - 1}')


def fingerprint(source):
  """32 hex digits that are the same for the same columns and facts on both sides, whatever their name and place."""
  digest = hashlib.blake2b(digest_size=16)
  for side in source[:2]:
    digest.update(json.dumps(side.facts, sort_keys=True).encode())
    for name, column in sorted(side.arrays.items()):
      digest.update(f'{name} {column.dtype} {column.shape} '.encode())
      digest.update(_bytes(column))
  return digest.hexdigest()


def _bytes(column):
  """What tells a column from another one of its dtype and shape."""
  if hasattr(column, 'identity'):  # a Stream or a Ragged
    return column.identity
  if column.dtype.kind in 'biufc':
    return np.ascontiguousarray(column)
  return repr(column.tolist()).encode('utf-8', 'surrogateescape')


def describe(source):
  """A text to show before training: counts, shape, value range, classes with counts, some captions, notes."""
  train, heldout, notes = source
  name, column = next(iter(train.arrays.items()))
  inspected = column[:64] if isinstance(column, Stream) else getattr(column, 'values', column)  # the rest stays unread
  scope = f' in the first {len(inspected)}' if isinstance(column, Stream) else ''
  by = 'x'.join(map(str, column.shape[1:])) or 'single'
  numbers = column.dtype.kind in 'uifb' and inspected.size
  values = f', values {_short(inspected.min())} to {_short(inspected.max())}{scope}' if numbers else ''
  what = 'texts' if column.dtype.kind == 'T' else f'{by} {column.dtype}{values}'
  if 'columns' in train.facts:  # a table, of which the notes say more
    number = len(train.facts['columns'])
    name, what = 'rows', f'{number} column{"s" * (number != 1)}'
  lines = [f'{name:<9} {size(train):,} for training, {size(heldout):,} held out, {what}']
  if train.facts.get('classes') and 'labels' in train.arrays:
    lines += [f'classes   {_counts(train)}']
  if 'captions' in train.arrays:
    lines += [f'captions  {text!r}' for text in first_captions(train)[:3]]
  return '\n'.join(lines + [f'note      {note}' for note in notes])


def _short(value):
  return f'{value:.3g}' if isinstance(value, np.floating) else value


def _counts(data, most=12):
  labels, classes = data.arrays['labels'], data.facts['classes']
  if labels.ndim == 2:
    parts = [f'{name} (mean {mean:.2f})' for name, mean in zip(classes, labels.mean(0))]
  else:
    counts = np.bincount(labels, minlength=len(classes))
    parts = [f'{shown(name)} {count:,}' for name, count in zip(classes, counts)]
  more = [f'and {len(parts) - most} more'] if len(parts) > most else []
  return f'{len(parts)}: ' + ', '.join(parts[:most] + more)
