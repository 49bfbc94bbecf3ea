"""Every solver: its order of convergence against the exact ODE, its moments if stochastic, and common properties."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import samplers
from diffusion.core import grids, schedule_transforms, schedules
from diffusion.core.gaussian import CLEAN, expand_to, flow, from_x0, Noise, take, ve, vp
from diffusion.errors import InputError
from experiments.mixture import exact_flow, mixture_denoiser
from tests.conftest import RUN_FAST
from tests.exact import gaussian_denoiser, gaussian_flow

MEANS = np.random.default_rng(0).normal(size=(4, 8))
STD = .3
EDM = schedules.edm(None, .002, 80.)
LONG = schedules.edm(None, .002, 200.)

# name: (sampler, order); the orders are those of the papers, UniPC-p with its corrector p + 1
ODE = dict(
  ddim=(samplers.ddim(), 1), heun=(samplers.heun(), 2), flow_heun=(samplers.flow_heun(), 2),
  dpm_solver_2=(samplers.dpm_solver_2(), 2),
  dpmpp_2s=(samplers.dpmpp_2s(), 2), dpmpp_2m=(samplers.dpmpp_2m(), 2), dpmpp_2m_heun=(samplers.dpmpp_2m('heun'), 2),
  dpmpp_3m=(samplers.dpmpp_3m(), 3), dpmpp_3m_shipped=(samplers.dpmpp_3m_shipped(), 2),
  dpmpp_3m_k=(samplers.dpmpp_3m_shipped('k'), 2), dpmpp_3s=(samplers.dpmpp_3s(), 3),
  dpmpp_3s_parabola=(samplers.dpmpp_3s('parabola'), 3), dpm_solver_3=(samplers.dpm_solver_3(), 3),
  unipc_2_eps=(samplers.unipc(2, of='eps'), 3), unipc_3_eps=(samplers.unipc(3, of='eps'), 4),
  dpm_2=(samplers.dpm_2(LONG), 2), dpmpp_2s_ancestral_0=(samplers.dpmpp_2s_ancestral(LONG, 0.), 2),
  unipc_1=(samplers.unipc(1), 2), unipc_2=(samplers.unipc(2), 3), unipc_2_bh1=(samplers.unipc(2, 'bh1'), 3),
  unipc_3=(samplers.unipc(3), 4),
  unipc_2_predictor=(samplers.unipc(2, corrector=False), 2), unipc_3_predictor=(samplers.unipc(3, corrector=False), 3),
  flow_pc_1=(samplers.flow_pc(1), 2), flow_pc_2=(samplers.flow_pc(2), 3), flow_pc_3=(samplers.flow_pc(3), 4),
  deis_2=(samplers.deis(2), 2), deis_3=(samplers.deis(3), 3), deis_4=(samplers.deis(4), 4),
  flow_lms_4=(samplers.flow_lms(4), 4), lms_2=(samplers.lms(2), 2), lms_3=(samplers.lms(3), 3),
  lms_4=(samplers.lms(4), 4), flow_lms_2=(samplers.flow_lms(2), 2), flow_lms_3=(samplers.flow_lms(3), 3),
  plms_2=(samplers.plms(2), 2))
LATE = ('dpmpp_3m_shipped', 'dpmpp_3m_k', 'dpmpp_3s', 'dpmpp_3s_parabola', 'dpm_solver_3', 'unipc_3',
        'unipc_3_eps')  # these settle late
NOISY = dict(
  ddpm=samplers.ddpm(), ddpm_large=samplers.ddpm('large'), ddim_half=samplers.ddim(.5),
  dpmpp_sde_2m=samplers.dpmpp_sde_2m(),
  dpmpp_sde_2m_heun=samplers.dpmpp_sde_2m(.5, 'heun'), churn=samplers.churn(EDM), langevin=samplers.langevin(),
  consistency=samplers.consistency(), dpmpp_sde_3m=samplers.dpmpp_sde_3m(),
  dpmpp_3m_k_sde=samplers.dpmpp_3m_shipped('k', 1.),
  dpm_2_churn=samplers.dpm_2(EDM, 40.), dpm_2_ancestral=samplers.dpm_2_ancestral(EDM),
  dpmpp_2s_ancestral=samplers.dpmpp_2s_ancestral(EDM), dpmpp_sde=samplers.dpmpp_sde(EDM),
  dpmpp_sde_third=samplers.dpmpp_sde(EDM, .5, r=1 / 3), sa_solver=samplers.sa_solver(),
  sa_solver_3_4=samplers.sa_solver(3, 4, .6, kind='exact'),
  sa_solver_part=samplers.sa_solver(2, 3, 1.2, .05, 1., 'bh2'))
ALL = {name: sampler for name, (sampler, _) in ODE.items()} | NOISY | dict(adaptive=samplers.adaptive(EDM))
FOR_A_SCHEDULE = dict(
  churn=samplers.churn, adaptive=samplers.adaptive, dpm_2=samplers.dpm_2, dpm_2_ancestral=samplers.dpm_2_ancestral,
  dpm_2_churn=lambda s: samplers.dpm_2(s, 40.), dpmpp_2s_ancestral=samplers.dpmpp_2s_ancestral,
  dpmpp_2s_ancestral_0=lambda s: samplers.dpmpp_2s_ancestral(s, 0.), dpmpp_sde=samplers.dpmpp_sde,
  dpmpp_sde_third=lambda s: samplers.dpmpp_sde(s, .5, r=1 / 3))


def log_uniform(S, noisiest, cleanest, scaling=ve, clean=False):
  """S equal steps in log-SNR between two values of sigma / alpha, at EDM's times; `clean`: the last level is CLEAN."""
  logsnr = np.linspace(-2 * np.log(noisiest), -2 * np.log(cleanest), S + (not clean))
  levels = scaling(-125 * logsnr, logsnr)
  return Noise(*(np.append(a, c) for a, c in zip(levels, CLEAN))) if clean else levels


