"""From a config to objects: the only reader of the config.

A part is one string, `name` or `name(argument, key=value)`. Arguments are Python literals; whatever is not one is taken as a string, so
that `folder(/my/pictures, size=32)` needs no quotes. To add a schedule, a sampler, a source: write the function and name it here.
"""
import ast
import difflib
import inspect
from functools import partial
from typing import Any, Callable, NamedTuple

import jax
import numpy as np
import optax

from diffusion import grids, losses, nets, predict, samplers, schedules, sharding
from diffusion.data import sources
from diffusion.denoise import clip, denoiser
from diffusion.errors import InputError
from diffusion.guidance import cfg
from diffusion.nets.unet import UNet
from diffusion.noise import Noise, take
from diffusion.tasks import Task
from diffusion.tasks.image import image


def _named(*functions):
  return {f.__name__: f for f in functions}


CHOICES = dict(
  data=_named(sources.sprites, sources.digits, sources.npy, sources.npz, sources.folder, sources.tfds),
  task=_named(image),
  net=dict(unet=UNet),
  schedule=_named(schedules.linear, schedules.cosine, schedules.offset_cosine, schedules.sigmoid, schedules.flow, schedules.edm,
                  schedules.from_betas),
  predict=_named(predict.eps, predict.x0, predict.v, predict.flow, predict.score, predict.edm),
  draw=_named(losses.uniform, losses.stratified, losses.table),
  weight=_named(losses.one, losses.snr, losses.min_snr, losses.p2, losses.edm),
  error=_named(losses.mse, losses.mae, losses.huber),
  decay=dict(cosine=optax.warmup_cosine_decay_schedule, constant=optax.warmup_constant_schedule),
  sampler=_named(samplers.ddim, samplers.ddpm),
  grid=_named(grids.trailing, grids.leading, grids.linspace),
)
NESTED = {'schedule', 'grid', 'sampler'}  # arguments that are specs themselves, as in shift(cosine(None), 3)
HIDDEN = ('self', 'parent', 'name', 'constrain')  # fields of a Flax module that no spec sets


class Plan(NamedTuple):
  """The numbers of a training run; those that end in _every are in steps."""
  seed: int
  batch: int
  steps: int
  log_every: int
  heldout_every: int
  heldout_number: int
  sample_every: int
  save_every: int


class Experiment(NamedTuple):
  """Everything that a config describes, as objects."""
  mesh: jax.sharding.Mesh
  shape: tuple           # of one x0: (H, W, C)
  classes: tuple         # names of the condition's entries; () = unconditional
  task: Task
  init: Callable         # key -> params
  loss: Callable         # (key, params, x0, cond, train) -> (scalar, {'mse', 'logsnr'})
  optimizer: optax.GradientTransformation
  rate: Callable         # step -> learning rate
  ema: Callable          # step -> decay of the averaged weights
  denoise: Callable      # (params, cond) -> Denoise, guided and clipped as configured
  schedule: Any
  sampler: samplers.Sampler
  levels: Noise          # the sampling grid
  plan: Plan


# ---- specs
def _split(text):
  """The comma-separated parts of an argument list; commas inside brackets and quotes do not count."""
  parts, depth, quote, start = [], 0, None, 0
  for i, c in enumerate(text):
    if quote:
      quote = None if c == quote else quote
    elif c in '\'"':
      quote = c
    elif c in '([{':
      depth += 1
    elif c in ')]}':
      depth -= 1
    elif c == ',' and depth == 0:
      parts.append(text[start:i])
      start = i + 1
  return [part.strip() for part in (*parts, text[start:]) if part.strip()]


def _literal(text):
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def parse(spec):
  """'name(1, key=value)' -> ('name', [1], {'key': value}).

  Raises:
    InputError: brackets that do not match, or an argument by position after one by name.
  """
  name, bracket, rest = spec.strip().partition('(')
  if bracket and not rest.endswith(')'):
    raise InputError(f'{spec!r}: expected name or name(argument, key=value); the closing bracket is missing')
  args, kwargs = [], {}
  for part in _split(rest[:-1]):
    key, equals, value = part.partition('=')
    if equals and key.strip().isidentifier():
      kwargs[key.strip()] = _literal(value.strip())
    elif kwargs:
      raise InputError(f'{spec!r}: {part!r} follows a named argument; give it a name too')
    else:
      args.append(_literal(part))
  return name.strip(), args, kwargs


def _usage(name, function):
  fields = [p for p in inspect.signature(function).parameters.values() if p.name not in HIDDEN]
  return f'{name}({", ".join(str(p.replace(annotation=p.empty)) for p in fields)})'


def unknown(name, names):
  """'unknown x; did you mean y? Valid: y, z': the end of an error message."""
  close = difflib.get_close_matches(name, names, 1, .5)
  return f'unknown {name!r}' + (f'; did you mean {close[0]!r}? Valid: ' if close else '; valid: ') + ', '.join(names)


