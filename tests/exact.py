"""Closed forms for comparison: data whose denoiser and probability-flow ODE are known exactly."""
import numpy as np

from diffusion.core.gaussian import expand_to, from_x0


def gaussian_denoiser(mean, std):
  """E[x0 | x_t] for data N(mean, std^2): the conditional mean of a bivariate Gaussian."""
  def denoise(x, noise):
    n = expand_to(noise, x)
    gain = n.alpha * std ** 2 / (n.alpha ** 2 * std ** 2 + n.sigma ** 2)
    return from_x0(n, x, mean + gain * (x - n.alpha * mean))
  return denoise


def gaussian_flow(mean, std, x, level):
  """Endpoint of the probability-flow ODE from x at `level` to clean data: it keeps the quantile of the marginal."""
  spread = np.sqrt(level.alpha ** 2 * std ** 2 + level.sigma ** 2)
  return mean + std / spread * (np.asarray(x, np.float64) - level.alpha * mean)


def correlated_denoiser(mean, covariance):
  """E[x0 | x_t] for data N(mean [D], covariance [D, D]), x [B, D]: independent per eigenvector of the covariance."""
  spread, axes = np.linalg.eigh(covariance)
  def denoise(x, noise):
    n = expand_to(noise, x)
    gain = n.alpha * spread / (n.alpha ** 2 * spread + n.sigma ** 2)
    return from_x0(n, x, mean + ((x - n.alpha * mean) @ axes * gain) @ axes.T)
  return denoise
