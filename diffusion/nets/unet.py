"""The U-Net of DDPM (Ho et al. 2020), improved DDPM (Nichol & Dhariwal 2021), ADM (Dhariwal & Nichol 2021).

  DDPM           UNet(channels=128, multipliers=(1, 2, 2, 2), attention=(16,), film=False, groups=32)
  improved DDPM  UNet(channels=128, multipliers=(1, 2, 2, 2), blocks=3, attention=(16, 8), heads=4, groups=32)
  ADM            UNet(channels=256, multipliers=(1, 1, 2, 2, 4, 4), attention=(32, 16, 8), head_dim=64,
                      resample='block', groups=32)

Time and condition become one vector [B, 4 * channels], given to every residual block. The condition enters
linearly and without a bias: zeros mean "no condition", and a weighted sum of conditions has the weighted sum
of embeddings. An image beside x, such as one to be upsampled or restored, becomes extra channels of the input.
"""
import flax.linen as nn
import jax.numpy as jnp

from diffusion.errors import InputError
from diffusion.nets import layers
from diffusion.nets.embeddings import Embedding
from diffusion.nets.encoder import check, Encoder

TINY = 'unet(channels=16, multipliers=(1,), blocks=1, attention=(), patch=2)'


class UNet(Encoder):
  """Network `(x, time, cond, train) -> out`; see `__call__`.

  Fields, besides those of `Encoder`:
    out_channels: of the output; None: as the input.
  """
  out_channels: int | None = None

  @nn.compact
  def __call__(self, x, time, cond=None, train=False):
    """Runs the network.

    Args:
      x: [B, H, W, C], float. H and W are divisible by patch * 2^(levels - 1).
      time: [B], about 0 to 1000 (discrete steps, or 1000 times a continuous time).
      cond: None, [B, K] (one-hot classes, a context vector, a weighted sum of such), or a dict of
        'image': float [B, H, W, C'], concatenated with x;
        'kept': the same in a layer of its own that starts at zero, so that a network which was trained without it
        does at first what it did (in-painting, GLIDE, arXiv:2112.10741, section 2.4);
        'span': [B], a second time, embedded like the first and added;
        'context': float [B, K, D], such as the vectors of the tokens of a text, taken in by attention, and
        'context_weights': float [B, K], how much each counts, 0 for padding;
        any other name: float [B, K].
        Parameters for an entry exist only if `init` was called with it.
      train: whether dropout is active.
    Returns:
      [B, H, W, out_channels], float32.
    Raises InputError: an option or a size does not fit, or an entry of cond is none of these.
    """
    check(self, x.shape)
    features, (x, cond) = (self.out_channels or x.shape[-1]) * self.patch ** 2, with_image(x, cond)
    kept, cond = without_kept(cond)
    context, cond = without_context(cond)
    emb = nn.silu(Embedding(self.channels, self.embedding, name='embedding')(time, cond))
    parts, widths = self.parts(emb, train, *context), [self.channels * m for m in self.multipliers]

    h, skips = self.encode(x, parts, kept)
    h = parts.block(h, widths[-1], 'middle_block1')
    for i in reversed(range(len(widths))):
      for j in range(self.blocks + 1):
        h = parts.block(jnp.concatenate([h, skips.pop()], -1), widths[i], f'up{i}_block{j}')
        if h.shape[1] in self.attention:
          h = parts.attend(h, f'up{i}_attend{j}')
      if i > 0:
        h = parts.resample(h, 'up', f'up{i}_resample')

    h = nn.silu(layers.Norm(self.groups, self.fast, name='out_norm')(h))
    h = layers.Conv(features, zero=self.zero_init, name='out', dtype='float32', fast=self.fast)(h)
    return layers.depth_to_space(h, self.patch)


def without_context(cond):
  """((context, its weights) or (), the rest of the condition)."""
  if not (isinstance(cond, dict) and 'context' in cond):
    return (), cond
  rest = {name: value for name, value in cond.items() if name not in ('context', 'context_weights')}
  return (cond['context'], cond['context_weights']), rest


def without_kept(cond):
  """(what is kept of the image or None, the rest of the condition)."""
  if not (isinstance(cond, dict) and 'kept' in cond):
    return None, cond
  return cond['kept'], {name: value for name, value in cond.items() if name != 'kept'}


def with_image(x, cond):
  """(x with the image of the condition beside it, if there is one; the rest of the condition)."""
  if not (isinstance(cond, dict) and 'image' in cond):
    return x, cond
  return beside(x, cond['image']), {name: value for name, value in cond.items() if name != 'image'}


def beside(x, image):
  """Concatenates x [B, H, W, C] and a float image [B, H, W, C'] of the same size, in the type of x."""
  if image.ndim != 4 or image.shape[1:3] != x.shape[1:3] or not jnp.issubdtype(image.dtype, jnp.floating):
    H, W = x.shape[1:3]
    raise InputError(f"cond['image'] is {image.dtype} {image.shape}: expected float [B, {H}, {W}, C], the size of x; "
                     'resize and scale it first')
  return jnp.concatenate([x, image.astype(x.dtype)], -1)
