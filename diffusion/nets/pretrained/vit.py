"""Vision transformers whose features metrics use: DINOv2 (Oquab et al. 2023, arXiv:2304.07193) and CLIP
(Radford et al. 2021, arXiv:2103.00020).

Parameters are flat, with the names and layouts of the published files (Hugging Face's Dinov2Model and CLIPModel): they
are the tensors of such a file. Inference only.
"""
import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion.nets.attention import attend

ZEROS = lambda key, shape: jnp.zeros(shape, jnp.float32)  # only shape and type matter: the weights come from a file
ACTIVATIONS = dict(gelu=lambda x: nn.gelu(x, approximate=False), quick_gelu=lambda x: x * nn.sigmoid(1.702 * x))
DINOV2 = dict(norm1='norm1', query='attention.attention.query', key='attention.attention.key',
              value='attention.attention.value', out='attention.output.dense', norm2='norm2')
CLIP = dict(norm1='layer_norm1', query='self_attn.q_proj', key='self_attn.k_proj', value='self_attn.v_proj',
            out='self_attn.out_proj', norm2='layer_norm2')


def dense(param, name, x, features):
  y = jnp.dot(x, param(f'{name}.weight', ZEROS, (features, x.shape[-1])).T)
  return y + param(f'{name}.bias', ZEROS, (features,))


def norm(param, name, x, eps):
  """Layer normalisation over the last axis."""
  x = x - jnp.mean(x, -1, keepdims=True)
  x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + eps)
  return x * param(f'{name}.weight', ZEROS, x.shape[-1:]) + param(f'{name}.bias', ZEROS, x.shape[-1:])


def patches(param, name, x, patch, features):
  """Linear embedding of patches of patch x patch pixels, without bias: [B, H, W, 3] -> [B, patches, features]."""
  x = jnp.asarray(x, jnp.float32)  # with jax.enable_x64 too
  kernel = param(name, ZEROS, (features, x.shape[-1], patch, patch))
  y = jax.lax.conv_general_dilated(x, kernel, (patch, patch), 'VALID', dimension_numbers=('NHWC', 'OIHW', 'NHWC'))
  return y.reshape(len(x), -1, features)


def layer(param, prefix, x, names, heads, eps, feed, branch=lambda name, x: x):
  """A pre-norm transformer layer (Dosovitskiy et al. 2021, arXiv:2010.11929, equations 2 and 3).

  Args:
    param: (name, init, shape) -> array.
    prefix: of the parameters' names.
    x: [B, N, width].
    names: of its parts, DINOV2 or CLIP.
    heads: attention heads; divides width.
    eps: of the normalisations.
    feed: the feed-forward part, (prefix, x) -> [B, N, width].
    branch: (1 for attention or 2 for feed-forward, its output) -> what is added to x.
  """
  width = x.shape[-1]
  def split(part, h):
    return dense(param, prefix + names[part], h, width).reshape(*x.shape[:2], heads, width // heads)
  h = norm(param, prefix + names['norm1'], x, eps)
  h = attend(*(split(part, h) for part in ('query', 'key', 'value'))).reshape(x.shape)
  x = x + branch(1, dense(param, prefix + names['out'], h, width))
  return x + branch(2, feed(prefix + 'mlp.', norm(param, prefix + names['norm2'], x, eps)))


class Dinov2(nn.Module):
  """Network: pixels float32 [B, H, W, 3], normalised with ImageNet's statistics -> features [B, width].

  Fields:
    width, depth, heads, patch: sizes.
    hidden: width of the feed-forward layers.
    positions: number of position embeddings, one per patch and one for the class token.
    gated: SwiGLU feed-forward layers (Shazeer 2020, arXiv:2002.05202), as in the largest model, instead of GELU.
  """
  width: int
  depth: int
  heads: int
  patch: int
  hidden: int
  positions: int
  gated: bool = False

  @nn.compact
  def __call__(self, x):
    def feed(prefix, x):
      if self.gated:
        gate, up = jnp.split(dense(self.param, prefix + 'weights_in', x, 2 * self.hidden), 2, -1)
        return dense(self.param, prefix + 'weights_out', nn.silu(gate) * up, self.width)
      h = ACTIVATIONS['gelu'](dense(self.param, prefix + 'fc1', x, self.hidden))
      return dense(self.param, prefix + 'fc2', h, self.width)

    at = 'embeddings.patch_embeddings.projection'
    x = patches(self.param, f'{at}.weight', x, self.patch, self.width)
    x = x + self.param(f'{at}.bias', ZEROS, (self.width,))
    token = jnp.broadcast_to(self.param('embeddings.cls_token', ZEROS, (1, 1, self.width)), (len(x), 1, self.width))
    x = jnp.concatenate([token, x], 1)
    x = x + self.param('embeddings.position_embeddings', ZEROS, (1, self.positions, self.width))
    for i in range(self.depth):
      prefix = f'encoder.layer.{i}.'
      def scaled(branch, h):
        return h * self.param(f'{prefix}layer_scale{branch}.lambda1', ZEROS, (self.width,))
      x = layer(self.param, prefix, x, DINOV2, self.heads, 1e-6, feed, scaled)
    return norm(self.param, 'layernorm', x[:, 0], 1e-6)


class Clip(nn.Module):
  """Network: pixels float32 [B, H, W, 3], normalised with CLIP's statistics -> embeddings [B, size].

  The embedding space is the one that CLIP's images and texts share.

  Fields:
    width, depth, heads, patch, hidden, positions: as in `Dinov2`.
    size: of the embeddings.
    activation: 'quick_gelu' in OpenAI's models, 'gelu' in most of OpenCLIP's.
  """
  width: int
  depth: int
  heads: int
  patch: int
  hidden: int
  positions: int
  size: int
  activation: str = 'quick_gelu'

  @nn.compact
  def __call__(self, x):
    def feed(prefix, x):
      h = ACTIVATIONS[self.activation](dense(self.param, prefix + 'fc1', x, self.hidden))
      return dense(self.param, prefix + 'fc2', h, self.width)

    at = 'vision_model.embeddings'
    x = patches(self.param, f'{at}.patch_embedding.weight', x, self.patch, self.width)
    token = jnp.broadcast_to(self.param(f'{at}.class_embedding', ZEROS, (self.width,)), (len(x), 1, self.width))
    x = jnp.concatenate([token, x], 1)
    x = x + self.param(f'{at}.position_embedding.weight', ZEROS, (self.positions, self.width))
    x = norm(self.param, 'vision_model.pre_layrnorm', x, 1e-5)  # the file's spelling
    for i in range(self.depth):
      x = layer(self.param, f'vision_model.encoder.layers.{i}.', x, CLIP, self.heads, 1e-5, feed)
    x = norm(self.param, 'vision_model.post_layernorm', x[:, 0], 1e-5)
    return jnp.dot(x, self.param('visual_projection.weight', ZEROS, (self.size, self.width)).T)
