"""Nearest neighbours in feature space: precision and recall, density and coverage, authenticity.

Neighbours are searched in tiles of TILE samples against all others under jit, by |a|^2 + |b|^2 - 2 a.b about the mean
of the others. That loses precision between near copies, so the distances to the nearest are computed again from
differences: an exact copy has distance exactly 0. Whether a sample is inside a ball is decided up to the rounding of
the products; ties count as inside.

Errors are for other samples of the set that is counted, with fixed balls: other generated samples for precision,
density and authenticity, other real ones for recall and coverage. They do not include the variation of the balls.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError
from diffusion.evaluation.metrics.gaussian_stats import check, place
from diffusion.evaluation.metrics.record import normal, share
from diffusion.system import sharding

TILE = 256    # rows of the distance matrix in memory at once
SPARE = 16    # extra neighbours measured exactly, as rounded products may order near copies wrongly
SLACK = 2e-6  # rounding error of a squared distance from products, relative to |a|^2 + |b|^2


def _squares(a, b):
  """(squared distances, their rounding errors), [t, n]."""
  size = jnp.sum(a * a, 1)[:, None] + jnp.sum(b * b, 1)
  return jnp.maximum(size - 2 * jnp.dot(a, b.T, precision='highest'), 0.), SLACK * size


@functools.partial(jax.jit, static_argnums=(4, 5))
def _search(rows, index, base, centre, k, exclude_self):
  """(indices, squared distances) [t, k] of the nearest; with exclude_self, rows are base[index]."""
  own = index[:, None] if exclude_self else -1
  near = jnp.where(jnp.arange(len(base)) == own, jnp.inf, _squares(rows - centre, base - centre)[0])
  _, found = jax.lax.top_k(-near, min(k + SPARE, len(base)))
  exact = jnp.where(found == own, jnp.inf, jnp.sum(jnp.square(rows[:, None] - base[found]), 2))
  order = jnp.argsort(exact, 1)[:, :k]
  return jnp.take_along_axis(found, order, 1), jnp.take_along_axis(exact, order, 1)


@jax.jit
def _count(rows, index, base, centre, square):
  """Number of balls around base that contain each row, [t]."""
  near, slack = _squares(rows - centre, base - centre)
  return (jnp.sum(near <= square + slack, 1),)


def _tiled(f, query, base, mesh, *rest, own=None):
  """f(rows, index, base, centre, *rest) of all rows of query [n, D], one tile at a time, as host arrays.

  index: the entries of `own` [n] for the rows; without it, the row numbers.
  """
  whole = jnp.asarray if mesh is None else functools.partial(jax.device_put, device=sharding.replicated(mesh))
  centre, base = whole(base.mean(0, dtype=np.float64).astype(np.float32)), whole(base)
  tile = TILE if mesh is None else -(-TILE // mesh.size) * mesh.size
  own, found = np.arange(len(query)) if own is None else own, []
  for first in range(0, len(query), tile):
    row = np.minimum(np.arange(first, first + tile), len(query) - 1)
    found.append(jax.device_get(f(place(query[row], mesh), place(own[row], mesh), base, centre, *rest)))
  return tuple(np.concatenate(parts)[:len(query)] for parts in zip(*found))


def _two(query, base, least):
  query = check(query)
  base = check(base, query.shape[1])
  if len(base) < least or not len(query):
    raise InputError(f'{len(query)} samples among {len(base)}: expected at least {least} candidates for neighbours')
  return query, base


def neighbours(query, base, k, exclude_self=False, mesh=None):
  """(indices into base, distances) [n, k] of the k nearest, nearest first.

  Args:
    query, base: features [n, D], [m, D].
    exclude_self: query is the first rows of base, and a sample is not its own neighbour; copies of it are.
    mesh: of the devices that multiply; None: the default device.
  Raises:
    InputError: fewer than k candidates; features of different sizes or not finite.
  """
  query, base = _two(query, base, k + bool(exclude_self))
  index, square = _tiled(_search, query, base, mesh, k, bool(exclude_self))
  return index, np.sqrt(square)


def nearest(query, base, exclude_self=False, mesh=None):
  """(index into base, distance) [n] of the nearest; see `neighbours`."""
  index, distance = neighbours(query, base, 1, exclude_self, mesh)
  return index[:, 0], distance[:, 0]


def _inside(query, base, k, mesh):
  """Number of balls that contain each sample of query, [n]: one ball around each sample of base, with its k-th
  neighbour in base on the edge."""
  query, base = _two(query, base, k + 1)
  square = _tiled(_search, base, base, mesh, k, True)[1][:, -1]
  return _tiled(_count, query, base, mesh, jnp.asarray(square))[0]


def precision_recall(real, generated, k=3, mesh=None):
  """(precision, recall): the share of generated samples inside a ball of real ones, and of real samples inside a ball
  of generated ones; balls extend to the k-th neighbour (arXiv:1904.06991, equations 1 and 2). Estimates.

  Raises:
    InputError: at most k samples in a set; features of different sizes or not finite.
  """
  return inside(generated, real, k, mesh), inside(real, generated, k, mesh)


def inside(query, base, k=3, mesh=None):
  """The share of query inside a ball of base, an Estimate: precision, or recall with the sets exchanged."""
  hits = _inside(query, base, k, mesh) > 0
  return share(int(np.sum(hits)), len(hits))


def density_coverage(real, generated, k=5, mesh=None):
  """(density, coverage): the mean number of balls of real samples that contain a generated one, divided by k, and the
  share of these balls with a generated sample inside (arXiv:2002.09797, section 3). Estimates. For two sets from the
  same distribution the expected density is 1, which may be exceeded, and the expected coverage 1 - 2^-k.

  Raises:
    InputError: at most k real samples, or no generated ones; features of different sizes or not finite.
  """
  real, generated = check(real), check(generated)
  counts = _inside(generated, real, k, mesh) / k
  density = normal(counts.mean(), counts.std() / np.sqrt(len(counts)), len(counts))
  return density, coverage(real, generated, k, mesh)


def coverage(real, generated, k=5, mesh=None):
  """Coverage alone; see density_coverage."""
  radius, reach = neighbours(real, real, k, True, mesh)[1][:, -1], nearest(real, generated, mesh=mesh)[1]
  return share(int(np.sum(reach <= radius)), len(real))


def authenticity(training, generated, mesh=None):
  """The share of generated samples that are further from their nearest training sample than that is from its own
  nearest (AuthPct, arXiv:2306.04675; authenticity of arXiv:2102.08921). An Estimate. New draws from the training
  distribution score about 1/2.

  Raises:
    InputError: fewer than 2 training samples, or no generated ones; features of different sizes or not finite.
  """
  generated, training = _two(generated, training, 2)
  index, distance = nearest(generated, training, mesh=mesh)
  chosen, back = np.unique(index, return_inverse=True)
  between = np.sqrt(_tiled(_search, training[chosen], training, mesh, 1, True, own=chosen)[1][:, 0])
  return share(int(np.sum(distance > between[back])), len(generated))
