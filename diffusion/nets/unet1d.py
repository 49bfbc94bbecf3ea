"""A U-Net for series [B, L, C] of any length."""
import flax.linen as nn
import jax.numpy as jnp

from diffusion.errors import InputError
from diffusion.nets.embeddings import Embedding

TINY = 'unet1d(channels=8, multipliers=(1, 2), blocks=1, groups=4)'


class UNet1d(nn.Module):
  """Convolutions over time at several resolutions, and nothing else: so it runs at other lengths than trained.

  A length that the resolutions do not divide is padded by repeating the last sample, and cut again.

  Fields:
    channels: at the finest resolution; a multiple of 4 and of `groups`.
    multipliers: of `channels` at each resolution, each half of the one before.
    blocks: residual blocks per resolution.
    kernel: odd number of samples that a convolution covers.
    groups: of channels that are normalised together, at each sample of the series.
    out_channels: of the output if not those of x.
  """
  channels: int = 32
  multipliers: tuple = (1, 2, 2, 2)
  blocks: int = 2
  kernel: int = 5
  groups: int = 8
  out_channels: int | None = None

  @nn.compact
  def __call__(self, x, time, cond=None, train=False):
    """Runs the network: x [B, L, C], time [B], cond None, [B, K] or a dict of such -> [B, L, out_channels], float32."""
    self._check(x)
    emb = nn.silu(Embedding(self.channels, 'sinusoidal', name='embedding')(time, cond))
    length, unit = x.shape[1], 2 ** (len(self.multipliers) - 1)
    h = jnp.pad(x, ((0, 0), (0, -length % unit), (0, 0)), 'edge')
    h, kept = self._conv(self.channels, 'in')(h), []
    for level, multiplier in enumerate(self.multipliers):
      for i in range(self.blocks):
        h = self._block(h, emb, self.channels * multiplier, f'down_{level}_{i}')
        kept.append(h)
      if level < len(self.multipliers) - 1:
        h = nn.avg_pool(h, (2,), (2,))
    h = self._block(h, emb, h.shape[-1], 'middle')
    for level, multiplier in reversed(list(enumerate(self.multipliers))):
      for i in range(self.blocks):
        h = self._block(jnp.concatenate([h, kept.pop()], -1), emb, self.channels * multiplier, f'up_{level}_{i}')
      if level:
        h = jnp.repeat(h, 2, 1)
    h = nn.silu(nn.GroupNorm(self.groups, reduction_axes=(-1,), name='norm')(h))
    zero = nn.initializers.zeros
    return nn.Conv(self.out_channels or x.shape[-1], (self.kernel,), kernel_init=zero, name='out')(h)[:, :length]

  def _conv(self, width, name):
    return nn.Conv(width, (self.kernel,), name=name)

  def _block(self, x, emb, width, name):
    """Two convolutions with a shortcut, modulated by time and condition. Normalised per sample and group of channels:
    a mean over the series would depend on its length."""
    norm = lambda part: nn.GroupNorm(self.groups, reduction_axes=(-1,), name=f'{name}_norm_{part}')
    h = self._conv(width, f'{name}_conv_0')(nn.silu(norm(0)(x)))
    scale, shift = jnp.split(nn.Dense(2 * width, name=f'{name}_film')(emb)[:, None], 2, -1)
    h = self._conv(width, f'{name}_conv_1')(nn.silu(norm(1)(h) * (1 + scale) + shift))
    return h + (x if x.shape[-1] == width else nn.Dense(width, name=f'{name}_shortcut')(x))

  def _check(self, x):
    if x.ndim != 3:
      raise InputError(f'unet1d takes series [B, length, channels], got {x.ndim} dimensions')
    numbers = (self.channels, self.blocks, self.kernel, self.groups)
    if not all(isinstance(n, int) and n > 0 for n in numbers) or not self.kernel % 2:
      raise InputError(f'channels, blocks, kernel and groups: expected whole numbers, kernel odd; got {numbers}')
    if not isinstance(self.multipliers, tuple) or not self.multipliers:
      raise InputError(f'multipliers={self.multipliers!r}: expected a tuple, such as (1, 2)')
    if self.channels % 4 or any(self.channels * m % self.groups for m in self.multipliers):
      raise InputError(f'channels={self.channels}: expected a multiple of 4, and of groups={self.groups} with every '
                       'multiplier')
