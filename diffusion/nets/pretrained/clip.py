"""CLIP's towers as transformers has them (arXiv:2103.00020): CLIPTextModel and CLIPVisionModel, also WithProjection.

Fields have the names of config.json; parameters those of its files without the prefixes text_model and vision_model.

These are given weights of published pipelines, whose hash over names and arrays is in checkpoints, so they keep the
layout of the files; they give the layer before the last, and see padding. The CLIP that is trained is nets/clip.py.
"""
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError
from diffusion.nets.attention import attend
from diffusion.nets.pretrained.torch_layers import activation, layer_norm, linear, reader


class Encoded(NamedTuple):
  """What a tower gives."""
  last: Any      # [B, L, width] after all layers; of a text, after the last normalisation
  before: Any    # [B, L, width] before the last layer, as SDXL reads it: not normalised
  pooled: Any    # [B, width] normalised: at the end of a text, of the class token of a picture
  embedded: Any  # [B, projection_dim], or None without a projection


class _Tower(nn.Module):
  hidden_size: int = 512
  intermediate_size: int = 2048
  num_hidden_layers: int = 12
  num_attention_heads: int = 8
  hidden_act: str = 'quick_gelu'
  layer_norm_eps: float = 1e-5
  projection_dim: int = 512
  projected: bool = False  # whether there is a projection: ..WithProjection
  dtype: str = 'float32'

  def _layers(self, p, h, mask=None):
    """[B, L, width] -> (after all layers, before the last)."""
    act, heads, before = activation(self.hidden_act), self.num_attention_heads, h
    if self.hidden_size % heads:
      raise InputError(f'num_attention_heads={heads} does not divide hidden_size={self.hidden_size}')
    for i in range(self.num_hidden_layers):
      name, before = f'encoder.layers.{i}', h
      a = layer_norm(p, f'{name}.layer_norm1', h, self.layer_norm_eps)
      q, k, v = (linear(p, f'{name}.self_attn.{part}_proj', a, self.hidden_size).reshape(*a.shape[:2], heads, -1)
                 for part in 'qkv')
      h = h + linear(p, f'{name}.self_attn.out_proj', attend(q, k, v, mask).reshape(h.shape), self.hidden_size)
      a = layer_norm(p, f'{name}.layer_norm2', h, self.layer_norm_eps)
      a = act(linear(p, f'{name}.mlp.fc1', a, self.intermediate_size))
      h = h + linear(p, f'{name}.mlp.fc2', a, self.hidden_size)
    return h, before


class ClipText(_Tower):
  """Texts. Without a mask a token sees all before it, as it was trained; padding is after the text, which sees none."""
  vocab_size: int = 49408
  max_position_embeddings: int = 77
  eos_token_id: int = 49407  # 2, of published files, is wrong and means: the largest id of a text

  @nn.compact
  def __call__(self, tokens, mask=None):
    """tokens int [B, L]; mask bool [B, L], true for those that others see, or None: all -> Encoded."""
    p, L = reader(self, self.dtype), tokens.shape[1]
    if L > self.max_position_embeddings:
      raise InputError(f'max_position_embeddings={self.max_position_embeddings}: the text has {L} tokens')
    table = p('embeddings.token_embedding.weight', (self.vocab_size, self.hidden_size), self.hidden_size)
    places = p('embeddings.position_embedding.weight', (self.max_position_embeddings, self.hidden_size),
               self.hidden_size)
    seen = np.tril(np.ones((L, L), bool))
    seen = seen if mask is None else seen & mask[:, None, None]
    h, before = self._layers(p, table[tokens] + places[:L], seen)
    last = layer_norm(p, 'final_layer_norm', h, self.layer_norm_eps)
    end = jnp.argmax(tokens if self.eos_token_id == 2 else tokens == self.eos_token_id, 1)
    pooled = last[np.arange(len(tokens)), end]
    embedded = linear(p, 'text_projection', pooled, self.projection_dim, False) if self.projected else None
    return Encoded(last, before, pooled, embedded)


class ClipVision(_Tower):
  """Pictures."""
  hidden_size: int = 768
  intermediate_size: int = 3072
  num_attention_heads: int = 12
  image_size: int = 224
  patch_size: int = 32
  num_channels: int = 3

  @nn.compact
  def __call__(self, x):
    """x [B, image_size, image_size, num_channels], normalised with CLIP's statistics -> Encoded."""
    p, size = reader(self, self.dtype), self.image_size // self.patch_size
    if x.shape[1:] != (self.image_size, self.image_size, self.num_channels):
      raise InputError(f'image_size={self.image_size}, num_channels={self.num_channels}: x is {list(x.shape)}')
    kernel = p('embeddings.patch_embedding.weight', (self.hidden_size, self.num_channels, *[self.patch_size] * 2),
               self.num_channels * self.patch_size ** 2)
    h = jax.lax.conv_general_dilated(x.astype(self.dtype), kernel, [self.patch_size] * 2, 'VALID',
                                     dimension_numbers=('NHWC', 'OIHW', 'NHWC')).reshape(len(x), size ** 2, -1)
    token = p('embeddings.class_embedding', (self.hidden_size,), self.hidden_size)
    h = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.hidden_size)), h], 1)
    h = h + p('embeddings.position_embedding.weight', (size ** 2 + 1, self.hidden_size), self.hidden_size)
    last, before = self._layers(p, layer_norm(p, 'pre_layrnorm', h, self.layer_norm_eps))  # the file's spelling
    pooled = layer_norm(p, 'post_layernorm', last[:, 0], self.layer_norm_eps)
    embedded = linear(p, 'visual_projection', pooled, self.projection_dim, False) if self.projected else None
    return Encoded(last, before, pooled, embedded)
