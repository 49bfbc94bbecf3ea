"""Layers whose parameters have the names and layouts of PyTorch's: a file's tensors are the parameters.

`p` is a reader, (name, shape, fan) -> array (see `reader`); fan: inputs of one output, None for scales of norms.
"""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError
from diffusion.nets.attention import attend

ACTIVATIONS = dict(
  silu=nn.silu, swish=nn.silu, gelu=lambda x: nn.gelu(x, approximate=False), relu=nn.relu,
  gelu_new=nn.gelu, mish=lambda x: x * jnp.tanh(nn.softplus(x)), quick_gelu=lambda x: x * nn.sigmoid(1.702 * x))


def activation(name):
  """The function of that name. Raises InputError for an unknown one."""
  if name not in ACTIVATIONS:
    raise InputError(f'act_fn={name!r}: expected {", ".join(ACTIVATIONS)}')
  return ACTIVATIONS[name]


def _initial(key, shape, fan):
  """PyTorch's own: uniform within 1 / sqrt(fan); ones without a fan."""
  return jnp.ones(shape) if fan is None else jax.random.uniform(key, shape, minval=-fan ** -.5, maxval=fan ** -.5)


def reader(module, dtype='float32'):
  """The reader of a Flax module's own parameters, float32, given in `dtype`."""
  def read(name, shape, fan):
    return jnp.asarray(module.param(name, _initial, tuple(shape), fan), dtype)
  return read


def linear(p, name, x, features, bias=True):
  """[.., C] -> [.., features]."""
  fan = x.shape[-1]
  y = jnp.dot(x, p(f'{name}.weight', (features, fan), fan).T)
  return y + p(f'{name}.bias', (features,), fan) if bias else y


def conv(p, name, x, features, size=3, stride=1, padding=None):
  """[B, H, W, C] -> [B, H', W', features]; padding: (before, after) in both directions; None: the size stays."""
  fan = x.shape[-1] * size ** 2
  kernel = p(f'{name}.weight', (features, x.shape[-1], size, size), fan)
  around = [(size // 2, size // 2) if padding is None else padding] * 2
  y = jax.lax.conv_general_dilated(x, kernel, (stride, stride), around, dimension_numbers=('NHWC', 'OIHW', 'NHWC'))
  return y + p(f'{name}.bias', (features,), fan)


def group_norm(p, name, x, groups, eps):
  """Normalisation over pixels and the channels of a group, [B, .., C], in float32."""
  C = x.shape[-1]
  if C % groups:
    raise InputError(f'norm_num_groups={groups} does not divide {C} channels at {name}')
  h = x.astype(jnp.float32).reshape(len(x), -1, groups, C // groups)
  h = h - jnp.mean(h, (1, 3), keepdims=True)
  h = (h * jax.lax.rsqrt(jnp.mean(jnp.square(h), (1, 3), keepdims=True) + eps)).reshape(x.shape).astype(x.dtype)
  return h * p(f'{name}.weight', (C,), None) + p(f'{name}.bias', (C,), C)


def layer_norm(p, name, x, eps=1e-5, affine=True):
  """Normalisation over the last axis, in float32."""
  h = x.astype(jnp.float32)
  h = h - jnp.mean(h, -1, keepdims=True)
  h = (h * jax.lax.rsqrt(jnp.mean(jnp.square(h), -1, keepdims=True) + eps)).astype(x.dtype)
  C = x.shape[-1]
  return h * p(f'{name}.weight', (C,), None) + p(f'{name}.bias', (C,), C) if affine else h


def attention(p, name, x, heads, context=None, inner=None, bias=False, mask=None):
  """Attention of x [B, N, C] to a context [B, K, D], or to itself, with diffusers' names; the last layer has a bias."""
  inner, source = inner or x.shape[-1], x if context is None else context
  if inner % heads:
    raise InputError(f'attention_head_dim: {heads} heads do not divide {inner} channels at {name}')
  q, k, v = (linear(p, f'{name}.to_{part}', a, inner, bias).reshape(*a.shape[:2], heads, -1)
             for part, a in zip('qkv', (x, source, source)))
  return linear(p, f'{name}.to_out.0', attend(q, k, v, mask).reshape(*x.shape[:2], inner), x.shape[-1])


def sinusoid(time, width, flip=True, shift=0., scale=1.):
  """Sines and cosines of times [B] at width / 2 frequencies, [B, width]; flip: cosines first."""
  half = width // 2
  angles = scale * time[:, None] * jnp.exp(-np.log(1e4) * np.arange(half) / (half - shift)).astype(jnp.float32)
  parts = [jnp.cos(angles), jnp.sin(angles)] if flip else [jnp.sin(angles), jnp.cos(angles)]
  return jnp.pad(jnp.concatenate(parts, -1), [(0, 0), (0, width % 2)])


def mlp(p, name, x, width, act=nn.silu):
  """The two layers that embed a time or a vector, linear_1 and linear_2, [B, D] -> [B, width]."""
  return linear(p, f'{name}.linear_2', act(linear(p, f'{name}.linear_1', x, width)), width)


def upsampled(x, like=None):
  """Twice as many pixels in both directions, each repeated, cut to the size of `like` [B, H, W, ..]."""
  x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
  return x if like is None else x[:, :like.shape[1], :like.shape[2]]
