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
      padding mask over keys, [B, K], pass mask[:, None, None]. The result is 0 for a query without keys. Or float, the
      weights of keys: 0 is none, 2 is the same as a key that is there twice.
  Returns:
    [B, Q, heads, D] in the type of v.
  """
  wide = jnp.promote_types(q.dtype, jnp.float32)
  return jnp.einsum('bhqk,bkhd->bqhd', attention_weights(q, k, mask).astype(v.dtype), v)


def attention_weights(q, k, mask=None):
  """The softmax of `attend`, [B, heads, Q, K], float32."""
  wide = jnp.promote_types(q.dtype, jnp.float32)
  logits = jnp.einsum('bqhd,bkhd->bhqk', q, k, preferred_element_type=wide) / np.sqrt(q.shape[-1])
  if mask is None:
    return jax.nn.softmax(logits)
  there = mask > 0
  if mask.dtype != bool:
    logits += jnp.log(jnp.where(there, mask, 1))
  # A finite minimum, or the gradient of a fully masked row would be NaN.
  return jnp.where(there, jax.nn.softmax(jnp.where(there, logits, jnp.finfo(wide).min)), 0)


def _per_key(mask):
  return None if mask is None else mask[:, None, None]


class Attention(nn.Module):
  """Attention of the pixels to each other, to a context, or to both at once, plus the input. [B, H, W, C] -> same.

  joint: where there is a context, the pixels are keys as well, after it, in one softmax (GLIDE, arXiv:2112.10741,
    section 2.1). Otherwise they attend to the context alone.
  """
  heads: int
  groups: int
  zero: bool
  dtype: str
  fast: bool | None
  joint: bool = False

  @nn.compact
  def __call__(self, x, context=None, mask=None):
    """Runs the layer.

    Args:
      x: [B, H, W, C].
      context: [B, K, D], such as text tokens, to attend to; None: self-attention, with the K = H * W pixels as keys.
      mask: bool [B, K], true for keys of the context that are not padding, or float, their weights (see `attend`);
        None: all. Attention to no key at all gives 0.
    """
    B, H, W, C = x.shape
    small = dict(dtype=self.dtype, fast=self.fast)
    h = layers.Norm(self.groups, self.fast, name='norm')(x)
    if context is None or self.joint:
      qkv = layers.Conv(3 * C, 1, name='qkv', **small)(h).reshape(B, H * W, 3, self.heads, -1)
      q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    else:
      q = layers.Conv(C, 1, name='q', **small)(h).reshape(B, H * W, self.heads, -1)
    if context is not None:
      kv = layers.Dense(2 * C, dtype=self.dtype, name='kv')(context).reshape(B, -1, 2, self.heads, C // self.heads)
      own, (k, v) = (k, v) if self.joint else (), (kv[:, :, 0], kv[:, :, 1])
      if own:
        k, v = jnp.concatenate([k, own[0]], 1), jnp.concatenate([v, own[1]], 1)
        mask = None if mask is None else jnp.concatenate([mask, jnp.ones((B, H * W), mask.dtype)], 1)
      if self.is_mutable_collection('intermediates'):  # for pictures of what a token looks at
        self.sow('intermediates', 'context', attention_weights(q, k, _per_key(mask))[..., :context.shape[1]])
    h = attend(q, k, v, _per_key(mask)).reshape(x.shape)
    return x.astype(h.dtype) + layers.Conv(C, 1, zero=self.zero, name='out', **small)(h)
