"""Kernel distance of features (KID, arXiv:1801.01401): the squared MMD with the kernel (x.y/D + 1)^3, unbiased at any
n, and so possibly negative.

For features far from 0 the kernel values are so large that float32 loses their differences. With c the mean of both
sets, x = c + u, p = c.u/D, w = u.v/D and A = c.c/D + 1, the kernel is (A + p_u + p_v + w)^3. Terms that depend on one
sample only cancel in the MMD exactly, and the others are small if u and v are.
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError
from diffusion.evaluation.metrics.gaussian_stats import check, jackknife
from diffusion.system import sharding


class Groups(NamedTuple):
  """Samples in K groups of b; the last ones of each group may be padding."""
  u: Any     # [K, b, D], samples less c
  p: Any     # [K, b]
  real: Any  # [K, b], 1 for samples, 0 for padding


def _grouped(x, centre, K):
  """The Groups of samples [n, D], on the host; sample i belongs to group i % K."""
  rows = -(-len(x) // K) * K
  def split(a):
    padded = np.pad(a, [(0, rows - len(a))] + [(0, 0)] * (a.ndim - 1))
    return np.swapaxes(padded.reshape(-1, K, *a.shape[1:]), 0, 1)
  u = x - centre
  return Groups(*(np.ascontiguousarray(split(a), np.float32) for a in (u, u @ centre / x.shape[1], np.ones(len(x)))))


@jax.jit
def _rows(one, others, base, own):
  """The relevant terms of the kernels between a group and each of K groups, summed over the samples of the latter:
  [K, b].

  Args:
    one: a group: Groups without the leading axis.
    others: Groups.
    base: A of the module docstring.
    own: the group's index among `others`, or -1; the kernel of a sample with itself is excluded.
  """
  w = jnp.einsum('id,kjd->kij', one.u, others.u, precision='highest') / one.u.shape[1]
  p, q = one.p[None, :, None], others.p[:, None, :]
  s = base + p + q
  kernels = p * q * (6 * base + 3 * (p + q)) + w * (3 * s * (s + w) + w * w)
  self = (jnp.arange(len(others.p)) == own)[:, None, None] & jnp.eye(len(one.p), others.p.shape[1], dtype=bool)
  return jnp.sum(jnp.where(self, 0., kernels * one.real[None, :, None] * others.real[:, None, :]), 2)


def _table(a, b, base, mesh):
  """Sums of kernels between groups, float64 [K, K]."""
  placed = jax.tree.map(jnp.asarray, b)
  if mesh is not None:
    placed = sharding.put_batch(b, mesh) if len(b.p) % mesh.size == 0 else jax.device_put(b, sharding.replicated(mesh))
  sums = [_rows(jax.tree.map(lambda leaf: leaf[i], a), placed, base, i if a is b else -1) for i in range(len(a.p))]
  return np.array([np.asarray(s, np.float64).sum(1) for s in sums])


def _estimator(x, y, K, mesh=None):
  """keep -> the unbiased squared MMD (arXiv:1801.01401, equation 4) of the groups that `keep` selects."""
  centre = (x.sum(0, dtype=np.float64) + y.sum(0, dtype=np.float64)) / (len(x) + len(y))
  base = np.float32(centre @ centre / x.shape[1] + 1)
  a, b = _grouped(x, centre, K), _grouped(y, centre, K)
  tables = [_table(*pair, base, mesh) for pair in ((a, a), (b, b), (a, b))]
  counts = [g.real.sum(1, dtype=np.float64) for g in (a, b)]
  def value(keep):
    xx, yy, xy = (table[np.ix_(keep, keep)].sum() for table in tables)
    n, m = (count[keep].sum() for count in counts)
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)
  return value


def _pair(x, y, least):
  x = check(x)
  y = check(y, x.shape[1])
  if min(len(x), len(y)) < least:
    raise InputError(f'{len(x)} and {len(y)} samples: expected at least {least} in each set')
  return x, y


def kid(x, y, seed, groups=32, mesh=None):
  """KID from all pairs of samples, an Estimate.

  The error is the jackknife's over groups of samples, left out on both sides at once: the variation of KID over
  samples on both sides. It is about sqrt(2) too large if both sets have the same distribution. It differs from the
  standard deviation over subsets that papers report (`spread`).

  Args:
    x, y: features [n, D], [m, D].
    seed: of the assignment to groups.
    groups: number of groups of the jackknife.
    mesh: of the devices that multiply; None: the default device.
  Raises:
    InputError: fewer than 6 samples in a set; features of different sizes or not finite.
  """
  x, y = _pair(x, y, 6)
  rng = np.random.default_rng(seed)
  K = min(groups, len(x) // 2, len(y) // 2)
  value, every = _estimator(rng.permutation(x), rng.permutation(y), K, mesh), np.arange(K)
  return jackknife(value(every), [value(np.delete(every, i)) for i in every], min(len(x), len(y)))


def spread(x, y, seed, subsets=100, size=1000, mesh=None):
  """(mean, standard deviation) of KID over random subsets, as reported in papers (arXiv:1801.01401, section 4).

  The deviation is that of KID of `size` samples and hardly depends on the number of samples: it is not the error of
  the mean.

  Raises:
    InputError: fewer than `size` samples in a set; features of different sizes or not finite.
  """
  x, y = _pair(x, y, size)
  rng = np.random.default_rng(seed)
  draw = lambda a: a[rng.choice(len(a), size, replace=False)]
  values = [_estimator(draw(x), draw(y), 1, mesh)(np.arange(1)) for _ in range(subsets)]
  return float(np.mean(values)), float(np.std(values))
