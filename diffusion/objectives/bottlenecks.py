"""What is between encoder and decoder: a diagonal Gaussian (KL), a codebook (VQ), or finite scalars (FSQ).

The functions are pure; a Bottleneck below them is what a config names. What diffusion models is `latent`: with codes it
is not rounded yet, and the decoder rounds (as latent diffusion does, arXiv:2112.10752).
"""
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.likelihood import gaussian_kl
from diffusion.errors import check_positive, InputError


# ---- a diagonal Gaussian (arXiv:1312.6114)
def posterior(moments):
  """[.., 2c] -> (mean, log variance), [.., c] each; the log variance is kept in [-30, 20], as in latent diffusion."""
  mean, log_variance = jnp.split(moments, 2, -1)
  return mean, jnp.clip(log_variance, -30., 20.)


def kl_to_prior(mean, log_variance):
  """KL(N(mean, e^log_variance) || N(0, 1)), elementwise, in nats."""
  return gaussian_kl(mean, log_variance, 0., 0.)


def sample(mean, log_variance, eps):
  """mean + std * eps."""
  return mean + jnp.exp(.5 * log_variance) * eps


# ---- a codebook (VQ-VAE, arXiv:1711.00937)
def straight_through(z, rounded):
  """`rounded` in value, bit for bit; its gradient goes to z as it is, and none to `rounded`."""
  return jax.lax.stop_gradient(rounded) + (z - jax.lax.stop_gradient(z))


def nearest(z, codes):
  """Index of the code nearest to each z, by Euclidean distance: z [.., D], codes [K, D] -> int32 [..]."""
  distance = jnp.sum(jnp.square(codes), 1) - 2 * jnp.dot(z, codes.T, precision='highest')  # but for |z|^2
  return jnp.argmin(distance, -1).astype(jnp.int32)


class Codebook(NamedTuple):
  """Codes and the running sums that they are the means of."""
  codes: Any  # [K, D]
  count: Any  # [K], running number of latents of each code in a batch
  total: Any  # [K, D], running sum of these latents


def start_codebook(key, number, channels):
  """A Codebook of `number` codes that none has used yet: the first restart draws them from data."""
  codes = jax.random.uniform(key, (number, channels), minval=-1 / number, maxval=1 / number)
  return Codebook(codes, jnp.zeros(number), jnp.zeros((number, channels)))


def moved(book, z, index, decay):
  """The Codebook after a step of exponential averages (arXiv:1711.00937, appendix A.1), without gradients.

  With decay 0 it is a step of k-means: each code becomes the mean of its latents, and stays if it has none.

  Args:
    z: [N, D], latents of the whole batch. index: int [N], of their codes.
    decay: share of the old sums that is kept, in [0, 1).
  """
  count = jax.ops.segment_sum(jnp.ones_like(z[:, 0]), index, len(book.codes))
  total = jax.ops.segment_sum(z, index, len(book.codes))
  count, total = (decay * old + (1 - decay) * new for old, new in ((book.count, count), (book.total, total)))
  used = count[:, None] > 1e-20
  return Codebook(jnp.where(used, total / jnp.where(used, count[:, None], 1), book.codes), count, total)


def restarted(book, z, index, gumbel, least):
  """The Codebook with its dead codes moved to latents of the batch (as in SoundStream, arXiv:2107.03312).

  A latent is drawn without replacement with probability in proportion to its squared distance from its code, as in
  k-means++, so that many equal latents, such as those of a plain background, do not take all of them.

  Args:
    z, index: as for `moved`.
    gumbel: [N], independent draws of the standard Gumbel distribution.
    least: a code is dead where its count is below this share of the mean count, N / K.
  """
  K, even = len(book.codes), len(z) / len(book.codes)
  distance = jnp.sum(jnp.square(z - book.codes[index]), 1)
  order = jax.lax.top_k(jnp.log(distance + 1e-20) + gumbel, min(K, len(z)))[1]
  dead = book.count < least * even
  place = jnp.minimum(jnp.cumsum(dead) - 1, len(order) - 1)  # the i-th dead code takes the i-th latent
  fresh = z[order[place]]
  pick = lambda new, old: jnp.where(dead.reshape(-1, *[1] * (old.ndim - 1)), new, old)
  return Codebook(pick(fresh, book.codes), pick(even, book.count), pick(even * fresh, book.total))


def usage(index, number):
  """(share of the codes that occur in index, perplexity e^entropy of their frequencies)."""
  share = jnp.bincount(jnp.ravel(index), length=number) / index.size
  return jnp.mean(share > 0), jnp.exp(-jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1))))


# ---- finite scalars (FSQ, arXiv:2309.15505)
def bounded(z, levels):
  """z [.., D] -> [.., D] of which the d-th entry lies between the lowest and the highest of levels[d] whole numbers.

  Equation 1 with an offset for even numbers of levels, and 0 goes to 0.
  """
  L = np.asarray(levels)
  half, offset = (L - 1) * (1 + 1e-3) / 2, np.where(L % 2, 0., .5)
  half, offset, shift = (np.float32(a) for a in (half, offset, np.arctanh(offset / half)))
  return jnp.tanh(z + shift) * half - offset


