"""Mean and covariance of a stream of features, in groups, so that numbers made of them come with an error.

Sample i of the stream belongs to group i % G. If the stream is in random order the groups are exchangeable, and
leaving out one after the other says how far a number would move with other samples (`jackknife`). Memory does not
depend on the length of the stream: features wait on the host until there are ROWS of them; their centred sums are made
on the devices in float32 and merged on the host in float64 (Chan, Golub and LeVeque, 1979).
"""
import functools
import io
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from scipy.special import stdtrit

from diffusion.errors import InputError
from diffusion.evaluation.metrics.record import Estimate
from diffusion.system import sharding
from diffusion.system.files import write_atomic

ROWS = 4096  # samples that are summed at once
MANY = 1e12  # stands for the unknown number of samples behind a file of statistics


class Moments(NamedTuple):
  """Of G groups; float64 on the host. One group: cannot be resampled."""
  count: Any   # [G], samples
  mean: Any    # [G, D]
  square: Any  # [G, D, D], sums of products of deviations from the mean


class Stream(NamedTuple):
  """Moments in the making."""
  groups: Any       # G, or None: chosen by D
  mesh: Any         # of the devices that sum, or None: the default device
  done: Any = None  # the Moments of what has been summed
  waiting: tuple = ()  # rows that have not, float32 arrays [b, D]


def groups_for(size):
  """How many groups features of a size get: with 2048 of them a group takes 34 MB, and each pair of groups costs FD
  an eigendecomposition."""
  return 12 if size <= 512 else 6


@functools.partial(jax.jit, static_argnums=2)
def _sums(points, used, groups):
  """A shift [G, D], and sums [G, D] and products [G, D, D] of deviations from it, of the first `used` rows [R, D]."""
  real = (jnp.arange(len(points)) < used).reshape(-1, groups, 1)
  x = jnp.where(real, points.reshape(-1, groups, points.shape[1]).astype(jnp.float32), 0.)
  shift = jnp.sum(x, 0) / jnp.maximum(jnp.sum(real, 0), 1)  # rounded: what it misses of the mean is in the sums
  gap = jnp.where(real, x - shift, 0.)
  return shift, jnp.sum(gap, 0), jnp.einsum('bgd,bge->gde', gap, gap, precision='highest')


def check(points, size=None):
  """Features as host float32 [B, D].

  Raises:
    InputError: another shape or size, or a value that is not finite.
  """
  points = np.asarray(points, np.float32)
  if points.ndim != 2 or size not in (None, points.shape[1]):
    raise InputError(f'features of shape {points.shape}: expected [samples, {size or "features"}]; '
                     'are they of one extractor?')
  bad = np.count_nonzero(~np.isfinite(points).all(1))
  if bad:
    raise InputError(f'{bad} of {len(points)} samples have features that are not finite; '
                     'look at the samples and the weights of the extractor')
  return points


def place(rows, mesh):
  """Host rows on the devices of a mesh, split among them; mesh None: on the default device."""
  return jnp.asarray(rows) if mesh is None else sharding.put_batch(rows, mesh)


def merge(a, b):
  """The Moments of two streams together, group by group."""
  n = a.count + b.count
  gap, share = b.mean - a.mean, (b.count / np.maximum(n, 1))[:, None]
  square = a.square + b.square
  square += np.einsum('gd,ge->gde', gap * (a.count[:, None] * share), gap)
  return Moments(n, a.mean + gap * share, square)


def start(groups=None, mesh=None):
  """A Stream without samples."""
  if groups is not None and groups < 3:
    raise InputError(f'groups={groups}: an error takes at least 3')
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
  """The rows of one sum: about ROWS, and divisible by the groups, so that sample i stays in group i % G, and by the
  devices."""
  step = math.lcm(stream.groups, stream.mesh.size if stream.mesh else 1)
  return max(1, ROWS // step) * step


def add(stream, points):
  """The Stream with more samples, features [B, D], any B."""
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
    InputError: it has no samples.
  """
  used = sum(map(len, stream.waiting))
  if not used and stream.done is None:
    raise InputError('no samples: there is nothing to take a mean of')
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
    InputError: no samples, unlike shapes, or features that are not finite.
  """
  return finish(functools.reduce(add, batches, start(groups, mesh)))


# ---- reading them
def _together(count, mean, square):
  n = count.sum()
  middle = count @ mean / n
  gap = mean - middle
  return n, middle, square.sum(0) + (gap * count[:, None]).T @ gap


def total(moments, keep=slice(None)):
  """(n, mean [D], covariance [D, D] over n - 1) of the groups that `keep` indexes; one named twice counts twice."""
  n, mean, square = _together(*(a[keep] for a in moments))
  return n, mean, square / max(n - 1, 1)


def regroup(moments, groups):
  """The Moments in fewer groups: group g goes to g % groups."""
  if groups == len(moments.count):
    return moments
  return Moments(*map(np.array, zip(*(_together(*(a[g::groups] for a in moments)) for g in range(groups)))))


def fixed(mean, covariance):
  """Moments of one group, for statistics that somebody else has made of an unknown number of samples."""
  mean, covariance = (np.asarray(a, np.float64) for a in (mean, covariance))
  return Moments(np.array([MANY]), mean[None], covariance[None] * (MANY - 1))


def write(path, moments):
  """Writes an .npz that `read` reads, and, as it has mu and sigma, other FID tools do."""
  _, mean, covariance = total(moments)
  data = io.BytesIO()
  np.savez(data, mu=mean, sigma=covariance, **moments._asdict())
  write_atomic(path, data.getvalue())


def read(path):
  """The Moments of an .npz: of `write`, or the usual one of FID tools with mu [D] and sigma [D, D].

  Raises:
    InputError: it is not there or holds something else.
  """
  try:
    with np.load(io.BytesIO(epath.Path(path).read_bytes()), allow_pickle=False) as stored:
      if all(name in stored for name in Moments._fields):
        return Moments(*(stored[name] for name in Moments._fields))
      mean, covariance = stored['mu'], stored['sigma']
  except (OSError, ValueError, KeyError, EOFError, AttributeError) as error:
    raise InputError(f'{path}: expected an .npz with mu and sigma ({error})') from error
  if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
    raise InputError(f'{path}: expected mu [D] and sigma [D, D], got shapes {mean.shape} and {covariance.shape}')
  return fixed(mean, covariance)


def jackknife(whole, without, n):
  """The Estimate of a number `whole` from K groups, given the number without each of them, [K].

  Tukey's standard error, which is not too small on average (Efron and Stein, 1981), and an interval by Student's t
  with K - 1 degrees of freedom, about the expectation at this n. With fewer than two groups they are unknown: NaN.
  """
  K, without = len(without), np.asarray(without, np.float64)
  error = math.sqrt((K - 1) * without.var()) if K > 1 else math.nan
  half = float(stdtrit(K - 1, .975)) * error if K > 1 else math.nan
  return Estimate(float(whole), error, float(whole - half), float(whole + half), int(n))
