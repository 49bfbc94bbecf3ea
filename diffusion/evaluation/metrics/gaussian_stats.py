"""Mean and covariance of a stream of features, in groups, so that statistics derived from them have an error estimate.

Sample i of the stream belongs to group i % G. If the stream is in random order the groups are exchangeable, and
leaving out one at a time shows how a statistic varies over samples (`jackknife`). Memory does not depend on the length
of the stream: features are buffered on the host until there are ROWS of them; their centred sums are computed on the
devices in float32 and merged on the host in float64 (Chan, Golub and LeVeque, 1979).
"""
import functools
import io
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import stdtrit

from diffusion.errors import InputError
from diffusion.evaluation.metrics.record import Estimate
from diffusion.system import sharding
from diffusion.system.files import user_path, write_atomic

ROWS = 4096  # samples summed at once
MANY = 1e12  # stands for the unknown number of samples of a file of statistics


class Moments(NamedTuple):
  """Statistics of G groups; float64 on the host. A single group cannot be resampled."""
  count: Any   # [G], number of samples
  mean: Any    # [G, D]
  square: Any  # [G, D, D], sums of products of deviations from the mean


class Stream(NamedTuple):
  """Moments being accumulated."""
  groups: Any       # G, or None: chosen by D
  mesh: Any         # of the devices that sum, or None: the default device
  done: Any = None  # Moments of the samples summed so far
  waiting: tuple = ()  # samples not summed yet, float32 arrays [b, D]


def groups_for(size):
  """Number of groups for `size` features: at 2048 features a group takes 34 MB, and FD needs an eigendecomposition
  per pair of groups."""
  return 12 if size <= 512 else 6


@functools.partial(jax.jit, static_argnums=2)
def _sums(points, used, groups):
  """A shift [G, D], and sums [G, D] and products [G, D, D] of deviations from it, over `used` of the rows [R, D]."""
  real = (jnp.arange(len(points)) < used).reshape(-1, groups, 1)
  x = jnp.where(real, points.reshape(-1, groups, points.shape[1]).astype(jnp.float32), 0.)
  shift = jnp.sum(x, 0) / jnp.maximum(jnp.sum(real, 0), 1)  # rounded; the sums hold the difference from the mean
  gap = jnp.where(real, x - shift, 0.)
  return shift, jnp.sum(gap, 0), jnp.einsum('bgd,bge->gde', gap, gap, precision='highest')


def check(points, size=None):
  """Features as host float32 [B, D].

  Raises:
    InputError: the shape or size is wrong, or a value is not finite.
  """
  points = np.asarray(points, np.float32)
  if points.ndim != 2 or size not in (None, points.shape[1]):
    raise InputError(f'features of shape {points.shape}: expected [samples, {size or "features"}] '
                     'of the same extractor')
  bad = np.count_nonzero(~np.isfinite(points).all(1))
  if bad:
    raise InputError(f'{bad} of {len(points)} samples have features that are not finite; '
                     "check the samples and the extractor's weights")
  return points


def place(rows, mesh):
  """Puts host rows on the devices of a mesh, split over them; mesh None: on the default device."""
  return jnp.asarray(rows) if mesh is None else sharding.put_batch(rows, mesh)


def merge(a, b):
  """The combined Moments of two streams, group by group."""
  n = a.count + b.count
  gap, share = b.mean - a.mean, (b.count / np.maximum(n, 1))[:, None]
  square = a.square + b.square
  square += np.einsum('gd,ge->gde', gap * (a.count[:, None] * share), gap)
  return Moments(n, a.mean + gap * share, square)


def start(groups=None, mesh=None):
  """An empty Stream."""
  if groups is not None and groups < 3:
    raise InputError(f'groups={groups}: expected at least 3, for an error estimate')
  return Stream(groups, mesh)


def _flush(stream, rows, used):
  groups = stream.groups
  shift, sums, products = (np.asarray(a, np.float64) for a in _sums(place(rows, stream.mesh), used, groups))
  count = np.array([len(range(g, used, groups)) for g in range(groups)], np.float64)
  rest = sums / np.maximum(count, 1)[:, None]
  products -= np.einsum('gd,ge->gde', sums, rest)
  new = Moments(count, shift + rest, products)
  return stream._replace(done=new if stream.done is None else merge(stream.done, new))


