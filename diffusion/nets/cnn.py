"""A small convolutional network that describes pictures: features from every resolution, and what it takes them for."""
import flax.linen as nn
import jax.numpy as jnp

from diffusion.nets import layers


class Cnn(nn.Module):
  """Network `x -> (features [B, features], logits [B, outputs])`.

  Three resolutions, the first of them at most 16 pixels where pictures have up to 32; the mean and the spread of each one's channels make the features, so fine texture counts as well as the whole.

  Fields:
    outputs: number of logits.   features: of them.   channels: at the first resolution; doubled at each of the two below.
  """
  outputs: int
  features: int = 64
  channels: int = 32

  @nn.compact
  def __call__(self, x):
    """x: float32 [B, H, W, C]."""
    seen, first = [], 2 if max(x.shape[1:3]) > 16 else 1
    for level, channels in enumerate((self.channels, 2 * self.channels, 4 * self.channels)):
      x = nn.Conv(channels, (3, 3), strides=2 if level else first, name=f'conv_{level}')(x)
      scale = self.param(f'norm_{level}_scale', nn.initializers.ones, (channels,))
      shift = self.param(f'norm_{level}_shift', nn.initializers.zeros, (channels,))
      x = nn.silu(layers.group_norm(x, scale, shift, groups=8))
      seen += [x.mean((1, 2)), jnp.sqrt(x.var((1, 2)) + 1e-4)]
    points = nn.Dense(self.features, name='features')(jnp.concatenate(seen, -1))
    points = nn.LayerNorm(use_bias=False, use_scale=False)(points)  # no direction, and no odd picture, outweighs all others
    return points, nn.Dense(self.outputs, name='outputs')(nn.silu(points))
