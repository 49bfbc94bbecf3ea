"""Layers of image networks, some in two forms with the same parameters and the same result: plain, and faster on CPUs.

XLA's CPU backend is slow at reductions over groups, at 1x1 convolutions, and at convolutions of an image that was
just upsampled by repetition; it is fast at sums over pixels, matrix products and small convolutions. On
accelerators the plain forms are faster. The functions are pure; the modules at the end own the parameters.
Arrays are [B, H, W, C], kernels [kh, kw, C, F]. `fast=None` selects the fast form if the default backend is the CPU.
"""
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.nets.initializers import KERNEL, ONES, ZEROS

Dense = partial(nn.Dense, kernel_init=KERNEL, bias_init=ZEROS)  # drawn on the host


def choose(fast):
  """Whether to use the fast form: `fast`, or, if it is None, whether the default backend is the CPU."""
  return jax.default_backend() == 'cpu' if fast is None else fast


def group_norm(x, scale, shift, groups, eps=1e-5, fast=None):
  """Group normalisation (Wu & He 2018), then `* scale + shift`.

  Args:
    x: [B, H, W, C], any float type. Statistics are taken in float32 (float64 stays float64).
    scale: [C] or [B, C]. shift: the same.
    groups: number of groups; divides C.
    eps: added to the variance.
    fast: see the module docstring.
  Returns:
    [B, H, W, C] in the type of x.
  """
  wide = jnp.promote_types(x.dtype, jnp.float32)
  size = x.shape[-1] // groups
  if not choose(fast):
    y = x.astype(wide).reshape(*x.shape[:-1], groups, size)
    y = y - y.mean((1, 2, 4), keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean((1, 2, 4), keepdims=True) + eps)
    y = y.reshape(x.shape) * _per_channel(scale) + _per_channel(shift)
    return y.astype(x.dtype)

  # First over pixels, for each channel (contiguous in memory), then over the channels of a group as a matrix
  # product, whose result XLA keeps; it would recompute a reduction for every pixel. One pass over x gives mean
  # and mean square; the variance is their difference, with a relative error of about 1e-7 (1 + mean^2/var).
  average_groups = np.kron(np.eye(groups), np.full((size, size), 1 / size)).astype(wide)
  y = x.astype(wide)
  mean = y.mean((1, 2)) @ average_groups
  var = jnp.maximum(jnp.square(y).mean((1, 2)) @ average_groups - jnp.square(mean), 0)
  a = jax.lax.rsqrt(var + eps) * scale
  b = shift - mean * a
  return (y * _per_channel(a) + _per_channel(b)).astype(x.dtype)


def _per_channel(v):
  """[C] or [B, C], reshaped to broadcast against [B, H, W, C]."""
  return v.reshape(v.shape[0], 1, 1, v.shape[1]) if v.ndim == 2 else v


