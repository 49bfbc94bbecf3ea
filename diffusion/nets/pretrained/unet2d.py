"""The U-Nets of diffusers, UNet2DModel and UNet2DConditionModel (Stable Diffusion 1, 2, XL), as in its configs.

Fields have the names of config.json; parameters those of its files. Convention of those configs: UNet2DModel's
attention_head_dim is the width of a head, UNet2DConditionModel's is the NUMBER of heads.
"""
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from diffusion.errors import InputError
from diffusion.nets.pretrained import unet_blocks as blocks
from diffusion.nets.pretrained.torch_layers import activation, conv, group_norm, linear, mlp, reader, sinusoid

TINY = ("unet2d(block_out_channels=(8, 16), down_block_types=('DownBlock2D', 'AttnDownBlock2D'), "
        "up_block_types=('AttnUpBlock2D', 'UpBlock2D'), layers_per_block=1, norm_num_groups=4)")
TINY_CONDITION = ("with_text(unet2d_condition(block_out_channels=(8, 16), "
                  "down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'), "
                  "up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'), layers_per_block=1, norm_num_groups=4, "
                  "cross_attention_dim=16, attention_head_dim=2), width=16, blocks=1, heads=2)")
PLAIN, PIXELS, CONTEXT, RESNET = 'DownBlock2D', 'AttnDownBlock2D', 'CrossAttnDownBlock2D', 'ResnetDownsampleBlock2D'
DOWN = (PLAIN, PIXELS, CONTEXT, RESNET)
UP = dict(UpBlock2D=PLAIN, AttnUpBlock2D=PIXELS, CrossAttnUpBlock2D=CONTEXT, ResnetUpsampleBlock2D=RESNET)


def each(name, value, number):
  """One value for each of `number` blocks. Raises InputError for a list of another length."""
  values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * number
  if len(values) != number:
    raise InputError(f'{name}={value!r}: expected {number} values, one a block of block_out_channels')
  return values


class _UNet(nn.Module):
  """What both networks share; `inside` is what stands after each residual block of a kind with attention."""
  sample_size: int | None = None
  in_channels: int | None = None
  out_channels: int | None = None
  center_input_sample: bool = False
  flip_sin_to_cos: bool = True
  freq_shift: float = 0
  block_out_channels: tuple = (320, 640, 1280, 1280)
  layers_per_block: int | tuple = 2
  norm_num_groups: int = 32
  norm_eps: float = 1e-5
  downsample_padding: int = 1
  mid_block_scale_factor: float = 1.
  resnet_time_scale_shift: str = 'default'
  dropout: float = 0.
  act_fn: str = 'silu'
  time_embedding_dim: int | None = None
  conv_in_kernel: int = 3
  conv_out_kernel: int = 3
  dtype: str = 'float32'
  constrain: Callable = lambda x: x

  def _run(self, p, x, emb, train, style, kinds, inside, middle):
    """x [B, H, W, C] and the embedded time [B, E] -> [B, H, W, out]; kinds: of (down, up) blocks."""
    widths, (down, up) = self.block_out_channels, kinds
    layers = each('layers_per_block', self.layers_per_block, len(widths))
    if not len(down) == len(up) == len(widths):
      raise InputError(f'block_out_channels={widths}: expected as many down_block_types ({len(down)}) and '
                       f'up_block_types ({len(up)})')
    h = conv(p, 'conv_in', x, widths[0], self.conv_in_kernel)
    skips, last = [h], len(widths) - 1
    for i, kind in enumerate(down):
      for j in range(layers[i]):
        h = blocks.resnet(p, f'down_blocks.{i}.resnets.{j}', h, emb, widths[i], style)
        h = inside(f'down_blocks.{i}.attentions.{j}', kind, h, i)
        skips.append(h)
      if i < last:
        at = f'down_blocks.{i}.downsamplers.0'
        h = self._resized(p, at, kind, h, emb, style, None)
        skips.append(h)
      h = self.constrain(h)
    h = middle(h)
    for k, kind in enumerate(up):
      i = last - k
      for j in range(layers[i] + 1):
        h = jnp.concatenate([h, skips.pop()], -1)
        h = blocks.resnet(p, f'up_blocks.{k}.resnets.{j}', h, emb, widths[i], style)
        h = inside(f'up_blocks.{k}.attentions.{j}', kind, h, i)
      if i:
        h = self._resized(p, f'up_blocks.{k}.upsamplers.0', kind, h, emb, style, skips[-1])
      h = self.constrain(h)
    h = self._last_act(group_norm(p, 'conv_norm_out', h, self.norm_num_groups, self.norm_eps))
    return conv(p, 'conv_out', h, self.out_channels or x.shape[-1], self.conv_out_kernel)

  def _resized(self, p, name, kind, h, emb, style, like):
    """Fewer pixels, or those of `like`."""
    if kind == RESNET or self._by_resnet(kind, like is not None):
      resize = blocks.halved if like is None else lambda a: blocks.upsampled(a, like)
      return blocks.resnet(p, name, h, emb, h.shape[-1], style, resize)
    return blocks.smaller(p, name, h, style) if like is None else blocks.larger(p, name, h, style, like)

  def _last_act(self, h):
    return activation(self.act_fn)(h)

  def _by_resnet(self, kind, up):
    """Whether a residual block makes pictures smaller or larger."""
    return False

  def _start(self, x, time, train, linear=False):
    """(reader, x, sinusoid of the time, Style)."""
    if self.in_channels and x.shape[-1] != self.in_channels:
      raise InputError(f'in_channels={self.in_channels}: x has {x.shape[-1]} channels with its condition')
    if self.resnet_time_scale_shift not in ('default', 'scale_shift'):
      raise InputError(f"resnet_time_scale_shift={self.resnet_time_scale_shift!r}: expected 'default' or 'scale_shift'")
    drop = lambda h: nn.Dropout(self.dropout, deterministic=not train)(h) if self.dropout else h
    style = blocks.Style(self.norm_num_groups, self.norm_eps, activation(self.act_fn),
                         self.resnet_time_scale_shift == 'scale_shift', linear, self.downsample_padding, drop)
    x = 2 * x - 1 if self.center_input_sample else x
    return reader(self, self.dtype), x.astype(self.dtype), self._wave(time), style

  def _wave(self, time):
    return sinusoid(time, self.block_out_channels[0], self.flip_sin_to_cos, self.freq_shift).astype(self.dtype)

  @property
  def _time_width(self):
    return self.time_embedding_dim or 4 * self.block_out_channels[0]


