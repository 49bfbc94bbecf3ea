"""Likelihoods in closed form, elementwise, in nats, float32; the steps of a discrete chain, on the host in float64."""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from diffusion.errors import InputError


def gaussian_kl(mean, log_variance, other_mean, other_log_variance):
  """KL( N(mean, e^log_variance) || N(other_mean, e^other_log_variance) ), elementwise."""
  gap = log_variance - other_log_variance
  return .5 * (jnp.expm1(gap) - gap + jnp.square(mean - other_mean) * jnp.exp(-other_log_variance))


def gaussian_log_density(x, mean, log_std):
  """log N(x; mean, e^(2 log_std)), elementwise."""
  return -.5 * (np.log(2 * np.pi).item() + jnp.square((x - mean) * jnp.exp(-log_std))) - log_std


def discretised_log_likelihood(x, mean, log_std, levels=256):
  """log P(x) of quantised data under a Gaussian (DDPM, arXiv:2006.11239, equation 13).

  Each of the `levels` even values in [-1, 1] has the mass of its interval, and the two outermost also the tails.
  Computed from log cumulatives in the lower tail, so it stays finite far from the mean.

  Args:
    x: data, one of -1, -1 + 2 / (levels - 1) .. 1.
    mean, log_std: broadcastable against x.
    levels: number of values.
  Returns:
    Elementwise log-probability; over all values the probabilities sum to 1.
  """
  half, scale = 1 / (levels - 1), jnp.exp(-log_std)
  low = jnp.where(x < -1 + half, -jnp.inf, (x - half - mean) * scale)
  high = jnp.where(x > 1 - half, jnp.inf, (x + half - mean) * scale)
  flip = low + high > 0  # the mass of [low, high] is that of [-high, -low]
  low, high = jnp.where(flip, -high, low), jnp.where(flip, -low, high)
  upper = log_ndtr(high)
  return upper + jnp.log(-jnp.expm1(log_ndtr(low) - upper))


def logistic_log_likelihood(x, mean, log_scale, levels=256):
  """log P(x) of quantised data under a logistic distribution (arXiv:1606.04934, appendix C), as above.

  log(s(b) - s(a)) = log s(b) + log s(-a) + log(1 - e^(a - b)) for the logistic function s, which stays finite far from
  the mean.
  """
  half, scale = 1 / (levels - 1), jnp.exp(-log_scale)
  low, high = (x - half - mean) * scale, (x + half - mean) * scale
  first, last = x < -1 + half, x > 1 - half
  inside = jax.nn.log_sigmoid(high) + jax.nn.log_sigmoid(-low) + jnp.log(-jnp.expm1(-2 * half * scale))
  return jnp.where(first, jax.nn.log_sigmoid(high), jnp.where(last, jax.nn.log_sigmoid(-low), inside))


def step_kl(variance, log_ratio, gain, gap):
  """KL(q(x_s | x_t, x0) || p(x_s | x_t)) of one reverse step, elementwise.

  The model's log variance lies between that of the posterior, sigma_s^2 k, and that of the forward step, sigma_t^2 k
  (improved DDPM, arXiv:2102.09672, equation 15). The squared distance of the two means over the small variance is
  (SNR_s - SNR_t) gap^2 in every scaling. With r the log of the large variance over the small one,
  KL = (v r + e^(-v r) - 1 + (SNR_s - SNR_t) gap^2 e^(-v r)) / 2.

  Args:
    variance: v, from 0 for the small variance to 1 for the large one.
    log_ratio: r = log(sigma_t^2 / sigma_s^2).
    gain: SNR_s - SNR_t, computed in float64.
    gap: the error in x0.
  """
  vr = variance * log_ratio
  return .5 * (vr + jnp.expm1(-vr) + gain * jnp.square(gap) * jnp.exp(-vr))


def data_log_likelihood(x, mean, log_std, levels=256):
  """log p(x) around a model's estimate: of data quantised to `levels` values in [-1, 1], or its density with None."""
  if levels is None:
    return gaussian_log_density(x, mean, log_std)
  return discretised_log_likelihood(x, mean, log_std, levels)


class Reverse(NamedTuple):
  """The reverse steps from each row of a table to the next cleaner one, and from row 0 to the data; float64 [T]."""
  gain: Any       # SNR_s - SNR_t; of row 0: 0
  log_ratio: Any  # log of the large variance over the small one
  log_small: Any  # log of the small variance, the posterior's: sigma_s^2 k with k = 1 - SNR_t / SNR_s


def reverse(table):
  """The reverse steps of a table.

  Row 0 goes to the data, by the one decoder of training and evaluation, N(x0; the model's x0, variance). Since
  x_0 = alpha_0 x0 + sigma_0 eps, all that x_0 alone says of x0 is N(x_0 / alpha_0, (sigma_0 / alpha_0)^2), and who
  knows more of the data has a smaller variance: this is the large one, the same in every scaling. As in the code of
  DDPM and improved DDPM, which leave out alpha_0^2 (1 up to 1e-4 there), the small one is that times the k of row 1.

  Raises:
    InputError: a curve, or fewer than 2 rows.
  """
  if callable(table) or len(table.logsnr) < 2:
    raise InputError('a discrete chain needs a table of at least 2 levels: give the schedule a number of levels, '
                     'as in flow(1000)')
  snr, log_sigma2 = np.exp(table.logsnr), 2 * np.log(table.sigma)
  with np.errstate(divide='ignore'):  # a last row without signal
    log_k = np.log(-np.expm1(np.diff(table.logsnr)))
  return Reverse(np.append(0., -np.diff(snr)), np.append(-log_k[0], np.diff(log_sigma2)),
                 np.append(-table.logsnr[0] + log_k[0], log_sigma2[:-1] + log_k))