def conv(x, kernel, stride=1, fast=None, padding=None):
  """Convolution (cross-correlation) of an odd kernel with (k - 1)/2 zeros on each side. No bias.

  Args:
    x: [B, H, W, C]. kernel: [k, k, C, F]. stride: int. fast: see the module docstring.
    padding: other numbers of zeros, (above and to the left, below and to the right).
  Returns:
    [B, ceil(H/stride), ceil(W/stride), F].
  """
  k = kernel.shape[0]
  if k == 1 and stride == 1 and choose(fast):
    return dot(x, kernel[0, 0])
  return _conv(x, kernel, stride, [padding or (k // 2, k // 2)] * 2)


def _conv(x, kernel, stride, padding):
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def dot(x, kernel):
  """[..., C] times [C, F] -> [..., F], as one matrix product."""
  return jnp.dot(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def nearest(x):
  """[B, H, W, C] -> [B, 2H, 2W, C], each pixel repeated."""
  B, H, W, C = x.shape
  return jnp.broadcast_to(x[:, :, None, :, None], (B, H, 2, W, 2, C)).reshape(B, 2 * H, 2 * W, C)


def average(x):
  """[B, H, W, C] -> [B, H/2, W/2, C], the mean of each 2x2 pixels."""
  B, H, W, C = x.shape
  return x.reshape(B, H // 2, 2, W // 2, 2, C).mean((2, 4))


def up_conv(x, kernel, fast=None):
  """`conv(nearest(x), kernel)` for a 3x3 kernel.

  Output pixels of one parity depend on only 2x2 low-resolution pixels, because two of the three taps fall on
  the same one. So four 2x2 convolutions of x suffice, with 16 instead of 36 multiplications per pixel of x and
  pair of channels.

  Args:
    x: [B, H, W, C]. kernel: [3, 3, C, F]. fast: see the module docstring.
  Returns:
    [B, 2H, 2W, F].
  """
  if not choose(fast):
    return conv(nearest(x), kernel)
  B, H, W, C = x.shape
  # [parity, tap of 2, tap of 3]: even rows depend on rows (previous, own, own) of x, odd rows on (own, own, next).
  taps = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
  taps = np.einsum('ipu,jqv->ijpquv', taps, taps).reshape(16, 9).astype(kernel.dtype)
  kernels = (taps @ kernel.reshape(9, -1)).reshape(2, 2, 2, 2, C, -1)

  def parity(i, j):
    return _conv(x, kernels[i, j], 1, [(1 - i, i), (1 - j, j)])

  y = jnp.stack([jnp.stack([parity(i, 0), parity(i, 1)], 3) for i in (0, 1)], 2)  # [B, H, 2, W, 2, F]
  return y.reshape(B, 2 * H, 2 * W, -1)


def dropout(key, x, rate):
  """x with a fraction `rate` of its entries set to 0 and the others divided by 1 - rate (Srivastava et al. 2014).

  The barrier keeps XLA from drawing the mask's random bits again inside each convolution that reads it, forward and
  backward, which made compilation for TPUs 2.5 times as long.
  """
  keep = jax.lax.optimization_barrier(jax.random.bernoulli(key, 1 - rate, x.shape))
  return jnp.where(keep, x / (1 - rate), 0)


def space_to_depth(x, patch):
  """[B, H, W, C] -> [B, H/patch, W/patch, patch^2 C]."""
  B, H, W, C = x.shape
  x = x.reshape(B, H // patch, patch, W // patch, patch, C).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(B, H // patch, W // patch, -1)


def depth_to_space(x, patch):
  """The inverse of `space_to_depth`: [B, h, w, patch^2 C] -> [B, patch h, patch w, C]."""
  B, H, W, _ = x.shape
  x = x.reshape(B, H, W, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(B, H * patch, W * patch, -1)


class Conv(nn.Module):
  """Convolution with bias, 3x3 or 1x1, with a stride or after upsampling (`up`). [B, H, W, C] -> [B, H', W', F].

  `zero`: the kernel starts at 0 and is called zero_kernel.
  """
  features: int
  size: int = 3
  stride: int = 1
  up: bool = False
  zero: bool = False
  dtype: str = 'float32'
  fast: bool | None = None
  padding: tuple | None = None  # as in `conv`

  @nn.compact
  def __call__(self, x):
    shape = (self.size, self.size, x.shape[-1], self.features)
    name, start = ('zero_kernel', ZEROS) if self.zero else ('kernel', KERNEL)
    kernel = self.param(name, start, shape)
    bias = self.param('bias', ZEROS, (self.features,))
    x, kernel, bias = x.astype(self.dtype), kernel.astype(self.dtype), bias.astype(self.dtype)
    y = up_conv(x, kernel, self.fast) if self.up else conv(x, kernel, self.stride, self.fast, self.padding)
    return y + bias


class Norm(nn.Module):
  """Group normalisation, learned scale and shift, optionally a pair per example (FiLM). [B, H, W, C] -> same."""
  groups: int
  fast: bool | None = None
  eps: float = 1e-5

  @nn.compact
  def __call__(self, x, film=None):
    """film: None, or [B, 2C]: scale, shift of `norm(x) * (1 + scale) + shift` (Nichol & Dhariwal 2021)."""
    scale = self.param('scale', ONES, (x.shape[-1],))
    shift = self.param('bias', ZEROS, (x.shape[-1],))
    if film is not None:
      more, add = jnp.split(film, 2, -1)
      scale, shift = scale * (1 + more), shift * (1 + more) + add
    return group_norm(x, scale, shift, self.groups, self.eps, self.fast)
