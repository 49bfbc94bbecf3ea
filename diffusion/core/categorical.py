"""Discrete diffusion: how tokens are lost, what a step back knows about them, and the bound on their likelihood.

A token x0 is one of 0 .. K-1. At a noise level it is kept with the probability keep = sigmoid(logsnr), which is alpha^2
of a variance-preserving schedule, and replaced otherwise by a draw from a fixed distribution pi:

  q(x_t | x0) = keep * [x_t = x0] + (1 - keep) * pi(x_t)

  masked   pi is one more token, K, the mask   absorbing D3PM (arXiv:2107.03006), MD4 (arXiv:2406.04329), MDLM
  uniform  pi = 1 / K                          multinomial diffusion (arXiv:2102.05379), uniform D3PM

The network says p(x0 | x_t), a `Guess`. The step back sums the exact posterior over it, q(x_s | x_t, x0) p(x0 | x_t)
(D3PM, equation 4). Multinomial diffusion instead puts the vector p into the formula for one x0. That is another
process: with the true p(x0 | x_t) its samples are wrong (tests/core/test_categorical.py keeps the example).

Columns of different K share an array: `sizes` says how many values each entry of the last axis has, and the rest of
the K axis has probability 0.
"""
import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.gaussian import column, Noise, Pred
from diffusion.core.lookup import fall_of_logsnr, nearest_row


# ---- kernels
class Kernel(NamedTuple):
  """How tokens are lost."""
  sizes: Any      # K, or a tuple of K for each entry of the last axis
  absorbing: bool  # whether they become masks

  @property
  def K(self):
    return int(np.max(self.sizes, initial=1))

  @property
  def inputs(self):
    """The number of values of x_t: K, and the mask where there is one."""
    return self.K + self.absorbing

  @property
  def valid(self):
    """Which of K values an entry can take, bool [K] or [C, K]."""
    return np.arange(self.K) < np.asarray(self.sizes)[..., None]

  @property
  def stationary(self):
    """pi of a kernel without a mask, float64 [K] or [C, K]."""
    return self.valid / np.asarray(self.sizes, np.float64)[..., None]


def masked(sizes):
  """Tokens are replaced by the mask, token K = max(sizes)."""
  return Kernel(_hashable(sizes), True)


def uniform(sizes):
  """Tokens are replaced by any of their values, with equal probability."""
  return Kernel(_hashable(sizes), False)


def _hashable(sizes):
  return tuple(map(int, sizes)) if np.ndim(sizes) else int(sizes)


def noise_draws(key, x0, kernel):
  """What `noised` draws for x0 [B, ...]: (u uniform in [0, 1), replacements), each [B, ...]."""
  keep_key, token_key = jax.random.split(key)
  return jax.random.uniform(keep_key, x0.shape), stationary_draw(token_key, x0.shape, kernel)


def stationary_draw(key, shape, kernel):
  """Independent draws from pi, int32 of `shape`."""
  if kernel.absorbing:
    return jnp.full(shape, kernel.K, jnp.int32)
  return jax.random.randint(key, shape, 0, jnp.asarray(kernel.sizes))


def noised(x0, noise, u, replacement):
  """x_t of x0 [B, ...] at levels [B] or scalar: each token is kept where u < keep."""
  keep = column(jax.nn.sigmoid(jnp.asarray(noise.logsnr)), x0.ndim)
  return jnp.where(u < keep, x0, replacement)


# ---- what a network says
@partial(jax.tree_util.register_dataclass, data_fields=['log_p'], meta_fields=['kernel'])
@dataclasses.dataclass(frozen=True)
class Guess:
  """p(x0 | x_t) of every token by itself."""
  log_p: jax.Array  # [B, ..., K], normalised
  kernel: Kernel    # static

  def towards(self, other, scale):
    """The guess with log p moved towards another one's: p^(1 - scale) * other^scale, normalised; scale [] or [B]."""
    possible = jnp.isfinite(self.log_p) & jnp.isfinite(other.log_p)
    a, b = (jnp.where(possible, guess.log_p, 0.) for guess in (self, other))
    moved = jnp.where(possible, a + column(scale, a.ndim) * (b - a), -jnp.inf)
    return Guess(jax.nn.log_softmax(moved), self.kernel)


