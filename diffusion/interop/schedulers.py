"""The schedulers of diffusers as our schedule, target, sampler and grid, all strings of a config.

A key that a file lacks has the default of the class that opens it, as there. A key of another scheduler has no effect
there and none here. Every other key must be one that is meant here, or at its default.
"""
import re
from typing import NamedTuple

from diffusion.errors import InputError, unknown


class Process(NamedTuple):
  """Settings of a config."""
  schedule: str
  predict: str
  sampler: str
  grid: str
  variance: str  # 'fixed', or 'learned' by a second half of the network's channels
  clip_x0: bool


BETAS = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=.02, beta_schedule='linear', trained_betas=None,
             prediction_type='epsilon', steps_offset=0)
ZERO = dict(rescale_betas_zero_snr=False)
NOISES = dict(use_karras_sigmas=False, use_exponential_sigmas=False, use_beta_sigmas=False)
THRESHOLD = dict(thresholding=False, dynamic_thresholding_ratio=.995, sample_max_value=1.)
CLIP = dict(clip_sample=True, clip_sample_range=1.)
FLOW = dict(use_flow_sigmas=False, flow_shift=1., use_dynamic_shifting=False, time_shift_type='exponential')
FIELDS = dict(  # class -> {field: default}
  DDPMScheduler=BETAS | CLIP | THRESHOLD | ZERO | dict(variance_type='fixed_small', timestep_spacing='leading'),
  DDIMScheduler=BETAS | CLIP | THRESHOLD | ZERO | dict(set_alpha_to_one=True, timestep_spacing='leading'),
  PNDMScheduler=BETAS | dict(skip_prk_steps=False, set_alpha_to_one=False, timestep_spacing='leading'),
  EulerDiscreteScheduler=BETAS | NOISES | ZERO | dict(
    interpolation_type='linear', sigma_min=None, sigma_max=None, timestep_spacing='linspace', timestep_type='discrete',
    final_sigmas_type='zero'),
  EulerAncestralDiscreteScheduler=BETAS | ZERO | dict(timestep_spacing='linspace'),
  HeunDiscreteScheduler=BETAS | NOISES | CLIP | dict(
    beta_start=.00085, beta_end=.012, clip_sample=False, timestep_spacing='linspace'),
  LMSDiscreteScheduler=BETAS | NOISES | dict(timestep_spacing='linspace'),
  DPMSolverMultistepScheduler=BETAS | NOISES | ZERO | THRESHOLD | FLOW | dict(
    solver_order=2, algorithm_type='dpmsolver++', solver_type='midpoint', lower_order_final=True, euler_at_final=False,
    use_lu_lambdas=False, final_sigmas_type='zero', lambda_min_clipped=float('-inf'), variance_type=None,
    timestep_spacing='linspace'),
  UniPCMultistepScheduler=BETAS | NOISES | ZERO | THRESHOLD | FLOW | dict(
    solver_order=2, predict_x0=True, solver_type='bh2', lower_order_final=True, disable_corrector=[], solver_p=None,
    timestep_spacing='linspace', final_sigmas_type='zero', sigma_min=None, sigma_max=None, shift_terminal=None))
ELSEWHERE = set().union(*FIELDS.values()) | {'skip_prk_steps', 'interpolation_type', 'lower_order_second'}
PREDICT = dict(epsilon='eps', sample='x0', v_prediction='v')
VARIANCES = dict(fixed_small='small', fixed_small_log='small', fixed_large='large', learned_range='learned')
MEANT = {*BETAS, *CLIP, *ZERO, *NOISES, 'timestep_spacing', 'set_alpha_to_one', 'variance_type', 'skip_prk_steps',
         'final_sigmas_type', 'solver_order', 'algorithm_type', 'solver_type', 'predict_x0',
         'dynamic_thresholding_ratio', 'sample_max_value', 'flow_shift', 'time_shift_type'} - {'use_beta_sigmas'}

TYPES = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'a name'}
MOST_LEVELS = 100_000  # of a table


