"""Samplers: from noise to clean along a grid, one `lax.scan`.

A sampler is two pure functions: `init` makes a state (a NamedTuple whose field x is the sample), `step` moves it from one
level t to the next cleaner one s. A step is given both ends and their half log-SNR difference h, differenced in float64; it
never works out a previous timestep. With k = 1 - exp(-2h), the ancestral step is

  x_s = alpha_s * x0 + sigma_s * (sqrt(1 - eta^2 k) * eps + eta * sqrt(k) * z)        DDIM, arXiv:2010.02502, eqs. 12, 16

where eta = 0 is deterministic and eta = 1 is DDPM: the posterior q(x_s | x_t, x0) of arXiv:2006.11239, equations 6, 7.
At the last level (CLEAN: alpha 1, sigma 0, h infinite) every formula gives x0; there is no special case.
To add one: write `step` and a function that returns a Sampler, and name it in build.py.
"""
from functools import partial
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError
from diffusion.noise import Noise, take


class Step(NamedTuple):
  """One interval of a grid: from level t to the cleaner level s."""
  t: Noise
  s: Noise
  h: Any      # (logsnr_s - logsnr_t) / 2
  index: Any  # 1 for the first step; 0 is the draw of the starting noise
  extra: Any = ()  # what else a sampler's plan worked out for this step, in float64


class Sample(NamedTuple):
  """The state of a sampler without memory."""
  x: jax.Array


def sample_keys(seed, ids):
  """One key a sample, from its number alone: sample k is the same in any batch and on any number of devices."""
  return jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.asarray(ids))


def gaussian(keys, index, x):
  """Standard normal noise shaped as x [B, ...] for step `index`: the only place where a sampler draws."""
  return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), x.shape[1:]))(keys)


def prior(keys, levels, shape):
  """The starting noise sigma_T * z, [B, *shape]; alpha_T * x0 is taken as nothing."""
  empty = jax.ShapeDtypeStruct((len(keys), *shape), jnp.float32)
  return float(levels.sigma[0]) * gaussian(keys, 0, empty)


def steps(levels):
  """The intervals of a grid [S+1], differenced in float64: a Step of [S] arrays.

  Raises:
    InputError: the grid is not on the host, or does not go from noise to clean.
  """
  if isinstance(levels.logsnr, jax.Array):
    raise InputError('a grid is made of float64 NumPy arrays; got a JAX array: build the grid outside jit')
  n = len(levels.logsnr) - 1
  t, s = take(levels, slice(0, n)), take(levels, slice(1, None))
  h = (s.logsnr - t.logsnr) / 2
  if n < 1 or np.any(np.isnan(h)) or np.any(h <= 0):
    raise InputError('a grid goes from noise to clean: its logsnr must rise at every step')
  return Step(t, s, h, np.arange(1, n + 1, dtype=np.uint32))


class Sampler(NamedTuple):
  init: Callable          # x -> state
  step: Callable          # (keys [B], denoise, state, Step) -> state
  plan: Callable = steps  # levels [S+1] -> Step [N] in float64: what the scan walks over


def sample(keys, denoise, sampler, levels, x, trace=None):
  """Runs a sampler over a grid.

  Args:
    keys: one key a sample, [B] (see sample_keys).
    denoise: (x, noise) -> Pred.
    sampler: a Sampler.
    levels: float64 Noise[S+1] from noise to clean (see grids.py).
    x: starting noise [B, ...] (see prior).
    trace: None, or a function of the state; its values at every step are stacked and returned.
  Returns:
    x0 [B, ...]; with trace, (x0, stacked values [S, ...]).
  """
  def body(state, step):
    state = sampler.step(keys, denoise, state, step)
    return state, (trace(state) if trace else None)
  plan = jax.tree.map(lambda a: jnp.asarray(a, jnp.uint32 if a.dtype == np.uint32 else jnp.float32), sampler.plan(levels))
  state, stacked = jax.lax.scan(body, sampler.init(x), plan)
  return (state.x, stacked) if trace else state.x


def ddim_step(keys, denoise, state, step, eta=0.):
  """One DDIM step; eta = 0 is deterministic, eta = 1 is DDPM with the small variance.

  Args:
    keys: one key a sample, [B].
    denoise: (x, noise) -> Pred.
    state: the state, whose x is x_t [B, ...].
    step: both ends of the interval.
    eta: share of fresh noise, in [0, 1].
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
    variance: 'small' is the posterior's sigma_s^2 k; 'large' is the forward step's sigma_t^2 k (beta_t of a VP chain);
      'none' leaves the noise out, which is wrong and collapses samples towards an average: for teaching.
  Returns:
    The state at step.s; the last step, to CLEAN, adds no noise.
  """
  t, s = step.t, step.s
  pred = denoise(state.x, t)
  mean = s.alpha * pred.x0 + s.sigma * jnp.exp(-step.h) * pred.eps
  if variance == 'none':
    return Sample(mean)
  scale = s.sigma if variance == 'small' else jnp.where(s.sigma > 0, t.sigma, 0.)
  return Sample(mean + scale * jnp.sqrt(-jnp.expm1(-2 * step.h)) * gaussian(keys, step.index, state.x))


def ddim(eta=0.):
  """DDIM (arXiv:2010.02502): 10 to 50 steps; eta from 0 (deterministic) to 1 (DDPM)."""
  if not 0 <= eta <= 1:
    raise InputError(f'ddim(eta={eta!r}): expected a number from 0 to 1')
  return Sampler(Sample, partial(ddim_step, eta=eta))


def ddpm(variance='small'):
  """DDPM's ancestral sampler (arXiv:2006.11239): best with as many steps as the schedule has levels."""
  if variance not in ('small', 'large', 'none'):
    raise InputError(f"ddpm(variance={variance!r}): expected 'small', 'large' or 'none'")
  return Sampler(Sample, partial(ddpm_step, variance=variance))
