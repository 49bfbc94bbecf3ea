"""Two towers, of images and of texts, whose vectors lie in one space: CLIP (arXiv:2103.00020) and SigLIP (2303.15343).

The weights of either, as Hugging Face and open_clip publish them, are those of this network in another layout (see
interop/clip.py).

This is the CLIP that is trained, guides and judges: both towers, with q, k and v in one matrix, and padding masked. The
towers inside published pipelines are in nets/pretrained/clip.py; to merge the two would rename parameters of
checkpoints.
"""
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from diffusion.errors import InputError, unknown
from diffusion.nets import layers
from diffusion.nets.attention import attend
from diffusion.nets.embeddings import sinusoidal
from diffusion.nets.sequence import ACTIVATIONS, Sequence, TextEncoder

TINY = 'clip(size=16, width=16, blocks=1, heads=2, text_width=16, text_blocks=1, text_heads=2)'
FORMS = dict(clip=1e-5, siglip=1e-6)  # and their eps
# Of the pixels in [0, 1] that OpenAI's models were trained on: mean and standard deviation.
PIXELS = (.48145466, .4578275, .40821073), (.26862954, .26130258, .27577711)


class Clip(nn.Module):
  """Network `(x, time, cond, train) -> image vectors`; `prepare(cond) -> text vectors`. Neither is scaled to length 1.
  `read(tokens, mask)` gives the vectors of the tokens besides.

  Fields:
    size: of the vectors; of siglip, that of the image tower is its width.
    patch: side of the squares of pixels that are the image's tokens (ViT, arXiv:2010.11929).
    width, blocks, heads, hidden: of the image tower; hidden 0: 4 * width.
    text_width, text_blocks, text_heads, text_hidden: of the text tower.
    form: clip: a class token, and a causal text tower that is read at the last token that counts. siglip: an image
      tower that is read by attention from a learned query, and a text tower in which all see all, padding too, that is
      read at the last place.
    activation: gelu_tanh, gelu, quick_gelu (OpenAI's weights, and those trained from them).
    openai_pixels: whether images in [-1, 1] are normalised as OpenAI's were.
    dtype: of the activations, 'float32' or 'bfloat16'.
    timed: whether the image tower is told the noise level, by a token in the place of the class token (GLIDE,
      arXiv:2112.10741, appendix B): given by the objective.
    vocabulary, length: number of token ids, most tokens of a text: given by the task.
    constrain: applied to the activations; a place for a sharding constraint.
  """
  size: int = 64
  patch: int = 4
  width: int = 128
  blocks: int = 4
  heads: int = 4
  hidden: int = 0
  text_width: int = 128
  text_blocks: int = 3
  text_heads: int = 4
  text_hidden: int = 0
  form: str = 'clip'
  activation: str = 'gelu'
  openai_pixels: bool = False
  dtype: str = 'float32'
  timed: bool = False
  vocabulary: int = 0
  length: int = 0
  constrain: Callable = lambda x: x

  def setup(self):
    self._check()
    shared = dict(dtype=self.dtype, activation=self.activation, eps=FORMS[self.form])
    self.image = ImageTower(self.patch, self.width, self.blocks, self.heads, self.hidden, self._out, self.form,
                            self.timed, self.constrain, **shared)
    self.text = TextTower(self.vocabulary, self.length, self.text_width, self.text_blocks, self.text_heads,
                          self.text_hidden, self._out, self.form, **shared)

  @property
  def _out(self):
    return self.width if self.form == 'siglip' else self.size

  def _check(self):
    if self.form not in FORMS:
      raise InputError(f'form={self.form!r}: {unknown(self.form, FORMS)}')
    if not self.vocabulary:
      raise InputError("clip needs a task that gives tokens; set config.task='pairs'")
    for field in ('size', 'patch', 'width', 'blocks', 'heads', 'text_width', 'text_blocks', 'text_heads'):
      value = getattr(self, field)
      if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f'{field}={value!r}: expected a whole number of at least 1')

  def prepare(self, cond):
    """dict of tokens int [B, L] and weights float [B, L], 0 for padding -> text vectors [B, size], float32."""
    return self.constrain(self.text(cond['tokens'], cond['weights'] > 0)[1])

  def read(self, tokens, mask):
    """tokens int [B, L], mask bool [B, L] -> (vectors of the tokens [B, L, text_width], text vectors [B, size])."""
    return self.text(tokens, mask)

  def __call__(self, x, time, cond=None, train=False):
    """x [B, H, W, C] in [-1, 1], time [B], cond not used -> image vectors [B, size], float32.

    Raises:
      InputError: H or W is no multiple of the patch.
    """
    if x.ndim != 4 or x.shape[1] % self.patch or x.shape[2] % self.patch:
      raise InputError(f'patch={self.patch} does not divide images of {list(x.shape[1:])}; use one that does')
    if self.openai_pixels:
      mean, deviation = (jnp.asarray(a, jnp.float32) for a in PIXELS)
      x = (x / 2 + .5 - mean) / deviation
    return self.constrain(self.image(self.constrain(x), time))


