"""The encoder half that `UNet` and `Classifier` share: options, residual blocks, the way down."""
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError
from diffusion.nets import layers
from diffusion.nets.attention import Attention
from diffusion.nets.embeddings import KINDS


class Parts(NamedTuple):
  """Functions that create and apply a layer under its name, in the module that is being called."""
  block: Callable     # (x, width, name, resample=None) -> x
  attend: Callable    # (x, name) -> x; to the context as well, if there is one
  resample: Callable  # (x, 'up' or 'down', name) -> x


class Encoder(nn.Module):
  """The encoder and its options. A base class, because Flax fields are declared by class.

  Fields:
    channels: width of the first level; level i has channels * multipliers[i].
    multipliers: one entry per level; each level but the last halves height and width.
    blocks: residual blocks per level (one more on the way up).
    attention: heights of the feature map, in pixels, at which to attend; the middle always attends.
    heads: attention heads. head_dim: if not 0, channels per head, and `heads` is ignored.
    film: give the embedding to a block as scale and shift of its second norm; else add it to the features.
    dropout: rate, inside each block; active if `train`, from the random stream 'dropout'.
    zero_init: the output, each block's last convolution and each attention's projection start at 0.
    resample: 'conv' (strided convolution; doubled, then convolution) or 'block' (in residual blocks: BigGAN).
    embedding: of time: 'sinusoidal' or 'fourier'.
    groups: groups of every norm.
    dtype: of the activations, 'float32' or 'bfloat16'; parameters, statistics, softmax, output are float32.
    remat: keep only the blocks' inputs for the backward pass and recompute the rest: less memory, more time.
    text: where there is a context, such as the tokens of a text, each layer of attention takes it in: 'joint', keys of
      the context and of the pixels in one softmax (GLIDE); or 'block', attention to the pixels, then to the context,
      then two dense layers (Stable Diffusion).
    patch: side of the squares of pixels that become channels before the first layer.
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
  text: str = 'joint'
  patch: int = 1
  fast: bool | None = None
  constrain: Callable = lambda x: x

  @nn.nowrap
  def parts(self, emb, train, context=None, weights=None):
    """The `Parts` of a call with this embedding [B, E], and a context [B, K, D] whose keys have weights [B, K], if any.
    """
    small = dict(dtype=self.dtype, fast=self.fast)
    Block = nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock
    Attend = nn.remat(Attention) if self.remat else Attention

    def block(x, width, name, resample=None):
      shared = dict(film=self.film, dropout=self.dropout, zero=self.zero_init, groups=self.groups, **small)
      return self.constrain(Block(width, resample=resample, name=name, **shared)(x, emb, train))

    def attend(x, name):
      heads = x.shape[-1] // self.head_dim if self.head_dim else self.heads
      layer = lambda name, **how: Attend(heads, self.groups, self.zero_init, name=name, **small, **how)
      if context is None or self.text == 'joint':
        return self.constrain(layer(name, joint=True)(x, context, weights))
      x = layer(f'{name}_context')(layer(name)(x), context, weights)
      return self.constrain(FeedForward(self.groups, self.zero_init, name=f'{name}_dense', **small)(x))

    def resample(x, way, name):
      width = x.shape[-1]
      if self.resample == 'block':
        return block(x, width, name, way)
      stride = 2 if way == 'down' else 1
      return self.constrain(layers.Conv(width, stride=stride, up=way == 'up', name=name, **small)(x))
    return Parts(block, attend, resample)

  @nn.nowrap
  def encode(self, x, parts, kept=None):
    """The way down, and the middle up to its attention.

    Args:
      x: [B, H, W, C].
      parts: as from `parts`.
      kept: None, or more channels of x, [B, H, W, C'], that count for nothing at first.
    Returns:
      (features [B, h, w, F] at the lowest resolution, list of the skip connections' features).
    """
    first = dict(dtype=self.dtype, fast=self.fast)
    h = layers.Conv(self.channels, name='in', **first)(layers.space_to_depth(x, self.patch))
    if kept is not None:  # a convolution of channels side by side is the sum of two
      h = h + layers.Conv(self.channels, zero=True, name='in_kept', **first)(layers.space_to_depth(kept, self.patch))
    h = self.constrain(h)
    skips = [h]
    widths = [self.channels * m for m in self.multipliers]
    for i, width in enumerate(widths):
      for j in range(self.blocks):
        h = parts.block(h, width, f'down{i}_block{j}')
        if h.shape[1] in self.attention:
          h = parts.attend(h, f'down{i}_attend{j}')
        skips.append(h)
      if i < len(widths) - 1:
        h = parts.resample(h, 'down', f'down{i}_resample')
        skips.append(h)
    return parts.attend(parts.block(h, widths[-1], 'middle_block0'), 'middle_attend'), skips


class FeedForward(nn.Module):
  """Two dense layers for each pixel, gated by GELU (GEGLU, arXiv:2002.05202), plus the input. [B, H, W, C] -> same."""
  groups: int
  zero: bool
  dtype: str
  fast: bool | None

  @nn.compact
  def __call__(self, x):
    C, small = x.shape[-1], dict(dtype=self.dtype, fast=self.fast)
    h = layers.Norm(self.groups, self.fast, name='norm')(x)
    value, gate = jnp.split(layers.Conv(8 * C, 1, name='in', **small)(h), 2, -1)
    return x.astype(value.dtype) + layers.Conv(C, 1, zero=self.zero, name='out', **small)(value * nn.gelu(gate))


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


def check(net, shape):
  """Raises InputError if the options of an `Encoder` do not fit each other or its input, `shape` [B, H, W, C]."""
  choices = dict(resample=('conv', 'block'), embedding=tuple(KINDS), dtype=('float32', 'bfloat16'),
                 text=('joint', 'block'))
  for field, allowed in choices.items():
    value = getattr(net, field)
    if value not in allowed:
      raise InputError(f'{field}={value!r} is unknown; choose one of {", ".join(map(repr, allowed))}')
  for field in ('channels', 'blocks', 'heads', 'head_dim', 'groups', 'patch', 'multipliers', 'attention'):
    value = getattr(net, field)
    if not all(isinstance(v, int) for v in np.ravel(np.asarray(value, object))):
      raise InputError(f'{field}={value!r}: expected whole numbers')
    if field in ('multipliers', 'attention') and not isinstance(value, (tuple, list)):
      raise InputError(f'{field}={value!r}: expected a tuple, such as ({value},)')
  if not 0 <= net.dropout < 1 or net.head_dim < 0:
    raise InputError(f'dropout={net.dropout}, head_dim={net.head_dim}: expected a dropout from 0 to below 1, '
                     'and a head_dim of at least 0')
  for field in ('channels', 'blocks', 'heads', 'groups', 'patch', 'multipliers'):
    value = getattr(net, field)
    if not value or np.any(np.asarray(value) < 1):
      raise InputError(f'{field}={value!r}: expected at least 1, and for multipliers one entry per level')
  if net.channels % 2:
    raise InputError(f'channels={net.channels} is odd; the time embedding needs an even number')
  _check_sizes(net, shape)
  divisor, field = (net.head_dim, 'head_dim') if net.head_dim else (net.heads, 'heads')
  for m in (1, *net.multipliers):
    width = net.channels * m
    what = f'{width} channels (channels={net.channels} times {m}) are not divisible by'
    if width % net.groups:
      raise InputError(f'{what} groups={net.groups}; change either')
    if m in net.multipliers and width % divisor:
      raise InputError(f'{what} {field}={divisor}; change either')


def _check_sizes(net, shape):
  if len(shape) != 4:
    raise InputError(f'This network takes images [batch, height, width, channels], not shape {tuple(shape)}')
  levels = len(net.multipliers)
  factor = net.patch * 2 ** (levels - 1)
  for axis, size in zip(('height', 'width'), shape[1:3]):
    if size % factor:
      near = [n for n in (size // factor * factor, -(-size // factor) * factor) if n]
      raise InputError(f'Image {axis} {size} is not divisible by {factor} (patch {net.patch} times '
                       f'2^{levels - 1} for {levels} levels); resize the images to '
                       f'{" or ".join(map(str, near))}, or use fewer levels')
