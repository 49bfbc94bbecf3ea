"""Scores without neighbours: inception score, class accuracy, sliced Wasserstein distance, diversity."""
import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax, stdtrit

from diffusion.errors import InputError
from diffusion.evaluation.metrics.gaussian_stats import check, jackknife, moments, place, regroup, ROWS, total
from diffusion.evaluation.metrics.record import Estimate, mean, share


def inception_score(batches, splits=10):
  """exp E KL(p(y|x) || p(y)) of a classifier's predictions (arXiv:1606.03498, section 4), from 1 to the number of
  classes. An Estimate.

  The mean over `splits` parts of the samples, as usually reported, which grows with the size of the parts; sample i is
  in part i % splits. The error is the standard error of this mean; papers report the standard deviation over parts
  instead, which is sqrt(splits) times as large.

  Args:
    batches: logits or log-probabilities, [n, K] or an iterable of [B, K], in random order; only their sums are kept.
    splits: number of parts; with one the error is NaN.
  Raises:
    InputError: fewer samples than parts, or logits that are not finite.
  """
  n, information, sums = 0, np.zeros(splits), 0.
  for logits in [batches] if getattr(batches, 'ndim', 0) == 2 else batches:
    log_p = log_softmax(check(logits).astype(np.float64), 1)
    p, part = np.exp(log_p), (n + np.arange(len(log_p))) % splits
    own = np.eye(splits)[:, part]
    information, sums, n = information + own @ (p * log_p).sum(1), sums + own @ p, n + len(p)
  if n < splits:
    raise InputError(f'{n} samples in {splits} parts: expected at least one per part; draw more or use fewer splits')
  count = sums.sum(1)
  mean = sums / count[:, None]
  scores = np.exp(information / count - np.sum(mean * np.log(np.maximum(mean, 1e-300)), 1))
  error = scores.std(ddof=1) / math.sqrt(splits) if splits > 1 else math.nan
  half = float(stdtrit(splits - 1, .975)) * error if splits > 1 else math.nan
  return Estimate(float(scores.mean()), float(error), float(scores.mean() - half), float(scores.mean() + half), n)


def attribute_accuracy(logits, wanted):
  """The share of attributes that a classifier predicts as requested, an Estimate; its error is over samples.

  Args:
    logits: [n, K], above 0 where the classifier detects an attribute.
    wanted: [n, K], above 1/2 where it was requested.
  """
  return mean(np.mean((check(logits) > 0) == (np.asarray(wanted) > .5), 1))


def class_accuracy(logits, wanted):
  """The share of samples that a classifier assigns to the requested class, an Estimate.

  Args:
    logits: [n, K].
    wanted: the requested classes, int [n].
  Raises:
    InputError: no samples, or a different number of classes.
  """
  logits, wanted = check(logits), np.asarray(wanted)
  if not len(wanted) or wanted.shape != logits.shape[:1]:
    raise InputError(f'logits of shape {logits.shape} and classes of shape {wanted.shape}: '
                     'expected one class per sample')
  return share(int(np.sum(logits.argmax(1) == wanted)), len(wanted))


@jax.jit
def _project(points, centre, axes):
  return jnp.dot(points - centre, axes, precision='highest').T