class ImageTower(nn.Module):
  """A vision transformer, x [B, H, W, C], time [B] -> [B, size]; fields as in `Clip`."""
  patch: int
  width: int
  blocks: int
  heads: int
  hidden: int
  size: int
  form: str
  timed: bool
  constrain: Callable
  dtype: str
  activation: str
  eps: float

  @nn.compact
  def __call__(self, x, time):
    of_clip, small = self.form == 'clip', nn.initializers.normal(self.width ** -.5)
    patches = layers.space_to_depth(x, self.patch).reshape(len(x), -1, self.patch ** 2 * x.shape[-1])
    h = layers.Dense(self.width, use_bias=not of_clip, dtype=self.dtype, name='patches')(patches)
    if self.timed:
      told = layers.Dense(self.width, name='time0')(sinusoidal(time, self.width))
      first = layers.Dense(self.width, name='time1')(nn.silu(told))[:, None]
    elif of_clip:
      first = jnp.broadcast_to(self.param('class', small, (self.width,)), (len(x), 1, self.width))
    if self.timed or of_clip:
      h = jnp.concatenate([first.astype(h.dtype), h], 1)
    h = h + self.param('places', small, h.shape[1:]).astype(h.dtype)
    if of_clip:
      h = nn.LayerNorm(self.eps, dtype='float32', name='norm_in')(h).astype(self.dtype)
    h = Sequence(self.blocks, self.heads, False, self.dtype, self.hidden, self.activation, self.eps,
                 name='sequence')(self.constrain(h)).astype(jnp.float32)
    if of_clip:
      return layers.Dense(self.size, use_bias=False, name='out')(h[:, 0])
    return Reader(self.heads, self.hidden or 4 * self.width, self.activation, self.eps, name='reader')(h)


class Reader(nn.Module):
  """Pools [B, N, width] to [B, width] by attention from one learned query, and two dense layers (arXiv:2106.04560)."""
  heads: int
  hidden: int
  activation: str
  eps: float

  @nn.compact
  def __call__(self, x):
    B, N, width = x.shape
    query = jnp.broadcast_to(self.param('query', nn.initializers.normal(width ** -.5), (width,)), (B, 1, width))
    split = lambda a: a.reshape(B, a.shape[1], -1, self.heads, width // self.heads)
    q = split(layers.Dense(width, name='q')(query))[:, :, 0]
    kv = split(layers.Dense(2 * width, name='kv')(x))
    h = layers.Dense(width, name='attended')(attend(q, kv[:, :, 0], kv[:, :, 1]).reshape(B, width))
    more = layers.Dense(self.hidden, name='hidden')(nn.LayerNorm(self.eps, name='norm')(h))
    return h + layers.Dense(width, name='add')(ACTIVATIONS[self.activation](more))


class TextTower(nn.Module):
  """A transformer over tokens int [B, L], of which mask, bool [B, L], tells those that count.

  -> (the tokens after the last normalisation [B, L, width], the text [B, size]), float32.
  """
  vocabulary: int
  length: int
  width: int
  blocks: int
  heads: int
  hidden: int
  size: int
  form: str
  dtype: str
  activation: str
  eps: float

  @nn.compact
  def __call__(self, tokens, mask):
    of_clip = self.form == 'clip'
    encoder = partial(TextEncoder, causal=of_clip, dtype=self.dtype, activation=self.activation, eps=self.eps)
    h, _ = encoder(self.vocabulary, self.length, self.width, self.blocks, self.heads, hidden=self.hidden,
                   name='encoder')(tokens, mask if of_clip else None)
    last = jnp.max(jnp.where(mask, jnp.arange(mask.shape[1]), 0), 1) if of_clip else jnp.full(len(h), h.shape[1] - 1)
    h = h.astype(jnp.float32)
    end = jnp.take_along_axis(h, last[:, None, None], 1)[:, 0]
    return h, layers.Dense(self.size, use_bias=not of_clip, name='out')(end)
