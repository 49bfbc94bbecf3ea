"""The U-Net of DDPM (Ho et al. 2020), improved DDPM (Nichol & Dhariwal 2021), ADM (Dhariwal & Nichol 2021).

  DDPM           UNet(channels=128, multipliers=(1, 2, 2, 2), attention=(16,), film=False, groups=32)
  improved DDPM  UNet(channels=128, multipliers=(1, 2, 2, 2), blocks=3, attention=(16, 8), heads=4, groups=32)
  ADM            UNet(channels=256, multipliers=(1, 1, 2, 2, 4, 4), attention=(32, 16, 8), head_dim=64,
                      resample='block', groups=32)

Time and condition become one vector [B, 4 * channels], given to every residual block. The condition enters
linearly and without a bias: zeros mean "no condition", and a weighted sum of conditions has the weighted sum
of embeddings.
"""
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError
from diffusion.nets import layers


def _same(x):
  return x


class UNet(nn.Module):
  """Network `(x, time, cond, train) -> out`; see `__call__`.

  Fields:
    channels: width of the first level; level i has channels * multipliers[i].
    multipliers: one entry a level; each level but the last halves height and width.
    blocks: residual blocks a level (one more on the way up).
    attention: heights, in pixels of the feature map, at which to attend; the middle always attends.
    heads: attention heads. head_dim: if not 0, channels a head, and `heads` is ignored.
    film: give the embedding to a block as scale and shift of its second norm; else add it to the features.
    dropout: rate, inside each block; active if `train`, from the random stream 'dropout'.
    zero_init: the output, each block's last convolution and each attention's projection start at 0.
    resample: 'conv' (strided convolution; doubled, then convolution) or 'block' (in residual blocks: BigGAN).
    embedding: of time: 'sinusoidal' or 'fourier'.
    groups: groups of every norm.
    dtype: of the activations, 'float32' or 'bfloat16'; parameters, statistics, softmax, output are float32.
    remat: keep only the blocks' inputs for the backward pass and recompute the rest: less memory, more time.
    patch: side of the squares of pixels that become channels before the first layer, and back after the last.
    out_channels: of the output; None: as the input.
    fast: form of the layers, see `layers`.
    constrain: applied to the activations between blocks; a place for a sharding constraint.
  """
  channels: int = 64
  multipliers: tuple = (1, 2, 2)
  blocks: int = 2
  attention: tuple = (8,)
  heads: int = 1
  head_dim: int = 0
  film: bool = True
  dropout: float = 0.0
  zero_init: bool = True
  resample: str = 'conv'
  embedding: str = 'sinusoidal'
  groups: int = 8
  dtype: str = 'float32'
  remat: bool = False
  patch: int = 1
  out_channels: int | None = None
  fast: bool | None = None
  constrain: Callable = _same

  @nn.compact
  def __call__(self, x, time, cond=None, train=False):
    """Runs the network.

    Args:
      x: [B, H, W, C], float. H and W divide by patch * 2^(levels - 1).
      time: [B], about 0 to 1000 (discrete steps, or 1000 times a continuous time).
      cond: None, [B, K] (one-hot classes, a context vector, a weighted sum of such), or a dict of them.
      train: whether dropout is active.
    Returns:
      [B, H, W, out_channels], float32.
    Raises:
      InputError: an option or a size that does not fit.
    """
    check(self, x.shape)
    emb = nn.silu(Embedding(self.channels, self.embedding, name='embedding')(time, cond))
    small = dict(dtype=self.dtype, fast=self.fast)
    Block = nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock
    Attend = nn.remat(Attention) if self.remat else Attention

    def block(x, width, name, resample=None):
      shared = dict(film=self.film, dropout=self.dropout, zero=self.zero_init, groups=self.groups, **small)
      return self.constrain(Block(width, resample=resample, name=name, **shared)(x, emb, train))

    def attend(x, name):
      heads = x.shape[-1] // self.head_dim if self.head_dim else self.heads
      return self.constrain(Attend(heads, self.groups, self.zero_init, name=name, **small)(x))

    def resample(x, way, name):
      width = x.shape[-1]
      if self.resample == 'block':
        return block(x, width, name, way)
      stride = 2 if way == 'down' else 1
      return self.constrain(layers.Conv(width, stride=stride, up=way == 'up', name=name, **small)(x))

    out_channels = self.out_channels or x.shape[-1]
    widths = [self.channels * m for m in self.multipliers]
    last = len(widths) - 1

    h = layers.space_to_depth(x, self.patch)
    h = self.constrain(layers.Conv(self.channels, name='in', **small)(h))
    skips = [h]
    for i, width in enumerate(widths):
      for j in range(self.blocks):
        h = block(h, width, f'down{i}_block{j}')
        if h.shape[1] in self.attention:
          h = attend(h, f'down{i}_attend{j}')
        skips.append(h)
      if i < last:
        h = resample(h, 'down', f'down{i}_resample')
        skips.append(h)

    h = block(h, widths[-1], 'middle_block0')
    h = attend(h, 'middle_attend')
    h = block(h, widths[-1], 'middle_block1')

    for i in reversed(range(len(widths))):
      for j in range(self.blocks + 1):
        h = block(jnp.concatenate([h, skips.pop()], -1), widths[i], f'up{i}_block{j}')
        if h.shape[1] in self.attention:
          h = attend(h, f'up{i}_attend{j}')
      if i > 0:
        h = resample(h, 'up', f'up{i}_resample')

    h = nn.silu(layers.Norm(self.groups, self.fast, name='out_norm')(h))
    features = out_channels * self.patch ** 2
    h = layers.Conv(features, zero=self.zero_init, name='out', dtype='float32', fast=self.fast)(h)
    return layers.depth_to_space(h, self.patch)


