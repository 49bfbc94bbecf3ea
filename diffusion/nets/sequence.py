"""A plain transformer over a sequence of vectors, causal or not; and encoders of texts made of it."""
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion.errors import InputError, unknown
from diffusion.nets import layers
from diffusion.nets.attention import attend


ACTIVATIONS = dict(gelu_tanh=nn.gelu, gelu=lambda x: nn.gelu(x, approximate=False),
                   quick_gelu=lambda x: x * nn.sigmoid(1.702 * x))


class Cache(NamedTuple):
  """Keys and values of the places that a causal sequence has seen; see `empty_cache`."""
  keys: Any    # [blocks, B, length, heads, D]
  values: Any
  filled: Any  # int32 [], number of places seen


def empty_cache(blocks, batch, length, heads, width, dtype='float32'):
  """The Cache of a `Sequence` with these sizes before its first place."""
  zeros = jnp.zeros((blocks, batch, length, heads, width // heads), dtype)
  return Cache(zeros, zeros, jnp.zeros((), jnp.int32))


class Sequence(nn.Module):
  """Blocks of attention and two dense layers, each after a layer normalisation (GPT-2, Radford et al. 2019).

  Fields:
    blocks, heads: their numbers; heads divides the width of the input.
    causal: a place sees itself and those before it, not those after it.
    dtype: of the activations, float32 or bfloat16; normalisation and softmax are in float32.
    hidden: width between the two dense layers; 0: 4 times that of the input.
    activation: after the first of them: gelu_tanh, gelu or quick_gelu (CLIP's).
    eps: of the normalisations.
  """
  blocks: int
  heads: int
  causal: bool = False
  dtype: str = 'float32'
  hidden: int = 0
  activation: str = 'gelu_tanh'
  eps: float = 1e-6

  @nn.compact
  def __call__(self, x, mask=None, cache=None):
    """Runs the blocks, with a last normalisation.

    Args:
      x: [B, L, width], with whatever says where a place is.
      mask: bool [B, L], true for places that count: others are seen by no place. None: all. Not with a cache.
      cache: of the places before x, if the sequence is causal; their keys and values are not computed again.
    Returns:
      [B, L, width]; with a cache (the same, the cache with these places).
    """
    if x.shape[-1] % self.heads:
      raise InputError(f'heads={self.heads} do not divide the width {x.shape[-1]}; change either')
    if self.activation not in ACTIVATIONS:
      raise InputError(f'activation={self.activation!r}: {unknown(self.activation, ACTIVATIONS)}')
    if cache is not None and not self.causal:
      raise InputError('only a causal sequence has a cache: other places would change with every new one')
    kept = []
    for i in range(self.blocks):
      old = None if cache is None else (cache.keys[i], cache.values[i], cache.filled)
      x, new = self._block(x, mask, old, i)
      kept.append(new)
    y = nn.LayerNorm(self.eps, dtype='float32', name='norm')(x).astype(self.dtype)
    if cache is None:
      return y
    keys, values = (jnp.stack([new[j] for new in kept]) for j in (0, 1))
    return y, Cache(keys, values, cache.filled + x.shape[1])

  def _block(self, x, mask, old, i):
    width = x.shape[-1]
    dense = lambda features, name: layers.Dense(features, dtype=self.dtype, name=f'{name}_{i}')
    norm = lambda name: nn.LayerNorm(self.eps, dtype='float32', name=f'{name}_{i}')
    qkv = dense(3 * width, 'qkv')(norm('norm_a')(x)).reshape(*x.shape[:2], 3, self.heads, -1)
    q, k, v = (qkv[:, :, j] for j in range(3))
    start = 0
    if old is not None:
      start = old[2]
      k, v = (jax.lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), start, 1)
              for whole, part in zip(old, (k, v)))
    seen = None if mask is None else mask[:, None, None]
    if self.causal:
      before = jnp.arange(k.shape[1]) <= start + jnp.arange(x.shape[1])[:, None]
      seen = before if seen is None else seen & before
    x = x + dense(width, 'attended')(attend(q, k, v, seen).reshape(x.shape))
    hidden = ACTIVATIONS[self.activation](dense(self.hidden or 4 * width, 'hidden')(norm('norm_b')(x)))
    return x + dense(width, 'add')(hidden), (k, v)


class TextEncoder(nn.Module):
  """Token ids -> a vector for each, by a `Sequence` over learned embeddings of tokens and places.

  Fields:
    vocabulary: number of token ids. length: most tokens of a text.
    width, blocks, heads, causal, dtype, hidden, activation, eps: of the sequence.
  """
  vocabulary: int
  length: int
  width: int = 128
  blocks: int = 4
  heads: int = 4
  causal: bool = False
  dtype: str = 'float32'
  hidden: int = 0
  activation: str = 'gelu_tanh'
  eps: float = 1e-6

  @nn.compact
  def __call__(self, tokens, mask):
    """tokens int [B, L], ids below `vocabulary`, L at most `length`; mask bool [B, L], or None: all.

    Returns:
      (encoded tokens [B, L, width], their embeddings without places [B, L, width]). What a token outside of the mask is
      has no effect on others.
    """
    small = nn.initializers.normal(.02)
    embedded = self.param('tokens', small, (self.vocabulary, self.width))[tokens]
    places = self.param('places', small, (self.length, self.width))[:tokens.shape[1]]
    h = (embedded + places).astype(self.dtype)
    sequence = Sequence(self.blocks, self.heads, self.causal, self.dtype, self.hidden, self.activation, self.eps,
                        name='sequence')
    return sequence(h, mask), embedded


class StateEncoder(nn.Module):
  """The vectors that a frozen encoder has given each token -> a vector of another width, by a `Sequence`.

  Fields:
    width: of the vectors that it gives; blocks: 0 is a linear layer between normalisations, and no more.
    heads, causal, dtype: of the sequence.
  """
  width: int
  blocks: int
  heads: int
  causal: bool = False
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, states, mask):
    """states float [B, L, D]; mask bool [B, L] -> as TextEncoder: (encoded tokens [B, L, width], the same before the
    blocks). Given vectors are normalised first (Imagen, arXiv:2205.11487): some of their entries may be very large.
    """
    embedded = layers.Dense(self.width, name='project')(nn.LayerNorm(dtype='float32', name='norm')(states))
    h = embedded.astype(self.dtype)
    return Sequence(self.blocks, self.heads, self.causal, self.dtype, name='sequence')(h, mask), embedded
