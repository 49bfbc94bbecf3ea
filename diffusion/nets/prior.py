"""The networks of the priors of DALL-E 2 (arXiv:2204.06125): causal transformers after a text and its embedding."""
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from diffusion.errors import InputError
from diffusion.nets import layers
from diffusion.nets.embeddings import sinusoidal
from diffusion.nets.sequence import empty_cache, Sequence

TINY = 'prior(width=16, blocks=1, heads=2)'
TINY_AR = 'prior_ar(width=16, blocks=1, heads=2)'
SMALL = nn.initializers.normal(.02)


class Prefix(nn.Module):
  """What stands before everything that is modelled: a vector for each token, and one for the embedding of the text.

  Padding is one learned vector that others see, as in GLIDE (arXiv:2112.10741), so that what is kept of the prefix
  needs no mask.
  """
  vocabulary: int
  length: int
  width: int

  @nn.compact
  def __call__(self, cond):
    """dict of tokens int [B, L], weights [B, L], 0 for padding, text_embedding [B, D] -> [B, length + 1, width]."""
    known, padding = (self.param(name, SMALL, shape) for name, shape in (
      ('tokens', (self.vocabulary, self.width)), ('padding', (self.width,))))
    words = jnp.where(cond['weights'][..., None] > 0, known[cond['tokens']], padding)
    text = layers.Dense(self.width, name='text')(cond['text_embedding'])
    return jnp.concatenate([words, text[:, None]], 1)


class Reading(nn.Module):
  """Fields and layers that both priors have: a causal `Sequence` whose keys and values are kept.

  Fields:
    width, blocks, heads: of the transformer.
    dtype: of the activations, 'float32' or 'bfloat16'.
    vocabulary, length: number of token ids, most tokens of a text: given by the task.
    constrain: applied to the activations; a place for a sharding constraint.
  """
  width: int = 128
  blocks: int = 4
  heads: int = 4
  dtype: str = 'float32'
  vocabulary: int = 0
  length: int = 0
  constrain: Callable = lambda x: x

  def begin(self, after):
    """Defines the layers of the prefix and the transformer; `after`: places that follow the prefix."""
    if not self.vocabulary:
      raise InputError("a prior needs a task that gives tokens and embeddings; set config.task='embeddings(runs/clip)'")
    self.prefix = Prefix(self.vocabulary, self.length, self.width)
    self.sequence = Sequence(self.blocks, self.heads, True, self.dtype)
    self.places = self.param('places', SMALL, (self.length + 1 + after, self.width))

  def read(self, cond, more=()):
    """The Cache of a prefix, and of the vectors [B, k, width] in `more`, and what the transformer says of it."""
    rows = self.constrain(jnp.concatenate([self.prefix(cond), *more], 1))
    rows = (rows + self.places[:rows.shape[1]]).astype(self.dtype)
    empty = empty_cache(self.blocks, len(rows), len(self.places), self.heads, self.width, self.dtype)
    return self.sequence(rows, None, empty)


class Out(nn.Module):
  """A dense layer of any size, float32."""

  @nn.compact
  def __call__(self, h, size):
    return layers.Dense(size, dtype='float32', name='dense')(h.astype(jnp.float32))


class Prior(Reading):
  """The diffusion prior: `(x, time, cond, train) -> out`, all [B, D].

  The places are, in this order: text, its embedding, time, noised embedding, query; the output is read at the last
  (section 2.2). What is before the time does not change from step to step: `prepare` computes its keys and values once.
  A share of the output, which the time decides, is x itself: where there is little noise the embedding is x, which a
  normalised sequence carries badly. Other fields are those of `Reading`.
  """

  def setup(self):
    self.begin(3)
    self.query = self.param('query', SMALL, (self.width,))
    self.times = [layers.Dense(self.width), layers.Dense(self.width)]
    self.noised, self.out, self.share = layers.Dense(self.width), Out(), layers.Dense(1)

  def prepare(self, cond):
    """dict of tokens, weights, text_embedding -> the Cache of the prefix."""
    return self.read(cond)[1]

  def __call__(self, x, time, cond=None, train=False):
    """x [B, D], time [B], the prepared condition -> [B, D], float32."""
    first, second = self.times
    told = second(nn.silu(first(sinusoidal(time, self.width))))
    rows = jnp.stack([told, self.noised(x), jnp.broadcast_to(self.query, told.shape)], 1)
    rows = (self.constrain(rows) + self.places[self.length + 1:]).astype(self.dtype)
    found, share = self.out(self.sequence(rows, None, cond)[0][:, -1], x.shape[-1]), nn.sigmoid(self.share(told))
    return share * x + (1 - share) * found


class PriorAr(Reading):
  """The autoregressive prior: `(codes int [B, K], time, cond, train) -> logits [B, K, values]`; time is not used.

  The places are, in this order: text, its embedding, their cosine with the image, codes (section 2.2); the logits of a
  code are read at the place before it, so they do not depend on it or those after it. Unlike in the paper, a code
  enters by the waves of its number too, since near numbers are near values, and the place before a code is told one
  linear function of the text's embedding, of its own; both are learned slowly otherwise. Other fields are those of
  `Reading`.
    values, codes, dots: number of values of a code, of codes, and of values of the cosine, one of which stands for
      none: given by the objective.
  """
  values: int = 2
  codes: int = 1
  dots: int = 1

  def setup(self):
    self.begin(self.codes)
    self.dot = self.param('dot', SMALL, (self.dots, self.width))
    self.code = self.param('code', SMALL, (self.values, self.width))
    self.waves, self.told = layers.Dense(self.width), layers.Dense(self.codes)
    self.direction = self.param('direction', SMALL, (self.width,))
    self.out = Out()

  def __call__(self, x, time, cond=None, train=False):
    """All logits at once. cond: dict of tokens, weights, text_embedding and dot int [B]."""
    rows = jnp.concatenate([self.dot[cond['dot']][:, None], self._entered(x[:, :-1].astype(jnp.int32))], 1)
    h, _ = self.read(cond, (rows + self._hints(cond),))
    return self.out(h[:, self.length + 1:], self.values)

  def first(self, cond):
    """(logits of the first code [B, values], the Cache)."""
    h, cache = self.read(cond, (self.dot[cond['dot']][:, None] + self._hints(cond)[:, :1],))
    return self.out(h[:, -1], self.values), cache

  def following(self, cache, cond, code, i):
    """(logits of code i + 1, the Cache), of code i, int [B]."""
    row = self._entered(code) + self._hints(cond)[:, i + 1] + self.places[self.length + 2 + i]
    h, cache = self.sequence(row[:, None].astype(self.dtype), None, cache)
    return self.out(h[:, -1], self.values), cache

  def _entered(self, code):
    """Codes int [..] -> [.., width]."""
    waves = sinusoidal(1000 * (code.reshape(-1) + .5) / self.values, self.width)
    return self.code[code] + self.waves(waves).reshape(*code.shape, self.width)

  def _hints(self, cond):
    """What each place before a code is told of the text, [B, codes, width]."""
    return self.told(cond['text_embedding'])[..., None] * self.direction
