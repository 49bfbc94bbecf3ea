"""All metrics of a set of samples against the data, computed from their features."""
import math
from typing import Any, NamedTuple

import numpy as np

from diffusion.evaluation.metrics import frechet, kid, neighbours, scores
from diffusion.evaluation.metrics.features import MANIFOLD, Reference
from diffusion.evaluation.metrics.gaussian_stats import jackknife
from diffusion.evaluation.metrics.record import Estimate, share

COPIED = .01  # samples as near to a training image as the nearest 1 % of held-out images count as copies
ENOUGH = 16   # minimum number of images to measure anything
GROUPS = 10   # groups of samples of the jackknife


def measure(seen, data: Reference, seed, wanted=None, mesh=None):
  """{name: Estimate} of a set of images.

  Args:
    seen: the FeatureSet of at least ENOUGH images in random order.
    data: the Reference to compare with.
    seed: of random directions, subsets and groups.
    wanted: the requested classes, int [n], or attributes, [n, K]; None: none that the logits could verify.
    mesh: the devices; None: the default device.
  """
  points, real = seen.points[:MANIFOLD], data.points[:MANIFOLD]
  alike = real[:len(points)]  # equally many, as in the papers on precision and coverage
  density, _ = neighbours.density_coverage(alike, points, mesh=mesh)
  fd, fd_infinity = frechet.both(seen.moments, data.moments)
  found = dict(
    fd_infinity=fd_infinity, fd=fd, kid=kid.kid(points, real, seed, mesh=mesh),
    precision=neighbours.inside(points, alike, mesh=mesh),
    recall=_other_samples(lambda some: neighbours.inside(alike, some, mesh=mesh).value, points), density=density,
    coverage=_other_samples(lambda some: neighbours.coverage(alike, some, mesh=mesh).value, points),
    sliced_wasserstein=scores.sliced_wasserstein(points, real, seed, mesh=mesh),
    diversity=scores.diversity(points, seed, mesh=mesh))
  if seen.logits is None:
    return found
  if wanted is None or wanted.ndim == 1:  # logits of attributes are not those of a distribution
    found['inception_score'] = scores.inception_score(seen.logits)
  if wanted is not None:
    found |= dict(class_accuracy=scores.class_accuracy(seen.logits, wanted)) if wanted.ndim == 1 else dict(
      attribute_accuracy=scores.attribute_accuracy(seen.logits, wanted))
  return found


def _other_samples(value, points):
  """A share of the real images as an Estimate whose error is the variation over samples, by the jackknife over groups.

  With few samples no group may make a difference, so the interval is at least that of the share over real images.
  """
  n, K = len(points) // GROUPS * GROUPS, GROUPS
  group = np.arange(n) % K
  found = jackknife(value(points), [value(points[:n][group != k]) for k in range(K)], len(points))
  own = share(found.value * len(points), len(points))
  low, high = max(0., min(found.low, own.low)), min(1., max(found.high, own.high))
  return found._replace(error=max(found.error, own.error), low=low, high=high)


class Copies(NamedTuple):
  """How near samples are to training images, in feature space."""
  index: Any           # [n], the nearest training image of each sample
  distance: Any        # [n], to that image
  usual: Any           # [m], ascending: this distance for held-out images, which are not copies
  closer: Any          # [n], share of the held-out images that are as near to a training image
  copies: Estimate     # share of samples with `closer` up to COPIED; NaN with fewer than 1 / COPIED held-out images
  authenticity: Estimate  # see neighbours.authenticity


def copies(points, train: Reference, heldout=None, mesh=None):
  """Compares samples with the training data: Copies. For new samples the expected share of copies is COPIED.

  Args:
    points: of the samples, [n, D].
    train: the Reference of the training images.
    heldout: points of held-out images, [m, D]; None or empty: distances among training images are used instead.
    mesh: the devices; None: the default device.
  """
  index, distance = neighbours.nearest(points, train.points, mesh=mesh)
  if heldout is None or not len(heldout):
    usual = neighbours.nearest(train.points[:1000], train.points, exclude_self=True, mesh=mesh)[1]
  else:
    usual = neighbours.nearest(heldout, train.points, mesh=mesh)[1]
  n, m, usual = len(points), len(usual), np.sort(usual)
  closer = np.searchsorted(usual, distance, side='right') / m
  p, effective = float((closer <= COPIED).mean()), n * m / (n + m)  # limit estimated from m images, share from n
  copied = share(p * effective, effective)._replace(n=n) if m * COPIED >= 1 else Estimate(*[math.nan] * 4, n)
  authenticity = neighbours.authenticity(train.points, points, mesh=mesh)
  return Copies(train.index[index], distance, usual, closer, copied, authenticity)
