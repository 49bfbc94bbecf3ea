"""What a data source returns, and the pure functions between it and the training step.

Images stay uint8 [N, H, W, C] on the host, in memory or on disk (stream.py). The batch of a step is
`host_batch(data, batch_indices(...))`; scaling to [-1, 1] happens on the device, inside the compiled step. Batch
indices are a pure function of (seed, step), so the position in the data is one integer and resuming needs no iterator
state.
"""
import functools
from typing import NamedTuple

import numpy as np

from diffusion.errors import InputError


class Dataset(NamedTuple):
  images: np.ndarray  # uint8 [N, H, W, C], C from 1 to 4; or a Stream
  labels: np.ndarray  # int32 [N] class indices (0 if unlabelled), or float32 [N, K] context vectors
  classes: tuple[str, ...] = ()  # K names; () = unconditional
  captions: tuple[str, ...] = ()  # N texts, or ()
  attributes: tuple[dict, ...] = ()  # N dicts, or ()


class Source(NamedTuple):
  train: Dataset
  heldout: Dataset  # may be empty
  notes: tuple[str, ...] = ()  # one line each: what the user should know about how the data was read


def condition_vectors(labels, classes):
  """The conditions of the network, float32 [B, K]; NumPy and JAX arrays.

  labels: int [B] class indices, which become one-hot rows, or [B, K] vectors, which are returned as they are.
  """
  if labels.ndim == 2:
    return labels.astype('float32')
  return (labels[:, None] == np.arange(len(classes))).astype('float32')


def host_batch(data, indices):
  """The examples at `indices` (int [B]) as the host arrays that Task.encode takes.

  Returns:
    {'images': uint8 [B, H, W, C]}, and 'cond': float32 [B, K] if there are classes.
  """
  batch = dict(images=data.images[indices])
  if data.classes:
    batch['cond'] = condition_vectors(data.labels[indices], data.classes)
  return batch


def read_batch(data, batch, seed, rows, step):
  """The rows of the batch at `step` that this process reads, as host_batch gives them.

  Args:
    data: a Dataset.   batch: examples in a batch, over all hosts.   seed: of the order.
    rows: integers, of the batch.
  """
  return host_batch(data, batch_indices(len(data.images), batch, seed, step)[np.asarray(rows)])


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
  """Whether the images are an array; otherwise they are a Stream, read on access."""
  return isinstance(data.images, np.ndarray)


def take(data, index):
  """The examples selected by `index` (integers or a boolean mask), as a Dataset."""
  positions = np.arange(len(data.images))[index]
  images = data.images[positions] if in_memory(data) else data.images.take(positions)
  pick = lambda values: tuple(values[i] for i in positions) if values else ()
  return data._replace(images=images, labels=data.labels[positions], captions=pick(data.captions),
                       attributes=pick(data.attributes))


def check(data, name):
  """Returns data. Raises InputError, starting with `name`, if shapes, dtypes, counts or labels are inconsistent."""
  images, labels, classes, captions, attributes = data
  if images.ndim != 4 or not 1 <= images.shape[-1] <= 4 or images.dtype != np.uint8:
    raise InputError(f'{name}: images must be uint8 [N, height, width, channels] with 1 to 4 channels, '
                     f'channels last; got {images.dtype} {list(images.shape)}')
  if 0 in images.shape[1:]:
    raise InputError(f'{name}: images of size {images.shape[1]}x{images.shape[2]} have no pixels')
  count = len(images)
  for what, values in (('labels', labels), ('captions', captions), ('attributes', attributes)):
    if len(values) != count and (what == 'labels' or values):
      raise InputError(f'{name}: {len(values)} {what} for {count} images; give one for each')
  if labels.ndim == 2:
    if labels.shape[1] != len(classes):
      raise InputError(f'{name}: label vectors have {labels.shape[1]} entries, '
                       f'but {len(classes)} classes have names')
    finite = np.isfinite(labels).all(1)
    if not finite.all():
      raise InputError(f'{name}: label vectors must be finite; row {finite.argmin()} is not')
  elif count and not 0 <= labels.min() <= labels.max() < max(len(classes), 1):
    bad = int(np.argmax((labels < 0) | (labels >= max(len(classes), 1))))
    raise InputError(f'{name}: label {labels[bad]} of image {bad} is out of range; '
                     f'{len(classes)} classes have labels 0 to {max(len(classes), 1) - 1}')
  return data


def describe(source):
  """A text to show before training: counts, shape, value range, classes with counts, some captions, notes."""
  train, heldout, notes = source
  height, width, channels = train.images.shape[1:]
  inspected = train.images if in_memory(train) else train.images[:64]  # the rest stays unread
  scope = '' if in_memory(train) else f' in the first {len(inspected)}'
  lines = [f'images    {len(train.images):,} for training, {len(heldout.images):,} held out, '
           f'{height}x{width}x{channels} uint8, values {inspected.min()} to {inspected.max()}{scope}']
  if train.classes:
    lines += [f'classes   {_counts(train)}']
  if train.captions:
    lines += [f'captions  {text!r}' for text in train.captions[:3]]
  return '\n'.join(lines + [f'note      {note}' for note in notes])


def _counts(data, most=12):
  if data.labels.ndim == 2:
    means = data.labels.mean(0)
    parts = [f'{name} (mean {mean:.2f})' for name, mean in zip(data.classes, means)]
  else:
    counts = np.bincount(data.labels, minlength=len(data.classes))
    parts = [f'{name} {count:,}' for name, count in zip(data.classes, counts)]
  more = [f'and {len(parts) - most} more'] if len(parts) > most else []
  return f'{len(parts)}: ' + ', '.join(parts[:most] + more)