def _transport(x, y):
  """Squared Wasserstein-2 distance of sorted samples [..., n] and [..., m]: the integral of the squared difference of
  their quantile functions."""
  n, m = x.shape[-1], y.shape[-1]
  # ends of the intervals on which both are constant, in units of 1/(n m)
  ends = np.unique(np.concatenate([np.arange(1, n + 1) * m, np.arange(1, m + 1) * n]))
  gap = x[..., (ends - 1) // m] - y[..., (ends - 1) // n]
  return np.square(gap) @ (np.diff(ends, prepend=0) / (n * m))


def sliced_wasserstein(x, y, seed, directions=256, groups=16, mesh=None):
  """Sliced Wasserstein-2 distance: the root of the mean squared distance along random directions (Bonneel et al.,
  2015, J. Math. Imaging Vis.).

  The sets may differ in size. The value has a positive bias that decreases with the number of samples. Its error
  combines that of the directions with the jackknife's over groups of samples left out on both sides.

  Args:
    x, y: features or flattened pixels, [n, D], [m, D].
    seed: of the directions and of the assignment to groups.
    directions: number of directions.
    groups: number of groups of the jackknife.
    mesh: of the devices that project; None: the default device.
  Raises:
    InputError: fewer than 4 samples in a set; features of different sizes or not finite.
  """
  x = check(x)
  y = check(y, x.shape[1])
  n = min(len(x), len(y))
  if n < 4:
    raise InputError(f'{len(x)} and {len(y)} samples: expected at least 4 in each set')
  rng = np.random.default_rng(seed)
  axes = rng.standard_normal((x.shape[1], directions))
  axes = (axes / np.linalg.norm(axes, axis=0)).astype(np.float32)
  centre, K, sides = x.mean(0), min(groups, n // 2), []
  for points in (x, y):
    along = _projected(points, centre, axes, mesh)
    order = np.argsort(along, 1)
    sides.append((np.take_along_axis(along, order, 1), rng.permutation(len(points))[order] % K))
  whole = _transport(*(along for along, _ in sides))
  kept = lambda group: [along[label != group].reshape(directions, -1) for along, label in sides]
  square = jackknife(whole.mean(), [_transport(*kept(group)).mean() for group in range(K)], n)
  error = math.hypot(square.error, whole.std(ddof=1) / math.sqrt(directions) if directions > 1 else math.nan)
  half = float(stdtrit(K - 1, .975)) * error
  value, low, high = (math.sqrt(max(0., v)) for v in (square.value, square.value - half, square.value + half))
  return Estimate(value, error / max(2 * value, 1e-30), low, high, n)


def _projected(points, centre, axes, mesh):
  """Projections of points on each axis, float64 [L, n]; ROWS points at a time."""
  rows = max(1, ROWS // mesh.size) * mesh.size if mesh else ROWS
  found = []
  for first in range(0, len(points), rows):
    part = points[first:first + rows]
    whole = place(np.pad(part, ((0, rows - len(part)), (0, 0))), mesh)
    found.append(np.asarray(_project(whole, centre, axes))[:, :len(part)])
  return np.concatenate(found, 1).astype(np.float64)


def diversity(points, seed, groups=None, mesh=None):
  """The Vendi score (arXiv:2210.02410, definition 3.1) with the cosine similarity of features: the effective number of
  different samples.

  It is 1 if all samples are equal and n if they are orthogonal; with D features it is at most D. It is the exponential
  of the entropy of the eigenvalues of the samples' similarity matrix divided by n, which are those of a D x D matrix.
  Unlike the mean distance between samples, it decreases when kinds of images go missing while the others keep their
  distance. The error is the jackknife's over groups of samples.

  Args:
    points: features [n, D]; all-zero rows have no direction and are left out.
    seed: of the assignment to groups.
    groups: number of groups of the jackknife; None: as for moments.
    mesh: of the devices that multiply; None: the default device.
  Raises:
    InputError: fewer than 4 samples, or features that are not finite.
  """
  points = check(points)
  length = np.linalg.norm(points.astype(np.float64), axis=1, keepdims=True)
  unit = (points / np.maximum(length, 1e-300))[length[:, 0] > 0]
  if len(unit) < 4:
    raise InputError(f'{len(unit)} of {len(points)} samples have features other than 0: expected at least 4')
  parts = moments([np.random.default_rng(seed).permutation(unit)], groups, mesh)
  parts = regroup(parts, min(len(parts.count), len(unit)))
  def effective(keep):
    n, mean, covariance = total(parts, keep)
    share = np.linalg.eigvalsh(covariance * ((n - 1) / n) + np.outer(mean, mean))
    share = share[share > 0]
    return np.exp(-np.sum(share * np.log(share)))
  every = np.arange(len(parts.count))
  return jackknife(effective(every), [effective(np.delete(every, i)) for i in every], len(unit))
