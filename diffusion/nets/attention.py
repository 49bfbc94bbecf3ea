"""Attention, as a function and as a layer of image networks."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.nets import layers


def attend(q, k, v, mask=None):
  """Softmax attention, `softmax(q k^T / sqrt(D)) v` (Vaswani et al. 2017, eq. 1), the softmax in float32.

  Args:
    q: [B, Q, heads, D]. k, v: [B, K, heads, D].
    mask: bool, broadcastable to [B, heads, Q, K], true where a query attends to a key; None: everywhere. For a
      padding mask over keys, [B, K], pass mask[:, None, None]. The result is 0 for a query without keys.
  Returns:
    [B, Q, heads, D] in the type of v.
  """
  wide = jnp.promote_types(q.dtype, jnp.float32)
  logits = jnp.einsum('bqhd,bkhd->bhqk', q, k, preferred_element_type=wide) / np.sqrt(q.shape[-1])
  if mask is None:
    weights = jax.nn.softmax(logits)
  else:  # a finite minimum, or the gradient of a fully masked row would be NaN
    weights = jnp.where(mask, jax.nn.softmax(jnp.where(mask, logits, jnp.finfo(wide).min)), 0)
  return jnp.einsum('bhqk,bkhd->bqhd', weights.astype(v.dtype), v)


class Attention(nn.Module):
  """Attention of the pixels to each other or to a context, plus the input. [B, H, W, C] -> same."""
  heads: int
  groups: int
  zero: bool
  dtype: str
  fast: bool | None

  @nn.compact
  def __call__(self, x, context=None, mask=None):
    """Runs the layer.

    Args:
      x: [B, H, W, C].
      context: [B, K, D], such as text tokens, to attend to; None: self-attention, with the K = H * W pixels as keys.
      mask: bool [B, K], true for keys that are not padding; None: all. Attention to no key at all gives 0.
    """
    B, H, W, C = x.shape
    small = dict(dtype=self.dtype, fast=self.fast)
    h = layers.Norm(self.groups, self.fast, name='norm')(x)
    if context is None:
      qkv = layers.Conv(3 * C, 1, name='qkv', **small)(h).reshape(B, H * W, 3, self.heads, -1)
      q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    else:
      q = layers.Conv(C, 1, name='q', **small)(h).reshape(B, H * W, self.heads, -1)
      kv = layers.Dense(2 * C, dtype=self.dtype, name='kv')(context).reshape(B, -1, 2, self.heads, C // self.heads)
      k, v = kv[:, :, 0], kv[:, :, 1]
    h = attend(q, k, v, None if mask is None else mask[:, None, None]).reshape(x.shape)
    return x.astype(h.dtype) + layers.Conv(C, 1, zero=self.zero, name='out', **small)(h)
