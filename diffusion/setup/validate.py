"""Whether a config fits together: everything that can be told without the data, before anything is built."""
import numpy as np

from diffusion.core import gaussian
from diffusion.core.gaussian import take
from diffusion.core.schedules import evaluate, scaling_of
from diffusion.errors import InputError
from diffusion.setup import specs
from diffusion.setup.choices import CHOICES, make, parse_averages

COUNTS = ('fsdp', 'accumulate', 'batch', 'steps', 'log_every', 'heldout_every', 'heldout_number', 'sample_every', 'save_every', 'keep')  # at least 1
RANGES = dict(condition_dropout=(0, 1), ema=(0, 1), learning_rate=(0, np.inf), weight_decay=(0, np.inf), clip_norm=(0, np.inf), warmup=(0, np.inf),
              uncertainty=(0, np.inf), keep_every=(0, np.inf), snapshot_every=(0, np.inf), workers=(0, 256), seed=(0, 2 ** 31), beta2=(0, .99999999), guidance=(-np.inf, np.inf))
UNSCALED = 10.  # largest sigma at alpha = 1 for a target that does not scale the network's input


def check(config):
  """Raises InputError for whatever does not fit, as far as it can be told without the data: call it before reading them."""
  _numbers(config)
  schedule = make('schedule', config.schedule)
  levels = grid(config, schedule)
  _process(config, schedule, levels)
  for field in ('task', 'draw', 'weight', 'error', 'noise', 'variance', 'sampler'):
    make(field, config[field], schedule=schedule, levels=levels)
  make('net', config.net, classes=2)
  _training(config)
  guidance_stack(config)(None, None)
  _sampling(config)


def grid(config, schedule):
  """The levels that config.grid visits."""
  try:
    return make('grid', config.grid)(schedule)
  except InputError as error:
    raise InputError(f'config.grid={config.grid!r}: {str(error).partition(f"config.grid={config.grid!r}: ")[2] or error}') from error


def spec_name(config, field):
  """The name in a config field, without its arguments."""
  return specs.parse(config[field])[0]


def is_classifier(config):
  """Whether the config trains a noisy classifier, which draws nothing."""
  return spec_name(config, 'net') == 'classifier'


def learns_schedule(config):
  """Whether the noise schedule is trained with the network."""
  return spec_name(config, 'schedule') == 'learned'


def guides(config):
  """The names in the stack of config.guide."""
  return [specs.parse(part)[0] for part in config.guide.split('|')]


def guidance_stack(config):
  """(cond, null, log_prob=None) -> Denoise: the transforms of config.guide, from left to right."""
  def stacked(cond, null, log_prob=None):
    told = cond
    for part in config.guide.split('|'):
      told = make('guide', part, guided=told, denoise=told, cond=cond, plain=cond, null=null, scale=config.guidance, log_prob=log_prob)
    return told
  return stacked


def _numbers(config):
  for field in COUNTS:
    if config[field] < 1:
      raise InputError(f'config.{field}={config[field]}: expected at least 1')
  for field, (low, high) in RANGES.items():
    if not low <= config[field] <= high or not np.isfinite(config[field]):
      raise InputError(f'config.{field}={config[field]}: expected a number from {low} to {high}')
  if config.decay not in CHOICES['decay']:
    raise InputError(f'config.decay={config.decay!r}: {specs.unknown(config.decay, CHOICES["decay"])}')


def _process(config, schedule, levels):
  """Checks that the target determines x0 wherever the network is asked, and that the network's inputs stay of the size of the data."""
  predict, names = make('predict', config.predict), f'config.predict={config.predict!r}, config.schedule={config.schedule!r}'
  asked = [take(levels, slice(0, -1))] + ([] if callable(schedule) else [schedule])
  with np.errstate(divide='ignore'):
    targets = [predict(noise) for noise in asked]
    unsolvable = [np.any(gaussian.determinant(target, noise) == 0) for target, noise in zip(targets, asked)]
  if any(unsolvable):
    raise InputError(f"{names}: the output says nothing about x0 where the schedule has no signal; "
                     "set config.predict='v', 'x0' or 'flow'")
  target, noisiest = targets[0], evaluate(schedule, 1.)
  if target.scalings and scaling_of(schedule) not in target.scalings:
    fitting = ' or '.join(scaling.__name__ for scaling in target.scalings)
    raise InputError(f"{names}: this target is defined for the scaling {fitting} and the schedule is {scaling_of(schedule).__name__}; "
                     "set config.predict='v', 'x0' or 'eps', or another schedule (config.schedule='edm' is ve)")
  exploding = np.all(levels.alpha == 1) and noisiest.sigma > UNSCALED
  if exploding and np.all(np.equal(target.scale, 1)) and gaussian.ve not in target.scalings:
    raise InputError(f"{names}: inputs grow to sigma={noisiest.sigma:g} times the size of the data, and this target does not scale them; "
                     f"set config.predict='edm', or a schedule with sigma up to {UNSCALED:g}")