class UNet2D(_UNet):
  """UNet2DModel: unconditional, or with classes as a vector, whose entry k is the share of class k.

  num_class_embeds=None: as many as the condition has.
  """
  down_block_types: tuple = ('DownBlock2D', 'AttnDownBlock2D', 'AttnDownBlock2D', 'AttnDownBlock2D')
  up_block_types: tuple = ('AttnUpBlock2D', 'AttnUpBlock2D', 'AttnUpBlock2D', 'UpBlock2D')
  block_out_channels: tuple = (224, 448, 672, 896)
  mid_block_type: str | None = 'UNetMidBlock2D'
  add_attention: bool = True
  attention_head_dim: int | None = 8
  attn_norm_num_groups: int | None = None
  downsample_type: str = 'conv'
  upsample_type: str = 'conv'
  class_embed_type: str | None = None
  num_class_embeds: int | None = None

  @nn.compact
  def __call__(self, x, time, cond=None, train=False):
    """x [B, H, W, C]; time [B]; cond: None, or [B, num_class_embeds] of classes. -> [B, H, W, out_channels]."""
    p, x, wave, style = self._start(x, time, train)
    emb = mlp(p, 'time_embedding', wave, self._time_width)
    number = self.num_class_embeds or (0 if cond is None else cond.shape[-1])
    if number:
      told = jnp.zeros((len(x), number)) if cond is None else cond
      if told.shape[-1] != number:
        raise InputError(f'num_class_embeds={number}: the condition has {told.shape[-1]} classes')
      emb = emb + jnp.dot(told.astype(self.dtype), p('class_embedding.weight', (number, self._time_width), 1))

    def heads(width):
      return width // (self.attention_head_dim or width)

    def inside(name, kind, h, i):
      return blocks.pixel_attention(p, name, h, heads(h.shape[-1]), style) if kind == PIXELS else h

    def middle(h):
      if self.mid_block_type is None:
        return h
      part = style._replace(divide=self.mid_block_scale_factor)
      h = blocks.resnet(p, 'mid_block.resnets.0', h, emb, h.shape[-1], part)
      if self.add_attention:
        groups = self.attn_norm_num_groups or (0 if style.scale_shift else style.groups)
        h = blocks.pixel_attention(p, 'mid_block.attentions.0', h, heads(h.shape[-1]), part, groups)
      return blocks.resnet(p, 'mid_block.resnets.1', h, emb, h.shape[-1], part)
    kinds = _kinds(self, (PLAIN, PIXELS, RESNET))
    return self._run(p, x, emb, train, style, kinds, inside, middle).astype(jnp.float32)

  def _last_act(self, h):
    return nn.silu(h)  # whatever act_fn is

  def _by_resnet(self, kind, up):
    return kind == PIXELS and 'resnet' == (self.upsample_type if up else self.downsample_type)


