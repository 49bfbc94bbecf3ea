"""Whether a config fits together, as far as that is known without the data; its parts are built once, here."""
from typing import Any, NamedTuple

import numpy as np

from diffusion.core import gaussian
from diffusion.core.gaussian import Noise, take
from diffusion.core.schedules import evaluate, scaling_of
from diffusion.errors import check_seed, InputError, unknown
from diffusion.samplers import Sampler
from diffusion.samplers.tokens import NEEDS_MASK
from diffusion.setup import guide, specs
from diffusion.setup.choices import CHOICES, make, parse_emas
from diffusion.setup.optimizer import parse_groups

COUNTS = ('fsdp', 'grad_accumulation', 'batch', 'steps', 'log_every', 'val_every', 'val_samples', 'sample_every',
          'save_every', 'keep_last')
RANGES = dict(condition_dropout=(0, 1), ema_decay=(0, 1), learning_rate=(0, np.inf), grad_clip=(0, np.inf),
              logvar_channels=(0, np.inf), keep_every=(0, np.inf), snapshot_every=(0, np.inf), data_workers=(0, 256),
              minutes=(0, np.inf))
SEEDS = ('seed', 'sample.seed', 'edit.seed', 'evaluate.seed')
UNSCALED = 10.  # largest sigma at alpha = 1 for a target that does not scale the input of the network


class Parts(NamedTuple):
  """What a config names, as objects that need no data."""
  schedule: Any
  levels: Noise      # the sampling grid
  sampler: Sampler
  predict: Any       # noise -> Target
  timesteps: Any
  loss_weight: Any
  loss_type: Any
  noise_type: Any
  variance: Any
  guide: guide.Guide
  optimizers: dict   # group -> (rate, mask) -> optax transformation; see optimizer.parse_groups
  lr_schedule: Any   # (peak, steps) -> step -> rate
  emas: tuple        # (name, step -> decay) of config.extra_emas


def check(config):
  """The Parts of a config; raises InputError for whatever does not fit: call it before the data are read."""
  _check_numbers(config)
  schedule = make('schedule', config.schedule)
  levels = make_grid(config, schedule)
  _check_process(config, schedule, levels)
  build = lambda field: make(field, config[field], schedule=schedule)
  parts = Parts(
    schedule=schedule, levels=levels, sampler=make('sampler', config.sampler, schedule=schedule, levels=levels),
    predict=build('predict'), timesteps=build('timesteps'), loss_weight=build('loss_weight'),
    loss_type=build('loss_type'), noise_type=build('noise_type'), variance=build('variance'),
    guide=guide.parse(config.guide), optimizers=parse_groups(config.optimizer), lr_schedule=build('lr_schedule'),
    emas=parse_emas(config.extra_emas, config.batch))
  make('net', config.net, classes=2)
  make('task', config.task)
  _check_training(config, parts)
  _check_sampling(config, parts)
  return parts


def make_grid(config, schedule):
  """The noise levels that config.grid visits."""
  try:
    return make('grid', config.grid)(schedule)
  except InputError as error:
    field = f'config.grid={config.grid!r}: '
    raise InputError(field + (str(error).partition(field)[2] or str(error))) from error


def spec_name(config, field):
  """The name in a config field, without its arguments."""
  return specs.parse(config[field])[0]


def objective_name(config):
  """The name of the objective, which exists."""
  name = spec_name(config, 'objective')
  if name not in CHOICES['objective']:
    raise InputError(f'config.objective={config.objective!r}: {unknown(name, CHOICES["objective"])}')
  return name


def _check_numbers(config):
  for field in COUNTS:
    if config[field] < 1:
      raise InputError(f'config.{field}={config[field]}: expected at least 1')
  for field, (low, high) in RANGES.items():
    if not low <= config[field] <= high or not np.isfinite(config[field]):
      raise InputError(f'config.{field}={config[field]}: expected a number from {low} to {high}')
  for field in SEEDS:
    section, _, last = field.rpartition('.')
    check_seed(f'config.{field}', config[section][last] if section else config[last])
  if config.on_save_error not in ('stop', 'continue'):
    raise InputError(f"config.on_save_error={config.on_save_error!r}: expected 'stop' or 'continue'")


def _check_process(config, schedule, levels):
  """Checks that the target determines x0 at every visited level, and that the network's input stays bounded."""
  names = f'config.predict={config.predict!r}, config.schedule={config.schedule!r}'
  predict = make('predict', config.predict)
  visited = [take(levels, slice(0, -1))] + ([] if callable(schedule) else [schedule])
  with np.errstate(divide='ignore'):
    targets = [predict(noise) for noise in visited]
    unsolvable = [np.any(gaussian.determinant(target, noise) == 0) for target, noise in zip(targets, visited)]
  if any(unsolvable):
    raise InputError(f'{names}: the output says nothing about x0 where the schedule has no signal left; '
                     "set config.predict='v', 'x0' or 'flow'")
  target, noisiest, scaling = targets[0], evaluate(schedule, 1.), scaling_of(schedule)
  if target.scalings and scaling not in target.scalings:
    fitting = ' or '.join(fit.__name__ for fit in target.scalings)
    raise InputError(f'{names}: the target needs the scaling {fitting} and the schedule has {scaling.__name__}; '
                     "set config.predict='v', 'x0' or 'eps', or a schedule that fits (config.schedule='edm' is ve)")
  exploding = np.all(levels.alpha == 1) and noisiest.sigma > UNSCALED
  if exploding and np.all(np.equal(target.scale, 1)) and gaussian.ve not in target.scalings:
    raise InputError(f'{names}: x_t grows to sigma={noisiest.sigma:g}, and the target does not scale it for the '
                     f"network; set config.predict='edm', 'scaled({config.predict})', or a schedule with sigma up to "
                     f'{UNSCALED:g}')