def read(config, steps=50):
  """The Process of a scheduler_config.json.

  Args:
    config: its contents, a dict.
    steps: evaluations on the grid, as diffusers counts them.
  Raises:
    InputError: a class or field that has no meaning here, or a file of a newer format; names it.
  """
  name = config.get('_class_name')
  if str(name) not in FIELDS:
    raise InputError(f'scheduler _class_name={name!r}: {unknown(str(name), FIELDS)}; any of them may take its place')
  check_version(config)
  values = FIELDS[name] | {key: value for key, value in config.items() if key in FIELDS[name]}
  for key, value in config.items():
    if not key.startswith('_') and key not in FIELDS[name] and key not in ELSEWHERE:
      raise InputError(f'{name}: field {key}={value!r} has no meaning here; remove it if it has no effect')
  _check_types(name, values)
  for key, value in values.items():
    if key not in MEANT and value != FIELDS[name][key]:
      _refuse(name, values, key, repr(FIELDS[name][key]))
  schedule, predict = _schedule(name, values), _one_of(name, values, 'prediction_type', PREDICT)
  learned = str(values.get('variance_type') or '').startswith('learned')
  sampler, clip_x0 = SOLVERS[name](name, values, steps)
  return Process(schedule, predict, sampler, _grid(name, values, steps), 'learned' if learned else 'fixed', clip_x0)


def check_version(config):
  """Raises InputError for a file of a newer format than diffusers 0.x."""
  version = str(config.get('_diffusers_version', '0'))
  major = re.match(r'\d+', version)
  if not major or int(major[0]) > 0:
    raise InputError(f'_diffusers_version={version!r}: expected 0.x; this format is newer, save it with diffusers 0.x')


def _check_types(name, values):
  """Raises InputError for a field that is not of the type of its default, or too large a table."""
  for key, default in FIELDS[name].items():
    kind = type(default) if isinstance(default, (bool, int, str)) else (int, float)
    wrong = not isinstance(values[key], kind) or isinstance(values[key], bool) != isinstance(default, bool)
    if key in MEANT and isinstance(default, (bool, int, float, str)) and wrong:
      _refuse(name, values, key, TYPES[type(default)])
  if not 1 <= values['num_train_timesteps'] <= MOST_LEVELS:
    _refuse(name, values, 'num_train_timesteps', f'1 to {MOST_LEVELS:,}')
  betas = values['trained_betas']
  if betas is not None and not (isinstance(betas, list) and all(type(beta) in (int, float) for beta in betas)):
    _refuse(name, values, 'trained_betas', 'a list of numbers, or null')


def _refuse(name, values, key, expected):
  raise InputError(f'{name}: {key}={values[key]!r} is not offered here; expected {expected}')


def _one_of(name, values, key, choices):
  if values[key] not in choices:
    _refuse(name, values, key, ', '.join(map(repr, choices)))
  return choices[values[key]]


def _schedule(name, values):
  T, start, end = (values[key] for key in ('num_train_timesteps', 'beta_start', 'beta_end'))
  kind = values['beta_schedule']
  if values['trained_betas'] is not None:
    text = f'from_betas({[float(b) for b in values["trained_betas"]]})'
  elif kind in ('linear', 'scaled_linear'):  # whose ends are for 1000 levels here
    text = f'{kind}({T}, start={start * T / 1000!r}, end={end * T / 1000!r})'
  elif kind == 'squaredcos_cap_v2':
    text = f'cosine({T})'
  else:
    _refuse(name, values, 'beta_schedule', "'linear', 'scaled_linear' or 'squaredcos_cap_v2'")
  return f'zero_terminal({text})' if values.get('rescale_betas_zero_snr') else text


# ---- solvers: (name, values, steps) -> (config.sampler, config.clip_x0)
def _ddpm(name, values, steps):
  variance = _one_of(name, values, 'variance_type', VARIANCES)
  if values['clip_sample'] and values['clip_sample_range'] != 1:
    _refuse(name, values, 'clip_sample_range', '1.0')
  if variance == 'large' and (values['timestep_spacing'] == 'trailing' or values['steps_offset']):
    _refuse(name, values, 'variance_type', "'fixed_small': this spacing ends above row 0, where noise would be added")
  return f'ddpm({variance!r})', values['clip_sample']


def _ddim(name, values, steps):
  clip = float(values['clip_sample_range']) if values['clip_sample'] else 0.
  return f'ddim_shipped(clip={clip}{_idle(values, steps)})', False