def run(sampler, levels, denoise, x, options=None):
  keys = samplers.sample_keys(0, np.arange(len(x)))
  sample = jax.jit(lambda keys, x: samplers.sample(keys, denoise, sampler, levels, x), compiler_options=options)
  return np.asarray(sample(keys, x))


@functools.cache
def exact_path(start):
  """Points at sigma = start, and the solution at 0.05 of dx / dsigma = eps from them (SciPy, rtol 1e-12)."""
  x = start * np.random.default_rng(1).normal(size=(16, 8))
  return x, exact_flow(MEANS, STD, x, start, .05)


@pytest.mark.parametrize('name', ODE)
def test_order_of_convergence_on_a_mixture_of_gaussians(name, double):
  sampler, order = ODE[name]
  x, exact = exact_path(200)  # so noisy that the first steps, which have less history, add nothing
  walk = walked(sampler, mixture_denoiser(MEANS, STD), np.float64)
  steps = (500, 1000) if name in LATE else (240, 480)
  errors = [np.sqrt(np.mean((walk(log_uniform(S, 200, .05), x, np.arange(16)) - exact) ** 2)) for S in steps]
  assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=.2)


def test_order_of_convergence_on_a_gaussian(double):
  x, denoise = np.linspace(-60, 60, 9), gaussian_denoiser(.3, .5)
  for name, (sampler, order) in ODE.items():
    if order <= 2:
      errors, walk = [], walked(sampler, denoise, np.float64)
      for S in (160, 320):
        levels = log_uniform(S, 40, .05)
        clean = gaussian_flow(.3, .5, x, take(levels, 0))
        spread = np.sqrt(.5 ** 2 + .05 ** 2) / .5
        errors.append(np.abs(walk(levels, x, np.arange(9)) - (.3 + (clean - .3) * spread)).max())
      assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=.25), name


def test_adaptive_meets_its_tolerance_and_each_sample_steps_on_its_own(double):
  x, exact = exact_path(40)
  denoise, levels, errors, counts = mixture_denoiser(MEANS, STD), log_uniform(2, 40, .05), [], []
  for tolerance in (1e-2, 1e-4, 1e-6):
    sampler = samplers.adaptive(EDM, tolerance, tolerance)
    keys = samplers.sample_keys(0, np.arange(16))
    final, state = samplers.sample(keys, denoise, sampler, levels, jnp.asarray(x), trace=lambda state: state)
    errors.append(np.sqrt(np.mean((final - exact) ** 2)))
    counts.append(np.asarray(state.evaluations[0]))
    assert errors[-1] < 30 * tolerance
  assert errors[2] < errors[1] < errors[0]
  assert len(set(counts[1])) > 1 and counts[0].max() < counts[2].max()


