"""Starting noises and ODEs whose end is known, for experiments/solvers.py."""
import functools
from typing import Any, Callable, NamedTuple


class Problem(NamedTuple):
  """A starting noise and an ODE to solve from there."""
  name: str
  schedule: Any
  denoise: Callable
  z: Any      # starting noise of unit variance
  keys: Any
  truth: Callable  # levels -> exact solution at the end
  eps: Any = None  # (x, sigma) -> E[eps | x] at alpha = 1, in NumPy


def stepwise(keys, denoise, sampler, levels, x):
  """samplers.sample step by step, so that the network is compiled once for all solvers and grids."""
  import jax
  import numpy as np
  plan = jax.tree.map(lambda a: a.astype(np.float32) if a.dtype == np.float64 else a, sampler.plan(levels))
  state = sampler.init(x)
  for i in range(len(plan.h)):
    state = sampler.step(keys, denoise, state, jax.tree.map(lambda a: a[i], plan))
  return state.x


def mixture(seed, schedule, name, number=64):
  """Four Gaussians in eight dimensions; schedule: with alpha = 1 or alpha + sigma = 1."""
  import jax
  import numpy as np
  from diffusion import samplers
  from experiments.mixture import exact_flow, mixture_denoiser, mixture_eps
  means, std = np.random.default_rng(0).normal(size=(4, 8)), .3
  z = np.random.default_rng(seed + 1).normal(size=(number, 8)).astype(np.float32)
  @functools.cache
  def solved(start):
    return exact_flow(means, std, start * z.astype(np.float64), start, 1e-6)
  def truth(levels):  # without signal sigma / alpha is infinite, and 1e6 as good
    return solved(float(levels.sigma[0] / max(levels.alpha[0], 1e-6)))
  return Problem(name, schedule, jax.jit(mixture_denoiser(means.astype(np.float32), std)), z,
                 samplers.sample_keys(seed, np.arange(number)), truth, functools.partial(mixture_eps, means, std))


def model(workdir, number, seed):
  """The newest checkpoint of a work directory, solved by 400 steps of UniPC-3 in log-SNR."""
  import jax
  import numpy as np
  from diffusion import samplers
  from diffusion.core import grids
  from diffusion.errors import InputError
  from diffusion.training.open_model import load
  run, weights, _ = load(workdir)
  if run.denoise is None or run.self_condition:
    raise InputError(f'--workdir={workdir}: a classifier cannot be sampled from, and a self-conditioned model '
                     'does not define an ODE; use another model')
  cond, labels, _ = run.task.ask({}, np.arange(number), seed)
  denoise = jax.jit(lambda x, noise: run.denoise(weights, cond)(x, noise))
  keys = samplers.sample_keys(seed, np.arange(number))
  z = samplers.gaussian(keys, 0, jax.ShapeDtypeStruct((number, *run.shape), np.float32))
  levels = grids.exponential(400)(run.schedule)
  print('solving the model with 400 steps of UniPC-3 ..', flush=True)
  truth = np.asarray(stepwise(keys, denoise, samplers.unipc(3), levels, float(levels.sigma[0]) * z))
  decode = lambda x: run.decode(weights.frozen, x, cond)['images']
  return Problem('model', run.schedule, denoise, z, keys, lambda levels: truth), decode, labels, run.config