class UNet2DCondition(_UNet):
  """UNet2DConditionModel: reads a context, such as an encoded text."""
  down_block_types: tuple = (CONTEXT, CONTEXT, CONTEXT, PLAIN)
  up_block_types: tuple = ('UpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D')
  mid_block_type: str | None = 'UNetMidBlock2DCrossAttn'
  only_cross_attention: bool | tuple = False
  cross_attention_dim: int | tuple = 1280
  transformer_layers_per_block: int | tuple = 1
  attention_head_dim: int | tuple = 8
  use_linear_projection: bool = False
  class_embed_type: str | None = None
  num_class_embeds: int | None = None
  addition_embed_type: str | None = None
  addition_time_embed_dim: int | None = None
  projection_class_embeddings_input_dim: int | None = None
  upcast_attention: bool = False  # the softmax is in float32 in any case

  @nn.compact
  def __call__(self, x, time, cond, train=False):
    """x [B, H, W, C]; time [B]; cond: a dict. -> [B, H, W, out_channels].

    cond holds 'context' [B, K, cross_attention_dim] and perhaps 'context_weights' [B, K], 0 for padding, and, as the
    config says,
      'image': [B, H, W, M], channels beside x, such as a mask and the latent of what is kept (in-painting);
      'cond': [B, classes], [B] of class_embed_type='timestep', or [B, D] of its other kinds;
      'pooled': [B, D] and 'time_ids': [B, 6], of addition_embed_type='text_time' (SDXL).
    """
    x = jnp.concatenate([x, cond['image']], -1) if 'image' in cond else x
    p, x, wave, style = self._start(x, time, train, self.use_linear_projection)
    emb = mlp(p, 'time_embedding', wave, self._time_width, style.act)
    emb = self._with_classes(p, emb, cond, style.act)
    if self.addition_embed_type == 'text_time':
      ids = sinusoid(cond['time_ids'].reshape(-1), self.addition_time_embed_dim, self.flip_sin_to_cos, self.freq_shift)
      told = jnp.concatenate([cond['pooled'], ids.reshape(len(x), -1)], -1).astype(self.dtype)
      emb = emb + mlp(p, 'add_embedding', told, self._time_width)
    number, context = len(self.block_out_channels), cond['context'].astype(self.dtype)
    heads, depth, only, width = (each(name, getattr(self, name), number) for name in (
      'attention_head_dim', 'transformer_layers_per_block', 'only_cross_attention', 'cross_attention_dim'))
    mask = cond['context_weights'][:, None, None] if 'context_weights' in cond else None
    if {context.shape[-1]} != set(width):
      raise InputError(f'cross_attention_dim={self.cross_attention_dim}: the context has {context.shape[-1]} channels')

    def inside(name, kind, h, i):
      if kind != CONTEXT:
        return h
      return blocks.transformer(p, name, h, context, heads[i], depth[i], style, only[i], mask)

    def middle(h):
      if self.mid_block_type is None:
        return h
      part = style._replace(divide=self.mid_block_scale_factor)
      h = blocks.resnet(p, 'mid_block.resnets.0', h, emb, h.shape[-1], part)
      h = blocks.transformer(p, 'mid_block.attentions.0', h, context, heads[-1], depth[-1], style, mask=mask)
      return blocks.resnet(p, 'mid_block.resnets.1', h, emb, h.shape[-1], part)
    kinds = _kinds(self, (PLAIN, CONTEXT))
    return self._run(p, x, emb, train, style, kinds, inside, middle).astype(jnp.float32)

  def _with_classes(self, p, emb, cond, act):
    kind, width = self.class_embed_type, self._time_width
    if kind is None and not self.num_class_embeds:
      return emb
    told = cond['cond']
    if kind is None:
      return emb + jnp.dot(told.astype(self.dtype), p('class_embedding.weight', (self.num_class_embeds, width), 1))
    if kind == 'timestep':
      return emb + mlp(p, 'class_embedding', self._wave(told), width, act)
    told = told.astype(self.dtype)
    if kind == 'projection':
      return emb + mlp(p, 'class_embedding', told, width)
    return emb + (told if kind == 'identity' else linear(p, 'class_embedding', told, width))


def _kinds(net, allowed):
  """The kinds of the (down, up) blocks, up blocks by the name of the down block that they mirror."""
  for name, known in (('down_block_types', DOWN), ('up_block_types', UP)):
    for kind in getattr(net, name):
      if kind not in known or UP.get(kind, kind) not in allowed:
        fitting = ', '.join(k for k in known if UP.get(k, k) in allowed)
        raise InputError(f'{name}: {kind!r} is not offered here; expected {fitting}')
  return net.down_block_types, tuple(UP[kind] for kind in net.up_block_types)
