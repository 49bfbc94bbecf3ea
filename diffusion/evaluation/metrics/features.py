"""Features of many images, and the reference features of the data that samples are compared with."""
from typing import Any, Callable, NamedTuple

import jax
import numpy as np

from diffusion.evaluation.metrics.extractor import Extractor, Features
from diffusion.evaluation.metrics.gaussian_stats import Moments, moments
from diffusion.evaluation.metrics.trained_features import digest
from diffusion.system import sharding
from diffusion.system.cache import cached

MANIFOLD = 10_000  # maximum number of points of a set that are compared individually
ROOM = 2 ** 31     # bytes for features of training images, in which copies are searched


class FeatureSet(NamedTuple):
  """Features of a set of images."""
  moments: Moments  # of all of them
  points: Any       # float32 [n, D] of the first images
  logits: Any       # [n, K] or None


class Reference(NamedTuple):
  """Features of the data."""
  digest: str       # hash of the images
  moments: Moments  # of all images
  points: Any       # float32 [N, D], in random order; of all images, or as many as fit into ROOM
  index: Any        # indices of these images in the data, [N]


def make_extract(extractor: Extractor, mesh) -> Callable:
  """see(uint8 images [n, H, W, C]) -> Features, NumPy arrays [n, ...]; in equal batches, split over the devices."""
  view = jax.jit(extractor.apply, out_shardings=sharding.batch_sharding(mesh))
  params = jax.device_put(extractor.params, sharding.replicated(mesh))

  def see(images):
    batch = -(-(256 if max(images.shape[1:3]) <= 32 else 32) // mesh.size) * mesh.size
    seen = []
    for first in range(0, len(images), batch):
      index = np.minimum(np.arange(first, first + batch), len(images) - 1)
      seen.append(jax.device_get(view(params, sharding.put_batch(images[index], mesh))))
    join = lambda parts: None if parts[0] is None else np.concatenate(parts)[:len(images)]
    return Features(join([f.points for f in seen]), join([f.logits for f in seen]))
  return see


def extract_all(see, batches, mesh, limit=MANIFOLD):
  """(FeatureSet, the first images) of batches of images, however many: only `limit` points and images are kept."""
  kept, room = [], limit
  def points():
    nonlocal room
    for images in batches:
      seen = see(images)
      if room > 0:  # copies, as slices would keep the whole arrays
        kept.append([None if a is None else a[:room].copy() for a in (seen.points, seen.logits, images)])
        room -= len(kept[-1][0])
      yield seen.points
  found = moments(points(), mesh=mesh)
  first, logits, images = (None if parts[0] is None else np.concatenate(parts) for parts in zip(*kept))
  return FeatureSet(found, first, logits), images


def reference(extractor, see, images, mesh):
  """The Reference of a set of images, cached.

  Args:
    extractor, see: the Extractor, and its function from `make_extract`.
    images: uint8 [N, H, W, C].
    mesh: the devices.
  """
  own, limit = digest(images), ROOM // (4 * extractor.size)
  order = np.random.default_rng(0).permutation(len(images))  # so that the groups of the moments are exchangeable

  def make():
    chunks = np.array_split(order, -(-len(order) // 4096))
    seen, _ = extract_all(see, (images[chunk] for chunk in chunks), mesh, limit)
    return dict(seen.moments._asdict(), points=seen.points, index=order[:limit])

  stored = cached('reference', [3, own, extractor.digest, extractor.resize, limit], make)
  return Reference(own, Moments(*(stored[name] for name in Moments._fields)), stored['points'], stored['index'])