def scalar_index(rounded, levels):
  """Whole numbers [.., D] from -(L // 2) -> the index of their combination, int32 [..], the first one fastest."""
  L = np.asarray(levels)
  return jnp.sum((rounded + L // 2).astype(jnp.int32) * np.cumprod([1, *L[:-1]]), -1).astype(jnp.int32)


def scalars_of(index, levels):
  """The inverse of scalar_index, float32 [.., D]."""
  L = np.asarray(levels)
  return (index[..., None] // np.cumprod([1, *L[:-1]]) % L - L // 2).astype(jnp.float32)


# ---- what a config names
class Passed(NamedTuple):
  """A batch that went through a bottleneck in training."""
  z: Any        # what the decoder gets, [B, h, w, c]
  cost: Any     # [B], added to the reconstruction's term, which is a mean over the values of an image
  metrics: dict


class Bottleneck(NamedTuple):
  """What is between encoder and decoder.

  moments: what the encoder gives, [B, h, w, moments * c].
  """
  moments: int       # numbers for each latent value
  noise: Callable    # (key, shape [B, h, w, c]) -> [B, ..], what `through` draws
  through: Callable  # (moments, noise, memory, values of an image) -> Passed
  latent: Callable   # (key or None, moments) -> [B, h, w, c], what diffusion models
  decoded: Callable  # (latent, memory) -> what the decoder gets
  inspect: Callable  # (moments, memory) -> {'kl': [B, h, w, c] in nats} or {'codes': int [B, h, w]}
  codes: Any = 0     # their number
  channels: Any = None    # c, where it is not the network's choice
  start: Callable = lambda key, channels: ()           # -> memory
  remember: Callable = lambda memory, metrics: memory  # with the metrics of the whole batch
  prior: bool = False     # whether latents can be drawn from N(0, 1)


def kl(weight=1e-6):
  """A diagonal Gaussian, pulled weakly to N(0, 1) to keep its values small; not to be drawn from.

  weight: of the KL summed over the latents, against the log-likelihood summed over the values of an image.
  """
  if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < np.inf:
    raise InputError(f'kl(weight={weight!r}): expected a number of at least 0')

  def through(moments, eps, memory, values):
    mean, log_variance = posterior(moments)
    rate = jnp.sum(kl_to_prior(mean, log_variance), (1, 2, 3))
    return Passed(sample(mean, log_variance, eps), weight * rate / values, dict(rate=rate / values))

  def latent(key, moments):
    mean, log_variance = posterior(moments)
    return mean if key is None else sample(mean, log_variance, jax.random.normal(key, mean.shape))

  return Bottleneck(2, jax.random.normal, through, latent, lambda z, memory: z,
                    lambda moments, memory: dict(kl=kl_to_prior(*posterior(moments))))


def gaussian(beta=1.):
  """A variational autoencoder (arXiv:1312.6114): with beta 1 the loss is the negative ELBO; latents can be drawn."""
  check_positive('gaussian', beta=beta)
  return kl(beta)._replace(prior=True)


def vq(codes=512, commitment=.25, decay=.99, least=.1):
  """A codebook of exponential averages, whose dead codes are restarted.

  Args:
    codes: their number.
    commitment: weight of the squared distance that pulls latents to their codes.
    decay: of the averages, in [0, 1).
    least: a code is dead that is used less than this share of the mean; 0: none is restarted.
  """
  if isinstance(codes, bool) or not isinstance(codes, int) or codes < 2:
    raise InputError(f'vq(codes={codes!r}): expected a whole number of at least 2')
  check_positive('vq', commitment=commitment)
  for name, value in (('decay', decay), ('least', least)):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
      raise InputError(f'vq({name}={value!r}): expected a number from 0 to below 1')

  def through(moments, gumbel, book, values):
    index = nearest(moments, book.codes)
    code = book.codes[index]
    gap = jnp.mean(jnp.square(moments - jax.lax.stop_gradient(code)), (1, 2, 3))
    used, perplexity = usage(index, codes)
    metrics = dict(code_distance=gap, batch_usage=used, perplexity=perplexity, _latents=moments, _codes=index,
                   _gumbel=gumbel)
    return Passed(straight_through(moments, code), commitment * gap, metrics)

  def remember(book, metrics):
    z, index = metrics['_latents'].reshape(-1, book.codes.shape[1]), metrics['_codes'].reshape(-1)
    book = moved(book, z, index, decay)
    return restarted(book, z, index, metrics['_gumbel'].reshape(-1), least) if least else book

  snap = lambda z, book: book.codes[nearest(z, book.codes)]
  return Bottleneck(1, lambda key, shape: jax.random.gumbel(key, shape[:-1]), through, lambda key, moments: moments,
                    snap, lambda moments, book: dict(codes=nearest(moments, book.codes)), codes,
                    start=lambda key, channels: start_codebook(key, codes, channels), remember=remember)


def fsq(levels=(8, 5, 5, 5)):
  """Each channel is rounded to one of a few levels: no codebook, and no loss of its own.

  levels: of each channel; their product is the number of codes.
  """
  if not isinstance(levels, (tuple, list)) or not levels or not all(type(n) is int and n > 1 for n in levels):
    raise InputError(f'fsq(levels={levels!r}): expected whole numbers of at least 2, one per channel: (8, 5, 5)')
  half = np.float32(np.asarray(levels) // 2)
  snapped = lambda z: jnp.round(z * half) / half

  def through(moments, unused, memory, values):
    z, number = bounded(moments, levels) / half, int(np.prod(levels))
    used, perplexity = usage(scalar_index(jnp.round(z * half), levels), number)
    return Passed(straight_through(z, snapped(z)), jnp.zeros(len(z)), dict(batch_usage=used, perplexity=perplexity))

  return Bottleneck(1, lambda key, shape: jnp.zeros(shape[:1]), through,
                    lambda key, moments: bounded(moments, levels) / half, lambda z, memory: snapped(z),
                    lambda moments, memory: dict(codes=scalar_index(jnp.round(bounded(moments, levels)), levels)),
                    int(np.prod(levels)), len(levels))
