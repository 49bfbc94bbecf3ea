"""Trajectories against diffusers' schedulers, with the same noise levels in float64 and the same exact denoiser.

The noise that they draw is ours. Where their last level cannot be 0, the samples at the last level with noise are
compared. Not compared: UniPC's bh1, which is NaN there at a final sigma of 0; PLMS, whose first steps differ;
SDE-DPM-Solver++ of order 3, whose last term has the wrong sign there.
"""
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import samplers
from diffusion.core import grids, schedules
from diffusion.core.gaussian import take
from diffusion.samplers import constraints
from experiments.mixture import mixture_denoiser, mixture_eps

diffusers = pytest.importorskip('diffusers', reason='the extra [compare] is not installed')
torch = pytest.importorskip('torch')
MEANS, STD = np.random.default_rng(0).normal(size=(4, 8)), .3
KEYS = samplers.sample_keys(0, np.arange(5))
KARRAS = grids.karras  # its last step with noise is the longest, so single-step solvers form the same groups
logging.getLogger('diffusers').setLevel(logging.ERROR)


def scheduler_of(name, steps, **options):
  scheduler = getattr(diffusers, name)(num_train_timesteps=1000, beta_start=1e-4, beta_end=.02, beta_schedule='linear',
                                       **options)
  scheduler.set_timesteps(steps)
  return scheduler


def theirs(name, levels, x, monkeypatch, **options):
  """The samples of their trajectory from x, [B, 8]. Their tables are float32, so ours take their place."""
  ve, steps = name.split('Discrete')[0] in ('Euler', 'Heun', 'LMS'), len(levels.logsnr) - 1
  scheduler = scheduler_of(name, steps, **options)
  sigmas, times = levels.sigma / levels.alpha, levels.time[:-1].copy()
  if len(scheduler.timesteps) == 2 * steps - 1:  # Heun visits inner levels twice
    sigmas, times = np.concatenate([sigmas[:1], np.repeat(sigmas[1:-1], 2), [0.]]), np.repeat(times, 2)[1:]
  scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
  scheduler.timesteps = torch.tensor(times, dtype=torch.float64)
  scheduler._step_index, path = 0, []
  x = x * (np.sqrt(1 + sigmas[0] ** 2) if ve else 1)
  for i, t in enumerate(scheduler.timesteps):
    sigma, z = sigmas[i], torch.tensor(np.asarray(samplers.gaussian(KEYS, i + 1, jnp.asarray(x))))
    eps, drawn = mixture_eps(MEANS, STD, x if ve else x * np.sqrt(1 + sigma ** 2), sigma), {}
    if 'algorithm_type' in options:
      drawn = dict(variance_noise=z)
    if name == 'SASolverScheduler':
      from diffusers.schedulers import scheduling_sasolver
      monkeypatch.setattr(scheduling_sasolver, 'randn_tensor', lambda *a, z=z, **k: z)
    x = scheduler.step(torch.tensor(eps), t, torch.tensor(x), **drawn).prev_sample.numpy()
    path.append(x)
  return path


MULTI, SINGLE, UNI = 'DPMSolverMultistepScheduler', 'DPMSolverSinglestepScheduler', 'UniPCMultistepScheduler'
SDE, DEIS, SA = dict(algorithm_type='sde-dpmsolver++'), 'DEISMultistepScheduler', 'SASolverScheduler'
HIGH, LOW = (float((schedules.linear().sigma / schedules.linear().alpha)[t]) for t in (800, 200))


