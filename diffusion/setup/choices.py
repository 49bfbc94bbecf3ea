"""What a config can name, gathered from the packages: to add a choice, list it in the `__init__` of its package."""
import inspect

from diffusion import core, objectives, samplers
from diffusion.data import SOURCES
from diffusion.errors import InputError
from diffusion.nets import NETS
from diffusion.setup import specs
from diffusion.setup.optimizer import LR_SCHEDULES, OPTIMIZERS
from diffusion.tasks import TASKS
from diffusion.tasks.degradations import DEGRADATIONS


CHOICES = dict(
  data=SOURCES,
  task=TASKS,
  degradation=DEGRADATIONS,
  objective=objectives.OBJECTIVES,
  net=NETS,
  schedule=core.SCHEDULES | objectives.SCHEDULES,
  predict=core.PREDICT,
  timesteps=objectives.TIMESTEPS,
  loss_weight=objectives.WEIGHTS,
  noise_type=objectives.NOISES,
  variance=objectives.VARIANCES,
  loss_type=objectives.ERRORS,
  optimizer=OPTIMIZERS,
  lr_schedule=LR_SCHEDULES,
  sampler=samplers.SAMPLERS,
  grid=core.GRIDS,
  # Not settings of their own, but arguments of config.objective.
  bottleneck=objectives.BOTTLENECKS,
  likelihood=objectives.LIKELIHOODS,
  adversarial=objectives.ADVERSARIES,
)


def make(field, spec, **extra):
  """The object that the spec of a config field describes; `extra` go to functions with parameters of these names.

  Raises:
    InputError: an unknown name or argument, with the valid ones.
  """
  return specs.resolve(CHOICES, field, spec, **extra)


def parse_emas(text, batch=1):
  """The averages that config.extra_emas asks for.

  Args:
    text: such as 'decay(.9999) | halflife(500_000) | power(.05) | power(.1)'; '' none.
    batch: images of a step, for averages that count images.
  Returns:
    Tuple of (name, step -> decay): the name is canonical, such as 'power(0.05)' or 'decay(0.999, after=100)'. After
    update number `step`, counted from 0, the average becomes decay * average + (1 - decay) * params.
  Raises:
    InputError: an unknown kind, a value out of range, or the same average twice.
  """
  found = {}
  for part in specs.split(text, '|'):
    rule = specs.resolve(dict(extra_emas=core.EMAS), 'extra_emas', part, batch=batch)
    name = _canonical(*specs.parse(part))
    if name in found:
      raise InputError(f'config.extra_emas={text!r}: {name} is listed twice; give each average once')
    found[name] = rule
  return tuple(found.items())


def _canonical(kind, args, kwargs):
  """The name of an average: its first argument, and the others where they are not at their defaults."""
  signature = inspect.signature(core.EMAS[kind])
  bound = signature.bind(*args, **kwargs)
  bound.apply_defaults()
  (_, first), *rest = bound.arguments.items()
  others = [f'{key}={value!r}' for key, value in rest if value != signature.parameters[key].default]
  return f'{kind}({", ".join([str(float(first)), *others])})'