@pytest.mark.parametrize('name', NOISY)
def test_stochastic_solvers_give_the_mean_and_the_spread_of_the_data(name):
  n, mean, std = 20_000, .3, .5
  levels = log_uniform(300 if name != 'langevin' else 60, 40, .01, clean=True)
  def jump(x, noise):  # the consistency function of the data: where the ODE ends
    level = expand_to(noise, x)
    return from_x0(level, x, mean + std / jnp.sqrt(std ** 2 + level.sigma ** 2) * (x - mean))
  denoise = jump if name == 'consistency' else gaussian_denoiser(mean, std)
  x = 40 * np.random.default_rng(2).normal(size=n).astype(np.float32)
  out = run(NOISY[name], levels, denoise, x, RUN_FAST)
  assert out.mean() == pytest.approx(mean, abs=4 * std / np.sqrt(n))
  assert out.std() == pytest.approx(std, rel=4 / np.sqrt(2 * n) + (.03 if name == 'langevin' else .015))


# The schedule of churn and adaptive fixes a scaling; the large variance, of the forward step, is in the units of t.
@pytest.mark.parametrize('name', [n for n in ALL if n != 'ddpm_large' and n not in FOR_A_SCHEDULE])
def test_scalings_give_the_same_samples(name):
  denoise = mixture_denoiser(MEANS.astype(np.float32), STD)
  z = np.random.default_rng(3).normal(size=(4, 8)).astype(np.float32)
  outs, walk = [], walked(ALL[name], denoise)
  for scaling in (vp, ve, flow):
    levels = log_uniform(8, 30, .02, scaling, clean=True)
    outs.append(walk(levels, z * float(levels.sigma[0]), np.arange(4)))
  np.testing.assert_allclose(outs[0], outs[1], atol=2e-5)
  np.testing.assert_allclose(outs[2], outs[1], atol=2e-5)


def walked(sampler, denoise, dtype=np.float32):
  """sample() with its steps one by one through one compiled function, so that another grid compiles nothing."""
  move = jax.jit(lambda keys, state, step: sampler.step(keys, denoise, state, step))
  def walk(levels, x, ids):
    keys, state = samplers.sample_keys(0, ids), sampler.init(jnp.asarray(x, dtype))
    plan = jax.tree.map(lambda a: a.astype(dtype) if a.dtype == np.float64 else a, sampler.plan(levels))
    for i in range(len(plan.h)):
      state = move(keys, state, jax.tree.map(lambda a: a[i], plan))
    return np.asarray(state.x)
  return walk


def no_signal(S):
  return Noise(*(np.insert(a, 0, b) for a, b in zip(log_uniform(S, 5, .01, vp, True), (1000., 0., 1., -np.inf))))


# a schedule, and a grid of its scaling and range
GRIDS = [(schedules.linear(), lambda S: log_uniform(S, 100, .011, vp, True)),
         (EDM, lambda S: log_uniform(S, 80, .002, ve, True)),
         (schedules.flow(), lambda S: log_uniform(S, 999, 1 / 999, flow, True)),
         (schedule_transforms.zero_terminal(schedules.linear()), no_signal)]


@pytest.mark.parametrize('name', ALL)
def test_finite_at_few_steps_and_from_a_level_without_signal(name):
  walk = walked(ALL[name], gaussian_denoiser(.3, 0.))
  for schedule, grid in GRIDS:
    if name in FOR_A_SCHEDULE:
      walk = walked(FOR_A_SCHEDULE[name](schedule), gaussian_denoiser(.3, 0.))
    for S in (1, 2, 3, 4, 5, 7, 20):
      levels = grid(S)
      x = walk(levels, levels.sigma[0] * np.array([-1., .2, 1.]), [0, 1, 2])
      np.testing.assert_allclose(x, .3, atol=1e-2 if name.endswith('_eps') else 5e-3, err_msg=f'{S} steps')