def _idle(values, steps):
  """The number of steps, where the grid leaves out one from row 0 to row 0."""
  starts_at_0 = values['timestep_spacing'] == 'linspace' or (
    values['timestep_spacing'] == 'leading' and not values['steps_offset'])
  return f', steps={steps}' if starts_at_0 and not values['set_alpha_to_one'] else ''


def _pndm(name, values, steps):
  if not values['skip_prk_steps']:
    _refuse(name, values, 'skip_prk_steps', 'True, or another scheduler, such as DDIMScheduler')
  if values['prediction_type'] != 'epsilon':
    _refuse(name, values, 'prediction_type', "'epsilon', or another scheduler, such as DDIMScheduler")
  return f'pndm({_idle(values, steps)[2:]})', False


def _of_sigma(sampler):
  def solver(name, values, steps):
    if values.get('clip_sample'):
      _refuse(name, values, 'clip_sample', 'False')
    return sampler, False
  return solver


def _dpmpp(name, values, steps):
  if values['final_sigmas_type'] != 'zero':
    _refuse(name, values, 'final_sigmas_type', "'zero'")
  if values['variance_type'] is not None:
    _refuse(name, values, 'variance_type', 'None')
  order, kind, algorithm = (values[key] for key in ('solver_order', 'solver_type', 'algorithm_type'))
  choices = {('dpmsolver++', 1): 'ddim', ('dpmsolver++', 2): f'dpmpp_2m({kind!r})',
             ('dpmsolver++', 3): 'dpmpp_3m_shipped', ('sde-dpmsolver++', 2): f'dpmpp_sde_2m(1., {kind!r})'}
  if (algorithm, order) not in choices:
    _refuse(name, values, 'algorithm_type', "'dpmsolver++' of order 1 to 3, or 'sde-dpmsolver++' of order 2")
  if kind not in ('midpoint', 'heun') or order == 3 and kind != 'midpoint':
    _refuse(name, values, 'solver_type', "'midpoint'")
  return choices[algorithm, order], False


def _unipc(name, values, steps):
  if values['final_sigmas_type'] != 'zero':
    _refuse(name, values, 'final_sigmas_type', "'zero'")
  kind = 'bh2' if values['solver_type'] in ('midpoint', 'heun', 'logrho') else values['solver_type']  # as there
  if kind == 'bh1' and values['predict_x0']:
    _refuse(name, values, 'solver_type', "'bh2': bh1 is not finite there")
  of = 'x0' if values['predict_x0'] else 'eps'
  return f'unipc({values["solver_order"]}, {kind!r}, of={of!r})', False


SOLVERS = dict(
  DDPMScheduler=_ddpm, DDIMScheduler=_ddim, PNDMScheduler=_pndm, EulerDiscreteScheduler=_of_sigma('euler'),
  EulerAncestralDiscreteScheduler=_of_sigma('euler_ancestral'), HeunDiscreteScheduler=_of_sigma('heun'),
  LMSDiscreteScheduler=_of_sigma('lms'), DPMSolverMultistepScheduler=_dpmpp, UniPCMultistepScheduler=_unipc)


def _grid(name, values, steps):
  kind = dict(DPMSolverMultistepScheduler='dpmpp', UniPCMultistepScheduler='unipc', DDPMScheduler='ddim',
              DDIMScheduler='ddim', PNDMScheduler='ddim').get(name, 'euler')
  spacing = values['timestep_spacing']
  if spacing not in ('leading', 'linspace', 'trailing'):
    _refuse(name, values, 'timestep_spacing', "'leading', 'linspace' or 'trailing'")
  if kind in ('dpmpp', 'unipc') and values['use_exponential_sigmas']:
    _refuse(name, values, 'use_exponential_sigmas', 'False: the rows there depend on rounding')
  noise = 'karras' if values.get('use_karras_sigmas') else 'exponential' if values.get('use_exponential_sigmas') else ''
  first = not values.get('set_alpha_to_one', True) or values.get('final_sigmas_type') == 'sigma_min'
  offset = f', offset={values["steps_offset"]}' if values['steps_offset'] else ''
  return (f"shipped({steps}, {kind!r}, {spacing!r}{offset}" + f', noise={noise!r}' * bool(noise)
          + ", end='first'" * first + ')')
