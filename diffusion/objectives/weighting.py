"""Weights of the squared error by noise level: functions (noise, to_x0) -> w [B].

to_x0 = (sigma / determinant)^2 turns a squared error of the network's output into one of x0 (see core/gaussian.py),
so that a weight defined in x0-space means the same for every parameterization. SNR * to_x0 turns it into one of
eps.
"""
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.lookup import fall_of_logsnr, nearest_row
from diffusion.errors import check_positive, InputError


def one():
  """The unweighted error of the network's output (L_simple of DDPM, if it predicts eps)."""
  return lambda noise, to_x0: jnp.ones_like(noise.logsnr)


def snr():
  """SNR times the x0 error, which is the eps error (arXiv:2202.00512, section 4)."""
  return lambda noise, to_x0: jnp.exp(noise.logsnr) * to_x0


def max_snr(least=1.):
  """max(SNR, least) times the x0 error, the truncated SNR weight (arXiv:2202.00512, section 4, with least = 1)."""
  check_positive('max_snr', least=least)
  return lambda noise, to_x0: jnp.maximum(jnp.exp(noise.logsnr), least) * to_x0


def min_snr(gamma=5.):
  """min(SNR, gamma) times the x0 error (arXiv:2303.09556, section 3.4)."""
  check_positive('min_snr', gamma=gamma)
  return lambda noise, to_x0: jnp.minimum(jnp.exp(noise.logsnr), gamma) * to_x0


def soft_min_snr(gamma=4.):
  """SNR gamma / (SNR + gamma) times the x0 error, a smooth min(SNR, gamma) (HDiT, arXiv:2401.11605).

  With s = sigma / alpha it is 1 / (s^2 + 1 / gamma). k-diffusion's "soft-min-snr" has gamma = 1 / sd^2, sd the standard
  deviation of the data.
  """
  check_positive('soft_min_snr', gamma=gamma)
  return lambda noise, to_x0: gamma * jax.nn.sigmoid(noise.logsnr - np.log(gamma)) * to_x0


def inverse_variance():
  """sigma^-2 times the x0 error, in the schedule's own scaling.

  On ve it is SNR, the eps error; on vp 1 + SNR, the error of v (arXiv:2202.00512, section 4); on flow the error of the
  velocity (diffusers' "sigma_sqrt").
  """
  return lambda noise, to_x0: to_x0 / jnp.square(noise.sigma)


def p2(gamma=1., k=1.):
  """The eps error over (k + SNR)^gamma (perception prioritised, arXiv:2204.00227, equation 8)."""
  check_positive('p2', gamma=gamma, k=k)
  return lambda noise, to_x0: jnp.exp(noise.logsnr) * to_x0 / (k + jnp.exp(noise.logsnr)) ** gamma


def edm(sd=.5):
  """(s^2 + sd^2) / (s * sd)^2 times the x0 error, s = sigma / alpha (EDM, arXiv:2206.00364, table 1)."""
  check_positive('edm', sd=sd)
  def weight(noise, to_x0):
    return (jnp.exp(noise.logsnr) + sd ** -2) * to_x0
  return weight


def vlb(*, schedule):
  """The variational bound: with uniform times, the mean loss is its diffusion term in nats per dimension.

  A curve: -dlogsnr/dt / 2 times the eps error, the continuous-time loss of VDM (arXiv:2107.00630). A table of T
  rows: T (SNR_s - SNR_t) / 2 times the x0 error, s the row before, which is VDM's discrete-time loss (with the
  posterior's variance); row 0 has T / 2 times the eps error, which is minus the log-likelihood of x0 under
  N(x0_hat, (sigma / alpha)^2) up to a constant.
  """
  if callable(schedule):
    fall = fall_of_logsnr(schedule)
    return lambda noise, to_x0: .5 * fall(noise.logsnr) * jnp.exp(noise.logsnr) * to_x0
  snr = np.exp(schedule.logsnr)
  gain = jnp.asarray(.5 * len(snr) * np.append(snr[0], -np.diff(snr)), jnp.float32)  # differenced in float64
  nearest = nearest_row(schedule)
  return lambda noise, to_x0: gain[nearest(noise.logsnr)] * to_x0


def sigmoid(bias=0., *, schedule):
  """sigmoid(bias - logsnr) times the weight of the bound, to ignore the finest details (arXiv:2303.00848, section 5).

  It is e^bias times the form in simpler diffusion (arXiv:2410.19324), which weights the x0 error by sigmoid(logsnr
  - bias).

  Args:
    bias: the logsnr above which the weight of errors falls; a higher bias includes finer details.
  Raises:
    InputError: a bias that is not a finite number.
  """
  if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not np.isfinite(bias):
    raise InputError(f'sigmoid(bias={bias!r}): expected a number')
  bound = vlb(schedule=schedule)
  return lambda noise, to_x0: jax.nn.sigmoid(bias - noise.logsnr) * bound(noise, to_x0)


# ---- learned weights
def uncertainty(features=64):
  """A learned u(logsnr) for the loss / e^u + u (EDM2, arXiv:2312.02696, equations 14, 21), with any other weight.

  u learns the log of the expected loss at each level, after which all levels have equal weight.

  Args:
    features: number of random Fourier features of logsnr / 8, of which u is a linear function without bias; 128 in
      EDM2.
  Returns:
    (params, u): float32 [features], zeros, for which the weight is 1; u: (params, logsnr [B]) -> [B].
  """
  rng = np.random.default_rng(0)
  frequency, phase = rng.standard_normal(features).astype(np.float32), rng.random(features).astype(np.float32)
  def u(params, logsnr):
    angle = 2 * np.pi * (jnp.clip(logsnr, -20., 20.)[:, None] / 8 * frequency + phase)  # -inf without signal
    return np.sqrt(2).item() * jnp.cos(angle) @ params
  return np.zeros(features, np.float32), u
