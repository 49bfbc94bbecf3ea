"""Trajectories against diffusers' schedulers, with the same noise levels in float64 and the same exact denoiser.

Not compared: UniPC's bh1, which is NaN there at a final sigma of 0; single-step solvers with an even number of steps,
whose odd step is at the clean end there and at the noisy end here; PLMS, whose first steps differ.
"""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import samplers
from diffusion.core import grids, schedules
from experiments.mixture import mixture_denoiser, mixture_eps

diffusers = pytest.importorskip('diffusers', reason='the extra [compare] is not installed')
torch = pytest.importorskip('torch')
MEANS, STD = np.random.default_rng(0).normal(size=(4, 8)), .3
LEVELS = grids.exponential(13)(schedules.linear())


def theirs(name, levels, x, ve=False, **options):
  """The end of their trajectory from x, [B, 8]. Their tables are float32, so ours take their place."""
  scheduler = getattr(diffusers, name)(num_train_timesteps=1000, beta_start=1e-4, beta_end=.02, beta_schedule='linear',
                                       **options)
  steps = len(levels.logsnr) - 1
  scheduler.set_timesteps(steps)
  sigmas, times = levels.sigma / levels.alpha, levels.time[:-1]
  if 'DEIS' in name:
    sigmas[-1] = 1e-9  # they take its logarithm
  if len(scheduler.timesteps) == 2 * steps - 1:  # Heun visits inner levels twice
    sigmas, times = np.concatenate([sigmas[:1], np.repeat(sigmas[1:-1], 2), [0.]]), np.repeat(times, 2)[1:]
  scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
  scheduler.timesteps = torch.tensor(times, dtype=torch.float64)
  scheduler._step_index = 0
  x = x * (np.sqrt(1 + sigmas[0] ** 2) if ve else 1)
  for i, t in enumerate(scheduler.timesteps):
    sigma = sigmas[i]
    eps = mixture_eps(MEANS, STD, x if ve else x * np.sqrt(1 + sigma ** 2), sigma)
    x = scheduler.step(torch.tensor(eps), t, torch.tensor(x)).prev_sample.numpy()
  return x


MULTI, SINGLE = 'DPMSolverMultistepScheduler', 'DPMSolverSinglestepScheduler'


@pytest.mark.parametrize('name, options, sampler', [
  (MULTI, dict(solver_order=1), samplers.ddim()),
  (MULTI, dict(solver_order=2, solver_type='midpoint'), samplers.dpmpp_2m()),
  (MULTI, dict(solver_order=2, solver_type='heun'), samplers.dpmpp_2m('heun')),
  (MULTI, dict(solver_order=3, solver_type='heun'), samplers.dpmpp_3m_shipped()),
  (SINGLE, dict(solver_order=2, solver_type='midpoint'), samplers.dpmpp_2s()),
  ('UniPCMultistepScheduler', dict(solver_order=2, solver_type='bh2'), samplers.unipc(2)),
  ('UniPCMultistepScheduler', dict(solver_order=3, solver_type='bh2'), samplers.unipc(3)),
  ('DEISMultistepScheduler', dict(solver_order=2), samplers.deis(2)),
  ('DEISMultistepScheduler', dict(solver_order=3), samplers.deis(3)),
  ('EulerDiscreteScheduler', {}, samplers.euler()),
  ('HeunDiscreteScheduler', {}, samplers.heun()),
  ('LMSDiscreteScheduler', {}, samplers.lms(4)),
])
def test_trajectories_equal_those_of_diffusers(name, options, sampler):
  ve = name in ('EulerDiscreteScheduler', 'HeunDiscreteScheduler', 'LMSDiscreteScheduler')
  if not ve:
    options = options | (dict(final_sigmas_type='zero') if 'DEIS' not in name else {})
  x = np.random.default_rng(2).normal(size=(5, 8))
  with jax.enable_x64(True):
    keys = samplers.sample_keys(0, np.arange(5))
    ours = samplers.sample(keys, mixture_denoiser(MEANS, STD), sampler, LEVELS, jnp.asarray(x))
  np.testing.assert_allclose(ours, theirs(name, LEVELS, x, ve, **options), atol=1e-5)
