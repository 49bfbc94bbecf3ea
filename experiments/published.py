"""The forms of our solvers that diffusers and k-diffusion ship, in float64, for experiments/solvers.py --published.

Only those that end at CLEAN with one evaluation per step. Whatever of the two is not installed is left out.
"""
import importlib

import numpy as np

MULTI, SINGLE, UNI = 'DPMSolverMultistepScheduler', 'DPMSolverSinglestepScheduler', 'UniPCMultistepScheduler'
DIFFUSERS = {
  'dpmpp_2m': (MULTI, dict(solver_order=2)), 'dpmpp_2m heun': (MULTI, dict(solver_order=2, solver_type='heun')),
  'dpmpp_3m': (MULTI, dict(solver_order=3)), 'dpmpp_2s': (SINGLE, dict(solver_order=2, lower_order_final=True)),
  'dpmpp_3s': (SINGLE, dict(solver_order=3, lower_order_final=True)), 'unipc 1': (UNI, dict(solver_order=1)),
  'unipc 2': (UNI, dict(solver_order=2)), 'unipc 3': (UNI, dict(solver_order=3))}
K = {'dpmpp_2m': ('sample_dpmpp_2m', {}), 'lms 4': ('sample_lms', {}),
     'dpmpp_3m': ('sample_dpmpp_3m_sde', dict(eta=0., noise_sampler=lambda a, b: 0.)),
     'dpmpp_2m heun': ('sample_dpmpp_2m_sde', dict(eta=0., solver_type='heun', noise_sampler=lambda a, b: 0.))}


def _diffusers(library, torch, name, options, eps, u):
  """The end of their trajectory from u[0] * z in units of alpha; their tables make way for the levels u."""
  scheduler = getattr(library, name)(**options, final_sigmas_type='zero')
  scheduler.set_timesteps(len(u) - 1)
  scheduler.sigmas, scheduler._step_index = torch.tensor(u), 0
  scheduler.timesteps = torch.arange(len(u) - 1, 0, -1)
  def solve(y):
    x = y / np.sqrt(1 + u[0] ** 2)
    for a, t in zip(u, scheduler.timesteps):
      x = scheduler.step(torch.tensor(eps(x * np.sqrt(1 + a ** 2), a)), t, torch.tensor(x)).prev_sample.numpy()
    return x
  return solve


def _k(sampling, torch, name, options, eps, u):
  def denoise(x, sigma):
    return x - sigma[0] * torch.tensor(eps(x.numpy(), float(sigma[0])))
  return lambda y: getattr(sampling, name)(denoise, torch.tensor(y), torch.tensor(u), disable=True, **options).numpy()


def errors(problem, grids, budgets):
  """Rows as of experiments.solvers.errors, of a problem whose eps is known in NumPy."""
  from diffusion.errors import InputError
  rows = []
  for label, module, forms, make in (('diffusers', 'diffusers', DIFFUSERS, _diffusers),
                                     ('k-diffusion', 'k_diffusion.sampling', K, _k)):
    try:
      library, torch = importlib.import_module(module), importlib.import_module('torch')
    except ImportError as error:
      print(f'left out {label}: {error}', flush=True)
      continue
    for name, grid, budget in ((n, g, b) for n in forms for g in grids for b in budgets):
      try:
        levels = grids[grid](budget)(problem.schedule)
      except InputError:
        continue
      u = levels.sigma / np.maximum(levels.alpha, 1e-6)
      x = make(library, torch, *forms[name], problem.eps, u)(u[0] * problem.z.astype(np.float64))
      rows.append(dict(data=problem.name, solver=f'{name} of {label}', grid=grid, budget=budget, steps=budget,
                       evaluations=budget, error=float(np.sqrt(np.mean((x - problem.truth(levels)) ** 2)))))
  return rows
