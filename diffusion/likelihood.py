"""Closed forms of likelihood, elementwise and in nats; traced or not, float32."""
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr


def gaussian_kl(mean, log_variance, other_mean, other_log_variance):
  """KL( N(mean, e^log_variance) || N(other_mean, e^other_log_variance) ), elementwise."""
  gap = log_variance - other_log_variance
  return .5 * (jnp.expm1(gap) - gap + jnp.square(mean - other_mean) * jnp.exp(-other_log_variance))


def gaussian_log_density(x, mean, log_std):
  """log N(x; mean, e^(2 log_std)), elementwise."""
  return -.5 * (np.log(2 * np.pi).item() + jnp.square((x - mean) * jnp.exp(-log_std))) - log_std


def discretised_log_likelihood(x, mean, log_std, levels=256):
  """log P(x) of data on `levels` even steps of [-1, 1] under a Gaussian, each step taking the mass of its interval and the two outermost
  all that lies beyond (DDPM, arXiv:2006.11239, equation 13).

  Computed from log cumulatives in the lower tail, so it stays finite far away from the mean.

  Args:
    x: data, on the steps -1, -1 + 2 / (levels - 1) .. 1.
    mean, log_std: broadcastable against x.
    levels: number of steps.
  Returns:
    Elementwise log-probability; over all steps the probabilities sum to 1.
  """
  half, scale = 1 / (levels - 1), jnp.exp(-log_std)
  low = jnp.where(x < -1 + half, -jnp.inf, (x - half - mean) * scale)
  high = jnp.where(x > 1 - half, jnp.inf, (x + half - mean) * scale)
  flip = low + high > 0  # the mass of [low, high] is that of [-high, -low]
  low, high = jnp.where(flip, -high, low), jnp.where(flip, -low, high)
  upper = log_ndtr(high)
  return upper + jnp.log(-jnp.expm1(log_ndtr(low) - upper))


def step_kl(variance, log_ratio, gain, gap):
  """KL of the true step q(x_s | x_t, x0) from the model's, elementwise, where the model's log variance lies between that of the posterior,
  sigma_s^2 k, and that of the forward step, sigma_t^2 k (improved DDPM, arXiv:2102.09672, equation 15).

  The squared distance of the two means over the small variance is (SNR_s - SNR_t) gap^2 in every scaling, so that with r the log of the
  larger variance over the smaller, KL = (v r + e^(-v r) - 1 + (SNR_s - SNR_t) gap^2 e^(-v r)) / 2.

  Args:
    variance: v, 0 the small and 1 the large.
    log_ratio: r = log(sigma_t^2 / sigma_s^2).
    gain: SNR_s - SNR_t, differenced in float64.
    gap: the error in x0.
  """
  vr = variance * log_ratio
  return .5 * (vr + jnp.expm1(-vr) + gain * jnp.square(gap) * jnp.exp(-vr))