def _rows(stream):
  """Samples per sum: about ROWS, divisible by the devices and by the groups, so that sample i is in group i % G."""
  step = math.lcm(stream.groups, stream.mesh.size if stream.mesh else 1)
  return max(1, ROWS // step) * step


def add(stream, points):
  """Adds samples to a Stream: features [B, D], any B."""
  known = stream.waiting[0] if stream.waiting else None if stream.done is None else stream.done.mean
  points = check(points, None if known is None else known.shape[1])
  stream = stream._replace(groups=stream.groups or groups_for(points.shape[1]), waiting=(*stream.waiting, points))
  rows = _rows(stream)
  if sum(map(len, stream.waiting)) < rows:
    return stream
  whole = np.concatenate(stream.waiting)
  for first in range(0, len(whole) - rows + 1, rows):
    stream = _flush(stream, whole[first:first + rows], rows)
  return stream._replace(waiting=(whole[len(whole) // rows * rows:],))


def finish(stream):
  """The Moments of a Stream.

  Raises:
    InputError: the Stream is empty.
  """
  used = sum(map(len, stream.waiting))
  if not used and stream.done is None:
    raise InputError('no samples: expected at least one')
  if used:
    whole = np.concatenate(stream.waiting)
    stream = _flush(stream, np.pad(whole, ((0, _rows(stream) - used), (0, 0))), used)
  return stream.done


def moments(batches, groups=None, mesh=None):
  """The Moments of features.

  Args:
    batches: arrays [B, D] in random order, any B.
    groups: G, at least 3; None: 12, or 6 for more than 512 features.
    mesh: of the devices that sum; None: the default device.
  Raises:
    InputError: no samples, inconsistent shapes, or features that are not finite.
  """
  return finish(functools.reduce(add, batches, start(groups, mesh)))


# ---- reading them
def _together(count, mean, square):
  n = count.sum()
  middle = count @ mean / n
  gap = mean - middle
  return n, middle, square.sum(0) + (gap * count[:, None]).T @ gap


def total(moments, keep=slice(None)):
  """(n, mean [D], covariance [D, D] with n - 1) of the groups that `keep` selects, with repetitions."""
  n, mean, square = _together(*(a[keep] for a in moments))
  return n, mean, square / max(n - 1, 1)


def regroup(moments, groups):
  """Merges groups: group g becomes part of group g % groups."""
  if groups == len(moments.count):
    return moments
  return Moments(*map(np.array, zip(*(_together(*(a[g::groups] for a in moments)) for g in range(groups)))))


def fixed(mean, covariance):
  """Moments of one group from published statistics of an unknown number of samples."""
  mean, covariance = (np.asarray(a, np.float64) for a in (mean, covariance))
  return Moments(np.array([MANY]), mean[None], covariance[None] * (MANY - 1))


def write(path, moments):
  """Writes an .npz for `read`, with mu and sigma for other FID tools."""
  _, mean, covariance = total(moments)
  data = io.BytesIO()
  np.savez(data, mu=mean, sigma=covariance, **moments._asdict())
  write_atomic(path, data.getvalue())


def read(path):
  """Reads Moments from an .npz of `write`, or from one of other FID tools with mu [D] and sigma [D, D].

  Raises:
    InputError: the file is missing or has other contents.
  """
  try:
    with np.load(io.BytesIO(user_path(path).read_bytes()), allow_pickle=False) as stored:
      if all(name in stored for name in Moments._fields):
        return Moments(*(stored[name] for name in Moments._fields))
      mean, covariance = stored['mu'], stored['sigma']
  except (OSError, ValueError, KeyError, EOFError, AttributeError) as error:
    raise InputError(f'{path}: expected an .npz with mu and sigma ({error})') from error
  if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
    raise InputError(f'{path}: expected mu [D] and sigma [D, D], got shapes {mean.shape} and {covariance.shape}')
  return fixed(mean, covariance)


def jackknife(whole, without, n):
  """The Estimate of a statistic from K groups.

  Tukey's standard error, which is not too small on average (Efron and Stein, 1981), and Student's interval with K - 1
  degrees of freedom, for the expected value at this n. NaN with fewer than two groups.

  Args:
    whole: the statistic of all samples.
    without: [K], the statistic without each group.
    n: number of samples.
  """
  K, without = len(without), np.asarray(without, np.float64)
  error = math.sqrt((K - 1) * without.var()) if K > 1 else math.nan
  half = float(stdtrit(K - 1, .975)) * error if K > 1 else math.nan
  return Estimate(float(whole), error, float(whole - half), float(whole + half), int(n))
