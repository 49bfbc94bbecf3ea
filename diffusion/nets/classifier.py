"""A classifier of noisy images: the way down of the U-Net, with its options (Dhariwal & Nichol 2021, section 4)."""
import flax.linen as nn
import jax.numpy as jnp

from diffusion.errors import InputError
from diffusion.nets import layers
from diffusion.nets.embeddings import Embedding
from diffusion.nets.encoder import check, Encoder

TINY = 'classifier(channels=16, multipliers=(1,), blocks=1, attention=(), patch=2)'


class Classifier(Encoder):
  """Network `(x, time, cond, train) -> logits`; see `__call__`.

  The features at the lowest resolution are averaged over the image, where Dhariwal & Nichol pool by attention.

  Fields, besides those of `Encoder`:
    classes: number of classes; at least 2.
  """
  channels: int = 32
  blocks: int = 1
  classes: int = 0

  @nn.compact
  def __call__(self, x, time, cond=None, train=False):
    """Runs the network.

    Args:
      x: [B, H, W, C], float. H and W are divisible by patch * 2^(levels - 1).
      time: [B], about 0 to 1000.
      cond: ignored; the classifier must not see the label it predicts.
      train: whether dropout is active.
    Returns:
      Logits [B, classes], float32.
    Raises:
      InputError: an option or a size does not fit.
    """
    if not isinstance(self.classes, int) or self.classes < 2:
      raise InputError(f'classes={self.classes!r}: expected at least 2')
    check(self, x.shape)
    emb = nn.silu(Embedding(self.channels, self.embedding, name='embedding')(time, None))
    h, _ = self.encode(x, self.parts(emb, train))
    h = nn.silu(layers.Norm(self.groups, self.fast, name='out_norm')(h))
    return layers.Dense(self.classes, name='out')(jnp.mean(h.astype(jnp.float32), (1, 2)))
