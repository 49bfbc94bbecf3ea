"""Looking at pictures with an extractor, and what is kept of the data that samples are compared with."""
from typing import Any, Callable, NamedTuple

import jax
import numpy as np

from diffusion import sharding
from diffusion.data.cache import cached
from diffusion.metrics.extractor import Extractor, Features
from diffusion.metrics.moments import Moments, moments
from diffusion.metrics.own import digest

LIMIT = 50_000  # pictures whose features are kept, to find neighbours among; all of them make the moments


class Reference(NamedTuple):
  """The data as an extractor sees it."""
  digest: str       # hash of the pictures
  moments: Moments  # of all pictures
  points: Any       # float32 [N, D], of at most LIMIT pictures in random order
  index: Any        # which pictures of the data those are, [N]


def viewer(extractor: Extractor, mesh) -> Callable:
  """see(uint8 pictures [n, H, W, C]) -> Features of NumPy arrays [n, ...], in batches of one size, split over the devices."""
  look = jax.jit(extractor.apply)

  def see(images):
    batch = -(-(256 if max(images.shape[1:3]) <= 32 else 32) // mesh.size) * mesh.size
    seen = []
    for first in range(0, len(images), batch):
      index = np.minimum(np.arange(first, first + batch), len(images) - 1)
      seen.append(jax.device_get(look(extractor.params, sharding.put_batch(images[index], mesh))))
    join = lambda parts: None if parts[0] is None else np.concatenate(parts)[:len(images)]
    return Features(join([f.points for f in seen]), join([f.logits for f in seen]))
  return see


def reference(extractor, see, images, limit=LIMIT):
  """The Reference of some pictures, from the cache where it has been made before.

  Args:
    extractor, see: the Extractor and its viewer.
    images: uint8 [N, H, W, C].
    limit: of the pictures whose features are kept.
  """
  own = digest(images)
  order = np.random.default_rng(0).permutation(len(images))

  def make():
    chunks = np.array_split(order, -(-len(order) // 4096))  # in random order, so that the groups of the moments are alike
    kept, room = [], limit
    def points():
      nonlocal room
      for chunk in chunks:
        seen = see(images[chunk]).points
        kept.append(seen[:room])
        room -= len(kept[-1])
        yield seen
    found = moments(points())
    return dict(found._asdict(), points=np.concatenate(kept), index=order[:limit])

  stored = cached('reference', [2, own, extractor.digest, extractor.resize, limit], make)
  return Reference(own, Moments(*(stored[name] for name in Moments._fields)), stored['points'], stored['index'])
