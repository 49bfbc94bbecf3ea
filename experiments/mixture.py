"""Toy data with known denoiser and flow ODE: an equal mixture of Gaussians N(means[k], std^2 I), means [K, D]."""
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from diffusion.core.gaussian import expand_to, from_x0


def mixture_denoiser(means, std):
  """E[x0 | x_t]: conditional means of the components, weighted by their posterior. Takes x [B, D]."""
  means = jnp.asarray(means)
  def denoise(x, noise):
    n = expand_to(noise, x)
    variance = n.alpha ** 2 * std ** 2 + n.sigma ** 2
    gap = x[:, None] - jnp.reshape(n.alpha, (-1, 1, 1)) * means                # [B, K, D]
    logits = -.5 * jnp.sum(gap ** 2, -1) / jnp.reshape(variance, (-1, 1))
    share = jnp.exp(logits - jnp.max(logits, 1, keepdims=True))
    share /= jnp.sum(share, 1, keepdims=True)
    gain = jnp.reshape(n.alpha * std ** 2 / variance, (-1, 1, 1))
    return from_x0(n, x, jnp.einsum('bk,bkd->bd', share, means + gain * gap))
  return denoise


def mixture_eps(means, std, x, sigma):
  """E[eps | x] at alpha = 1, in NumPy float64 and derived independently of the denoiser: -sigma times the score."""
  variance = std ** 2 + sigma ** 2
  gap = x[:, None] - means
  logits = -np.sum(gap ** 2, -1) / (2 * variance)
  share = np.exp(logits - logits.max(1, keepdims=True))
  share /= share.sum(1, keepdims=True)
  return sigma / variance * np.einsum('bk,bkd->bd', share, gap)


def exact_flow(means, std, x, start, end):
  """The solution at sigma = end of dx / dsigma = eps from x [B, D] at sigma = start: SciPy, relative error 1e-12."""
  slope = lambda sigma, flat: mixture_eps(means, std, flat.reshape(x.shape), sigma).ravel()
  return solve_ivp(slope, (start, end), np.ravel(x), 'DOP853', rtol=1e-12, atol=1e-12).y[:, -1].reshape(x.shape)
