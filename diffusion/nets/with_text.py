"""A network for texts: an encoder of tokens, trained with the network that it tells what to draw.

Where a frozen encoder has encoded the tokens, layers on top of it are trained in its place.
"""
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion.errors import InputError
from diffusion.nets import layers
from diffusion.nets.sequence import StateEncoder, TextEncoder

TINY = 'with_text(unet(channels=16, multipliers=(1,), blocks=1, attention=(), patch=2), width=16, blocks=1, heads=2)'
EMBEDDED = 4  # entries of the context that the embedding of an image becomes


class WithText(nn.Module):
  """A network whose condition has tokens: they are encoded once, and it is given their vectors (GLIDE,
  arXiv:2112.10741).

  Fields:
    net: the network, such as unet(..), which takes 'context' and its weights, and the vector 'text' like any condition.
    width, blocks, heads, causal: of the encoder; see `sequence`. On a frozen one they are those of the blocks above it,
      which are trained; blocks=0: none.
    vocabulary, length: number of token ids, most tokens of a text: given by the task.
    out_channels, constrain: given to `net`.
  """
  net: nn.Module
  width: int = 128
  blocks: int = 4
  heads: int = 4
  causal: bool = False
  vocabulary: int = 0
  length: int = 0
  out_channels: int | None = None
  constrain: Callable = lambda x: x

  def setup(self):
    if not self.vocabulary:
      raise InputError("with_text needs a task that gives tokens; use config.task='text_to_image', or the network "
                       'alone')
    own = self.width, self.blocks, self.heads, self.causal, self.dtype
    self.text = TextEncoder(self.vocabulary, self.length, *own)
    self.above = StateEncoder(*own)  # one of the two is called, and has parameters
    self.embedded = layers.Dense(EMBEDDED * self.width, use_bias=False)

  @property
  def dtype(self):
    return getattr(self.net, 'dtype', 'float32')

  @property
  def remat(self):
    return getattr(self.net, 'remat', False)

  def prepare(self, cond):
    """The condition with the vectors of its tokens in their place.

    Args:
      cond: dict of 'tokens': int [B, L] or, for P texts at once, [B, P, L];
        'weights': float of the same shape, how much a token counts: 0 for padding, 1, or what the user asks for.
        'states': float [B, L, D] or [B, P, L, D], optional: the tokens, encoded already by a frozen encoder;
        'pooled': float [B, E] or [B, P, E], with them: a vector of each text.
        'embedding': float [B, D], optional: that of an image. It is passed on, and besides becomes four more entries of
          the context, linear in it and without a bias (DALL-E 2, arXiv:2204.06125, section 2.1).
        Other entries are passed on.
    Returns:
      dict of
        'context': [B, P * L, width], the encoded tokens, and after them the four entries of an embedding;
        'context_weights': [B, P * L], or 4 more;
        'text': [B, 2 * width], the weighted sum of the encoded tokens and of their embeddings, each of mean square 1,
          over the root of their number. The embeddings are a bag of words, by which a word reaches the network
          without the encoder. After them comes the vector 'pooled', where there is one.
    """
    tokens, weights = cond['tokens'], cond['weights']
    B, L, frozen = tokens.shape[0], tokens.shape[-1], 'states' in cond  # an export has a B without a value, or len
    encode, given = (self.above, cond['states']) if frozen else (self.text, tokens)
    h, words = encode(given.reshape(-1, L, *given.shape[tokens.ndim:]), weights.reshape(-1, L) > 0)
    h, words = (a.reshape(B, -1, self.width) for a in (h, words))
    shares = weights.reshape(B, -1, L)[..., 0]  # of each text, of which no user sets the first weight
    weights = weights.reshape(B, -1)
    # Embeddings begin 50 times smaller than encoded tokens, and would be learnt last.
    words = words * jax.lax.rsqrt(jnp.mean(words ** 2, -1, keepdims=True) + 1e-12)
    both = jnp.concatenate([h, words], -1).astype(jnp.float32)
    rest = {name: value for name, value in cond.items() if name not in ('tokens', 'weights', 'states', 'pooled')}
    # The root of the number keeps the vector of one word from vanishing among many.
    pooled = jnp.einsum('bkd,bk->bd', both, weights) / jnp.sqrt(jnp.maximum(weights.sum(1, keepdims=True), 1e-6))
    if frozen:
      of_texts = cond['pooled'].reshape(B, shares.shape[1], -1)
      pooled = jnp.concatenate([pooled, jnp.einsum('bpe,bp->be', of_texts, shares)], -1)
    if 'embedding' in rest:
      more = self.embedded(rest['embedding']).reshape(B, EMBEDDED, self.width)
      h = jnp.concatenate([h, more.astype(h.dtype)], 1)
      weights = jnp.concatenate([weights, jnp.ones((B, EMBEDDED), weights.dtype)], 1)
    return rest | dict(context=h, context_weights=weights, text=pooled)

  def __call__(self, x, time, cond=None, train=False):
    """As `net`, with the prepared condition."""
    return self.net(x, time, cond, train)