def make(field, spec, **extra):
  """The object that the spec of a config field describes; `extra` are given to those functions that ask for them by name.

  Raises:
    InputError: an unknown name or argument, with the valid ones.
  """
  name, args, kwargs = parse(spec)
  choices = CHOICES[field]
  if name not in choices:
    raise InputError(f'config.{field}={spec!r}: {unknown(name, choices)}')
  function = choices[name]
  usage, signature = _usage(name, function), inspect.signature(function)
  strange = [k for k in kwargs if k not in signature.parameters or k in HIDDEN]
  if strange:
    raise InputError(f'config.{field}={spec!r}: unknown argument {strange[0]!r}; expected {usage}')
  given = {key: value for key, value in extra.items() if key in signature.parameters and key not in kwargs}
  try:
    bound = signature.bind(*args, **kwargs, **given)
  except TypeError as error:
    raise InputError(f'config.{field}={spec!r}: {error}; expected {usage}') from None
  for key in NESTED & bound.arguments.keys():
    if isinstance(bound.arguments[key], str):
      bound.arguments[key] = make(key, bound.arguments[key])
  try:
    return function(*bound.args, **bound.kwargs)
  except InputError as error:
    raise InputError(f'config.{field}={spec!r}: {error}') from error
  except (TypeError, AttributeError, ValueError, ArithmeticError) as error:  # an argument of the wrong type, such as trailing(ten)
    raise InputError(f'config.{field}={spec!r}: {error}; expected {usage}') from error


# ---- checks
def _check_process(config, schedule, levels):
  """The parameterisation must be solvable at the noisiest level, and scale its input where the data is not."""
  row = make('predict', config.predict)(take(levels, 0))
  if predict.determinant(row, take(levels, 0)) == 0:
    raise InputError(f"config.predict={config.predict!r} says nothing about x0 where config.schedule={config.schedule!r} has no signal "
                     "left; use 'v', 'x0' or 'flow'")
  exploding = bool(np.all(levels.alpha == 1))
  if exploding != (parse(config.predict)[0] == 'edm'):
    raise InputError(f"config.predict={config.predict!r} does not go with config.schedule={config.schedule!r}: the target 'edm' and the "
                     "schedule 'edm' (alpha = 1, its input needs scaling) belong together")


def _check_numbers(config):
  for name in (*Plan._fields[1:], 'keep'):
    if config[name] < 1:
      raise InputError(f'config.{name}={config[name]}: expected at least 1')
  for name, low, high in (('condition_dropout', 0, 1), ('ema', 0, 1), ('learning_rate', 0, np.inf), ('weight_decay', 0, np.inf),
                          ('clip_norm', 0, np.inf), ('warmup', 0, np.inf), ('seed', 0, 2 ** 31), ('beta2', 0, .99999999), ('guidance', -np.inf, np.inf)):
    if not low <= config[name] <= high or not np.isfinite(config[name]):
      raise InputError(f'config.{name}={config[name]}: expected a number from {low} to {high}')


# ---- the experiment
def load_data(config):
  """The Source that config.data names."""
  return make('data', config.data)


def _optimizer(config):
  warmup = dict(init_value=config.learning_rate / max(config.warmup, 1), peak_value=config.learning_rate, warmup_steps=config.warmup)
  if config.decay not in CHOICES['decay']:
    raise InputError(f'config.decay={config.decay!r}: {unknown(config.decay, CHOICES["decay"])}')
  if config.decay == 'cosine':
    warmup['decay_steps'] = max(config.steps, config.warmup + 1)
  rate = CHOICES['decay'][config.decay](**warmup)
  clipping = optax.clip_by_global_norm(config.clip_norm or np.inf)  # always there, so that the state keeps its shape
  return optax.chain(clipping, optax.adamw(rate, b2=config.beta2, weight_decay=config.weight_decay)), rate


def check(config):
  """Raises InputError for whatever does not fit, as far as it can be told without the data: call it before reading them."""
  _check_numbers(config)
  schedule = make('schedule', config.schedule)
  _check_process(config, schedule, make('grid', config.grid)(schedule))
  for field in ('task', 'draw', 'weight', 'error', 'sampler'):
    make(field, config[field])
  if config.guidance != 1 and not config.condition_dropout:
    raise InputError(f'config.guidance={config.guidance:g} needs a model that has learned to do without its condition: '
                     'set config.condition_dropout above 0, or config.guidance=1')
  make('net', config.net)
  _optimizer(config)


def build(config, shape, classes, mesh):
  """The experiment that a config describes, for pictures of `shape` [H, W, C] and these classes, on a mesh.

  Raises:
    InputError: anything that does not fit, before the first expensive step.
  """
  check(config)
  task = make('task', config.task)
  schedule, target = make('schedule', config.schedule), make('predict', config.predict)
  levels = make('grid', config.grid)(schedule)
  init, net = nets.make(make('net', config.net, constrain=sharding.constrain(mesh)))
  example = np.zeros((1, len(classes)), np.float32) if classes else None
  init = partial(init, shape=(1, *shape), cond=example)
  try:
    jax.eval_shape(init, jax.random.key(0))  # sizes and options that do not fit are named here
  except InputError:
    raise
  except (TypeError, ValueError) as error:
    raise InputError(f'config.net={config.net!r}: {error}; expected {_usage("unet", UNet)}'.replace('\n', ' ')) from error
  optimizer, rate = _optimizer(config)
  draw = losses.drawn_from(make('draw', config.draw), schedule)
  loss_options = dict(draw=draw, predict=target, weight=make('weight', config.weight), error=make('error', config.error), null=task.null)

  def loss(key, params, x0, cond, train):
    dropout = config.condition_dropout if train else 0.
    return losses.loss(key, net, params, x0, cond, dropout=dropout, train=train, **loss_options)

  def denoise(params, cond):
    told = denoiser(net, params, cond, target)
    if cond is not None and config.guidance != 1:
      told = cfg(told, denoiser(net, params, task.null(cond), target), config.guidance)
    return clip(told) if config.clip else told

  def ema(step):
    return jax.numpy.minimum(config.ema, (1. + step) / (10. + step))

  return Experiment(mesh, tuple(shape), tuple(classes), task, init, loss, optimizer, rate, ema, denoise, schedule,
                    make('sampler', config.sampler), levels, Plan(*(config[name] for name in Plan._fields)))
