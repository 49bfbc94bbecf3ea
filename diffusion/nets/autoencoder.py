"""The autoencoder of latent diffusion (arXiv:2112.10752), in the blocks of AutoencoderKL and VQModel of diffusers.

`published` gives its parameters under the names of their files: encoder/down_blocks_0/resnets_1/conv1/kernel here is
encoder.down_blocks.0.resnets.1.conv1.weight there.
"""
import re
from typing import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError
from diffusion.nets import layers
from diffusion.nets.attention import attend
from diffusion.nets.patch_gan import PatchGan

TINY = 'autoencoder(channels=8, multipliers=(1, 2), blocks=1, groups=4, critic_channels=8, critic_layers=2)'
EPS = 1e-6  # of every norm


class ResBlock(nn.Module):
  """Norm, SiLU, convolution, twice; plus the input. [B, H, W, C] -> [B, H, W, width]."""
  width: int
  groups: int
  small: dict  # dtype, fast

  @nn.compact
  def __call__(self, x):
    norm = lambda name: layers.Norm(self.groups, self.small['fast'], EPS, name=name)
    h = layers.Conv(self.width, name='conv1', **self.small)(nn.silu(norm('norm1')(x)))
    h = layers.Conv(self.width, name='conv2', **self.small)(nn.silu(norm('norm2')(h)))
    if x.shape[-1] != self.width:
      x = layers.Conv(self.width, 1, name='conv_shortcut', **self.small)(x)
    return x.astype(h.dtype) + h


class Attention(nn.Module):
  """Self-attention of the pixels with one head, plus the input. [B, H, W, C] -> same."""
  groups: int
  small: dict

  @nn.compact
  def __call__(self, x):
    B, H, W, C = x.shape
    h = layers.Norm(self.groups, self.small['fast'], EPS, name='group_norm')(x).reshape(B, H * W, C)
    dense = lambda name: layers.Dense(C, dtype=self.small['dtype'], name=name)
    q, k, v = (dense(name)(h)[:, :, None] for name in ('to_q', 'to_k', 'to_v'))
    h = dense('to_out_0')(attend(q, k, v)[:, :, 0]).reshape(x.shape)
    return x.astype(h.dtype) + h


class Resample(nn.Module):
  """Half the size, with a row of zeros below and a column at the right, or twice. [B, H, W, C] -> [B, H', W', C]."""
  up: bool
  small: dict

  @nn.compact
  def __call__(self, x):
    how = dict(up=True) if self.up else dict(stride=2, padding=(0, 1))
    return layers.Conv(x.shape[-1], name='conv', **how, **self.small)(x)


class Level(nn.Module):
  """The blocks of one resolution, and the way to the next one unless it is the last."""
  width: int
  blocks: int
  way: str  # down, up, or '' for the last level
  remat: bool
  groups: int
  small: dict
  constrain: Callable

  @nn.compact
  def __call__(self, h):
    Block = nn.remat(ResBlock) if self.remat else ResBlock
    for j in range(self.blocks):
      h = self.constrain(Block(self.width, self.groups, self.small, name=f'resnets_{j}')(h))
    if self.way:
      h = self.constrain(Resample(self.way == 'up', self.small, name=f'{self.way}samplers_0')(h))
    return h


class Middle(nn.Module):
  """Two blocks at the lowest resolution, with attention between them. [B, H, W, C] -> same."""
  attention: bool
  groups: int
  small: dict

  @nn.compact
  def __call__(self, h):
    h = ResBlock(h.shape[-1], self.groups, self.small, name='resnets_0')(h)
    if self.attention:
      h = Attention(self.groups, self.small, name='attentions_0')(h)
    return ResBlock(h.shape[-1], self.groups, self.small, name='resnets_1')(h)


class Coder(nn.Module):
  """What encoder and decoder share: their fields."""
  features: int  # channels of the output
  channels: int
  multipliers: tuple
  blocks: int
  attention: bool
  remat: bool
  groups: int
  small: dict
  constrain: Callable

  @nn.nowrap
  def level(self, i, way, blocks):
    """The module of the i-th level in the order of its names."""
    order = self.multipliers if way == 'down' else self.multipliers[::-1]
    last = i == len(order) - 1
    return Level(self.channels * order[i], blocks, '' if last else way, self.remat, self.groups, self.small,
                 self.constrain, name=f'{way}_blocks_{i}')

  @nn.nowrap
  def middle(self):
    return Middle(self.attention, self.groups, self.small, name='mid_block')

  @nn.nowrap
  def norm(self):
    return layers.Norm(self.groups, self.small['fast'], EPS, name='conv_norm_out')


class Encoder(Coder):
  """Images [B, H, W, C] -> [B, h, w, features]."""
  @nn.compact
  def __call__(self, x):
    h = self.constrain(layers.Conv(self.channels, name='conv_in', **self.small)(x))
    for i in range(len(self.multipliers)):
      h = self.level(i, 'down', self.blocks)(h)
    h = nn.silu(self.norm()(self.middle()(h)))
    return layers.Conv(self.features, name='conv_out', dtype='float32', fast=self.small['fast'])(h)


class Decoder(Coder):
  """Latents [B, h, w, c] -> (images [B, H, W, features], the input h of the last convolution).

  h: given in place of latents, for the last convolution alone.
  """
  @nn.compact
  def __call__(self, z, h=None):
    if h is None:
      width = self.channels * self.multipliers[-1]
      h = self.middle()(self.constrain(layers.Conv(width, name='conv_in', **self.small)(z)))
      for i in range(len(self.multipliers)):
        h = self.level(i, 'up', self.blocks + 1)(h)
      h = nn.silu(self.norm()(h))
    return layers.Conv(self.features, name='conv_out', dtype='float32', fast=self.small['fast'])(h), h


