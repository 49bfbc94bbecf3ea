"""Closed forms that the tests measure against: data whose denoiser and probability-flow ODE are known exactly."""
import jax.numpy as jnp
import numpy as np

from diffusion.noise import like
from diffusion.predict import from_x0


def gaussian_denoiser(mean, std):
  """E[x0 | x_t] for data N(mean, std^2): the conditional mean of a bivariate Gaussian."""
  def denoise(x, noise):
    n = like(noise, x)
    gain = n.alpha * std ** 2 / (n.alpha ** 2 * std ** 2 + n.sigma ** 2)
    return from_x0(n, x, mean + gain * (x - n.alpha * mean))
  return denoise


def gaussian_flow(mean, std, x, level):
  """Where the probability-flow ODE takes x from `level` to clean: it keeps the quantile of the marginal."""
  spread = np.sqrt(level.alpha ** 2 * std ** 2 + level.sigma ** 2)
  return mean + std / spread * (np.asarray(x, np.float64) - level.alpha * mean)


def mixture_denoiser(means, std):
  """E[x0 | x_t] for an equal mixture of N(means[k], std^2 I), means [K, D]."""
  means = jnp.asarray(means)
  def denoise(x, noise):
    n = like(noise, x)
    variance = n.alpha ** 2 * std ** 2 + n.sigma ** 2
    gap = x[:, None] - jnp.reshape(n.alpha, (-1, 1, 1)) * means                # [B, K, D]
    logits = -.5 * jnp.sum(gap ** 2, -1) / jnp.reshape(variance, (-1, 1))
    share = jnp.exp(logits - jnp.max(logits, 1, keepdims=True))
    share /= jnp.sum(share, 1, keepdims=True)
    each = means + (n.alpha * std ** 2 / variance)[..., None] * gap if jnp.ndim(n.alpha) else \
        means + n.alpha * std ** 2 / variance * gap
    return from_x0(n, x, jnp.einsum('bk,bkd->bd', share, each))
  return denoise
