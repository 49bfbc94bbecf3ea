"""What is measured of an image, and what the network sees of it: degradations that a config can name.

A degradation is y = A x0 + noise * z with A of core/operators.py, or y around A x0 with noise of another kind. The
network sees the `view` of y, an image of the size of x0. To add one, write a function that returns a Degradation, and
list it in DEGRADATIONS.
"""
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core import operators
from diffusion.core.operators import Linear
from diffusion.core.posterior import check_noise
from diffusion.errors import check_positive, InputError


class Degradation(NamedTuple):
  """A measurement of images of any shape [H, W, C], in [-1, 1]."""
  name: str
  operator: Callable   # shape -> Linear; raises InputError for one that does not fit
  view: Callable       # (y [B, ...], shape) -> image [B, H, W, C'] beside x
  noise: Any = 0.      # standard deviation of the noise of y; or A x0 -> that, where it depends on the image
  largest: Callable = lambda shape: 1.  # |y| of an image in [-1, 1], without noise
  picture: bool = True  # whether y is an image in [-1, 1] itself, which a file may hold
  draw: Callable | None = None  # (key, A x0) -> y; None: noise * z is added


def measured(degradation, key, x0):
  """y of images [B, H, W, C]; key None: the same noise at every call."""
  y = degradation.operator(x0.shape[1:]).forward(x0)
  key = jax.random.key(0) if key is None else key
  if degradation.draw:
    return degradation.draw(key, y)
  return y + degradation.noise * jax.random.normal(key, y.shape) if degradation.noise else y


def strength(degradation, clean):
  """The standard deviation of the noise of y around A x0 = clean."""
  return degradation.noise(clean) if callable(degradation.noise) else degradation.noise


def enlarged(y, shape, method='cubic'):
  """Images [B, h, w, C] in the size of shape [H, W, C]; method: cubic, linear or nearest."""
  return jax.image.resize(y, (len(y), *shape[:2], y.shape[-1]), method) if y.shape[1:3] != tuple(shape[:2]) else y


def super_resolution(factor=4, noise=0.):
  """Means over blocks of factor x factor pixels; the network sees them enlarged by cubic interpolation."""
  check_noise('super_resolution', noise)
  linear = operators.block_average(factor)
  def operator(shape):
    if shape[0] % factor or shape[1] % factor:
      raise InputError(f'super_resolution(factor={factor}) does not divide the size of the images, '
                       f'{shape[0]}x{shape[1]}')
    return linear
  return Degradation(f'super_resolution({factor}, {noise})', operator, enlarged, noise)


def downscale(factor=2):
  """Means over blocks of factor x factor pixels, rounded as a file of 8 bits has them, as an up-sampler in a cascade
  gets them; the network sees them enlarged by linear interpolation (GLIDE, arXiv:2112.10741)."""
  def view(y, shape):
    return enlarged(jnp.round((y + 1) * 127.5) / 127.5 - 1, shape, 'linear')
  return Degradation(f'downscale({factor})', super_resolution(factor).operator, view)


def deblur(width=1., noise=.02):
  """A Gaussian blur with a standard deviation of `width` pixels, and noise."""
  check_noise('deblur', noise)
  linear = operators.blur(width)
  return Degradation(f'deblur({width}, {noise})', lambda shape: linear, _same, noise)


def denoise(noise=.2):
  """Noise alone, such as that of a low dose; noise: its standard deviation, where black is -1 and white 1."""
  check_noise('denoise', noise, True)
  return Degradation(f'denoise({noise})', lambda shape: Linear(_identity, _identity, _nothing_lost), _same, noise)


def low_dose(counts=100.):
  """The image by its photons: y is Poisson(counts * intensity) / counts, with intensity from 0, black, to 1, white.

  Training pairs have that noise. Posterior sampling takes it as Gaussian with its variance, intensity / counts, where
  the intensity is that of E[x0 | x_t] and at least one photon's. So its mean, its variance and the gradient of
  log p(y | x0) are right, and its skewness is not: with few photons in a pixel a trained restorer is more exact.

  Args:
    counts: mean number of photons in a white pixel, above 0 and up to 100,000.
  """
  check_positive('low_dose', counts=counts)
  if counts > 1e5:  # above, the sums of logarithms with which photons are drawn in float32 are too coarse
    raise InputError(f'low_dose(counts={counts!r}): expected up to 100,000 photons; more make no visible noise')
  intensity = lambda x: (x + 1) / 2
  def draw(key, x):
    return 2 * jax.random.poisson(key, counts * jnp.maximum(intensity(x), 0.)).astype(x.dtype) / counts - 1
  def spread(x):
    return 2 * jnp.sqrt(jnp.maximum(intensity(x), 1 / counts) / counts)
  return Degradation(f'low_dose({counts})', lambda shape: Linear(_identity, _identity), _same, spread,
                     lambda shape: 1. + 24 / counts, draw=draw)  # few photons have a long tail


