"""Layers with two forms: the plain one, and one that XLA's CPU backend runs faster. Same parameters, same function.

XLA's CPU backend is slow at group reductions, at 1x1 convolutions and at convolving a picture that was just doubled by repetition;
rewriting those three as per-channel sums, matrix products and small convolutions makes a training step about twice faster there.
On accelerators the plain forms are the better ones. The functions here are pure; the modules below them own the parameters.
Arrays are [B, H, W, C]; kernels [kh, kw, C, F]. `fast=None` means: the fast form if the default backend is the CPU.
"""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

ZEROS = nn.initializers.zeros_init()
KERNEL_INIT = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')  # the choice of DDPM's code


def choose(fast):
  """The form to use: `fast` itself, or, if it is None, whether the default backend is the CPU."""
  return jax.default_backend() == 'cpu' if fast is None else fast


def group_norm(x, scale, shift, groups, eps=1e-5, fast=None):
  """Group normalisation (Wu & He 2018), then `* scale + shift`.

  Args:
    x: [B, H, W, C], any float type. Statistics are taken in float32 (float64 stays float64).
    scale: [C] or [B, C]. shift: the same.
    groups: number of groups; divides C.
    eps: added to the variance.
    fast: see the module.
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

  # Pixels first, channel by channel (contiguous in memory), then the few channels of a group. Mean and mean square in one pass: the variance
  # is their difference, good to about 1e-7 (1 + mean^2/var), relative.
  def group_mean(per_channel):
    return jnp.repeat(per_channel.reshape(-1, groups, size).mean(-1), size, axis=-1)

  y = x.astype(wide)
  mean = group_mean(y.mean((1, 2)))
  var = jnp.maximum(group_mean(jnp.square(y).mean((1, 2))) - jnp.square(mean), 0)
  a = jax.lax.rsqrt(var + eps) * scale
  b = shift - mean * a
  a, b = jax.lax.optimization_barrier((a, b))  # else XLA works them out anew for every pixel
  return (y * _per_channel(a) + _per_channel(b)).astype(x.dtype)


def _per_channel(v):
  """[C] or [B, C] as something that broadcasts against [B, H, W, C]."""
  return v.reshape(v.shape[0], 1, 1, v.shape[1]) if v.ndim == 2 else v


def conv(x, kernel, stride=1, fast=None):
  """Convolution (cross-correlation) of an odd kernel with (k - 1)/2 zeros on each side. No bias.

  Args:
    x: [B, H, W, C]. kernel: [k, k, C, F]. stride: int. fast: see the module.
  Returns:
    [B, ceil(H/stride), ceil(W/stride), F].
  """
  k = kernel.shape[0]
  if k == 1 and stride == 1 and choose(fast):
    return dot(x, kernel[0, 0])
  return _conv(x, kernel, stride, [(k // 2, k // 2)] * 2)


def _conv(x, kernel, stride, padding):
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def dot(x, kernel):
  """[..., C] times [C, F] as one matrix product of [everything, C]."""
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

  The fast form never makes the large picture's copies: the output pixels of one parity see only 2x2 low-resolution pixels, because two of
  the three taps fall on the same one; so four 2x2 convolutions do it, with 16 instead of 36 multiplications a pixel and channel pair.

  Args:
    x: [B, H, W, C]. kernel: [3, 3, C, F]. fast: see the module.
  Returns:
    [B, 2H, 2W, F].
  """
  if not choose(fast):
    return conv(nearest(x), kernel)
  B, H, W, _ = x.shape
  first, middle, last = kernel
  rows = jnp.stack([first, middle + last]), jnp.stack([first + middle, last])  # even, odd output rows: [2, 3, C, F]

  def parity(i, j):
    k = rows[i]
    columns = [k[:, 0], k[:, 1] + k[:, 2]] if j == 0 else [k[:, 0] + k[:, 1], k[:, 2]]
    return _conv(x, jnp.stack(columns, 1), 1, [(1 - i, i), (1 - j, j)])

  y = jnp.stack([jnp.stack([parity(i, 0), parity(i, 1)], 3) for i in (0, 1)], 2)  # [B, H, 2, W, 2, F]
  return y.reshape(B, 2 * H, 2 * W, -1)


def attend(q, k, v):
  """Softmax attention, `softmax(q k^T / sqrt(D)) v` (Vaswani et al. 2017, eq. 1), the softmax in float32.

  Args:
    q, k, v: [B, N, heads, D].
  Returns:
    [B, N, heads, D] in the type of v.
  """
  wide = jnp.promote_types(q.dtype, jnp.float32)
  logits = jnp.einsum('bqhd,bkhd->bhqk', q, k, preferred_element_type=wide) / np.sqrt(q.shape[-1])
  return jnp.einsum('bhqk,bkhd->bqhd', jax.nn.softmax(logits).astype(v.dtype), v)


def sinusoidal(time, size, period=10000.0):
  """Sinusoidal embedding (Vaswani et al. 2017, section 3.5, in the order of Ho et al. 2020): sines, then cosines.

  Args:
    time: [B], any real number. size: even. period: the longest wavelength is about 2 pi period.
  Returns:
    [B, size], float32: sin(time * w_i), then cos(time * w_i), w_i = period^(-i/(size/2)).
  """
  return _waves(time, period ** (-np.arange(size // 2) / (size // 2)))


def fourier(time, size, bandwidth=16.0):
  """Random Fourier features (Tancik et al. 2020; Song et al. 2021) of time/1000; frequencies are constants: always the same draw.

  Args:
    time: [B], about 0 to 1000. size: even. bandwidth: standard deviation of the frequencies, in periods over [0, 1000].
  Returns:
    [B, size], float32.
  """
  frequencies = np.random.default_rng(0).normal(scale=bandwidth, size=size // 2)
  return _waves(time, 2 * np.pi / 1000 * frequencies)


def _waves(time, frequencies):
  angles = jnp.asarray(time, jnp.float32)[:, None] * jnp.asarray(frequencies, jnp.float32)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


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
  """Convolution with bias: 3x3 or 1x1, with stride, or of the doubled picture (`up`). [B, H, W, C] -> [B, H', W', features]."""
  features: int
  size: int = 3
  stride: int = 1
  up: bool = False
  zero: bool = False
  dtype: str = 'float32'
  fast: bool | None = None

  @nn.compact
  def __call__(self, x):
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel = self.param('zero_kernel', ZEROS, shape) if self.zero else self.param('kernel', KERNEL_INIT, shape)
    bias = self.param('bias', ZEROS, (self.features,))
    x, kernel, bias = x.astype(self.dtype), kernel.astype(self.dtype), bias.astype(self.dtype)
    y = up_conv(x, kernel, self.fast) if self.up else conv(x, kernel, self.stride, self.fast)
    return y + bias


class Norm(nn.Module):
  """Group normalisation with a learned scale and shift, and optionally a second pair per example (FiLM): [B, H, W, C] -> the same."""
  groups: int
  fast: bool | None = None

  @nn.compact
  def __call__(self, x, film=None):
    """film: None, or [B, 2C]: (scale, shift), applied as `norm(x) * (1 + scale) + shift` (Dhariwal & Nichol 2021, section 3.1)."""
    scale = self.param('scale', nn.initializers.ones_init(), (x.shape[-1],))
    shift = self.param('bias', ZEROS, (x.shape[-1],))
    if film is not None:
      more, add = jnp.split(film, 2, -1)
      scale, shift = scale * (1 + more), shift * (1 + more) + add
    return group_norm(x, scale, shift, self.groups, fast=self.fast)
