"""DiTTransformer2DModel (DiT, arXiv:2212.09748) and PriorTransformer (arXiv:2204.06125) of diffusers.

diffusers' DiT is not the original: its frequencies of the time are 10000^(-i / 127) where those of the paper's code are
10000^(-i / 128), and the normalisation before the feed-forward layers has 1e-5, not 1e-6. Weights are converted without
a correction; this follows diffusers.
"""
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError
from diffusion.nets.pretrained.torch_layers import (ACTIVATIONS, activation, attention, layer_norm, linear, mlp, reader,
                                                    sinusoid)

TINY = 'dit(num_attention_heads=2, attention_head_dim=8, num_layers=1, patch_size=2, sample_size=8)'
WAVE = 256  # sines and cosines of the time


def _places(width, size, base):
  """Sines and cosines of the column, then of the row, of each patch, [size * size, width]."""
  at = np.arange(size) / (size / base)
  angles = at[:, None] / 1e4 ** (np.arange(width // 4) / (width / 4))
  wave = np.concatenate([np.sin(angles), np.cos(angles)], 1)
  grid = [np.broadcast_to(a, (size, size, width // 2)) for a in (wave[None], wave[:, None])]
  return np.concatenate(grid, -1).reshape(size * size, width).astype(np.float32)


class Dit(nn.Module):
  """A transformer over patches, whose normalisations the time and the class scale and shift."""
  num_attention_heads: int = 16
  attention_head_dim: int = 72
  in_channels: int | None = None
  out_channels: int | None = None
  num_layers: int = 28
  attention_bias: bool = True
  sample_size: int = 32
  patch_size: int = 2
  activation_fn: str = 'gelu-approximate'
  num_embeds_ada_norm: int | None = None
  norm_eps: float = 1e-5
  dtype: str = 'float32'
  constrain: Callable = lambda x: x

  @nn.compact
  def __call__(self, x, time, cond=None, train=False):
    """x [B, H, H, C]; time [B]; cond [B, classes], of which zeros are no class. -> [B, H, H, out_channels].

    num_embeds_ada_norm=None: as many classes as the condition has.
    """
    p, width, patch = reader(self, self.dtype), self.num_attention_heads * self.attention_head_dim, self.patch_size
    B, H, W, C = x.shape
    if H != W or H % patch or self.in_channels not in (None, C):
      raise InputError(f'patch_size={patch}, in_channels={self.in_channels}: x is {list(x.shape)}; expected squares')
    number = self.num_embeds_ada_norm or (0 if cond is None else cond.shape[-1])
    told = jnp.zeros((B, number)) if cond is None else cond
    if told.shape[-1] != number:
      raise InputError(f'num_embeds_ada_norm={number}: the condition has {told.shape[-1]} classes')
    classes = jnp.concatenate([told, 1 - jnp.sum(told, -1, keepdims=True)], -1).astype(self.dtype)  # the last: none
    wave = sinusoid(time, WAVE, True, 1.).astype(self.dtype)

    def embedded(i):
      name = f'transformer_blocks.{i}.norm1.emb'
      table = p(f'{name}.class_embedder.embedding_table.weight', (number + 1, width), 1)
      return nn.silu(mlp(p, f'{name}.timestep_embedder', wave, width) + jnp.dot(classes, table))
    kernel = p('pos_embed.proj.weight', (width, C, patch, patch), C * patch ** 2)
    h = jax.lax.conv_general_dilated(x.astype(self.dtype), kernel, (patch, patch), 'VALID',
                                     dimension_numbers=('NHWC', 'OIHW', 'NHWC')).reshape(B, -1, width)
    h = h + p('pos_embed.proj.bias', (width,), C * patch ** 2) + _places(width, H // patch, self.sample_size // patch)
    h = h.astype(self.dtype)
    told = [embedded(i) for i in range(self.num_layers)]
    for i in range(self.num_layers):
      h = self.constrain(self._block(p, f'transformer_blocks.{i}', h, told[i]))
    shift, scale = jnp.split(linear(p, 'proj_out_1', told[0], 2 * width)[:, None], 2, -1)
    h = layer_norm(p, 'norm_out', h, 1e-6, affine=False) * (1 + scale) + shift
    out = self.out_channels or C
    h = linear(p, 'proj_out_2', h, patch ** 2 * out).reshape(B, H // patch, W // patch, patch, patch, out)
    return h.transpose(0, 1, 3, 2, 4, 5).reshape(B, H, W, out).astype(jnp.float32)

  def _block(self, p, name, h, emb):
    act = ACTIVATIONS['gelu_new'] if self.activation_fn == 'gelu-approximate' else activation(self.activation_fn)
    parts = linear(p, f'{name}.norm1.linear', emb, 6 * h.shape[-1])[:, None]
    shift, scale, gate, shift_b, scale_b, gate_b = jnp.split(parts, 6, -1)
    a = layer_norm(p, '', h, 1e-6, affine=False) * (1 + scale) + shift
    h = h + gate * attention(p, f'{name}.attn1', a, self.num_attention_heads, bias=self.attention_bias)
    a = layer_norm(p, '', h, self.norm_eps, affine=False) * (1 + scale_b) + shift_b
    return h + gate_b * _feed(p, f'{name}.ff', a, act)


def _feed(p, name, h, act):
  return linear(p, f'{name}.net.2', act(linear(p, f'{name}.net.0.proj', h, 4 * h.shape[-1])), h.shape[-1])


class Prior(nn.Module):
  """From a text's embedding to a picture's: predicts the clean embedding from a noisy one."""
  num_attention_heads: int = 32
  attention_head_dim: int = 64
  num_layers: int = 20
  embedding_dim: int = 768
  num_embeddings: int = 77
  additional_embeddings: int = 4
  time_embed_act_fn: str = 'silu'
  time_embed_dim: int | None = None
  embedding_proj_dim: int | None = None
  clip_embed_dim: int | None = None
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, time, cond, train=False):
    """x [B, embedding_dim]; time [B]; cond: a dict of

      'pooled': [B, embedding_proj_dim], of the text,
      'context': [B, num_embeddings, embedding_dim], its tokens,
      'context_weights': [B, num_embeddings], 0 for padding. With it a place sees those before it alone; without, all.
    Returns:
      [B, clip_embed_dim], in the units of x: times clip_std plus clip_mean it is CLIP's.
    """
    p, width = reader(self, self.dtype), self.num_attention_heads * self.attention_head_dim
    pooled, context, x = (jnp.asarray(a, self.dtype) for a in (cond['pooled'], cond['context'], x))
    act, act_t = ACTIVATIONS['gelu'], activation(self.time_embed_act_fn)
    t = linear(p, 'time_embedding.linear_1', sinusoid(time, width).astype(self.dtype), self.time_embed_dim or width)
    t = linear(p, 'time_embedding.linear_2', act_t(t), width)
    context = linear(p, 'encoder_hidden_states_proj', context, width)
    parts = [linear(p, 'embedding_proj', pooled, width)[:, None], t[:, None], linear(p, 'proj_in', x, width)[:, None]]
    last = jnp.broadcast_to(p('prd_embedding', (1, 1, width), width), (len(x), 1, width))
    places = p('positional_embedding', (1, self.num_embeddings + self.additional_embeddings, width), width)
    h, mask = jnp.concatenate([context, *parts, last], 1) + places, None
    if 'context_weights' in cond:
      L = h.shape[1]
      seen = jnp.pad(cond['context_weights'] > 0, [(0, 0), (0, L - context.shape[1])], constant_values=True)
      mask = seen[:, None, None] & np.tril(np.ones((L, L), bool))
    for i in range(self.num_layers):
      name = f'transformer_blocks.{i}'
      a = layer_norm(p, f'{name}.norm1', h)
      h = h + attention(p, f'{name}.attn1', a, self.num_attention_heads, bias=True, mask=mask)
      h = h + _feed(p, f'{name}.ff', layer_norm(p, f'{name}.norm3', h), act)
    size = self.clip_embed_dim or self.embedding_dim
    p('clip_mean', (1, size), size), p('clip_std', (1, size), None)  # for its user
    return linear(p, 'proj_to_clip_embeddings', layer_norm(p, 'norm_out', h)[:, -1], size).astype(jnp.float32)
