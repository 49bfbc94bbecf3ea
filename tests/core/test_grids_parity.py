"""Grids against those of diffusers, with the extra `compare`."""
import numpy as np
import pytest

from diffusion.core import grids, schedules
from diffusion.core.schedule_transforms import zero_terminal
from tests.core.test_grids import ANY_TIME, noise_ratio, rows


@pytest.fixture(scope='module')
def diffusers():
  return pytest.importorskip('diffusers', reason='the comparison needs diffusers: pip install -e .[compare]')


STABLE = dict(beta_schedule='scaled_linear', beta_start=.00085, beta_end=.012)


def test_stable_diffusion_tables_are_those_of_diffusers(diffusers):
  table = schedules.scaled_linear()
  for ours, options in ((table, {}), (zero_terminal(table), dict(rescale_betas_zero_snr=True))):
    theirs = diffusers.DDIMScheduler(**STABLE, **options).alphas_cumprod.numpy()  # float32
    np.testing.assert_allclose(ours.alpha ** 2, theirs, atol=1e-5)


def test_rows_are_those_of_diffusers_ddim(diffusers):
  def theirs(spacing, S):
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(S)
    return scheduler.timesteps.tolist()
  for S in (2, 3, 7, 10, 13, 16, 30, 50, 80, 160, 333, 999, 1000):
    assert rows(grids.trailing(S)) == theirs('trailing', S), S
    assert rows(grids.linspace(S)) == theirs('linspace', S), S
    if 1000 % S == 0:
      assert rows(grids.leading(S)) == theirs('leading', S), S
  # the differences that the docstrings tell
  assert rows(grids.leading(7))[0] > theirs('leading', 7)[0]
  assert rows(grids.linspace(1)) == [999] and theirs('linspace', 1) == [0]


@pytest.mark.parametrize('grid, name', [(grids.karras, 'karras'), (grids.exponential, 'exponential')])
def test_edm_grids_are_those_of_diffusers(diffusers, grid, name):
  scheduler = diffusers.EDMDPMSolverMultistepScheduler(sigma_schedule=name)
  for S in (5, 18):
    scheduler.set_timesteps(S)
    ours = grid(S, sigma_min=.002, sigma_max=80.)(schedules.edm())
    np.testing.assert_allclose(ours.sigma, scheduler.sigmas.numpy(), rtol=1e-5)
    np.testing.assert_allclose(ours.time[:-1] / 1000, scheduler.timesteps.numpy(), atol=1e-5)


@pytest.mark.parametrize('grid, name', [(grids.karras, 'karras'), (grids.exponential, 'exponential')])
def test_grids_on_a_table_are_those_of_diffusers_euler(diffusers, grid, name):
  import torch
  table = schedules.scaled_linear()
  scheduler = diffusers.EulerDiscreteScheduler(**STABLE, **{f'use_{name}_sigmas': True})
  scheduler.alphas_cumprod = torch.tensor(table.alpha ** 2)  # theirs in float64
  for S in (5, 30):
    scheduler.set_timesteps(S)
    ours = grid(S)(table)
    np.testing.assert_allclose(np.append(noise_ratio(ours), 0), scheduler.sigmas.numpy(), rtol=1e-5)
    np.testing.assert_allclose(ours.time[:-1], scheduler.timesteps.numpy(), rtol=1e-6, atol=1e-3)


def test_beta_of_diffusers_spreads_over_sigma_where_ours_spreads_over_time(diffusers):
  scheduler = diffusers.EulerDiscreteScheduler(**STABLE, use_beta_sigmas=True)
  scheduler.set_timesteps(10)
  theirs = scheduler.sigmas.numpy()[:-1].astype(float)
  quantiles = grids.beta(9)(ANY_TIME).time / 1000  # 1, 8/9, .. 1/9 and 0
  low, high = theirs[[-1, 0]]
  np.testing.assert_allclose(theirs, low + quantiles * (high - low), rtol=1e-4)
  ours = noise_ratio(grids.beta(10)(schedules.scaled_linear()))
  assert np.sum(theirs < .7) == 1 and np.sum(ours < .7) == 3


def test_shifted_is_the_flow_matching_grid_of_diffusers(diffusers):
  scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.)
  scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 20, 20).tolist())  # as its pipelines call it
  ours = grids.shifted(20, 3.)(schedules.flow())
  np.testing.assert_allclose(ours.sigma, scheduler.sigmas.numpy(), rtol=1e-6)
  np.testing.assert_allclose(ours.time[:-1], scheduler.timesteps.numpy(), rtol=1e-6)
