"""The autoencoders of diffusers: AutoencoderKL (Stable Diffusion 1, 2, XL, 3) and VQModel, as in their configs."""
import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion.errors import InputError
from diffusion.nets.pretrained import unet_blocks as blocks
from diffusion.nets.pretrained.torch_layers import activation, conv, group_norm, reader

LOGVAR = (-30., 20.)  # limits of the log variance


class _Autoencoder(nn.Module):
  in_channels: int = 3
  out_channels: int = 3
  down_block_types: tuple = ('DownEncoderBlock2D',)
  up_block_types: tuple = ('UpDecoderBlock2D',)
  block_out_channels: tuple = (64,)
  layers_per_block: int = 1
  act_fn: str = 'silu'
  latent_channels: int = 4
  norm_num_groups: int = 32
  scaling_factor: float = .18215
  mid_block_add_attention: bool = True
  dtype: str = 'float32'

  @property
  def factor(self):
    """How many pixels a latent stands for in each direction."""
    return 2 ** (len(self.block_out_channels) - 1)

  def _encoder(self, p, x, channels):
    """Pixels [B, H, W, C] -> [B, H / factor, W / factor, channels]."""
    style, widths = self._style(), self.block_out_channels
    h = conv(p, 'encoder.conv_in', x, widths[0])
    for i, width in enumerate(widths):
      for j in range(self.layers_per_block):
        h = blocks.resnet(p, f'encoder.down_blocks.{i}.resnets.{j}', h, None, width, style)
      if i + 1 < len(widths):
        h = blocks.smaller(p, f'encoder.down_blocks.{i}.downsamplers.0', h, style)
    h = self._middle(p, 'encoder', h, style)
    h = nn.silu(group_norm(p, 'encoder.conv_norm_out', h, style.groups, style.eps))
    return conv(p, 'encoder.conv_out', h, channels)

  def _decoder(self, p, z):
    """Latents -> pixels."""
    style, widths = self._style(), self.block_out_channels[::-1]
    h = self._middle(p, 'decoder', conv(p, 'decoder.conv_in', z, widths[0]), style)
    for i, width in enumerate(widths):
      for j in range(self.layers_per_block + 1):
        h = blocks.resnet(p, f'decoder.up_blocks.{i}.resnets.{j}', h, None, width, style)
      if i + 1 < len(widths):
        h = blocks.larger(p, f'decoder.up_blocks.{i}.upsamplers.0', h, style)
    h = nn.silu(group_norm(p, 'decoder.conv_norm_out', h, style.groups, style.eps))
    return conv(p, 'decoder.conv_out', h, self.out_channels).astype(jnp.float32)

  def _middle(self, p, side, h, style):
    h = blocks.resnet(p, f'{side}.mid_block.resnets.0', h, None, h.shape[-1], style)
    if self.mid_block_add_attention:
      h = blocks.pixel_attention(p, f'{side}.mid_block.attentions.0', h, 1, style)
    return blocks.resnet(p, f'{side}.mid_block.resnets.1', h, None, h.shape[-1], style)

  def _style(self):
    if len(self.down_block_types) != len(self.block_out_channels) or len(self.up_block_types) != len(
        self.block_out_channels):
      raise InputError(f'block_out_channels={self.block_out_channels}: expected as many down_block_types '
                       f'({len(self.down_block_types)}) and up_block_types ({len(self.up_block_types)})')
    for kind in (*self.down_block_types, *self.up_block_types):
      if kind not in ('DownEncoderBlock2D', 'UpDecoderBlock2D'):
        raise InputError(f'block types: {kind!r} is not offered here; expected DownEncoderBlock2D, UpDecoderBlock2D')
    return blocks.Style(self.norm_num_groups, 1e-6, activation(self.act_fn), padding=0)


class AutoencoderKL(_Autoencoder):
  """Latents are Gaussian given a picture. scaling_factor, shift_factor: for their user (`scaled`), not applied here."""
  shift_factor: float | None = None
  use_quant_conv: bool = True
  use_post_quant_conv: bool = True

  @nn.compact
  def __call__(self, x, part='both'):
    """part 'encode': pixels -> (mean, log variance) [B, h, w, latent_channels]; 'decode': latents -> pixels.

    'both': the pixels of the mean.
    """
    p, x = reader(self, self.dtype), x.astype(self.dtype)
    if part != 'decode':
      h = self._encoder(p, x, 2 * self.latent_channels)
      h = conv(p, 'quant_conv', h, 2 * self.latent_channels, 1) if self.use_quant_conv else h
      mean, logvar = jnp.split(h.astype(jnp.float32), 2, -1)
      if part == 'encode':
        return mean, jnp.clip(logvar, *LOGVAR)
      x = mean.astype(self.dtype)
    x = conv(p, 'post_quant_conv', x, self.latent_channels, 1) if self.use_post_quant_conv else x
    return self._decoder(p, x)

  def scaled(self, z):
    """Latents as a diffusion model has them, of about unit variance."""
    return (z - (self.shift_factor or 0.)) * self.scaling_factor

  def unscaled(self, z):
    """The inverse of scaled."""
    return z / self.scaling_factor + (self.shift_factor or 0.)


class VQModel(_Autoencoder):
  """Latents are the nearest of a codebook. A diffusion model has them before that: decode finds the nearest."""
  latent_channels: int = 3
  num_vq_embeddings: int = 256
  vq_embed_dim: int | None = None

  @nn.compact
  def __call__(self, x, part='both'):
    """part 'encode': pixels -> latents [B, h, w, vq_embed_dim] before they are quantised; 'decode': latents -> pixels.

    'quantise': latents -> (nearest of the codebook, their numbers int [B, h, w]); 'both': encoded, then decoded.
    """
    p, x, width = reader(self, self.dtype), x.astype(self.dtype), self.vq_embed_dim or self.latent_channels
    if part in ('encode', 'both'):
      x = conv(p, 'quant_conv', self._encoder(p, x, self.latent_channels), width, 1)
      if part == 'encode':
        return x
    codes = p('quantize.embedding.weight', (self.num_vq_embeddings, width), self.num_vq_embeddings ** 2)
    distance = jnp.sum(codes ** 2, -1) - 2 * jnp.dot(x, codes.T)
    index = jnp.argmin(distance, -1)
    if part == 'quantise':
      return codes[index], index
    x = x + jax.lax.stop_gradient(codes[index] - x)  # its gradient is that of x
    return self._decoder(p, conv(p, 'post_quant_conv', x, self.latent_channels, 1))

  def scaled(self, z):
    """Latents as a diffusion model has them."""
    return z * self.scaling_factor

  def unscaled(self, z):
    """The inverse of scaled."""
    return z / self.scaling_factor