class Mixed(NamedTuple):
  """What a network says about numbers and categories."""
  numbers: Pred
  categories: Guess

  def towards(self, other, scale):
    """Each of the two, moved towards another one's."""
    return Mixed(*(mine.towards(its, scale) for mine, its in zip(self, other)))


def guess(logits, kernel):
  """The Guess of logits [B, ..., K], in float32 at least."""
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  return Guess(jax.nn.log_softmax(jnp.where(kernel.valid, logits, -jnp.inf)), kernel)


def with_known(predict, tokens, given):
  """Tokens that are known: in-filling, for any sampler.

  Args:
    predict: (x, noise) -> Guess.
    tokens: the values [.., ...] where `given` is true; broadcast against x.
    given: bool. With the mask, the network sees these tokens from the start.
  """
  def known(x, noise):
    made = predict(x, noise)
    if made.kernel.absorbing:
      made = predict(jnp.where(given, tokens, x), noise)
    exact = jnp.where(jax.nn.one_hot(tokens, made.log_p.shape[-1]) > 0, 0., -jnp.inf)
    return Guess(jnp.where(jnp.asarray(given)[..., None], exact, made.log_p), made.kernel)
  return known


# ---- one step back
def posterior(x, made, t, s, share):
  """log p(x_s | x_t), the sum over x0 of q(x_s | x_t, x0) p(x0 | x_t) (D3PM, arXiv:2107.03006, equation 4).

  Args:
    x: tokens x_t [B, ...].
    made: the Guess at x_t.
    t, s: Noise, [] or [B], t the noisier.
    share: 1 - exp(logsnr_t - logsnr_s), from float64.
  Returns:
    [B, ..., K], or [B, ..., K + 1] with the mask last.
  """
  (keep_t, lost_t), (keep_s, lost_s) = (_shares(noise, x.ndim + 1, made.log_p.dtype) for noise in (t, s))
  share = column(jnp.asarray(share, made.log_p.dtype), x.ndim + 1)
  if made.kernel.absorbing:
    K = made.log_p.shape[-1]
    stays = jnp.broadcast_to(lost_s / lost_t, (*x.shape, 1))
    back = jnp.concatenate([keep_s * share * jnp.exp(made.log_p), stays], -1)
    return safe_log(jnp.where((x == K)[..., None], back, jax.nn.one_hot(x, K + 1, dtype=back.dtype)))
  pi, here = _at(x, made)
  p, pi_j = jnp.exp(made.log_p), jnp.sum(pi * here, -1, keepdims=True)
  p_j = jnp.sum(p * here, -1, keepdims=True)
  total = keep_t + lost_t * pi_j
  came = p * jnp.where(here > 0, lost_t * pi_j / total, 1.)  # p(x0) / q(x_t | x0), times (1 - keep_t) pi(x_t)
  V = jnp.sum(came, -1, keepdims=True)
  moved = share * (keep_s * came + lost_s * pi * V)
  stayed = keep_t * p_j / total + keep_t * lost_s / (keep_s * lost_t) * V
  return safe_log(moved + here * stayed)


def _shares(noise, ndim, dtype):
  """(keep, 1 - keep) of a level, broadcastable."""
  logsnr = column(jnp.asarray(noise.logsnr, dtype), ndim)
  return jax.nn.sigmoid(logsnr), jax.nn.sigmoid(-logsnr)


def _at(x, made):
  """pi and the one-hot of x, each broadcastable against made.log_p."""
  dtype = made.log_p.dtype
  return jnp.asarray(made.kernel.stationary, dtype), jax.nn.one_hot(x, made.log_p.shape[-1], dtype=dtype)


def safe_log(p):
  """log p, -inf where p = 0, with gradient 0 there."""
  return jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1.)), -jnp.inf)


