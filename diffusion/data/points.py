"""Distributions in the plane, with their exact densities: the smallest data on which everything can be seen."""
from typing import Callable, NamedTuple

import numpy as np
from scipy.special import ndtr

from diffusion.data import holdout
from diffusion.data.dataset import Dataset
from diffusion.errors import InputError

CURVE = 400  # points of a curve that stand for it in a density: nearer to each other than the noise is wide
SQUARES = [(i, j) for i in range(-2, 2) for j in range(-2, 2) if (i + j) % 2 == 0]  # of a checkerboard, corners


class Shape(NamedTuple):
  """A curve for each class, along which points lie evenly, with Gaussian noise around it."""
  classes: tuple
  noise: float      # its standard deviation
  curve: Callable   # (u in [0, 1), class) -> (x, y)


def _moon(u, k):
  angle = np.pi * u
  way = np.where(k == 0, 1, -1)
  return way * (np.cos(angle) - .5), way * (np.sin(angle) - .25)


def _spiral(u, k):
  angle = 3 * np.pi * np.sqrt(u)
  return [angle / (3 * np.pi) * way(angle + np.pi * k) for way in (np.cos, np.sin)]


def _ring(u, k):
  return [way(2 * np.pi * (k + 0 * u) / 8) for way in (np.cos, np.sin)]


KINDS = dict(moons=Shape(('upper', 'lower'), .08, _moon), spirals=Shape(('first', 'second'), .03, _spiral),
             eight=Shape(tuple(map(str, range(8))), .08, _ring), checkerboard=None)


def points(kind='moons', n=20000, heldout=1000, seed=0):
  """Points in the plane: column `points`, float32 [N, 2], with mean 0 and a standard deviation of 0.5 to 0.9 on each
  axis, and int32 labels where there are classes.

  Args:
    kind: moons (two half circles), spirals (two arms), eight (Gaussians on a ring), or checkerboard (no classes).
    n, heldout: points to train on, and held out.
    seed: other seeds give other points.
  """
  if not isinstance(kind, str) or kind not in KINDS:
    raise InputError(f'points: kind={kind!r}: expected one of {", ".join(KINDS)}')
  if not all(type(value) is int and value >= least for value, least in ((n, 1), (heldout, 0), (seed, 0))):
    raise InputError(f'points: n={n!r}, heldout={heldout!r}, seed={seed!r}: expected whole numbers, n of at least 1')
  xy, labels = draw(kind, n + heldout, np.random.default_rng(seed))
  classes = KINDS[kind].classes if KINDS[kind] else ()
  arrays = dict(points=xy.astype(np.float32)) | (dict(labels=labels) if classes else {})
  return holdout.split(Dataset(arrays, dict(kind=kind, classes=classes)), heldout, seed, f'points({kind})')


def draw(kind, n, rng):
  """(points float64 [n, 2], classes int32 [n]) of a distribution."""
  if kind == 'checkerboard':
    return (np.array(SQUARES)[rng.integers(0, len(SQUARES), n)] + rng.random((n, 2))) / 2, np.zeros(n, np.int32)
  shape = KINDS[kind]
  labels = rng.integers(0, len(shape.classes), n).astype(np.int32)
  return np.stack(shape.curve(rng.random(n), labels), 1) + shape.noise * rng.normal(size=(n, 2)), labels


def density(kind, xy, alpha=1., sigma=0.):
  """The density of alpha * x0 + sigma * eps, with x0 of the distribution, in float64.

  Args:
    xy: [..., 2].
    alpha: of a noise level.   sigma: of it, in the units of the points; or two values, one for each axis.
  Returns:
    [...].
  """
  (x, y), sigma = np.moveaxis(np.asarray(xy, np.float64), -1, 0), np.broadcast_to(sigma, 2)
  if kind == 'checkerboard':  # per square and axis, a uniform distribution with Gaussian noise
    below = lambda value, edge, s: ndtr((value - edge * alpha / 2) / max(s, 1e-9))
    within = lambda value, low, s: below(value, low, s) - below(value, low + 1, s)
    cells = [within(x, i, sigma[0]) * within(y, j, sigma[1]) for i, j in SQUARES]
    return sum(cells) / (len(SQUARES) * (alpha / 2) ** 2)
  shape, u = KINDS[kind], (np.arange(CURVE) + .5) / CURVE
  variance, total = (alpha * shape.noise) ** 2 + sigma ** 2, 0.
  for k in range(len(shape.classes)):
    for (a, b), times in zip(*np.unique(np.stack(shape.curve(u, k), 1), axis=0, return_counts=True)):
      exponent = (x - alpha * a) ** 2 / (2 * variance[0]) + (y - alpha * b) ** 2 / (2 * variance[1])
      total = total + times * np.exp(-exponent)
  return total / (2 * np.pi * np.sqrt(np.prod(variance)) * CURVE * len(shape.classes))
