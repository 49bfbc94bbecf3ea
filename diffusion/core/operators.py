"""Linear measurements of x0 as functions, their adjoints, inverses and singular values.

A measurement is `Linear(forward, inverse, svd)`, with forward: x0 [B, H, W, C] -> y [B, ...]. Nothing else has to be
written by hand: the adjoint is the transpose of `forward`, and A^+ is found by conjugate gradients. Where the singular
value decomposition A = U S V^T is known, `svd(shape)` is an `Svd`, whose V is orthonormal:

  known_pixels   V = 1
  luma           V mixes the channels of a pixel
  block_average  V mixes the pixels of a block
  blur, kspace   V is the Hartley transform, which diagonalises every symmetric filter (Bracewell 1983)
"""
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from diffusion.core.gaussian import column, expand_to, from_x0
from diffusion.errors import InputError, check_positive

ITERATIONS = 50  # of conjugate gradients for A^+
LARGEST_MATRIX = 2 ** 23  # entries: a product with a matrix is faster than interpolation as long as it is small


class Svd(NamedTuple):
  """A = U S V^T of one shape of x0, as functions of batches; all arrays have the shape of x0."""
  s: np.ndarray          # singular values [H, W, C], 0 where nothing is measured
  coordinates: Callable  # x -> V^T x, orthonormal
  image: Callable        # V^T x -> x
  measured: Callable     # y -> U^T y, 0 where s is 0


class Linear(NamedTuple):
  """A linear measurement y = forward(x0)."""
  forward: Callable            # x0 [B, H, W, C] -> y [B, ...]
  inverse: Callable            # y -> x0, linear, with forward(inverse(forward(x))) = forward(x)
  svd: Callable | None = None  # shape [H, W, C] -> Svd, where it is known


# ---- from the function alone
def transposed(forward, shape, dtype=jnp.float32):
  """The adjoint A^T of a linear function, y [B, ...] -> x [B, H, W, C], where x has this shape [B, H, W, C]."""
  transpose = jax.linear_transpose(forward, jax.ShapeDtypeStruct(shape, dtype))
  return lambda y: transpose(y)[0]


def solve(matrix, b, iterations):
  """Solves matrix(u) = b by conjugate gradients, for every example by itself.

  Args:
    matrix: linear and positive semidefinite within an example, [B, ...] -> [B, ...].
    b: [B, ...], in its range. An example stops where its residual vanishes, or where the matrix, as the Jacobian of a
      network may be, is not positive.
    iterations: their number; with k different eigenvalues k are enough.
  """
  dot = lambda a, b: jnp.sum(a * b, tuple(range(1, a.ndim)))
  least = 1e-14 * dot(b, b)
  def body(_, state):
    u, r, p, rr, steepest = state
    q = matrix(p)
    pp, curvature = dot(p, p), dot(p, q)
    steepest = jnp.maximum(steepest, curvature / jnp.where(pp > 0, pp, 1.))
    go = (rr > least) & (curvature > 1e-7 * steepest * pp)  # below, it is rounding error: a direction without data
    step = column(jnp.where(go, rr / jnp.where(go, curvature, 1.), 0.), b.ndim)
    u, r = u + step * p, r - step * q
    new = jnp.where(go, dot(r, r), 0.)
    return u, r, r + column(new / jnp.where(go, rr, 1.), b.ndim) * p, new, steepest
  zero = jnp.zeros_like(least)
  return jax.lax.fori_loop(0, iterations, body, (jnp.zeros_like(b), b, b, dot(b, b), zero))[0]


def pseudo_inverse(forward, shape, iterations=ITERATIONS):
  """A^+, y [B, ...] -> x of least norm among those that fit y best, by conjugate gradients on A^T A x = A^T y.

  Args:
    forward: a linear function of x [B, H, W, C].
    shape: of one x0, [H, W, C].
  """
  def inverse(y):
    back = transposed(forward, (len(y), *shape))
    return solve(lambda x: back(forward(x)), back(y), iterations)
  return inverse


# ---- measurements
def known_pixels(mask):
  """The pixels where the mask is 0; y is zero elsewhere."""
  def keep(x):
    return jnp.where(mask, 0., x)
  def svd(shape):
    return Svd(np.broadcast_to(np.where(mask, 0., 1.), shape), lambda x: x, lambda x: x, keep)
  return Linear(keep, keep, svd)


