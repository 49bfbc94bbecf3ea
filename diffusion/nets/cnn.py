"""A small convolutional network that extracts features of images from three resolutions, and classifies by them."""
import flax.linen as nn
import jax.numpy as jnp

from diffusion.nets import layers


class Cnn(nn.Module):
  """Network `x -> (features [B, features], logits [B, outputs])`.

  Images larger than 16 pixels are halved first, so the first resolution is at most 16 for images of up to 32. The
  features come from the mean and standard deviation of each channel at each resolution, so that texture counts too.

  Fields:
    outputs: number of logits.
    features: number of features.
    channels: at the first resolution; doubled at each of the two below.
  """
  outputs: int
  features: int = 64
  channels: int = 32

  @nn.compact
  def __call__(self, x):
    """x: float32 [B, H, W, C]."""
    statistics, first = [], 2 if max(x.shape[1:3]) > 16 else 1
    for level, channels in enumerate((self.channels, 2 * self.channels, 4 * self.channels)):
      x = nn.Conv(channels, (3, 3), strides=2 if level else first, name=f'conv_{level}')(x)
      scale = self.param(f'norm_{level}_scale', nn.initializers.ones, (channels,))
      shift = self.param(f'norm_{level}_shift', nn.initializers.zeros, (channels,))
      x = nn.silu(layers.group_norm(x, scale, shift, groups=8))
      statistics += [x.mean((1, 2)), jnp.sqrt(x.var((1, 2)) + 1e-4)]
    points = nn.Dense(self.features, name='features')(jnp.concatenate(statistics, -1))
    points = nn.LayerNorm(use_bias=False, use_scale=False)(points)  # so that no direction and no outlier dominates
    return points, nn.Dense(self.outputs, name='outputs')(nn.silu(points))


class PlaceCnn(nn.Module):
  """Network `x -> logits [B, outputs]` that knows what is where, and which colours are there at all.

  Images larger than 16 pixels are halved first. Unlike in Cnn, places are not averaged at the last resolution; the
  colours of single pixels are, and their maximum finds colours of few pixels.

  Fields:
    outputs: number of logits.
    channels: at the first resolution; doubled at each of the two below.
    hidden: units between what was seen and the logits.
  """
  outputs: int
  channels: int = 32
  hidden: int = 256

  @nn.compact
  def __call__(self, x):
    """x: float32 [B, H, W, C]."""
    first = 2 if max(x.shape[1:3]) > 16 else 1
    colours = nn.silu(nn.Dense(self.channels, name='colour_0')(x))
    colours = nn.silu(nn.Dense(self.channels, name='colour_1')(colours))
    seen = [colours.mean((1, 2)), colours.max((1, 2))]
    for level, channels in enumerate((self.channels, 2 * self.channels, 4 * self.channels)):
      x = nn.Conv(channels, (3, 3), strides=2 if level else first, name=f'conv_{level}')(x)
      scale = self.param(f'norm_{level}_scale', nn.initializers.ones, (channels,))
      shift = self.param(f'norm_{level}_shift', nn.initializers.zeros, (channels,))
      x = nn.silu(layers.group_norm(x, scale, shift, groups=8))
    x = jnp.concatenate([x.reshape(len(x), -1), *seen], 1)
    x = nn.silu(nn.Dense(self.hidden, name='hidden')(x))
    return nn.Dense(self.outputs, name='outputs')(x)
