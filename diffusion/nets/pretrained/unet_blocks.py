"""Blocks of the U-Nets of diffusers: residual blocks, attention of pixels, transformers that read a context.

Names of parameters are those of published files. `p` is a reader of parameters, see torch_layers.
"""
from typing import Any, NamedTuple

import jax.numpy as jnp

from diffusion.nets.pretrained.torch_layers import (ACTIVATIONS, attention, conv, group_norm, layer_norm, linear,
                                                      upsampled)


class Style(NamedTuple):
  """What all blocks of a network share."""
  groups: int
  eps: float
  act: Any
  scale_shift: bool = False     # whether the time scales and shifts, or is only added
  linear: bool = False          # whether transformers have dense layers around them, or 1x1 convolutions
  padding: int = 1              # of the convolutions that make the picture smaller; 0: a pixel right and below
  drop: Any = lambda h: h       # dropout
  divide: float = 1.            # by what sums are divided


def resnet(p, name, x, emb, features, style, resize=lambda h: h):
  """Residual block [B, H, W, C] -> [B, H', W', features]; emb [B, E], or None; resize: after the first activation."""
  h = resize(style.act(group_norm(p, f'{name}.norm1', x, style.groups, style.eps)))
  x, h = resize(x), conv(p, f'{name}.conv1', h, features)
  shift = None
  if emb is not None:
    shift = linear(p, f'{name}.time_emb_proj', style.act(emb), features * (1 + style.scale_shift))[:, None, None]
  if shift is not None and not style.scale_shift:
    h = h + shift
  h = group_norm(p, f'{name}.norm2', h, style.groups, style.eps)
  if style.scale_shift:
    scale, shift = jnp.split(shift, 2, -1)
    h = h * (1 + scale) + shift
  h = conv(p, f'{name}.conv2', style.drop(style.act(h)), features)
  x = conv(p, f'{name}.conv_shortcut', x, features, 1) if x.shape[-1] != features else x
  return (x + h) / style.divide


def pixel_attention(p, name, x, heads, style, groups=None):
  """Attention of pixels to each other, with a residual; groups: of its norm, None: style's, 0: no norm."""
  groups = style.groups if groups is None else groups
  h = group_norm(p, f'{name}.group_norm', x, groups, style.eps) if groups else x
  h = attention(p, name, h.reshape(len(x), -1, x.shape[-1]), heads, bias=True)
  return (h.reshape(x.shape) + x) / style.divide


def transformer(p, name, x, context, heads, depth, style, only_cross=False, mask=None):
  """Transformer over pixels that reads a context [B, K, D] (latent diffusion, arXiv:2112.10752, appendix C.1)."""
  C = x.shape[-1]
  h = group_norm(p, f'{name}.norm', x, style.groups, 1e-6)
  around = (lambda part, a: linear(p, f'{name}.{part}', a, C)) if style.linear else (
    lambda part, a: conv(p, f'{name}.{part}', a, C, 1))
  h = around('proj_in', h).reshape(len(x), -1, C)
  for i in range(depth):
    h = _transformer_block(p, f'{name}.transformer_blocks.{i}', h, context, heads, only_cross, mask)
  return around('proj_out', h.reshape(x.shape)) + x


def _transformer_block(p, name, h, context, heads, only_cross, mask):
  own = context if only_cross else None
  h = h + attention(p, f'{name}.attn1', layer_norm(p, f'{name}.norm1', h), heads, own,
                    mask=mask if only_cross else None)
  h = h + attention(p, f'{name}.attn2', layer_norm(p, f'{name}.norm2', h), heads, context, mask=mask)
  return h + geglu(p, f'{name}.ff', layer_norm(p, f'{name}.norm3', h))


def geglu(p, name, h):
  """Gated GELU feed-forward layers (arXiv:2002.05202): the first half times the exact GELU of the second."""
  value, gate = jnp.split(linear(p, f'{name}.net.0.proj', h, 8 * h.shape[-1]), 2, -1)
  return linear(p, f'{name}.net.2', value * ACTIVATIONS['gelu'](gate), h.shape[-1])


# ---- pictures made smaller and larger
def smaller(p, name, x, style):
  """Half as many pixels in both directions by a convolution."""
  return conv(p, f'{name}.conv', x, x.shape[-1], stride=2, padding=(1, 1) if style.padding else (0, 1))


def halved(x):
  """Means of 2 x 2 pixels."""
  B, H, W, C = x.shape
  return jnp.mean(x[:, :H // 2 * 2, :W // 2 * 2].reshape(B, H // 2, 2, W // 2, 2, C), (2, 4))


def larger(p, name, x, style, like=None):
  """Twice as many pixels in both directions, or those of `like`, and a convolution."""
  return conv(p, f'{name}.conv', upsampled(x, like), x.shape[-1])
