"""Slices through random heads: nested ellipses, as scans of a body show them, after the phantom of Shepp and Logan."""
import numpy as np

from diffusion.data import arrays, dataset, holdout
from diffusion.data.decode_images import as_shape
from diffusion.errors import InputError
from diffusion.system import cache

VERSION = 1
INSIDE = 6  # ellipses inside a head
FINE = 3    # rays through a pixel along each side


def phantoms(size=32, n=4000, heldout=500, seed=0, bits=8):
  """Random heads, grey: column `images` uint8 [N, H, W, 1], or `high` uint16.

  Args:
    size: pixels, or (height, width).
    n, heldout: images to train on, and held out.
    seed: other seeds give other images.
    bits: 8 or 16.
  """
  shape = as_shape(size)
  if min(shape) < 8:
    raise InputError(f'phantoms: size={size!r}: expected at least 8 pixels')
  if not all(type(value) is int and value >= least for value, least in ((n, 1), (heldout, 0), (seed, 0))):
    raise InputError(f'phantoms: n={n!r}, heldout={heldout!r}, seed={seed!r}: expected whole numbers, n of at least 1')
  if bits not in (8, 16):
    raise InputError(f'phantoms: bits={bits!r}: expected 8 or 16')
  def make():
    rng = np.random.default_rng(seed)
    brightness = np.concatenate([draw(rng, min(500, n + heldout - first), shape)
                                 for first in range(0, n + heldout, 500)])
    return dict(images=np.round(brightness * (2 ** bits - 1)).astype(np.uint8 if bits == 8 else np.uint16))
  images = cache.cached('phantoms', [VERSION, shape, n, heldout, seed, bits], make, min_seconds=1)['images']
  data = arrays.image_dataset(images) if bits == 8 else dataset.Dataset(dict(high=images))
  index = np.arange(n + heldout)
  return holdout.sides(dataset.take(data, index < n), dataset.take(data, index >= n))


def draw(rng, number, shape):
  """Brightness in [0, 1], float64 [number, H, W, 1]."""
  H, W = shape
  y, x = (2 * (np.arange(FINE * side) + .5) / (FINE * side) - 1 for side in shape)
  y, x = np.meshgrid(y, x, indexing='ij')
  u = lambda low, high, *more: rng.uniform(low, high, (number, *more, 1, 1))
  turn, tall, wide = u(-.3, .3), u(.75, .92), u(.6, .8)
  a, b = np.cos(turn) * y + np.sin(turn) * x, np.cos(turn) * x - np.sin(turn) * y
  skull = (a / tall) ** 2 + (b / wide) ** 2
  image = np.where(skull < 1, u(.8, 1.), 0.)
  inner = skull < (1 - u(.07, .13)) ** 2
  image = np.where(inner, u(.25, .45), image)
  for _ in range(INSIDE):
    angle, r = u(0, 2 * np.pi), .55 * np.sqrt(u(0, 1))
    down, right = a - r * tall * np.sin(angle), b - r * wide * np.cos(angle)
    tilt, long, short = u(0, np.pi), u(.12, .38), u(.06, .2)
    p, q = np.cos(tilt) * down + np.sin(tilt) * right, np.cos(tilt) * right - np.sin(tilt) * down
    image = np.where(inner & ((p / long) ** 2 + (q / short) ** 2 < 1), image + u(-.2, .3), image)
  image = np.clip(image, 0, 1)
  return image.reshape(number, H, FINE, W, FINE).mean((2, 4))[..., None]