class Embedding(nn.Module):
  """Time [B] and condition (see `UNet`) -> [B, 4 * channels], float32."""
  channels: int
  kind: str

  @nn.compact
  def __call__(self, time, cond):
    features = dict(sinusoidal=layers.sinusoidal, fourier=layers.fourier)[self.kind]
    dense = partial(layers.Dense, 4 * self.channels)
    h = dense(name='time0')(features(time, self.channels))
    h = dense(name='time1')(nn.silu(h))
    conds = cond if isinstance(cond, dict) else {} if cond is None else {'cond': cond}
    for name, value in sorted(conds.items()):
      h = h + dense(use_bias=False, name=f'cond_{name}')(value.astype(jnp.float32))
    return h


class ResBlock(nn.Module):
  """Norm, SiLU, convolution; norm with the embedding, SiLU, dropout, convolution; plus the input.

  x [B, H, W, C], emb [B, E] -> [B, H', W', width]; resample 'up' doubles and 'down' halves height and width.
  """
  width: int
  film: bool
  dropout: float
  zero: bool
  groups: int
  resample: str | None
  dtype: str
  fast: bool | None

  @nn.compact
  def __call__(self, x, emb, train):
    small = dict(dtype=self.dtype, fast=self.fast)
    up, down = self.resample == 'up', self.resample == 'down'
    h = nn.silu(layers.Norm(self.groups, self.fast, name='norm0')(x))
    if down:
      h, x = layers.average(h), layers.average(x)
    if up:
      x = layers.nearest(x)
    h = layers.Conv(self.width, up=up, name='conv0', **small)(h)
    e = layers.Dense(self.width * (2 if self.film else 1), name='emb')(emb)
    if not self.film:
      h = h + e[:, None, None].astype(h.dtype)
    h = nn.silu(layers.Norm(self.groups, self.fast, name='norm1')(h, e if self.film else None))
    if train and self.dropout:
      h = layers.dropout(self.make_rng('dropout'), h, self.dropout)
    h = layers.Conv(self.width, zero=self.zero, name='conv1', **small)(h)
    if x.shape[-1] != self.width:
      x = layers.Conv(self.width, 1, name='skip', **small)(x)
    return x.astype(h.dtype) + h


class Attention(nn.Module):
  """Self-attention over the pixels, plus the input. [B, H, W, C] -> the same."""
  heads: int
  groups: int
  zero: bool
  dtype: str
  fast: bool | None

  @nn.compact
  def __call__(self, x):
    B, H, W, C = x.shape
    small = dict(dtype=self.dtype, fast=self.fast)
    h = layers.Norm(self.groups, self.fast, name='norm')(x)
    qkv = layers.Conv(3 * C, 1, name='qkv', **small)(h).reshape(B, H * W, 3, self.heads, -1)
    h = layers.attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(x.shape)
    return x.astype(h.dtype) + layers.Conv(C, 1, zero=self.zero, name='out', **small)(h)


def check(net, shape):
  """Raises InputError where the options of `net` do not fit each other or the input, `shape` [B, H, W, C]."""
  choices = dict(resample=('conv', 'block'), embedding=('sinusoidal', 'fourier'),
                 dtype=('float32', 'bfloat16'))
  for field, allowed in choices.items():
    value = getattr(net, field)
    if value not in allowed:
      raise InputError(f'{field}={value!r} is unknown; choose one of {", ".join(map(repr, allowed))}')
  for field in ('channels', 'blocks', 'heads', 'head_dim', 'groups', 'patch', 'multipliers', 'attention'):
    value = getattr(net, field)
    if not all(isinstance(v, int) for v in np.ravel(np.asarray(value, object))):
      raise InputError(f'{field}={value!r}: expected whole numbers')
    if field in ('multipliers', 'attention') and not isinstance(value, (tuple, list)):
      raise InputError(f'{field}={value!r}: expected several in brackets, such as ({value},)')
  if not 0 <= net.dropout < 1 or net.head_dim < 0:
    raise InputError(f'dropout={net.dropout}, head_dim={net.head_dim}: expected a dropout from 0 to below 1, '
                     'and a head_dim of at least 0')
  for field in ('channels', 'blocks', 'heads', 'groups', 'patch', 'multipliers'):
    value = getattr(net, field)
    if not value or np.any(np.asarray(value) < 1):
      raise InputError(f'{field}={value!r}: expected at least 1, and an entry a level if it is multipliers')
  if len(shape) != 4:
    raise InputError(f'The U-Net takes images [batch, height, width, channels], not shape {tuple(shape)}')
  if net.channels % 2:
    raise InputError(f'channels={net.channels} is odd; the time embedding needs an even number')
  levels = len(net.multipliers)
  factor = net.patch * 2 ** (levels - 1)
  for axis, size in zip(('height', 'width'), shape[1:3]):
    if size % factor:
      near = [n for n in (size // factor * factor, -(-size // factor) * factor) if n]
      raise InputError(f'Image {axis} {size} does not divide by {factor} (patch {net.patch} times '
                       f'2^{levels - 1} from {levels} levels); resize the images to '
                       f'{" or ".join(map(str, near))}, or use fewer levels')
  divisor, field = (net.head_dim, 'head_dim') if net.head_dim else (net.heads, 'heads')
  for m in (1, *net.multipliers):
    width = net.channels * m
    what = f'{width} channels (channels={net.channels} times {m}) do not divide by'
    if width % net.groups:
      raise InputError(f'{what} groups={net.groups}; change either')
    if m in net.multipliers and width % divisor:
      raise InputError(f'{what} {field}={divisor}; change either')
