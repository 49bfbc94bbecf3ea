"""All metrics of a set of samples against the data, from their features."""
from typing import Any, NamedTuple

import numpy as np

from diffusion.metrics import frechet, kernel, neighbours, scores
from diffusion.metrics.moments import Moments
from diffusion.metrics.record import Estimate, share
from diffusion.metrics.reference import Reference

MANIFOLD = 10_000  # points of either side, at most, that are compared one by one
COPIED = .01       # samples nearer to a training picture than this share of held-out pictures are count as copies


class Seen(NamedTuple):
  """A set of pictures as an extractor sees it."""
  moments: Moments  # of all of them
  points: Any       # float32 [n, D] of the first ones
  logits: Any       # [n, K] or None


def measure(seen, data: Reference, seed, wanted=None):
  """{name: Estimate} of a set of pictures.

  Args:
    seen: the Seen.
    data: the Reference that it is compared with.
    seed: of what is drawn in measuring.
    wanted: the classes asked for, int [n], or None.
  """
  points = seen.points[:MANIFOLD]
  real = data.points[:len(points)]  # as many, as in the papers of precision and coverage
  precision, recall = neighbours.precision_recall(real, points)
  density, coverage = neighbours.density_coverage(real, points)
  fd, fd_infinity = frechet.both(seen.moments, data.moments)
  found = dict(
    fd_infinity=fd_infinity, fd=fd, kid=kernel.kid(points, data.points[:MANIFOLD], seed), precision=precision, recall=recall, density=density, coverage=coverage,
    sliced_wasserstein=scores.sliced_wasserstein(points, data.points[:MANIFOLD], seed), diversity=scores.diversity(points, seed))
  if seen.logits is not None:
    found['inception_score'] = scores.inception_score(seen.logits)
    if wanted is not None:
      found['class_accuracy'] = scores.class_accuracy(seen.logits, wanted)
  return found


class Copies(NamedTuple):
  """How near samples are to training pictures."""
  index: Any           # [n], the nearest training picture of each sample
  distance: Any        # [n], to it, in feature space
  usual: Any           # [m], ascending: the same distance of held-out pictures, which are no copies
  closer: Any          # [n], share of the held-out pictures that are as near to a training picture
  copies: Estimate     # share of the samples that are nearer than COPIED of the held-out pictures are
  authenticity: Estimate  # share of the samples that are further from their nearest training picture than that is from its own nearest


def copies(points, train: Reference, heldout=None):
  """Whether samples are new: Copies.

  Args:
    points: of the samples, [n, D].
    train: the Reference of the training pictures.
    heldout: points of held-out pictures, [m, D]; None or empty: training pictures beside each other say what is usual.
  """
  index, distance = neighbours.nearest(points, train.points)
  if heldout is None or not len(heldout):
    usual = neighbours.nearest(train.points[:1000], train.points, exclude_self=True)[1]
  else:
    usual = neighbours.nearest(heldout, train.points)[1]
  usual = np.sort(usual)
  closer = np.searchsorted(usual, distance, side='right') / len(usual)
  return Copies(train.index[index], distance, usual, closer, share((closer <= COPIED).sum(), len(points)),
                neighbours.authenticity(train.points, points))