@pytest.mark.parametrize('S', [10, 15, 20, 40])
@pytest.mark.parametrize('name, options, sampler', [
  (MULTI, dict(solver_order=1), samplers.ddim()),
  (MULTI, dict(solver_order=2), samplers.dpmpp_2m()),
  (MULTI, dict(solver_order=2, solver_type='heun'), samplers.dpmpp_2m('heun')),
  (MULTI, dict(solver_order=3), samplers.dpmpp_3m_shipped()),
  (MULTI, dict(solver_order=2, **SDE), samplers.dpmpp_sde_2m()),
  (SINGLE, dict(solver_order=2), samplers.dpmpp_2s()),
  (SINGLE, dict(solver_order=3), samplers.dpmpp_3s('line')),
  (SINGLE, dict(solver_order=3, solver_type='heun'), samplers.dpmpp_3s('parabola')),
  (UNI, dict(solver_order=1), samplers.unipc(1)),
  (UNI, dict(solver_order=2), samplers.unipc(2)),
  (UNI, dict(solver_order=3), samplers.unipc(3)),
  (UNI, dict(solver_order=2, predict_x0=False), samplers.unipc(2, of='eps')),
  (UNI, dict(solver_order=3, predict_x0=False, solver_type='bh1'), samplers.unipc(3, 'bh1', of='eps')),
  (DEIS, dict(solver_order=2), samplers.deis(2)),
  (DEIS, dict(solver_order=3), samplers.deis(3)),
  (SA, {}, samplers.sa_solver(low=LOW, high=HIGH)),
  (SA, dict(predictor_order=3, corrector_order=4, tau_func=lambda t: .7), samplers.sa_solver(3, 4, .7)),
  (SA, dict(predictor_order=1, corrector_order=2, tau_func=lambda t: 1.), samplers.sa_solver(1, 2)),
  ('EulerDiscreteScheduler', {}, samplers.euler()),
  ('HeunDiscreteScheduler', {}, samplers.heun()),
  ('LMSDiscreteScheduler', {}, samplers.lms(4)),
])
def test_trajectories_equal_those_of_diffusers(name, options, sampler, S, monkeypatch):
  levels, x = KARRAS(S)(schedules.linear()), np.random.default_rng(2).normal(size=(5, 8))
  stops = name in (DEIS, SA) or not options.get('predict_x0', True)  # short of CLEAN
  if name in (MULTI, SINGLE, UNI):
    options = options | dict(final_sigmas_type='zero')
  if name == SINGLE:
    options = options | dict(lower_order_final=True)
  with jax.enable_x64(True):
    ours, path = samplers.sample(KEYS, mixture_denoiser(MEANS, STD), sampler, levels, jnp.asarray(x),
                                 trace=lambda state: state.x)
    with np.errstate(divide='ignore', invalid='ignore'):
      reference = theirs(name, levels, x, monkeypatch, **options)
  np.testing.assert_allclose(path[-2] if stops else ours, reference[-2 if stops else -1], atol=1e-5)


@pytest.mark.parametrize('S', [10, 15, 20, 40])
@pytest.mark.parametrize('order', [1, 2])
def test_inversion_equals_that_of_diffusers(S, order):
  """Below 15 steps without their lower order at the end."""
  levels, x0 = grids.exponential(S + 1)(schedules.linear()), np.random.default_rng(2).normal(size=(5, 8))
  with jax.enable_x64(True):
    ours = constraints.invert(mixture_denoiser(MEANS, STD), levels, jnp.asarray(x0), order)
  scheduler = scheduler_of('DPMSolverMultistepInverseScheduler', S, solver_order=order, lower_order_final=S >= 15)
  up = take(levels, np.arange(S, -1, -1))
  scheduler.sigmas, scheduler._step_index = torch.tensor(up.sigma / up.alpha), 0
  scheduler.timesteps, x = torch.tensor(up.time[:-1]), levels.alpha[-2] * x0
  for i, t in enumerate(scheduler.timesteps):
    eps = mixture_eps(MEANS, STD, x / up.alpha[i], up.sigma[i] / up.alpha[i])
    x = scheduler.step(torch.tensor(eps), t, torch.tensor(x)).prev_sample.numpy()
  np.testing.assert_allclose(ours, x, atol=1e-5)
