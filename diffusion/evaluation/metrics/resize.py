"""Image resizing, exactly as each pretrained network expects.

Resizing is linear in each direction: two small matrices, computed on the host in float64. The kind changes a Frechet
distance by more than the differences many papers report (Parmar et al. 2021, arXiv:2104.11222), so every record holds
it.

  tensorflow    bilinear of TensorFlow 1: aligned to pixel corners, without antialiasing. FID is defined with it.
  torch         bilinear, aligned to pixel centres, without antialiasing: F.interpolate, as in pytorch-fid.
  bilinear      aligned to centres, with antialiasing: Pillow's, before rounding.
  bicubic       the same with Keys' cubic, a = -1/2: Pillow's (clean-fid), and torch's with antialias=True.
  bicubic_sharp aligned to centres, a = -3/4, without antialiasing: F.interpolate(mode='bicubic').

jax.image.resize(method='cubic') is `bicubic`, and so is torch's with antialias=True: all three agree to 2e-5 of the
range. torch's default, without antialias, is `bicubic_sharp`: it differs from those by up to a tenth of the range when
noise is upsampled, and by more when it is downsampled.
"""
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError

FIXED = 22  # fractional bits of Pillow's weights


def _triangle(x):
  return np.maximum(1 - np.abs(x), 0)


def _cubic(a):
  """Keys 1981 (Cubic convolution interpolation for digital image processing), equation 4 with its a free."""
  def kernel(x):
    x = np.abs(x)
    near, far = (a + 2) * x ** 3 - (a + 3) * x ** 2 + 1, a * (x ** 3 - 5 * x ** 2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))
  return kernel


KINDS = dict(  # kernel; whether it widens in downsampling (antialiasing); position of a pixel's value within the pixel
  tensorflow=(_triangle, False, 0.),
  torch=(_triangle, False, .5),
  bilinear=(_triangle, True, .5),
  bicubic=(_cubic(-.5), True, .5),
  bicubic_sharp=(_cubic(-.75), False, .5))


def matrix(size, new, kind):
  """The weights of the input pixels in each output pixel.

  Args:
    size, new: pixels before and after, at least 1.
    kind: see the module docstring.
  Returns:
    float64 [new, size]; rows sum to 1.
  """
  kernel, widens, place = KINDS[kind]
  scale, width = size / new, max(size / new, 1.) if widens else 1.
  number = np.float64 if widens else np.float32  # as in the original codes; changes values by up to 4e-5 of the range
  places = ((np.arange(new, dtype=number) + number(place)) * number(scale) - number(place)).astype(np.float64)
  rows = kernel((np.arange(-2, size + 2) - places[:, None]) / width)  # two extra pixels at each end
  inside = rows[:, 2:-2].copy()
  if widens:  # pixels outside are excluded
    return inside / inside.sum(1, keepdims=True)
  inside[:, 0] += rows[:, :2].sum(1)  # pixels outside equal the edge
  inside[:, -1] += rows[:, -2:].sum(1)
  return inside


def resize(x, size, kind):
  """Resizes images to size x size in float32, without rounding; the aspect ratio is not kept. Traced.

  Args:
    x: [B, H, W, C], any number type.
    size: pixels.
    kind: see the module docstring.
  Returns:
    float32 [B, size, size, C]; bicubic kinds may exceed the range of x.
  """
  down, across = (jnp.asarray(matrix(n, size, kind), jnp.float32) for n in x.shape[1:3])
  y = jnp.einsum('vw,bhwc->bhvc', across, x.astype(jnp.float32), precision='highest')
  return jnp.einsum('uh,bhvc->buvc', down, y, precision='highest')


def resize_pillow(x, size, kind):
  """Image.resize of Pillow for 8-bit images, bit-exact: 22-bit weights, rounding after each direction. Traced.

  Horizontally first, then vertically, as in Pillow before 13, and in 13 for square images; 13 downsamples tall images
  in the other order. torchvision's resizing of 8-bit tensors differs by 1 or 2 levels in one pixel of a hundred.

  Args:
    x: uint8 [B, H, W, C].
    size: pixels.
    kind: 'bilinear' or 'bicubic'.
  Returns:
    uint8 [B, size, size, C].
  """
  def fixed(n):
    weights = matrix(n, size, kind)
    return jnp.asarray(np.trunc(weights * 2 ** FIXED + np.copysign(.5, weights)), jnp.int32)

  def rounded(y):
    return jnp.clip((y + 2 ** (FIXED - 1)) >> FIXED, 0, 255)

  y = rounded(jnp.einsum('vw,bhwc->bhvc', fixed(x.shape[2]), x.astype(jnp.int32)))
  return rounded(jnp.einsum('uh,bhvc->buvc', fixed(x.shape[1]), y)).astype(jnp.uint8)


def to_rgb(x):
  """Converts 8-bit images, grey or with transparency, to RGB; transparency is composited over white. Traced.

  Args:
    x: uint8 [B, H, W, C]; C: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.
  Returns:
    uint8 [B, H, W, 3].
  Raises:
    InputError: the type or shape is wrong. Images that were not rounded to 8 bits would give other features than
      those in files.
  """
  if x.ndim != 4 or x.shape[-1] not in (1, 2, 3, 4) or x.dtype != jnp.uint8:
    raise InputError(f'{x.dtype} {list(x.shape)}: expected images uint8 [B, H, W, C] with 1 to 4 channels')
  if x.shape[-1] in (2, 4):
    colour, alpha = x[..., :-1].astype(jnp.int32), x[..., -1:].astype(jnp.int32)
    x = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(jnp.uint8)
  return jnp.broadcast_to(x, (*x.shape[:-1], 3))
