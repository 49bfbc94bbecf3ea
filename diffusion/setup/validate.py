"""Whether a config fits together, as far as that is known without the data; its parts are built once, here."""
from typing import Any, NamedTuple

import numpy as np

from diffusion.core import gaussian
from diffusion.core.gaussian import Noise, take
from diffusion.core.schedules import evaluate, scaling_of
from diffusion.errors import InputError
from diffusion.samplers import Sampler
from diffusion.setup import guide, specs
from diffusion.setup.choices import make, parse_emas
from diffusion.tasks import Task

COUNTS = ('fsdp', 'grad_accumulation', 'batch', 'steps', 'log_every', 'val_every', 'val_samples', 'sample_every',
          'save_every', 'keep_last')
RANGES = dict(condition_dropout=(0, 1), ema_decay=(0, 1), learning_rate=(0, np.inf), grad_clip=(0, np.inf),
              logvar_channels=(0, np.inf), keep_every=(0, np.inf), snapshot_every=(0, np.inf), data_workers=(0, 256),
              seed=(0, 2 ** 31))
UNSCALED = 10.  # largest sigma at alpha = 1 for a target that does not scale the input of the network


class Parts(NamedTuple):
  """What a config names, as objects that need no data."""
  task: Task
  schedule: Any
  levels: Noise      # the sampling grid
  sampler: Sampler
  target: Any        # noise -> Target
  timesteps: Any
  loss_weight: Any
  loss_type: Any
  noise_type: Any
  variance: Any
  guide: guide.Guide
  optimizer: Any     # (rate, mask) -> optax transformation
  lr_schedule: Any   # (peak, steps) -> step -> rate
  emas: tuple        # (name, step -> decay) of config.extra_emas


def check(config):
  """The Parts of a config; raises InputError for whatever does not fit: call it before the data are read."""
  _check_numbers(config)
  schedule = make('schedule', config.schedule)
  levels = make_grid(config, schedule)
  _check_process(config, schedule, levels)
  build = lambda field: make(field, config[field], schedule=schedule)
  target = build('predict')
  if spec_name(config, 'variance') == 'learned':
    target = gaussian.with_variance(target)
  parts = Parts(
    task=build('task'), schedule=schedule, levels=levels,
    sampler=make('sampler', config.sampler, schedule=schedule, levels=levels), target=target,
    timesteps=build('timesteps'), loss_weight=build('loss_weight'), loss_type=build('loss_type'),
    noise_type=build('noise_type'), variance=build('variance'), guide=guide.parse(config.guide),
    optimizer=build('optimizer'), lr_schedule=build('lr_schedule'), emas=parse_emas(config.extra_emas))
  make('net', config.net, classes=2)
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


def is_classifier(config):
  """Whether the config trains a noisy classifier, which draws nothing."""
  return spec_name(config, 'net') == 'classifier'


def learns_schedule(config):
  """Whether the noise schedule is trained with the network."""
  return spec_name(config, 'schedule') == 'learned'


def _check_numbers(config):
  for field in COUNTS:
    if config[field] < 1:
      raise InputError(f'config.{field}={config[field]}: expected at least 1')
  for field, (low, high) in RANGES.items():
    if not low <= config[field] <= high or not np.isfinite(config[field]):
      raise InputError(f'config.{field}={config[field]}: expected a number from {low} to {high}')
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
                     f"network; set config.predict='edm', or a schedule with sigma up to {UNSCALED:g}")


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
  if config.grad_accumulation > 1 and (learns_schedule(config) or loss_aware):
    raise InputError(f"config.grad_accumulation={config.grad_accumulation} does not work with "
                     "config.schedule='learned' or config.timesteps='loss_aware', which need whole batches: "
                     'set it to 1')
  if is_classifier(config):
    _expect(config, f'config.net={config.net!r}: a classifier does not use some of the settings', logvar_channels=0,
            self_condition=False, variance='fixed', noise_type='gaussian', loss_type='mse')
    if learns_schedule(config) or loss_aware:
      raise InputError("a classifier takes neither config.schedule='learned' nor config.timesteps='loss_aware'")
  if learns_schedule(config):
    _expect(config, "config.schedule='learned' is trained by the variational bound", loss_weight='vlb',
            timesteps='stratified', variance='fixed', loss_type='mse', noise_type='gaussian', logvar_channels=0)
  if config.logvar_channels and loss_aware:
    raise InputError("config.timesteps='loss_aware' follows the loss, which config.logvar_channels makes equal at "
                     'every level; use one of them')


def _check_sampling(config, parts):
  sampler = spec_name(config, 'sampler')
  if spec_name(config, 'variance') == 'fixed' and sampler == 'ddpm' and 'learned' in config.sampler:
    raise InputError(f'config.sampler={config.sampler!r} needs a model that has learned its variance: '
                     "train with config.variance='learned'")
  if config.self_condition and sampler == 'adaptive':
    raise InputError("config.sampler='adaptive' keeps no last estimate for a self-conditioned network; use 'best'")
  unconditional = config.condition_dropout or is_classifier(config)
  if parts.guide.doubles and not parts.guide.start.negative and not unconditional:
    raise InputError(f'config.guide={config.guide!r} needs a model that has learned to do without its condition: '
                     "set config.condition_dropout above 0, or config.guide='' for no guidance")