def colour(noise=0.):
  """The grey image of an RGB image."""
  check_noise('colour', noise)
  def operator(shape):
    if shape[-1] != 3:
      raise InputError(f'colour: the images have {shape[-1]} channels, expected 3 (RGB)')
    return operators.luma()
  return Degradation(f'colour({noise})', operator, _same, noise)


def mri(acceleration=3., centre=.12, noise=.02, seed=0):
  """Some lines of k-space, as of a faster scan; the network sees the image with zeros in place of the rest.

  Args:
    acceleration: share of the lines (columns of the transform) that is left out: 3 measures every third on average.
    centre: share of the lowest frequencies, which are all measured.
    noise: standard deviation in k-space, whose transform is orthonormal.
    seed: of the choice of the others.
  """
  check_noise('mri', noise)
  if not _number(acceleration) or not acceleration >= 1 or not _number(centre) or not 0 < centre <= 1 / acceleration:
    raise InputError(f'mri(acceleration={acceleration!r}, centre={centre!r}): expected an acceleration of at least 1, '
                     'and a share of central lines above 0 and up to 1 / acceleration')
  if type(seed) is not int or seed < 0:
    raise InputError(f'mri(seed={seed!r}): expected a whole number of at least 0')
  operator = lambda shape: operators.kspace(np.broadcast_to(lines(shape[1], acceleration, centre, seed), shape[:2]))
  def view(y, shape):
    return operators.transposed(operator(shape).forward, (len(y), *shape))(y)
  return Degradation(f'mri({acceleration}, {centre}, {noise}, {seed})', operator, view, noise,
                     lambda shape: float(np.sqrt(shape[0] * shape[1])), False)


def lines(width, acceleration, centre, seed):
  """Which columns of k-space are measured, bool [width], the mean first."""
  low = np.abs(np.fft.fftfreq(width)) <= centre / 2
  number = max(int(round(width / acceleration)), low.sum())
  others = np.random.default_rng(seed).permutation(np.flatnonzero(~low))[:number - low.sum()]
  low[others] = True
  return low


def ct(angles=20, noise=.02, iterations=12):
  """Sums along the rays of a few directions; the network sees the image that fits them after some iterations.

  Args:
    angles: their number, evenly over 180 degrees.
    noise: standard deviation; y are sums over max(H, W) pixels.
    iterations: of conjugate gradients, which stop early because more would fit the noise.
  """
  check_noise('ct', noise)
  if type(angles) is not int or not 1 <= angles <= 1000 or type(iterations) is not int or iterations < 1:
    raise InputError(f'ct(angles={angles!r}, iterations={iterations!r}): expected whole numbers of at least 1, '
                     'angles up to 1000')
  operator = lambda shape: operators.radon(np.arange(angles) * 180 / angles, shape)
  def view(y, shape):
    return operators.pseudo_inverse(operator(shape).forward, tuple(shape), iterations)(y)
  return Degradation(f'ct({angles}, {noise}, {iterations})', operator, view, noise,
                     lambda shape: float(np.hypot(*shape[:2]) + 1) / max(shape[:2]), False)


def _number(value):
  return not isinstance(value, bool) and isinstance(value, (int, float))


def _same(y, shape):
  return y


def _identity(x):
  return x


def _nothing_lost(shape):
  return operators.Svd(np.ones(shape), _identity, _identity, _identity)


DEGRADATIONS = dict(super_resolution=super_resolution, downscale=downscale, deblur=deblur, denoise=denoise,
                    low_dose=low_dose, colour=colour, mri=mri, ct=ct)


def check_measurement(degradation, y, shape, setting):
  """Raises InputError, starting with `setting`, for a y [...] that is no measurement of an image in [-1, 1].

  Returns:
    float32 y.
  """
  y = np.asarray(y)
  operator = degradation.operator(tuple(shape))
  expected = jax.eval_shape(operator.forward, jax.ShapeDtypeStruct((1, *shape), jnp.float32)).shape[1:]
  if y.shape != expected or y.dtype.kind not in 'iuf':
    raise InputError(f'{setting}: {y.dtype} {list(y.shape)}, and {degradation.name} of images {list(shape)} measures '
                     f'{list(expected)} numbers; give an array or image of that shape')
  largest = degradation.largest(shape)
  largest += 6 * float(strength(degradation, largest))
  if not np.isfinite(y).all() or np.abs(y).max() > 1.01 * largest:
    raise InputError(f'{setting}: values from {y.min():.4g} to {y.max():.4g}, and {degradation.name} of images from -1 '
                     f'to 1 stays within +-{largest:.4g}; scale it as the images are')
  return y.astype(np.float32)
