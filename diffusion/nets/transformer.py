"""A transformer over the places of x: tokens of a text, pixels or others, of which every place sees all others."""
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError
from diffusion.nets import layers
from diffusion.nets.attention import attend
from diffusion.nets.embeddings import Embedding
from diffusion.nets.initializers import ZEROS

TINY = 'transformer(width=16, blocks=1, heads=2)'


class Transformer(nn.Module):
  """Pre-norm blocks of attention and two dense layers, modulated by time and condition (DiT, arXiv:2212.09748,
  adaLN-Zero), with a learned vector for each place.

  Fields:
    width: of the vectors of places, a multiple of 4 and of `heads`.
    blocks, heads: their numbers.
    dropout: rate, on what each block adds.
    out_channels: of the output's last axis if not those of x.
    constrain: keeps activations split by batch.
    dtype: of the activations, float32 or bfloat16.
  """
  width: int = 128
  blocks: int = 4
  heads: int = 4
  dropout: float = 0.
  out_channels: int | None = None
  constrain: Callable = lambda x: x
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, time, cond=None, train=False):
    """Runs the network: x [B, ..., C], time [B], cond None, [B, K] or a dict of such -> float32 [B, ..., out_channels].

    Raises:
      InputError: sizes that do not fit, or an x without places.
    """
    self._check(x)
    places = int(np.prod(x.shape[1:-1]))
    emb = nn.silu(Embedding(self.width // 4, 'sinusoidal', name='embedding')(time, cond))
    h = self._dense(self.width, 'in')(x.reshape(-1, places, x.shape[-1]))
    h += self.param('positions', nn.initializers.normal(.02), (places, self.width)).astype(h.dtype)
    for i in range(self.blocks):
      h = self.constrain(self._block(h, emb, train, i))
    scale, shift = self._modulation(emb, 2, 'out_modulation')
    h = (self._norm(h) * (1 + scale) + shift).astype(jnp.float32)
    out = layers.Dense(self.out_channels or x.shape[-1], kernel_init=ZEROS, name='out')(h)
    return out.reshape(*x.shape[:-1], -1)

  def _block(self, h, emb, train, i):
    scale_a, shift_a, gate_a, scale_b, shift_b, gate_b = self._modulation(emb, 6, f'modulation_{i}')
    y = self._norm(h) * (1 + scale_a) + shift_a
    qkv = self._dense(3 * self.width, f'qkv_{i}')(y).reshape(*y.shape[:2], 3, self.heads, -1)
    y = self._dense(self.width, f'attended_{i}')(attend(*(qkv[:, :, k] for k in range(3))).reshape(y.shape))
    h += gate_a * self._dropped(y, train)
    y = self._dense(4 * self.width, f'hidden_{i}')(self._norm(h) * (1 + scale_b) + shift_b)
    return h + gate_b * self._dropped(self._dense(self.width, f'add_{i}')(nn.gelu(y)), train)

  def _dense(self, width, name):
    return layers.Dense(width, dtype=self.dtype, name=name)

  def _norm(self, h):
    """Layer normalisation without parameters, in float32."""
    wide = h.astype(jnp.float32)
    wide -= jnp.mean(wide, -1, keepdims=True)
    return (wide / jnp.sqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + 1e-6)).astype(h.dtype)

  def _modulation(self, emb, parts, name):
    """`parts` vectors [B, 1, width], 0 at first."""
    vectors = layers.Dense(parts * self.width, kernel_init=ZEROS, dtype=self.dtype, name=name)(emb)
    return jnp.split(vectors[:, None], parts, -1)

  def _dropped(self, y, train):
    return layers.dropout(self.make_rng('dropout'), y, self.dropout) if train and self.dropout else y

  def _check(self, x):
    sizes = dict(width=self.width, blocks=self.blocks, heads=self.heads)
    if not all(isinstance(size, int) and size > 0 for size in sizes.values()):
      raise InputError(f'{sizes}: expected whole numbers above 0')
    if self.width % 4 or self.width % self.heads:
      raise InputError(f'width={self.width}: expected a multiple of 4 and of heads={self.heads}')
    if not 0 <= self.dropout < 1:
      raise InputError(f'dropout={self.dropout!r}: expected a rate from 0 to below 1')
    if x.ndim < 3:
      raise InputError(f'transformer takes x [B, .., places, channels], got {x.ndim} dimensions; use mlp')