def luma(weights=(.299, .587, .114)):
  """The grey image [..., 1] of an RGB image (ITU-R BT.601); the inverse is grey and so preserves colour differences.

  That inverse is not the Moore-Penrose one, which would be coloured; `svd` has that.

  Raises:
    InputError: weights that do not sum to 1.
  """
  weights = np.asarray(weights, np.float32)
  if not np.isclose(weights.sum(), 1):
    raise InputError(f'luma({tuple(weights.tolist())}): expected weights whose sum is 1')
  def forward(x):
    return jnp.sum(x * weights, -1, keepdims=True)
  def inverse(y):
    return jnp.broadcast_to(y, (*y.shape[:-1], len(weights)))
  def svd(shape):
    norm = float(np.linalg.norm(weights.astype(np.float64)))
    basis = _basis(weights / norm)
    s = np.broadcast_to(np.array([norm] + [0.] * (len(weights) - 1)), shape)
    first = lambda y: jnp.pad(y, [(0, 0)] * (y.ndim - 1) + [(0, len(weights) - 1)])
    return Svd(s, lambda x: x @ basis, lambda x: x @ basis.T, first)
  return Linear(forward, inverse, svd)


def block_average(factor):
  """The image of averages over blocks of factor x factor pixels; the inverse repeats pixels. x [..., H, W, C].

  Raises:
    InputError: a factor below 1.
  """
  if isinstance(factor, bool) or not isinstance(factor, (int, np.integer)) or factor < 1:
    raise InputError(f'block_average({factor!r}): expected a factor of at least 1, a whole number')
  def forward(x):
    return jnp.mean(_blocks(x, factor), (-4, -2))
  def inverse(y):
    return jnp.repeat(jnp.repeat(y, factor, -3), factor, -2)
  def svd(shape):
    basis = _basis(np.full(factor ** 2, 1 / factor))
    def turned(x, matrix):
      blocks = jnp.moveaxis(_blocks(x, factor), (-4, -2), (-2, -1))  # [.., rows, columns, C, factor, factor]
      mixed = (blocks.reshape(*blocks.shape[:-2], -1) @ matrix).reshape(blocks.shape)
      return jnp.moveaxis(mixed, (-2, -1), (-4, -2)).reshape(x.shape)
    first = np.zeros((factor, factor))
    first[0, 0] = 1
    spread = np.tile(first, (shape[0] // factor, shape[1] // factor))[..., None]
    return Svd(np.broadcast_to(spread / factor, shape), lambda x: turned(x, basis), lambda x: turned(x, basis.T),
               lambda y: inverse(y) * spread)
  return Linear(forward, inverse, svd)


def blur(width):
  """A Gaussian blur with a standard deviation of `width` pixels; images continue periodically.

  Frequencies that it weakens below 1 / 1000 count as lost: `inverse` leaves them 0.
  """
  check_positive('blur', width=width)
  def response(x):
    f = np.fft.fftfreq(x.shape[-3])[:, None] ** 2 + np.fft.fftfreq(x.shape[-2]) ** 2
    gain = np.exp(-2 * (np.pi * width) ** 2 * f)[..., None]
    return np.where(gain < 1e-3, 0., gain).astype(np.float32)
  def filtered(x, gain):
    return _hartley(gain * _hartley(x))
  def inverse(y):
    gain = response(y)
    return filtered(y, np.divide(1., gain, out=np.zeros_like(gain), where=gain > 0))
  def svd(shape):
    gain = response(np.zeros(shape))
    return Svd(np.broadcast_to(gain, shape), _hartley, _hartley, lambda y: jnp.where(gain > 0, _hartley(y), 0.))
  return Linear(lambda x: filtered(x, response(x)), inverse, svd)


def kspace(mask):
  """Some of the Fourier coefficients of images, as an MR scanner measures them with one coil.

  Args:
    mask: bool [H, W], which are measured, in the order of numpy.fft.fft2, so that the mean is at [0, 0].
  Returns:
    A Linear with y [B, H, W, C, 2]: real and imaginary parts of the orthonormal transform, 0 where nothing is measured.
  """
  mask = np.asarray(mask, bool)
  both = (mask * 1. + np.roll(mask[::-1, ::-1], (1, 1), (0, 1))) / 2  # of f and -f, which say the same of real images
  keep, power = mask[..., None, None], both[..., None]
  def forward(x):
    f = jnp.fft.fft2(x, axes=(-3, -2), norm='ortho')
    return jnp.where(keep, jnp.stack([f.real, f.imag], -1), 0.)
  def spectral(y):  # V^T A^T y
    y = jnp.where(keep, y, 0.)
    return _hartley(jnp.fft.ifft2(y[..., 0] + 1j * y[..., 1], axes=(-3, -2), norm='ortho').real)
  def over(a, b):
    return np.divide(a, b, out=np.zeros_like(b), where=b > 0).astype(np.float32)
  def svd(shape):
    return Svd(np.broadcast_to(np.sqrt(power), shape), _hartley, _hartley,
               lambda y: spectral(y) * over(1., np.sqrt(power)))
  return Linear(forward, lambda y: _hartley(spectral(y) * over(1., power)), svd)


def radon(angles, shape):
  """Sums along parallel rays, as a CT scanner measures them, by bilinear interpolation; its SVD is not known.

  Args:
    angles: in degrees, [A].
    shape: of one x0, [H, W, C].
  Returns:
    A Linear with y [B, A, W', C], W' the diagonal of the image in pixels: sums, divided by max(H, W).
  """
  H, W, _ = shape
  n, turn = int(np.ceil(np.hypot(H, W))), np.deg2rad(np.asarray(angles, np.float64))[:, None, None]
  r = np.arange(n) - (n - 1) / 2
  places = np.stack([(H - 1) / 2 + r[:, None] * np.cos(turn) + r * np.sin(turn),    # r[:, None] runs along the ray
                     (W - 1) / 2 - r[:, None] * np.sin(turn) + r * np.cos(turn)])
  if len(turn) * n * H * W <= LARGEST_MATRIX:
    matrix = _weights(places, H, W) / max(H, W)
    def one(image):  # [H, W] -> [A, n]
      return jnp.einsum('anp,p->an', matrix, image.reshape(-1), precision='highest')
  else:
    def one(image):
      return jnp.sum(map_coordinates(image, list(places.astype(np.float32)), 1, 'constant', 0.), 1) / max(H, W)
  over_channels = jax.vmap(jax.vmap(one, -1, -1))
  return Linear(over_channels, pseudo_inverse(over_channels, tuple(shape)))


def _weights(places, H, W):
  """What each pixel [H, W] adds to a sum along a ray by bilinear interpolation: float32 [A, n, H * W].

  Args:
    places: rows and columns of points of rays, [2, A, n along the ray, n rays].
  """
  _, A, n, _ = places.shape
  first = np.floor(places).astype(int)
  total, (angle, _, ray) = np.zeros((A, n, H * W), np.float32), np.indices((A, n, n))
  for corner in np.ndindex(2, 2):
    y, x = at = first + np.reshape(corner, (2, 1, 1, 1))
    share, inside = np.prod(1 - np.abs(places - at), 0), (y >= 0) & (y < H) & (x >= 0) & (x < W)
    np.add.at(total, (angle[inside], ray[inside], (y * W + x)[inside]), share[inside])
  return total


def _blocks(x, factor):
  *batch, height, width, channels = x.shape
  if height % factor or width % factor:
    raise InputError(f'block_average({factor}) does not divide the size of the image, {height}x{width}')
  return x.reshape(*batch, height // factor, factor, width // factor, factor, channels)


def _basis(first):
  """An orthonormal basis, in columns, whose first vector is this one."""
  basis, _ = np.linalg.qr(np.column_stack([first, np.eye(len(first))]).astype(np.float64))
  return (basis * np.sign(basis[:, 0] @ first)).astype(np.float32)


def _hartley(x):
  """The orthonormal Hartley transform over height and width, its own inverse. x [..., H, W, C]."""
  f = jnp.fft.fft2(x, axes=(-3, -2), norm='ortho')
  return f.real - f.imag


# ---- agreement without noise
def fixed(denoise, known, mask):
  """x0 is `known` where the mask is 0, as GLIDE's in-painting has it at every step (arXiv:2112.10741, section 2.4).

  Where the mask is not 0 the prediction is unchanged, to the last bit. Apply it outside of clip.

  Args:
    denoise: (x, noise) -> Pred.
    known, mask: broadcast against x; the mask is 1 where x0 is painted.
  Returns:
    A denoiser.
  """
  def constrained(x, noise):
    pred = denoise(x, noise)
    held = from_x0(expand_to(noise, x), x, jnp.broadcast_to(known, x.shape))
    return pred._replace(x0=jnp.where(mask, pred.x0, held.x0), eps=jnp.where(mask, pred.eps, held.eps))
  return constrained


def ddnm(denoise, operator, y):
  """x0 + A^+ (y - A x0): an x0 that agrees with a noiseless measurement (DDNM, arXiv:2212.00490, equation 13).

  As a function of the denoiser it makes every solver end on an image with A x = y. Apply it outside of clip.

  Args:
    denoise: (x, noise) -> Pred.
    operator: a Linear.
    y: the measurement; broadcasts against operator.forward(x0).
  Returns:
    A denoiser.
  """
  def constrained(x, noise):
    pred = denoise(x, noise)
    x0 = pred.x0 + operator.inverse(y - operator.forward(pred.x0))
    return from_x0(expand_to(noise, x), x, x0, pred.variance)
  return constrained