def _expect(config, why, **plain):
  """Raises InputError where a field is not at the only value that goes with something else."""
  odd = [field for field, value in plain.items() if (spec_name(config, field) if isinstance(value, str) else config[field]) != value]
  if odd:
    raise InputError(f'{why}; set ' + ', '.join(f'config.{field}={plain[field]!r}' for field in odd))


def _training(config):
  if config.save_failure not in ('stop', 'go on'):
    raise InputError(f"config.save_failure={config.save_failure!r}: expected 'stop' or 'go on'")
  kept = [name for name, _ in parse_averages(config.averages)]
  if config.snapshot_every and not any(name.startswith('power') for name in kept):
    raise InputError(f'config.snapshot_every={config.snapshot_every} keeps power averages for later, and config.averages={config.averages!r} has none; '
                     "set config.averages='power(.05) | power(.1)'")
  if config.accumulate > 1 and (learns_schedule(config) or spec_name(config, 'draw') == 'loss_aware'):
    raise InputError(f"config.accumulate={config.accumulate} does not work with config.schedule='learned' or config.draw='loss_aware', "
                     'which look at the whole batch at once; set it to 1')
  if is_classifier(config):
    _expect(config, f'config.net={config.net!r}: a classifier has no use for what is set', uncertainty=0, self_condition=False, variance='fixed',
            noise='plain', error='mse')
    if learns_schedule(config) or spec_name(config, 'draw') == 'loss_aware':
      raise InputError("a classifier takes neither config.schedule='learned' nor config.draw='loss_aware'")
  if learns_schedule(config):
    _expect(config, "config.schedule='learned' is trained by the variational bound", weight='vlb', draw='stratified', variance='fixed', error='mse',
            noise='plain', uncertainty=0)
  if config.uncertainty and spec_name(config, 'draw') == 'loss_aware':
    raise InputError("config.draw='loss_aware' follows the loss, which config.uncertainty makes the same at every level; use one of them")


def _sampling(config):
  if spec_name(config, 'variance') == 'fixed' and spec_name(config, 'sampler') == 'ddpm' and 'learned' in config.sampler:
    raise InputError(f"config.sampler={config.sampler!r} needs a model that has learned its variance: train with config.variance='learned'")
  if config.self_condition and spec_name(config, 'sampler') == 'adaptive':
    raise InputError("config.sampler='adaptive' has no last estimate to tell a self-conditioned network; use best or heun")
  makers = [i for i, guide in enumerate(guides(config)) if guide in ('cfg', 'apg')]
  if makers not in ([], [0]):
    raise InputError(f'config.guide={config.guide!r}: cfg or apg comes first, and once; what stands before it would be lost')
  for guide, args, kwargs in map(specs.parse, config.guide.split('|')):
    if guide in ('cfg', 'apg') and (args or 'scale' in kwargs):
      raise InputError(f'config.guide={config.guide!r}: the scale is config.guidance; name the other arguments, as in {guide}(lo=-3, hi=4)')
  if (config.guidance != 1 or config.sample.bad) and not makers and 'classifier' not in guides(config):
    raise InputError(f'config.guide={config.guide!r} has no use for config.guidance={config.guidance:g}: begin it with cfg or apg')
  if config.negative and (config.guidance == 1 or not makers or config.sample.bad or config.sample.classifier):
    raise InputError(f'config.negative={config.negative!r} is what cfg or apg leads away from: at a config.guidance other than 1, and without '
                     'config.sample.bad or config.sample.classifier')
  if config.guidance != 1 and not config.condition_dropout and not config.sample.bad and not is_classifier(config):
    raise InputError(f'config.guidance={config.guidance:g} needs a model that has learned to do without its condition: '
                     'set config.condition_dropout above 0, or config.guidance=1')