def _expect(config, reason, **values):
  """Raises InputError where a field is not at the only value that goes with another setting."""
  now = lambda field: spec_name(config, field) if isinstance(config[field], str) else config[field]
  odd = [field for field, value in values.items() if now(field) != value]
  if odd:
    raise InputError(f'{reason}; set ' + ', '.join(f'config.{field}={values[field]!r}' for field in odd))


def _check_training(config, parts):
  loss_aware = spec_name(config, 'timesteps') == 'loss_aware'
  if config.snapshot_every and not any(name.startswith('power') for name, _ in parts.emas):
    raise InputError(f'config.snapshot_every={config.snapshot_every} keeps power averages for later, and '
                     f"config.extra_emas={config.extra_emas!r} has none; "
                     "set config.extra_emas='power(.05) | power(.1)'")
  if config.logvar_channels and loss_aware:
    raise InputError("config.timesteps='loss_aware' follows the loss, which config.logvar_channels makes equal at "
                     'every level; use one of them')
  name = objective_name(config)
  for objective, field, value in (('vdm', 'schedule', 'learned'), ('classifier', 'net', 'classifier'),
                                  ('contrastive', 'net', 'clip'), ('autoencoder', 'net', 'autoencoder'),
                                  ('autoregressive', 'net', 'prior_ar'), ('autoregressive', 'task', 'codes')):
    if (name == objective) != (spec_name(config, field) == value):
      wanted = objective if name != objective else 'denoising'
      raise InputError(f"config.objective={config.objective!r} with config.{field}={config[field]!r}: the objective "
                       f"{objective} and config.{field}={value!r} belong together; set config.objective={wanted!r}")
  if name == 'classifier':
    _expect(config, f'config.net={config.net!r}: a classifier does not use some of the settings', logvar_channels=0,
            self_condition=False, variance='fixed', noise_type='gaussian', loss_type='mse')
  if name == 'autoencoder':
    _expect(config, 'an autoencoder does not use some of the settings', logvar_channels=0, self_condition=False,
            variance='fixed', noise_type='gaussian', loss_type='mse')
  if loss_aware and name in ('classifier', 'mixed', 'discrete', 'contrastive', 'autoencoder', 'autoregressive'):
    raise InputError(f"the objective {name} does not take config.timesteps='loss_aware'")
  if name in ('mixed', 'discrete'):
    _expect(config, f'the objective {name} does not use some of the settings', logvar_channels=0,
            self_condition=False, variance='fixed', noise_type='gaussian')
  if name == 'discrete':
    _expect(config, "the objective discrete has a loss of its own, 'discrete(weight=..)', and does not use some of the "
            'settings', predict='x0', loss_weight='min_snr', loss_type='mse')
  if name == 'vdm':
    _expect(config, "config.schedule='learned' is trained by the variational bound", loss_weight='vlb',
            timesteps='stratified', variance='fixed', loss_type='mse', noise_type='gaussian', logvar_channels=0)


def _check_sampling(config, parts):
  sampler = spec_name(config, 'sampler')
  if spec_name(config, 'variance') == 'fixed' and sampler == 'ddpm' and 'learned' in config.sampler:
    raise InputError(f'config.sampler={config.sampler!r} needs a model that has learned its variance: '
                     "train with config.variance='learned'")
  if config.self_condition and sampler == 'adaptive':
    raise InputError("config.sampler='adaptive' keeps no last estimate for a self-conditioned network; use 'best'")
  if sampler == 'mixed' and 'adaptive' in config.sampler:
    raise InputError(f'config.sampler={config.sampler!r}: adaptive has steps of its own, and categories need those of '
                     'the grid; use another solver, such as mixed(best)')
  _, args, kwargs = specs.parse(config.objective)
  if sampler == 'confident' and 'uniform' in (*args, kwargs.get('kernel')):
    raise InputError(f'config.sampler={config.sampler!r}: {NEEDS_MASK}')
  unconditional = config.condition_dropout or objective_name(config) == 'classifier'
  if parts.guide.doubles and not parts.guide.start.negative and not unconditional:
    raise InputError(f'config.guide={config.guide!r} needs a model that has learned to do without its condition: '
                     "set config.condition_dropout above 0, or config.guide='' for no guidance")
