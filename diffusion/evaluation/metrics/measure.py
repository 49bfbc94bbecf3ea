"""All metrics of a set of samples against the data, from their features."""
import math
from typing import Any, NamedTuple

import numpy as np

from diffusion.evaluation.metrics import frechet, kid, neighbours, scores
from diffusion.evaluation.metrics.features import MANIFOLD, Reference
from diffusion.evaluation.metrics.gaussian_stats import jackknife
from diffusion.evaluation.metrics.record import Estimate, share

COPIED = .01  # samples nearer to a training picture than this share of held-out pictures are count as copies
ENOUGH = 16   # pictures without which nothing is measured
GROUPS = 10   # of samples, that are left out one after the other


def measure(seen, data: Reference, seed, wanted=None, mesh=None):
  """{name: Estimate} of a set of pictures.

  Args:
    seen: the Seen, of at least ENOUGH pictures in random order.
    data: the Reference that it is compared with.
    seed: of what is drawn in measuring.
    wanted: what was asked for: classes, int [n], or attributes, [n, K]; None: nothing that the logits know.
    mesh: the devices; None: the default one.
  """
  points, real = seen.points[:MANIFOLD], data.points[:MANIFOLD]
  alike = real[:len(points)]  # as many, as in the papers of precision and coverage
  density, _ = neighbours.density_coverage(alike, points, mesh=mesh)
  fd, fd_infinity = frechet.both(seen.moments, data.moments)
  found = dict(
    fd_infinity=fd_infinity, fd=fd, kid=kid.kid(points, real, seed, mesh=mesh), precision=neighbours.inside(points, alike, mesh=mesh),
    recall=_other_samples(lambda some: neighbours.inside(alike, some, mesh=mesh).value, points), density=density,
    coverage=_other_samples(lambda some: neighbours.coverage(alike, some, mesh=mesh).value, points),
    sliced_wasserstein=scores.sliced_wasserstein(points, real, seed, mesh=mesh), diversity=scores.diversity(points, seed, mesh=mesh))
  if seen.logits is None:
    return found
  if wanted is None or wanted.ndim == 1:  # logits of attributes are no distribution
    found['inception_score'] = scores.inception_score(seen.logits)
  if wanted is not None:
    found |= dict(class_accuracy=scores.class_accuracy(seen.logits, wanted)) if wanted.ndim == 1 else dict(
      attribute_accuracy=scores.attribute_accuracy(seen.logits, wanted))
  return found


def _other_samples(value, points):
  """A share of the real pictures as an Estimate whose error is about other samples: by the jackknife over groups of them.

  Of few samples no group may make a difference; so the interval is never narrower than that of the share itself, for other real pictures.
  """
  n, K = len(points) // GROUPS * GROUPS, GROUPS
  group = np.arange(n) % K
  found = jackknife(value(points), [value(points[:n][group != k]) for k in range(K)], len(points))
  own = share(found.value * len(points), len(points))
  return found._replace(error=max(found.error, own.error), low=max(0., min(found.low, own.low)), high=min(1., max(found.high, own.high)))


class Copies(NamedTuple):
  """How near samples are to training pictures."""
  index: Any           # [n], the nearest training picture of each sample
  distance: Any        # [n], to it, in feature space
  usual: Any           # [m], ascending: the same distance of held-out pictures, which are no copies
  closer: Any          # [n], share of the held-out pictures that are as near to a training picture
  copies: Estimate     # share of the samples that are nearer than COPIED of the held-out pictures are; unknown (NaN) below 1 / COPIED of these
  authenticity: Estimate  # share of the samples that are further from their nearest training picture than that is from its own nearest


def copies(points, train: Reference, heldout=None, mesh=None):
  """Whether samples are new: Copies. New samples are expected to have a share of copies of COPIED, too.

  Args:
    points: of the samples, [n, D].
    train: the Reference of the training pictures.
    heldout: points of held-out pictures, [m, D]; None or empty: training pictures beside each other say what is usual.
    mesh: the devices; None: the default one.
  """
  index, distance = neighbours.nearest(points, train.points, mesh=mesh)
  if heldout is None or not len(heldout):
    usual = neighbours.nearest(train.points[:1000], train.points, exclude_self=True, mesh=mesh)[1]
  else:
    usual = neighbours.nearest(heldout, train.points, mesh=mesh)[1]
  n, m, usual = len(points), len(usual), np.sort(usual)
  closer = np.searchsorted(usual, distance, side='right') / m
  p, effective = float((closer <= COPIED).mean()), n * m / (n + m)  # the limit rests on m pictures, the share on n
  found = share(p * effective, effective)._replace(n=n) if m * COPIED >= 1 else Estimate(*[math.nan] * 4, n)
  return Copies(train.index[index], distance, usual, closer, found, neighbours.authenticity(train.points, points, mesh=mesh))
