"""The adversarial term of an autoencoder (VQGAN, arXiv:2012.09841, section 3.1): hinge loss and adaptive weight."""
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import check_positive, InputError


def critic_loss(real, made):
  """(E[max(0, 1 - D(x))] + E[max(0, 1 + D(x'))]) / 2: 1 for a critic that says 0 to everything, 0 for a sure one."""
  return .5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + made)))


def generator_loss(made):
  """-E[D(x')]."""
  return -jnp.mean(made)


def adaptive_weight(likelihood_slope, adversarial_slope):
  """|gradient of the likelihood| / |gradient of the adversarial term|, both at the last kernel, at most 1e4.

  With it both pull equally at that kernel (equation 7); a constant for the gradient.
  """
  size = lambda a: jnp.sqrt(jnp.sum(jnp.square(a)))
  weight = jnp.clip(size(likelihood_slope) / (size(adversarial_slope) + 1e-4), 0, 1e4)
  return jax.lax.stop_gradient(weight)


class Terms(NamedTuple):
  """What is added to the loss."""
  value: jax.Array
  metrics: dict


class Adversary(NamedTuple):
  """weight: of the adversarial term, as a share of the likelihood's pull.

  start, warmup: the term counts from step `start` on, and the discriminator is trained from `warmup` steps before: one
  that enters untrained ruins the reconstructions.
  """
  weight: float
  start: int
  warmup: int


def hinge(weight=.5, start=2000, warmup=500):
  """The Adversary of a config."""
  check_positive('hinge', weight=weight)
  for name, value in (('start', start), ('warmup', warmup)):
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
      raise InputError(f'hinge({name}={value!r}): expected a whole number of steps from 0 up')
  if warmup > start:
    raise InputError(f'hinge(start={start}, warmup={warmup}): the discriminator is trained before it counts; '
                     'expected a warmup of at most start')
  return Adversary(weight, start, warmup)


def terms(adversary, step, judge, last, params, x0, made, h, likelihood: Callable):
  """The Terms of a batch; 0 before the discriminator is trained, and then it costs nothing.

  The discriminator's parameters are stopped in the autoencoder's term, and the reconstruction in the discriminator's,
  so that one gradient of the sum trains both.

  Args:
    adversary: an Adversary.
    step: [], of the training.
    judge: (parameters of the discriminator, images) -> logits.
    last: (parameters of the last convolution, h) -> images.
    params: (those of the discriminator, those of the last convolution, with a `kernel`).
    x0, made: images and their reconstructions, [B, ...].
    h: the input of the last convolution.
    likelihood: images -> the mean negative log-likelihood of x0.
  """
  disc, final = params

  def active(disc, final, made, h):
    fixed = jax.lax.stop_gradient(disc)
    fooling = lambda images: generator_loss(judge(fixed, images))
    slope = lambda term: jax.grad(lambda final: term(last(final, jax.lax.stop_gradient(h))))(final)['kernel']
    weight = adversary.weight * adaptive_weight(slope(likelihood), slope(fooling))
    real, false = judge(disc, x0), judge(disc, jax.lax.stop_gradient(made))
    critic = critic_loss(real, false)
    value = critic + jnp.where(step >= adversary.start, weight, 0.) * fooling(made)
    return value, dict(critic_loss=critic, critic_gap=jnp.mean(real) - jnp.mean(false), adversarial_weight=weight)

  def idle(disc, final, made, h):
    return jnp.zeros(()), dict.fromkeys(('critic_loss', 'critic_gap', 'adversarial_weight'), jnp.zeros(()))
  begin = np.int32(adversary.start - adversary.warmup)
  return Terms(*jax.lax.cond(step >= begin, active, idle, disc, final, made, h))
