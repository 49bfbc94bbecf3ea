"""Samplers of one evaluation per step and no memory: DDIM, DDPM, and samplers equal or similar to them.

With k = 1 - exp(-2h), the ancestral step is

  x_s = alpha_s * x0 + sigma_s * (sqrt(1 - eta^2 k) * eps + eta * sqrt(k) * z)     DDIM, arXiv:2010.02502, eqs. 12, 16

where eta = 0 is deterministic and eta = 1 is DDPM: the posterior q(x_s | x_t, x0) of arXiv:2006.11239, equations 6, 7.
At the last level (CLEAN: alpha 1, sigma 0, h infinite) every formula gives x0, without a special case.
"""
from functools import partial

import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError
from diffusion.samplers.base import gaussian, Sample, Sampler, steps_between


def ddim_step(keys, denoise, state, step, eta=0.):
  """One DDIM step; eta = 0 is deterministic, eta = 1 is DDPM with the small variance.

  Args:
    keys: one key per sample, [B].
    denoise: (x, noise) -> Pred.
    state: the state, whose x is x_t [B, ...].
    step: both ends of the interval.
    eta: amount of fresh noise, in [0, 1].
  Returns:
    The state at step.s.
  """
  t, s = step.t, step.s
  pred = denoise(state.x, t)
  k = -jnp.expm1(-2 * step.h)
  kept = jnp.exp(-2 * step.h) + (1 - eta ** 2) * k  # 1 - eta^2 k, without the cancellation
  eps = jnp.sqrt(kept) * pred.eps
  if eta:
    eps += eta * jnp.sqrt(k) * gaussian(keys, step.index, state.x)
  return Sample(s.alpha * pred.x0 + s.sigma * eps)


def ddpm_step(keys, denoise, state, step, variance='small'):
  """One ancestral step: the posterior mean plus noise (arXiv:2006.11239, algorithm 2).

  Args:
    keys, denoise, state, step: as for ddim_step.
    variance: 'small' is the posterior's sigma_s^2 k; 'large' is the forward step's sigma_t^2 k (beta_t of a VP
      chain); 'learned' is interpolated between them in the logarithm by the network (improved DDPM,
      arXiv:2102.09672, equation 15); 'none' omits the noise, which is wrong and collapses samples towards their
      mean: for teaching.
  Returns:
    The state at step.s; the last step, to CLEAN, adds no noise.
  """
  t, s = step.t, step.s
  pred = denoise(state.x, t)
  mean = s.alpha * pred.x0 + s.sigma * jnp.exp(-step.h) * pred.eps
  if variance == 'none':
    return Sample(mean)
  if variance == 'learned':
    if pred.variance is None:
      raise InputError("ddpm(variance='learned') needs a network that learns its variance; use 'small' or 'large'")
    scale = jnp.where(s.sigma > 0, s.sigma * (t.sigma / s.sigma) ** pred.variance, 0.)
  else:
    scale = s.sigma if variance == 'small' else jnp.where(s.sigma > 0, t.sigma, 0.)
  return Sample(mean + scale * jnp.sqrt(-jnp.expm1(-2 * step.h)) * gaussian(keys, step.index, state.x))


def ddim(eta=0.):
  """DDIM (arXiv:2010.02502): 10 to 50 steps; eta from 0 (deterministic) to 1 (DDPM)."""
  if not 0 <= eta <= 1:
    raise InputError(f'ddim(eta={eta!r}): expected a number from 0 to 1')
  return Sampler(Sample, partial(ddim_step, eta=eta))


def ddpm(variance='small'):
  """DDPM's ancestral sampler (arXiv:2006.11239): best with as many steps as the schedule has levels."""
  if variance not in ('small', 'large', 'learned', 'none'):
    raise InputError(f"ddpm(variance={variance!r}): expected 'small', 'large', 'learned' or 'none'")
  return Sampler(Sample, partial(ddpm_step, variance=variance))


def euler():
  """Euler's method in sigma / alpha (EDM, k-diffusion): DDIM."""
  return ddim()


def flow_euler():
  """Euler's method along a straight path (flow matching): DDIM too."""
  return ddim()


def dpmpp_1s():
  """DPM-Solver++ of first order (arXiv:2211.01095): DDIM again."""
  return ddim()


def euler_ancestral(eta=1.):
  """k-diffusion's ancestral Euler, which is DDIM(eta): sigma_up = eta * sigma_s * sqrt(k) and sigma_down the rest."""
  return ddim(eta)


def consistency():
  """Multistep consistency sampling (arXiv:2303.01469, algorithm 1): the estimate of x0 with entirely fresh noise."""
  def step(keys, denoise, state, step):
    x0 = denoise(state.x, step.t).x0
    return Sample(step.s.alpha * x0 + step.s.sigma * gaussian(keys, step.index, state.x))
  return Sampler(Sample, step)


def langevin(corrections=1, snr=.16):
  """Predictor-corrector sampling: Langevin steps at every level, then an ancestral step (arXiv:2011.13456, algs. 2-5).

  The Langevin step size is 2 * (snr * sigma)^2, which depends on the level alone (as in NCSN, arXiv:1907.05600,
  algorithm 1) and not on norms over the batch, so that a sample does not depend on its neighbours. Each step of the
  grid takes corrections + 1 evaluations.
  """
  if isinstance(corrections, bool) or not isinstance(corrections, int) or corrections < 0 or not 0 < snr < 1:
    raise InputError(f'langevin({corrections=}, {snr=}): expected a whole number of corrections from 0 '
                     'and an snr between 0 and 1')
  def plan(levels):
    S, n = len(levels.logsnr) - 1, corrections + 1
    starts = np.repeat(np.arange(S), n)
    predicts = np.arange(S * n) % n == corrections
    return steps_between(levels, starts, starts + predicts)._replace(extra=predicts)
  def step(keys, denoise, state, step):
    t, s, k = step.t, step.s, -jnp.expm1(-2 * step.h)
    pred, z = denoise(state.x, t), gaussian(keys, step.index, state.x)
    corrected = state.x + 2 * snr * t.sigma * (z - snr * pred.eps)
    ancestral = s.alpha * pred.x0 + s.sigma * (jnp.exp(-step.h) * pred.eps + jnp.sqrt(k) * z)
    return Sample(jnp.where(step.extra, ancestral, corrected))
  return Sampler(Sample, step, plan)
