"""Samplers for tokens: they call a predictor (x, noise) -> categorical.Guess, or one of numbers and tokens at once."""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion.core import categorical
from diffusion.errors import check_positive, InputError
from diffusion.samplers.base import Sample, Sampler, token_draw
from diffusion.samplers.multistep import dpmpp_2m

NEEDS_MASK = 'confident: it chooses which masks to fill, and the uniform kernel has none; use ancestral'


def ancestral(temperature=1., top_p=1.):
  """One draw of every token from its posterior per step (D3PM, arXiv:2107.03006; MD4, arXiv:2406.04329, algorithm 2).

  Tokens of one step are drawn independently of each other, so that few steps are inexact, whatever the network.

  Args:
    temperature: divides log p(x0 | x_t); below 1 the likely values are drawn more often.
    top_p: the most likely values, up to this sum of probabilities, are drawn from; 1: all.
  """
  sharpen = sharpened('ancestral', temperature, top_p)
  def step(keys, predict, state, step):
    return Sample(step_back(keys, sharpen(predict(state.x, step.t)), state.x, step))
  return Sampler(Sample, step, on='logits')


def step_back(keys, made, x, step):
  """x_s of x_t and the Guess at it."""
  log_p = categorical.posterior(x, made, step.t, step.s, -jnp.expm1(-2 * step.h))
  return token_draw(keys, step.index, log_p)


def sharpened(name, temperature, top_p):
  """The function Guess -> Guess of a temperature and of nucleus sampling (arXiv:1904.09751)."""
  check_positive(name, temperature=temperature, top_p=top_p)
  if top_p > 1:
    raise InputError(f'{name}(top_p={top_p!r}): expected a probability, up to 1')
  def sharpen(made):
    log_p = jax.nn.log_softmax(made.log_p / temperature)
    if top_p < 1:
      ordered = jnp.flip(jnp.sort(log_p, -1), -1)
      before = jnp.cumsum(jnp.exp(ordered), -1) - jnp.exp(ordered)
      least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), -1, keepdims=True)
      log_p = jax.nn.log_softmax(jnp.where(log_p >= least, log_p, -jnp.inf))
    return categorical.Guess(log_p, made.kernel)
  return sharpen


def confident(temperature=1., randomness=4.5):
  """Fills the masks of which the network is most certain first (MaskGIT, arXiv:2202.04200, section 3.2).

  After a step to level s, round down (1 - keep_s) of the tokens of a sample are masks.

  Args:
    temperature: as for ancestral.
    randomness: factor of Gumbel noise in the order, which falls to 0 with the share of masks.
  """
  sharpen = sharpened('confident', temperature, 1.)
  if not randomness >= 0:
    raise InputError(f'confident(randomness={randomness!r}): expected a number of at least 0')

  def step(keys, predict, state, step):
    made, x = predict(state.x, step.t), state.x
    if not made.kernel.absorbing:
      raise InputError(NEEDS_MASK)
    K = made.log_p.shape[-1]
    drawn = token_draw(keys, step.index, sharpen(made).log_p)
    sure = jnp.take_along_axis(made.log_p, drawn[..., None], -1)[..., 0]
    lost_t, lost_s = (jax.nn.sigmoid(-level.logsnr) for level in (step.t, step.s))
    order = token_noise(keys, step.index, x.shape[1:])
    sure = jnp.where(x == K, sure + randomness * lost_t * order, jnp.inf)
    rank = jnp.argsort(jnp.argsort(sure.reshape(len(x), -1), 1), 1).reshape(x.shape)
    masks = jnp.floor(lost_s * x[0].size)
    return Sample(jnp.where((rank < masks) & (x == K), K, jnp.where(x == K, drawn, x)))
  return Sampler(Sample, step, on='logits')


def token_noise(keys, index, shape):
  """Gumbel noise [B, *shape] in a stream of its own."""
  fold = lambda key: jax.random.fold_in(jax.random.fold_in(key, 2 ** 31 + 3), index)
  return jax.vmap(lambda key: jax.random.gumbel(fold(key), shape))(keys)


class Both(NamedTuple):
  """The state of `mixed`."""
  x: dict       # numbers, categories
  numbers: Any  # the state of the solver of the numbers


def mixed(sampler=dpmpp_2m(), temperature=1., top_p=1.):
  """Numbers by a Gaussian solver and categories by their posterior, from the same evaluations of the network.

  Args:
    sampler: of the numbers, such as 'ddpm'. Where it evaluates more than once a step, the categories take the
      first, and stay as they were in the others.
    temperature, top_p: as for ancestral.
  """
  if sampler.on != 'denoise':
    raise InputError('mixed: expected a solver for the numbers, such as mixed(dpmpp_2m)')
  sharpen = sharpened('mixed', temperature, top_p)

  def step(keys, predict, state, step):
    tokens, guesses = state.x['categories'], []
    def denoise(x, noise):
      made = predict(dict(numbers=x, categories=tokens), noise)
      guesses.append(made.categories)
      return made.numbers
    inner = sampler.step(keys, denoise, state.numbers, step)
    tokens = step_back(keys, sharpen(guesses[0]), tokens, step)
    return Both(dict(numbers=inner.x, categories=tokens), inner)
  return Sampler(lambda x: Both(x, sampler.init(x['numbers'])), step, sampler.plan, on='mixed')