class Autoencoder(nn.Module):
  """Images [B, H, W, C] to latents [B, h, w, latent] and back; h = H / 2^(levels - 1).

  Stable Diffusion's is autoencoder(channels=128, multipliers=(1, 2, 4, 4), blocks=2, groups=32).

  Fields:
    channels: of the first level.   multipliers: of these, of each level.   blocks: of a level, one more in the decoder.
    latent: channels of the latents.
    groups: of each norm.
    attention: whether the middle has it.
    quant: whether there is a 1x1 convolution on either side of the latents, which SD3 and Flux do without.
    critic_channels, critic_layers: of the discriminator (patch_gan.py), where the objective has one.
    moments, critic, out_channels: given by the objective: numbers that it takes for each latent value, whether it has
      a discriminator, channels of the images.
  """
  channels: int = 32
  multipliers: tuple = (1, 2)
  blocks: int = 1
  latent: int = 4
  groups: int = 8
  attention: bool = True
  quant: bool = True
  critic_channels: int = 32
  critic_layers: int = 2
  dtype: str = 'float32'
  remat: bool = False
  fast: bool | None = None
  moments: int = 2
  critic: bool = False
  out_channels: int = 3
  constrain: Callable = lambda x: x

  def setup(self):
    check(self)
    small = dict(dtype=self.dtype, fast=self.fast)
    coder = (self.channels, tuple(self.multipliers), self.blocks, self.attention, self.remat, self.groups, small,
             self.constrain)
    features = self.latent * self.moments
    self.encoder = Encoder(features, *coder)
    self.decoder = Decoder(self.out_channels, *coder)
    if self.quant:
      self.quant_conv = layers.Conv(features, 1, fast=self.fast)
      self.post_quant_conv = layers.Conv(self.latent, 1, fast=self.fast)
    if self.critic:
      self.disc = PatchGan(self.critic_channels, self.critic_layers, self.dtype)

  def encode(self, x):
    """Images [B, H, W, C] in [-1, 1] -> [B, h, w, moments * latent], float32."""
    check_size(self, x.shape)
    h = self.encoder(x)
    return self.quant_conv(h) if self.quant else h

  def decode(self, z):
    """Latents [B, h, w, latent] -> (images [B, H, W, C], float32; the input of the last convolution)."""
    return self.decoder(self.post_quant_conv(z) if self.quant else z)

  def last(self, h):
    """The last convolution alone: h as from decode -> images."""
    return self.decoder(None, h)[0]

  def judge(self, x):
    """Images -> logits of the discriminator, one for each patch, [B, ..]; high for real ones."""
    return self.disc(x)

  def __call__(self, x, time=None, cond=None, train=False):
    """Images through the mean of their latents, for shapes and initial parameters."""
    if self.critic:
      self.judge(x)
    return self.decode(self.encode(x)[..., :self.latent])[0]


def check(net):
  """Raises InputError for fields that do not fit each other."""
  counts = ('channels', 'blocks', 'latent', 'groups', 'critic_channels', 'critic_layers')
  for field in counts:
    if isinstance(value := getattr(net, field), bool) or not isinstance(value, int) or value < 1:
      raise InputError(f'{field}={value!r}: expected a whole number of at least 1')
  if not isinstance(net.multipliers, (tuple, list)) or not all(type(m) is int and m > 0 for m in net.multipliers):
    raise InputError(f'multipliers={net.multipliers!r}: expected a tuple with one entry per level, such as (1, 2)')
  for m in net.multipliers:
    if net.channels * m % net.groups:
      raise InputError(f'{net.channels * m} channels (channels={net.channels} times {m}) are not divisible by '
                       f'groups={net.groups}; change either')
  if net.dtype not in ('float32', 'bfloat16'):
    raise InputError(f"dtype={net.dtype!r} is unknown; choose 'float32' or 'bfloat16'")


def check_size(net, shape):
  """Raises InputError for images that do not divide."""
  if len(shape) != 4:
    raise InputError(f'this network takes images [batch, height, width, channels], not shape {tuple(shape)}')
  factor = 2 ** (len(net.multipliers) - 1)
  for axis, size in zip(('height', 'width'), shape[1:3]):
    if size % factor:
      raise InputError(f'image {axis} {size} is not divisible by {factor} (2^{len(net.multipliers) - 1} for '
                       f'{len(net.multipliers)} levels); resize the images, or use fewer levels')


# ---- the names of published files
def published(params):
  """{name: array} of the parameters as AutoencoderKL and VQModel files hold them; the discriminator is in none.

  Convolutions are [out, in, kh, kw] there, dense layers [out, in].

  Args:
    params: flat, {'encoder/conv_in/kernel': array}.
  """
  renamed = {}
  for path, a in params.items():
    if path.split('/')[0] in ('encoder', 'decoder', 'quant_conv', 'post_quant_conv'):
      *place, leaf = re.sub(r'_(\d+)(?=/)', r'/\1', path).split('/')
      name = '.'.join([*place, dict(kernel='weight', scale='weight', bias='bias')[leaf]])
      renamed[name] = np.transpose(a, {4: (3, 2, 0, 1), 2: (1, 0)}[a.ndim]) if leaf == 'kernel' else a
  return renamed