@pytest.mark.parametrize('name', ALL)
def test_sample_k_does_not_depend_on_the_batch(name):
  denoise, z = mixture_denoiser(MEANS.astype(np.float32), STD), 80 * np.random.default_rng(4).normal(size=(6, 8))
  walk, levels = walked(ALL[name], denoise), log_uniform(6, 80, .01, clean=True)
  everyone = walk(levels, z, np.arange(6))
  np.testing.assert_allclose(walk(levels, z[[4, 1]], [4, 1]), everyone[[4, 1]], atol=2e-5)


@pytest.mark.parametrize('name', ALL)
def test_the_network_is_in_the_compiled_program_once(name):
  traces = []
  def denoise(x, noise):
    traces.append(0)
    return gaussian_denoiser(.3, .5)(x, noise)
  keys, levels = samplers.sample_keys(0, np.arange(2)), log_uniform(30, 80, .01, clean=True)
  program = jax.make_jaxpr(lambda x: samplers.sample(keys, denoise, ALL[name], levels, x))(jnp.ones(2))
  assert len(traces) <= 2  # loops may trace their body once more to settle types
  assert len(str(program)) < 60_000


@pytest.mark.parametrize('name', FOR_A_SCHEDULE)
def test_solvers_made_for_a_schedule_do_the_same_in_every_scaling(name):
  make = FOR_A_SCHEDULE[name] if name != 'adaptive' else lambda schedule: samplers.adaptive(schedule, 1e-4, 1e-4)
  denoise = mixture_denoiser(MEANS.astype(np.float32), STD)
  z = np.random.default_rng(3).normal(size=(4, 8)).astype(np.float32)
  outs = []
  for schedule in (schedules.edm(None, 1e-3, 200.), schedules.cosine(None), schedules.flow()):
    levels = grids.exponential(8, sigma_min=.02, sigma_max=30.)(schedule)
    x = z * np.float32(30 * levels.alpha[0])
    outs.append(run(make(schedule), levels, denoise, x))
  for out in outs[1:]:  # adaptive: where each stops before clean
    np.testing.assert_allclose(out, outs[0], atol=2e-3 if name == 'adaptive' else 2e-5)


@pytest.mark.parametrize('call, message', [
  (lambda: samplers.unipc(4), 'from 1 to 3'), (lambda: samplers.unipc(kind='bh3'), 'bh1'),
  (lambda: samplers.deis(order=0), 'order=0'),
  (lambda: samplers.lms(2.5), '2.5'), (lambda: samplers.dpmpp_2m('simpson'), 'midpoint'),
  (lambda: samplers.dpmpp_sde_2m(-1), 'eta'), (lambda: samplers.dpmpp_sde_3m(-1), 'eta'),
  (lambda: samplers.dpmpp_3m_shipped('a'), "'k'"), (lambda: samplers.dpmpp_3m_shipped(eta=1), 'eta'),
  (lambda: samplers.dpmpp_3s('a'), "'damped', 'line' or 'parabola'"), (lambda: samplers.unipc(of='v'), "'eps'"),
  (lambda: samplers.dpm_2(EDM, -1), 'churn'), (lambda: samplers.dpm_2_ancestral(EDM, 2), 'from 0 to 1'),
  (lambda: samplers.dpmpp_2s_ancestral(EDM, noise=-1), 'noise'), (lambda: samplers.dpmpp_sde(EDM, r=1), 'between'),
  (lambda: samplers.sa_solver(4), 'from 1 to 3'), (lambda: samplers.sa_solver(2, 1), 'corrector'),
  (lambda: samplers.sa_solver(tau=-1), 'tau'), (lambda: samplers.sa_solver(kind='a'), 'exact'),
  (lambda: samplers.churn(EDM, churn=-1), 'churn'), (lambda: samplers.churn(EDM, low=2, high=1), 'low <= high'),
  (lambda: samplers.langevin(-1), 'corrections'), (lambda: samplers.langevin(snr=2), 'snr'),
  (lambda: samplers.adaptive(EDM, rtol=0), 'rtol'),
  (lambda: samplers.heun().plan(ve(np.zeros(3), np.array([1., 0., 2.]))), 'noise to clean'),
])
def test_bad_input_is_named(call, message):
  with pytest.raises(InputError, match=message):
    call()
