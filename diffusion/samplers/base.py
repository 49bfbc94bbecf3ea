"""The parts of a sampler, and `sample`, which runs one over a grid in a single `lax.scan`."""
from functools import partial
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.gaussian import Noise, take
from diffusion.errors import InputError


class Step(NamedTuple):
  """One interval of a grid: from level t to the cleaner level s."""
  t: Noise
  s: Noise
  h: Any      # (logsnr_s - logsnr_t) / 2
  index: Any  # number of the evaluation, from 1; the starting noise has index 0
  extra: Any = ()  # the sampler's own coefficients for this step, computed in float64


class Sample(NamedTuple):
  """The state of a sampler without memory."""
  x: jax.Array


def sample_keys(seed, ids):
  """One key per sample, [B], from its id alone: sample k is the same in any batch and on any number of devices."""
  return jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.asarray(ids))


def gaussian(keys, index, x):
  """Standard Gaussian noise of the shape of x [B, ...] for step `index`: the only place where a sampler draws."""
  return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), x.shape[1:]))(keys)


_TOKENS = 2 ** 31 + 2  # folded into the keys: a stream beside that of `gaussian`, and beyond all step indices


def token_draw(keys, index, log_p):
  """A draw from each distribution log_p [B, ..., K] for step `index`, int32 [B, ...].

  With exact small probabilities: the default of JAX never draws those below about 1e-7.
  """
  def draw(key, log_p):
    key = jax.random.fold_in(jax.random.fold_in(key, _TOKENS), index)
    return jax.random.categorical(key, log_p, mode='high').astype(jnp.int32)
  return jax.vmap(draw)(keys, log_p)


def prior(keys, levels, shape):
  """The starting noise sigma_T * z, [B, *shape]; assumes that alpha_T * x0 is negligible."""
  empty = jax.ShapeDtypeStruct((keys.shape[0], *shape), jnp.float32)
  return float(levels.sigma[0]) * gaussian(keys, 0, empty)


def steps(levels):
  """The intervals of a grid [S+1] with h in float64: a Step of [S] arrays.

  Raises:
    InputError: the grid is not on the host, or does not go from noise to clean.
  """
  if isinstance(levels.logsnr, jax.Array):
    raise InputError('a grid must consist of float64 NumPy arrays, got a JAX array: build the grid outside jit')
  n = len(levels.logsnr) - 1
  t, s = take(levels, slice(0, n)), take(levels, slice(1, None))
  h = (s.logsnr - t.logsnr) / 2
  if n < 1 or np.any(np.isnan(h)) or np.any(h <= 0):
    raise InputError('a grid must go from noise to clean: its logsnr must increase at every step')
  return Step(t, s, h, np.arange(1, n + 1, dtype=np.uint32))


def steps_between(levels, starts, ends):
  """Steps from levels[starts] to levels[ends], for methods that visit a level twice or skip one."""
  steps(levels)
  starts, ends = np.asarray(starts), np.asarray(ends)
  t, s = take(levels, starts), take(levels, ends)
  h = np.subtract(s.logsnr, t.logsnr, out=np.zeros(len(starts)), where=starts != ends) / 2
  return Step(t, s, h, np.arange(1, len(starts) + 1, dtype=np.uint32))


def compute_dtype(x):
  """The dtype of the arithmetic: float32, or float64 where x, an array or a tree of them, is."""
  return jnp.result_type(jnp.float32, *(a.dtype for a in jax.tree.leaves(x)))


def zeros_for(x):
  """Zeros in place of a prediction before the first evaluation."""
  return jnp.zeros(x.shape, compute_dtype(x))


class Sampler(NamedTuple):
  init: Callable          # x -> state
  step: Callable          # (keys [B], denoise, state, Step) -> state
  plan: Callable = steps  # levels [S+1] -> Step [N] in float64: the rows of the scan
  on: str = 'denoise'     # the field of a Model that it calls


def sample(keys, denoise, sampler, levels, x, trace=None):
  """Runs a sampler over a grid.

  Args:
    keys: one key per sample, [B] (see sample_keys).
    denoise: (x, noise) -> Pred, or what else the sampler calls.
    sampler: a Sampler.
    levels: float64 Noise[S+1] from noise to clean (see grids.py).
    x: starting noise [B, ...] (see prior), or tokens, or a tree of both, as the sampler takes it.
    trace: None, or a function of the state, whose values after each step are returned as well.
  Returns:
    x0 [B, ...]; with trace, (x0, values [N, ...]).
  """
  def body(state, step):
    state = sampler.step(keys, denoise, state, step)
    return state, (trace(state) if trace else None)
  def to_device(a):
    return jnp.asarray(a, compute_dtype(x) if a.dtype == np.float64 else a.dtype)
  state, traced = jax.lax.scan(body, sampler.init(x), jax.tree.map(to_device, sampler.plan(levels)))
  return (state.x, traced) if trace else state.x


def projected(sampler, project):
  """Keeps x in the subspace that `project`, linear, x [B, ...] -> x, leaves as it is, such as a centre of mass at 0.

  Start from a projected prior: then the solver sees noise of the subspace alone.
  """
  def step(keys, denoise, state, step):
    state = sampler.step(keys, denoise, state, step)
    return state._replace(x=project(state.x))
  return Sampler(sampler.init, step, sampler.plan, sampler.on)


class SelfConditioned(NamedTuple):
  """The state for a self-conditioned network: that of the wrapped sampler, and the last estimate of x0."""
  x: jax.Array
  inner: Any
  x0: jax.Array


def self_conditioned(sampler):
  """The same sampler, which feeds the last estimate of x0 to the network (Analog Bits, arXiv:2208.04202, section 3.2).

  `denoise` must take it as a third argument; before the first estimate it is zeros.
  """
  def step(keys, denoise, state, step):
    estimates = [state.x0]
    def conditioned(x, noise):
      pred = denoise(x, noise, state.x0)
      estimates.append(pred.x0)
      return pred
    inner = sampler.step(keys, conditioned, state.inner, step)
    return SelfConditioned(inner.x, inner, estimates[-1])
  return Sampler(lambda x: SelfConditioned(x, sampler.init(x), zeros_for(x)), step, sampler.plan)
