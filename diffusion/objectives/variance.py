"""A learned variance of the reverse steps: the bound that trains it, and how the output of the network is read."""
from typing import Callable, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion.core import likelihood
from diffusion.core.gaussian import in_range
from diffusion.core.lookup import nearest_row
from diffusion.errors import check_positive
from diffusion.objectives.denoising import example_mean


class Variance(NamedTuple):
  """How the variance of a step is learned; a share is 0 for the small variance, 1 for the large one (likelihood.py)."""
  bound: Callable  # (noise [B], x0, gap, share) -> [B], added to the loss; gap: the error in x0, without gradient
  share: Callable  # (noise, output) -> share, as gaussian.with_variance takes it


def fixed():
  """The sampler chooses the variance of a step; the network does not predict it."""
  return None


def learned(strength=.001, levels=256, *, schedule):
  """The variational bound, added to the loss, trains a share (improved DDPM, arXiv:2102.09672, equations 15, 16).

  The term of a step is the KL of the true step from the model's; that of row 0, from which a sampler goes to clean
  data, is the likelihood of x0 under a Gaussian around the model's x0, the decoder of likelihood.reverse. Terms are
  means over dimensions, in bits, times T: with uniform times their mean is the bound in bits per dimension.

  Args:
    strength: lambda of the paper.
    levels: number of values of the data in [-1, 1] (DDPM, equation 13); None: x0 is continuous, and its density is
      used.
    schedule: a table; the range of the variance depends on the step, so that a curve has none.
  Raises:
    InputError: a strength that is not above 0; a curve, or fewer than 2 levels.
  """
  check_positive('learned', strength=strength)
  steps, index, T = likelihood.reverse(schedule), nearest_row(schedule), len(schedule.logsnr)
  ratios, gains = jnp.asarray(steps.log_ratio, jnp.float32), jnp.asarray(steps.gain, jnp.float32)
  smallest = steps.log_small[0].item()

  def bound(noise, x0, gap, share):
    i = index(noise.logsnr)
    ratio, gain, first = (jnp.reshape(a, (-1,) + (1,) * (x0.ndim - 1)) for a in (ratios[i], gains[i], i == 0))
    step = likelihood.step_kl(share, ratio, gain, gap)
    decoder = -likelihood.data_log_likelihood(x0, x0 + gap, .5 * (smallest + share * ratio), levels)
    return strength * T / np.log(2).item() * example_mean(jnp.where(first, decoder, step))
  return Variance(bound, in_range)


def learned_log(strength=.001, levels=256, *, schedule):
  """The same for a network that outputs the log variance: guided-diffusion's "learned", not its "learned range".

  It is read as a share at the nearest row of the table, on whose own steps the variance is e^output. Longer steps keep
  the share, where guided-diffusion keeps e^output, which is too little for them. Arguments as for `learned`.
  """
  variance = learned(strength, levels, schedule=schedule)
  steps, index = likelihood.reverse(schedule), nearest_row(schedule)
  small, ratio = (jnp.asarray(a, jnp.float32) for a in (steps.log_small, steps.log_ratio))
  def share(noise, out):
    i = index(noise.logsnr)
    return (out - small[i]) / ratio[i]
  return variance._replace(share=share)
