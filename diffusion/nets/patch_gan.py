"""The discriminator of patches (PatchGAN, arXiv:1611.07004), with group norm in place of batch norm.

Batch norm would make the logits of an image depend on the others, and so on the number of devices.
"""
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffusion.nets import layers
from diffusion.nets.initializers import with_host, ZEROS

KERNEL = with_host(nn.initializers.normal(.02), lambda rng, shape: rng.normal(0, .02, shape))  # as in pix2pix
WIDEST = 8  # times the channels of the first layer


class PatchGan(nn.Module):
  """Images [B, H, W, C] -> logits [B, h, w], each of a patch; float32.

  Fields:
    channels: of the first layer, doubled in each of the next.
    layers: that halve the size; two more keep it but for a border.
  """
  channels: int
  layers: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    h = x
    for i in range(self.layers + 1):
      width = self.channels * min(2 ** i, WIDEST)
      h = self._conv(width, 2 if i < self.layers else 1, f'conv_{i}')(h)
      h = layers.Norm(int(np.gcd(width, 8)), name=f'norm_{i}')(h) if i else h
      h = nn.leaky_relu(h, .2)
    return self._conv(1, 1, 'out')(h)[..., 0].astype(jnp.float32)

  @nn.nowrap
  def _conv(self, width, stride, name):
    return nn.Conv(width, (4, 4), stride, [(1, 1), (1, 1)], dtype=self.dtype, kernel_init=KERNEL, bias_init=ZEROS,
                   name=name)
