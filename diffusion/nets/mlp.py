"""A residual multilayer perceptron: for points, vectors and anything else without neighbourhoods."""
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError
from diffusion.nets.embeddings import Embedding

TINY = 'mlp(width=16, blocks=1)'


class Mlp(nn.Module):
  """Residual blocks of two dense layers over all entries of x, each modulated by time and condition.

  Fields:
    width: of the layers, a multiple of 4.
    blocks: number of residual blocks.
    out_channels: of the output's last axis if not those of x.
  """
  width: int = 128
  blocks: int = 3
  out_channels: int | None = None

  @nn.compact
  def __call__(self, x, time, cond=None, train=False):
    """Runs the network: x [B, ...], time [B], cond None, [B, K] or a dict of such -> [B, ...], float32.

    Raises:
      InputError: a width or a number of blocks that does not fit.
    """
    if not (isinstance(self.width, int) and self.width > 0 and self.width % 4 == 0):
      raise InputError(f'width={self.width!r}: expected a multiple of 4')
    if not (isinstance(self.blocks, int) and self.blocks > 0):
      raise InputError(f'blocks={self.blocks!r}: expected at least 1')
    shape = x.shape[1:-1] + (self.out_channels or x.shape[-1],) if x.ndim > 1 else ()
    emb = nn.silu(Embedding(self.width // 4, 'sinusoidal', name='embedding')(time, cond))
    h = nn.Dense(self.width, name='in')(x.reshape(x.shape[0], int(np.prod(x.shape[1:]))))
    for i in range(self.blocks):
      scale, shift = jnp.split(nn.Dense(2 * self.width, name=f'film_{i}')(emb), 2, -1)
      y = nn.LayerNorm(use_bias=False, use_scale=False, name=f'norm_{i}')(h) * (1 + scale) + shift
      y = nn.silu(nn.Dense(self.width, name=f'hidden_{i}')(y))
      h += nn.Dense(self.width, name=f'add_{i}')(y)
    h = nn.silu(nn.LayerNorm(name='norm')(h))
    out = nn.Dense(int(np.prod(shape)), kernel_init=nn.initializers.zeros, name='out')(h)
    return out.reshape(x.shape[0], *shape)
