"""Trajectories against k-diffusion's samplers, in float64, with the same exact denoiser and our noise in theirs."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import samplers
from diffusion.core import grids, schedules
from experiments.mixture import mixture_denoiser, mixture_eps

k_sampling = pytest.importorskip('k_diffusion.sampling', reason='k-diffusion is not installed')
torch = pytest.importorskip('torch')
MEANS, STD = np.random.default_rng(0).normal(size=(4, 8)), .3
EDM = schedules.edm()
KEYS = samplers.sample_keys(0, np.arange(5))


def draw(index):
  return torch.tensor(np.asarray(samplers.gaussian(KEYS, index, jnp.zeros((5, 8)))))


def drawn(rows):
  """Their noise_sampler: our noise of the last row of each interval; of sample_dpmpp_sde that of a Brownian path."""
  count = iter(range(10 ** 6))
  def once(a, b):
    return draw(rows * (next(count) + 1))
  def path(a, b):
    number, half = divmod(next(count), 2)
    first, second = draw(2 * number + 1), draw(2 * number + 2)
    share = (a - (a * b).sqrt()) / (a - b)
    return share.sqrt() * first + (1 - share).sqrt() * second if half else first
  return path if rows == 'path' else once


def theirs(name, rows, sigmas, x, monkeypatch, **options):
  def model(x, sigma):
    return x - sigma[0] * torch.tensor(mixture_eps(MEANS, STD, x.numpy(), float(sigma[0])))
  if rows:
    options['noise_sampler'] = drawn(rows)
  if 's_churn' in options:
    count = iter(range(10 ** 6))
    monkeypatch.setattr(torch, 'randn_like', lambda x: draw(2 * next(count) + 1))
  return getattr(k_sampling, name)(model, torch.tensor(x), torch.tensor(sigmas), disable=True, **options).numpy()


CHURN = dict(s_churn=20., s_tmin=.05, s_tmax=50., s_noise=1.003)


@pytest.mark.parametrize('S', [10, 15, 20, 40])
@pytest.mark.parametrize('name, rows, options, sampler', [
  ('sample_euler', 0, {}, samplers.euler()),
  ('sample_euler_ancestral', 1, {}, samplers.euler_ancestral()),
  ('sample_heun', 0, {}, samplers.heun()),
  ('sample_heun', 0, CHURN, samplers.churn(EDM, 20.)),
  ('sample_dpm_2', 0, {}, samplers.dpm_2(EDM)),
  ('sample_dpm_2', 0, CHURN, samplers.dpm_2(EDM, 20., .05, 50., 1.003)),
  ('sample_dpm_2_ancestral', 2, {}, samplers.dpm_2_ancestral(EDM)),
  ('sample_dpm_2_ancestral', 2, dict(eta=.6, s_noise=1.1), samplers.dpm_2_ancestral(EDM, .6, 1.1)),
  ('sample_lms', 0, {}, samplers.lms(4)),
  ('sample_dpmpp_2s_ancestral', 2, {}, samplers.dpmpp_2s_ancestral(EDM)),
  ('sample_dpmpp_2s_ancestral', 2, dict(eta=.6, s_noise=1.1), samplers.dpmpp_2s_ancestral(EDM, .6, 1.1)),
  ('sample_dpmpp_sde', 'path', {}, samplers.dpmpp_sde(EDM)),
  ('sample_dpmpp_sde', 'path', dict(eta=.6, s_noise=1.1), samplers.dpmpp_sde(EDM, .6, 1.1)),
  ('sample_dpmpp_sde', 0, dict(eta=0., r=.3, noise_sampler=lambda a, b: 0.), samplers.dpmpp_sde(EDM, 0., r=.3)),
  ('sample_dpmpp_2m', 0, {}, samplers.dpmpp_2m()),
  ('sample_dpmpp_2m_sde', 1, {}, samplers.dpmpp_sde_2m()),
  ('sample_dpmpp_2m_sde', 1, dict(eta=.6, solver_type='heun'), samplers.dpmpp_sde_2m(.6, 'heun')),
  ('sample_dpmpp_3m_sde', 1, dict(eta=0.), samplers.dpmpp_3m_shipped('k')),
  ('sample_dpmpp_3m_sde', 1, {}, samplers.dpmpp_3m_shipped('k', 1.)),
])
def test_trajectories_equal_those_of_k_diffusion(name, rows, options, sampler, S, monkeypatch):
  levels, x = grids.karras(S)(EDM), 80 * np.random.default_rng(2).normal(size=(5, 8))
  with jax.enable_x64(True):
    ours = samplers.sample(KEYS, mixture_denoiser(MEANS, STD), sampler, levels, jnp.asarray(x))
    reference = theirs(name, rows, levels.sigma, x, monkeypatch, **options)
  np.testing.assert_allclose(ours, reference, atol=1e-5 if name != 'sample_lms' else 1e-4)  # their quadrature: 1e-4
