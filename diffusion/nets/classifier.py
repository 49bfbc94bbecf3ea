"""A classifier of noisy pictures: the way down of the U-Net, with its options (Dhariwal & Nichol 2021, section 4)."""
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from diffusion.errors import InputError
from diffusion.nets import layers
from diffusion.nets.unet import Attention, check, Embedding, ResBlock


def _same(x):
  return x


class Classifier(nn.Module):
  """Network `(x, time, cond, train) -> logits`; see `__call__`.

  The features at the lowest resolution are averaged over the picture, where Dhariwal & Nichol pool by attention.

  Fields:
    classes: how many there are to tell apart; at least 2.
    The others are those of `UNet`.
  """
  classes: int
  channels: int = 32
  multipliers: tuple = (1, 2, 2)
  blocks: int = 1
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
  patch: int = 1
  fast: bool | None = None
  constrain: Callable = _same

  @nn.compact
  def __call__(self, x, time, cond=None, train=False):
    """Runs the network.

    Args:
      x: [B, H, W, C], float. H and W divide by patch * 2^(levels - 1).
      time: [B], about 0 to 1000.
      cond: not used; what is to be told is not told.
      train: whether dropout is active.
    Returns:
      Logits [B, classes], float32.
    Raises:
      InputError: an option or a size that does not fit.
    """
    if not isinstance(self.classes, int) or self.classes < 2:
      raise InputError(f'classes={self.classes!r}: expected at least 2 to tell apart')
    check(self, x.shape)
    emb = nn.silu(Embedding(self.channels, self.embedding, name='embedding')(time, None))
    small = dict(dtype=self.dtype, fast=self.fast)

    def block(x, width, name, resample=None):
      shared = dict(film=self.film, dropout=self.dropout, zero=self.zero_init, groups=self.groups, **small)
      return self.constrain(ResBlock(width, resample=resample, name=name, **shared)(x, emb, train))

    def attend(x, name):
      heads = x.shape[-1] // self.head_dim if self.head_dim else self.heads
      return self.constrain(Attention(heads, self.groups, self.zero_init, name=name, **small)(x))

    h = self.constrain(layers.Conv(self.channels, name='in', **small)(layers.space_to_depth(x, self.patch)))
    widths = [self.channels * m for m in self.multipliers]
    for i, width in enumerate(widths):
      for j in range(self.blocks):
        h = block(h, width, f'down{i}_block{j}')
        if h.shape[1] in self.attention:
          h = attend(h, f'down{i}_attend{j}')
      if i < len(widths) - 1 and self.resample == 'block':
        h = block(h, width, f'down{i}_resample', 'down')
      elif i < len(widths) - 1:
        h = self.constrain(layers.Conv(width, stride=2, name=f'down{i}_resample', **small)(h))
    h = attend(block(h, widths[-1], 'middle_block0'), 'middle_attend')
    h = nn.silu(layers.Norm(self.groups, self.fast, name='out_norm')(h))
    h = jnp.mean(h.astype(jnp.float32), (1, 2))
    return layers.Dense(self.classes, name='out')(h)
