"""Solvers against recursions of their papers written with sigma alone, and against each other."""
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import samplers
from diffusion.core import grids, schedules
from diffusion.core.gaussian import flow, from_x0, take, ve, vp
from experiments.mixture import mixture_denoiser, mixture_eps
from tests.exact import gaussian_denoiser
from tests.samplers.test_solvers import ALL, EDM, log_uniform, MEANS, run, STD


@pytest.mark.parametrize('eta, kind', [(1., 'midpoint'), (.5, 'heun')])
def test_sde_2m_is_its_recursion_in_sigma(eta, kind, double):
  """Written with sigma alone, at alpha = 1, with the noise that the sampler draws."""
  levels, x = log_uniform(7, 40, .05, clean=True), 40 * np.random.default_rng(5).normal(size=(3, 8))
  keys, y, before = samplers.sample_keys(0, np.arange(3)), x.copy(), None
  for i, (a, b) in enumerate(zip(levels.sigma[:-1], levels.sigma[1:])):
    x0 = y - a * mixture_eps(MEANS, STD, y, a)
    if b == 0:
      y = x0
      break
    h, z = np.log(a / b), np.asarray(samplers.gaussian(keys, i + 1, jnp.asarray(x)))
    decayed = np.exp(-(1 + eta) * h)
    y_new = b / a * np.exp(-eta * h) * y + (1 - decayed) * x0 + b * np.sqrt(1 - np.exp(-2 * eta * h)) * z
    if before is not None:
      slope = (x0 - before[0]) * h / before[1]  # of x0 over this step
      y_new += slope * ((1 - decayed) / 2 if kind == 'midpoint' else 1 - (1 - decayed) / ((1 + eta) * h))
    y, before = y_new, (x0, h)
  np.testing.assert_allclose(run(samplers.dpmpp_sde_2m(eta, kind), levels, mixture_denoiser(MEANS, STD), x), y,
                             rtol=1e-9)


def test_plms_is_adams_bashforth_where_the_steps_are_equal(double):
  sigma, x = np.linspace(10, 1, 10), np.random.default_rng(5).normal(size=(3, 8)) * 10
  levels, denoise = ve(np.zeros(10), -2 * np.log(sigma)), mixture_denoiser(MEANS, STD)
  for order in (1, 2, 3, 4):
    np.testing.assert_allclose(run(samplers.plms(order), levels, denoise, x),
                               run(samplers.lms(order), levels, denoise, x), rtol=1e-9)


def test_adaptive_denoises_where_it_starts_at_the_cleanest_level():
  levels = take(grids.trailing(2000)(schedules.cosine(None)), slice(-3, None))
  out = run(samplers.adaptive(schedules.cosine(None)), levels, gaussian_denoiser(.3, 0.), np.full(2, .9, np.float32))
  np.testing.assert_allclose(out, .3, atol=1e-4)


def test_heun_is_edm_algorithm_1(double):
  levels, x = log_uniform(9, 40, .05, clean=True), 40 * np.random.default_rng(5).normal(size=(3, 8))
  y = x.copy()
  for a, b in zip(levels.sigma[:-1], levels.sigma[1:]):
    d = mixture_eps(MEANS, STD, y, a)
    trial = y + (b - a) * d
    y = y + (b - a) * (d + mixture_eps(MEANS, STD, trial, b)) / 2 if b > 0 else trial
  np.testing.assert_allclose(run(samplers.heun(), levels, mixture_denoiser(MEANS, STD), x), y, rtol=1e-9)
  np.testing.assert_allclose(run(samplers.churn(EDM, churn=0), levels, mixture_denoiser(MEANS, STD), x), y, rtol=1e-6)
  assert len(samplers.heun().plan(levels).h) == 2 * 9 - 1


def test_flow_heun_is_heun_of_the_straight_path(double):
  levels, x = log_uniform(9, 40, .05, flow, clean=True), np.random.default_rng(5).normal(size=(3, 8))
  def velocity(y, time):  # eps - x0 at alpha = 1 - time, sigma = time
    eps = mixture_eps(MEANS, STD, y / (1 - time), time / (1 - time))
    return eps - (y - time * eps) / (1 - time)
  y = x.copy()
  for a, b in zip(levels.sigma[:-1], levels.sigma[1:]):
    v = velocity(y, a)
    trial = y + (b - a) * v
    y = y + (b - a) * (v + velocity(trial, b)) / 2 if b > 0 else trial
  np.testing.assert_allclose(run(samplers.flow_heun(), levels, mixture_denoiser(MEANS, STD), x), y, rtol=1e-8)


@pytest.mark.parametrize('name', ['dpmpp_2m', 'dpmpp_3m', 'unipc_2_predictor', 'deis_3', 'lms_4', 'plms_2'])
def test_without_history_multistep_is_ddim(name):
  denoise, x = mixture_denoiser(MEANS.astype(np.float32), STD), np.ones((2, 8), np.float32)
  levels = log_uniform(1, 40, 2)
  np.testing.assert_allclose(run(ALL[name], levels, denoise, x), run(samplers.ddim(), levels, denoise, x), rtol=1e-5)


def test_the_shipped_form_lacks_a_factor_two_in_the_second_difference(double):
  """x0 a parabola in log-SNR: the full third order integrates it exactly, the other misses half of the curvature."""
  levels = log_uniform(3, 4, .5, vp)
  def parabola(x, noise):
    return from_x0(noise, x, (noise.logsnr / 2) ** 2 + 0 * x)
  x = jnp.zeros(1)
  node, weight = np.polynomial.legendre.leggauss(40)
  lam = levels.logsnr / 2
  def exact(i, start):
    v = lam[i] + (node + 1) / 2 * (lam[i + 1] - lam[i])
    integral = np.sum(weight * (lam[i + 1] - lam[i]) / 2 * np.exp(v) * v ** 2)
    return levels.sigma[i + 1] * (start / levels.sigma[i] + integral)
  def last_step(sampler):
    _, path = samplers.sample(samplers.sample_keys(0, [0]), parabola, sampler, levels, x, trace=lambda state: state.x)
    return float(path[2, 0]), exact(2, float(path[1, 0]))
  reached, right = last_step(samplers.unipc(3, corrector=False))
  assert reached == pytest.approx(right, rel=1e-10)
  reached, right = last_step(samplers.dpmpp_3m_shipped())
  assert abs(reached / right - 1) > 1e-3