# ---- the bound
def rate(x, x0, made, noise):
  """The divergence of the model's jumps from those of q(. | x0), in nats per token and unit of log-SNR.

  Integrated over log-SNR it bounds -log p(x0), and equals it in the mean over x_t if the network knows every
  p(x0 | x_t). With the mask it is keep times the cross-entropy of masked tokens (MD4, arXiv:2406.04329, equation 4).

  Args:
    x, x0: tokens at the level and clean [B, ...].   made: the Guess at x.   noise: [] or [B].
  Returns:
    [B, ...].
  """
  if made.kernel.absorbing:
    keep, _ = _shares(noise, x.ndim, made.log_p.dtype)
    return jnp.where(x == made.log_p.shape[-1], keep * cross_entropy(x0, made), 0.)
  keep, lost = _shares(noise, x.ndim + 1, made.log_p.dtype)
  pi, here = _at(x, made)
  p, truth, pi_j = jnp.exp(made.log_p), jax.nn.one_hot(x0, here.shape[-1]), jnp.sum(pi * here, -1, keepdims=True)
  back = lost * pi_j / (keep + lost * pi_j)
  p_j = jnp.sum(p * here, -1, keepdims=True)
  model = keep * p + lost * pi * (1 - p_j + p_j * back)
  exact = (keep * truth + lost * pi) * jnp.where((x == x0)[..., None], back, 1.)
  others = (here == 0) & (pi > 0)
  apart = model - exact + exact * (safe_log(exact) - safe_log(jnp.where(others, model, 1.)))
  return jnp.sum(jnp.where(others, apart, 0.), -1)


def cross_entropy(x0, made):
  """-log p(x0 | x_t) of every token, [B, ...]."""
  return -jnp.take_along_axis(made.log_p, x0[..., None], -1)[..., 0]


def step_divergence(x, x0, made, t, s, share):
  """KL(q(x_s | x_t, x0) | p(x_s | x_t)) in nats, [B, ...]; arguments as for posterior."""
  exact = Guess(safe_log(jax.nn.one_hot(x0, made.log_p.shape[-1], dtype=made.log_p.dtype)), made.kernel)
  log_q, log_p = posterior(x, exact, t, s, share), posterior(x, made, t, s, share)
  happens = log_q > -jnp.inf
  gap = jnp.where(happens, log_q, 0.) - jnp.where(happens, log_p, 0.)
  return jnp.sum(jnp.where(happens, jnp.exp(log_q) * gap, 0.), -1)


def prior_divergence(x0, made, noise):
  """What the bound lacks because tokens are not wholly lost at the noisiest level, in nats [B, ...].

  KL(q(x_T | x0) | pi); with the mask, the cost of the first jump, keep times the cross-entropy where all is masked.

  Args:
    x0: tokens.   made: the Guess at that level, with the mask of all masks.   noise: that level.
  """
  if made.kernel.absorbing:
    return _shares(noise, x0.ndim, made.log_p.dtype)[0] * cross_entropy(x0, made)
  keep, lost = _shares(noise, x0.ndim + 1, made.log_p.dtype)
  pi, truth = _at(x0, made)
  q = keep * truth + lost * pi
  return jnp.sum(jnp.where(q > 0, q * (safe_log(q) - safe_log(jnp.where(pi > 0, pi, 1.))), 0.), -1)


def bound(schedule):
  """The terms of the bound at the levels of a schedule: (x, x0, made, noise [B]) -> nats per token [B, ...].

  With uniform times its mean is -log p(x0) or more, without prior_divergence. A curve: the rate times -dlogsnr/dt. A
  table of T rows: T times the divergence of the step from that row to the one before, and from row 0 to x0.
  """
  if callable(schedule):
    fall = fall_of_logsnr(schedule)
    return lambda x, x0, made, noise: rate(x, x0, made, noise) * column(fall(noise.logsnr), x.ndim)
  nearest, T = nearest_row(schedule), len(schedule.logsnr)
  cleaner = np.append(np.inf, schedule.logsnr[:-1])
  share = jnp.asarray(-np.expm1(schedule.logsnr - cleaner), jnp.float32)
  cleaner = jnp.asarray(cleaner, jnp.float32)

  def term(x, x0, made, noise):
    row = nearest(noise.logsnr)
    before = Noise(None, None, None, cleaner[row])
    return T * step_divergence(x, x0, made, noise, before, share[row])
  return term
