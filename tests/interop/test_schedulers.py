"""Schedulers' files: the levels visited and whole trajectories, against diffusers where it is installed."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import samplers
from diffusion.core.gaussian import clip, take
from diffusion.errors import InputError
from diffusion.interop import schedulers
from diffusion.setup.choices import make
from experiments.mixture import mixture_denoiser, mixture_eps

SD = dict(beta_schedule='scaled_linear', beta_start=.00085, beta_end=.012)
SPACINGS = ('leading', 'linspace', 'trailing')
MEANS, STD = np.random.default_rng(0).normal(size=(4, 8)) / 2, .3
KEYS = samplers.sample_keys(0, np.arange(5))
CASES = [
  ('DDPMScheduler', {}), ('DDPMScheduler', dict(SD, clip_sample=False, variance_type='fixed_large')),
  ('DDPMScheduler', dict(num_train_timesteps=200, beta_schedule='squaredcos_cap_v2')),
  ('DDIMScheduler', {}), ('DDIMScheduler', dict(SD, set_alpha_to_one=False, steps_offset=1, clip_sample=False)),
  ('DDIMScheduler', dict(num_train_timesteps=500, clip_sample_range=.7)),
  ('DDIMScheduler', dict(SD, rescale_betas_zero_snr=True, prediction_type='v_prediction', clip_sample=False)),
  ('PNDMScheduler', dict(SD, skip_prk_steps=True, steps_offset=1)),
  ('PNDMScheduler', dict(SD, skip_prk_steps=True, set_alpha_to_one=True)),
  ('PNDMScheduler', dict(skip_prk_steps=True)), ('DDIMScheduler', dict(SD, set_alpha_to_one=False, clip_sample=False)),
  ('EulerDiscreteScheduler', dict(SD, steps_offset=1)), ('EulerDiscreteScheduler', dict(SD, use_karras_sigmas=True)),
  ('EulerDiscreteScheduler', dict(use_exponential_sigmas=True)),
  ('EulerDiscreteScheduler', dict(SD, final_sigmas_type='sigma_min', steps_offset=1)),
  ('EulerDiscreteScheduler', dict(SD, rescale_betas_zero_snr=True, prediction_type='v_prediction')),
  ('EulerAncestralDiscreteScheduler', SD), ('HeunDiscreteScheduler', SD), ('LMSDiscreteScheduler', SD),
  ('DPMSolverMultistepScheduler', SD), ('DPMSolverMultistepScheduler', dict(SD, solver_order=3)),
  ('DPMSolverMultistepScheduler', dict(SD, use_karras_sigmas=True, solver_type='heun')),
  ('DPMSolverMultistepScheduler', dict(SD, algorithm_type='sde-dpmsolver++', steps_offset=1)),
  ('UniPCMultistepScheduler', SD), ('UniPCMultistepScheduler', dict(SD, solver_order=3, use_karras_sigmas=True)),
]


def ours(config, steps):
  """(schedule, levels, sampler, clipped) of a file."""
  process = schedulers.read(config, steps)
  schedule = make('schedule', process.schedule)
  levels = make('grid', process.grid)(schedule)
  return schedule, levels, make('sampler', process.sampler, schedule=schedule, levels=levels), process.clip_x0


def theirs(name, options, spacing, steps):
  """Their scheduler. Skipped: what they themselves refuse."""
  diffusers = pytest.importorskip('diffusers', reason='the comparison needs diffusers: pip install -e .[compare]')
  diffusers.utils.logging.set_verbosity_error()
  scheduler = getattr(diffusers, name)(**options, timestep_spacing=spacing)
  scheduler.set_timesteps(steps)
  return scheduler


def once(times):
  times = np.asarray(times, np.float64)
  return times[np.append(True, np.diff(times) != 0)]


@pytest.mark.parametrize('steps', [4, 10, 25])
@pytest.mark.parametrize('spacing', SPACINGS)
@pytest.mark.parametrize('name, options', CASES, ids=lambda case: str(case)[:60])
def test_levels_and_trajectories_are_those_of_diffusers(name, options, spacing, steps, monkeypatch):
  config = dict(options, _class_name=name, timestep_spacing=spacing)
  if options.get('variance_type') == 'fixed_large' and spacing == 'trailing':
    with pytest.raises(InputError, match='variance_type'):
      schedulers.read(config, steps)
    return
  scheduler = theirs(name, options, spacing, steps)
  schedule, levels, sampler, clipped = ours(config, steps)
  visited, expected = levels.time[:-1], once(scheduler.timesteps)
  idle = len(expected) - len(visited)  # a last step from row 0 to row 0
  assert idle in (0, 1) and (not idle or expected[-1] == 0)
  expected = expected[:len(visited)]
  np.testing.assert_allclose(visited, expected, rtol=2e-6, atol=1e-2 if options.get('use_exponential_sigmas') or
                             options.get('use_karras_sigmas') else 0)
  if hasattr(scheduler, 'sigmas'):
    ratio = (levels.sigma / levels.alpha)[:-1]
    np.testing.assert_allclose(ratio, once(scheduler.sigmas)[:len(ratio)], rtol=2e-4)
  x = np.random.default_rng(1).normal(size=(5, 8))
  with jax.enable_x64(True):
    denoise = mixture_denoiser(MEANS, STD)
    drawn = samplers.sample(KEYS, clip(denoise) if clipped else denoise, sampler, levels, jnp.asarray(x))
    reference = trajectory(scheduler, levels, x, monkeypatch)
  np.testing.assert_allclose(drawn, reference, atol=2e-3)


def trajectory(scheduler, levels, x, monkeypatch):
  """Their samples from x at the first level, with our noise."""
  torch = pytest.importorskip('torch')
  module = __import__(type(scheduler).__module__, fromlist=['x'])
  current = [0]

  def drawn(*args, **kwargs):
    return torch.tensor(np.asarray(samplers.gaussian(KEYS, current[0], jnp.zeros((5, 8)))), dtype=torch.float64)
  if hasattr(module, 'randn_tensor'):
    monkeypatch.setattr(module, 'randn_tensor', drawn)
  scaled = type(scheduler).__name__.split('Disc')[0] in ('Euler', 'EulerAncestral', 'Heun', 'LMS')  # x / alpha there
  x = torch.tensor(x / levels.alpha[0] if scaled else x)
  v = scheduler.config.prediction_type == 'v_prediction'
  for i, t in enumerate(scheduler.timesteps):
    current[0] = i + 1
    entered = np.asarray(scheduler.scale_model_input(x, t))
    if hasattr(scheduler, 'sigmas'):
      ratio = float(scheduler.sigmas[scheduler.step_index or 0])
      alpha, sigma = (1 + ratio ** 2) ** -.5, ratio * (1 + ratio ** 2) ** -.5
    else:
      alpha, sigma = (float(a) ** .5 for a in (scheduler.alphas_cumprod[t], 1 - scheduler.alphas_cumprod[t]))
    if alpha < 1e-6:
      eps = entered
      out = -MEANS_AT_NO_SIGNAL if v else eps
    else:
      eps = mixture_eps(MEANS, STD, entered / alpha, sigma / alpha)
      out = alpha * eps - sigma * (entered - sigma * eps) / alpha if v else eps
    x = scheduler.step(torch.tensor(out), t, x).prev_sample.to(torch.float64)
  return x.numpy()


MEANS_AT_NO_SIGNAL = np.broadcast_to(MEANS.mean(0), (5, 8))


@pytest.mark.parametrize('config, message', [
  (dict(_class_name='DDIMScheduler', sharpness=2), 'sharpness=2'),
  (dict(_class_name='DDIMScheduler', thresholding=True), 'thresholding=True'),
  (dict(_class_name='DDPMScheduler', beta_schedule='laplace'), "beta_schedule='laplace'"),
  (dict(_class_name='DDPMScheduler', prediction_type='flow'), "prediction_type='flow'"),
  (dict(_class_name='PNDMScheduler'), 'skip_prk_steps=False'),
  (dict(_class_name='EulerDiscreteScheduler', use_beta_sigmas=True), 'use_beta_sigmas'),
  (dict(_class_name='EulerDiscreteScheduler', interpolation_type='log_linear'), 'interpolation_type'),
  (dict(_class_name='DPMSolverMultistepScheduler', use_lu_lambdas=True), 'use_lu_lambdas'),
  (dict(_class_name='DPMSolverMultistepScheduler', algorithm_type='dpmsolver'), 'algorithm_type'),
  (dict(_class_name='UniPCMultistepScheduler', solver_p={}), 'solver_p'),
  (dict(_class_name='UniPCMultistepScheduler', use_exponential_sigmas=True), 'use_exponential_sigmas'),
  (dict(_class_name='KarrasVeScheduler'), "unknown 'KarrasVeScheduler'"),
  (dict(_class_name='DDIMScheduler', _diffusers_version='1.2.0'), 'newer'),
  ({}, '_class_name=None'),
  (dict(_class_name=['DDIMScheduler']), "_class_name=\\['DDIMScheduler'\\]"),
  (dict(_class_name='DDIMScheduler', num_train_timesteps='many'), "timesteps='many' is not.*expected a whole number"),
  (dict(_class_name='DDIMScheduler', num_train_timesteps=10 ** 9), 'timesteps=1000000000 .*1 to 100,000'),
  (dict(_class_name='DDIMScheduler', beta_start=None), 'beta_start=None is not.*expected a number'),
  (dict(_class_name='DDIMScheduler', clip_sample=3), 'clip_sample=3 is not.*expected true or false'),
  (dict(_class_name='DDIMScheduler', steps_offset='1'), "steps_offset='1' is not.*expected a whole number"),
  (dict(_class_name='DDIMScheduler', prediction_type=['epsilon']), 'prediction_type=.*expected a name'),
  (dict(_class_name='DDPMScheduler', trained_betas=[.1, 'a']), 'trained_betas=.*expected a list of numbers'),
  (dict(_class_name='DPMSolverMultistepScheduler', solver_order=[2]), 'solver_order=.*expected a whole number'),
])
def test_what_has_no_meaning_is_refused_by_its_name(config, message):
  with pytest.raises(InputError, match=message):
    schedulers.read(config)


def test_stable_diffusion_file():
  """The scheduler file of Stable Diffusion 1.5, whose clip_sample its class does not have, at its published numbers."""
  file = dict(SD, _class_name='PNDMScheduler', _diffusers_version='0.6.0', num_train_timesteps=1000,
              skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, trained_betas=None, clip_sample=False)
  schedule, levels, *_ = ours(file, 4)
  assert levels.time.tolist() == [751, 501, 251, 1, 0]
  np.testing.assert_allclose(schedule.alpha[0] ** 2, 1 - .00085, rtol=1e-12)
  assert levels.alpha[-1] == schedule.alpha[0]


def test_every_default_of_ours_is_that_of_the_class():
  diffusers = pytest.importorskip('diffusers', reason='the comparison needs diffusers: pip install -e .[compare]')
  for name, fields in schedulers.FIELDS.items():
    config = getattr(diffusers, name)(**({'final_sigmas_type': 'zero'} if 'final' in str(fields) else {})).config
    assert {key: config[key] for key in fields} == fields, name
    assert set(config) - set(fields) <= {'_use_default_values', 'disable_corrector'}, name
