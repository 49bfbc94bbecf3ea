"""From a config to objects: only setup/ interprets a config."""
from functools import partial
from typing import Any, Callable, NamedTuple

import jax
import numpy as np

from diffusion import nets, samplers
from diffusion.core import ema, gaussian, guidance
from diffusion.core.gaussian import Noise
from diffusion.errors import InputError
from diffusion.objectives.base import Objective
from diffusion.objectives.discrete import without_known
from diffusion.setup import guide, optimizer, specs
from diffusion.setup.choices import CHOICES, make
from diffusion.setup.config import default
from diffusion.setup.validate import check, make_grid, spec_name
from diffusion.system import sharding
from diffusion.tasks import Task
from diffusion.tasks.classes import quoted, split_names

PREDICTS = ('denoise', 'logits', 'mixed')  # fields of a Model that samplers call, and guidance changes
DRAWING = (*PREDICTS, 'jump', 'draw')  # any of which draws
OWN = dict(logits='ancestral', mixed='mixed')  # the sampler of a model that has no denoiser, unless one is named
GAUSSIAN = ('schedule', 'grid', 'guide', 'predict')  # settings that only objectives with a schedule use


class Plan(NamedTuple):
  """The numbers of a training run, as in the config; those that end in _every are in steps."""
  seed: int
  batch: int
  steps: int
  log_every: int
  val_every: int
  val_samples: int
  sample_every: int
  save_every: int
  snapshot_every: int
  grad_accumulation: int
  data_workers: int


class Weights(NamedTuple):
  """All arrays that a compiled function takes beside its data."""
  params: Any
  memory: Any = ()    # of the objective
  frozen: Any = {}    # given weights by owner: 'task', 'objective', and 'guide', the Weights of a second model


class Experiment(NamedTuple):
  """Everything that a config describes, as objects."""
  config: Any            # the config: others show and record its strings, and read the options of their own section
  mesh: jax.sharding.Mesh
  task: Task
  objective: Objective
  example: tuple         # (x0, cond) of one example as the task encodes it: NumPy zeros [1, ...]
  initial: tuple         # (params, memory) at step 0, as ShapeDtypeStructs
  can: frozenset         # the fields that its Model has
  plan: Plan
  split: Callable        # params -> (those that are trained, the rest)
  optimizer: Callable    # number of steps of the run -> an optax transformation of those that are trained
  rate: Callable         # number of steps of the run -> step -> learning rate
  ema: Callable          # step -> decay of the averaged parameters
  averages: tuple        # of config.extra_emas: (name, step -> decay)
  schedule: Any          # None, as the next two, where the objective has none
  levels: Noise          # the sampling grid
  sampler: samplers.Sampler
  guide: guide.Guide
  guided: Callable       # the Experiment of a second model or None -> (weights, cond) -> Denoise, guided and clipped
  denoise: Callable      # the same without a second model: guided(None)

  @property
  def shape(self):
    """Of one x0 in training: a tuple, or a tree of them."""
    return jax.tree.map(lambda a: a.shape[1:], self.example[0])

  @property
  def classes(self):
    return self.task.classes

  @property
  def draws(self):
    """Whether samples can be drawn from the model."""
    return bool(self.can & set(DRAWING))

  @property
  def frozen(self):
    """Given weights by owner, on the host."""
    owners = dict(task=self.task.frozen, objective=self.objective.frozen)
    return {owner: tree for owner, tree in owners.items() if jax.tree.leaves(tree)}

  @property
  def self_condition(self):
    """Whether the denoiser takes its previous estimate of x0."""
    return self.config.self_condition and 'denoise' in self.can

  def model(self, weights):
    return self.objective.model(weights.params, weights.memory, weights.frozen.get('objective', ()))

  @property
  def predicts(self):
    """What its samplers call: a field of its Model, or '' if no sampler draws from it."""
    return next((name for name in PREDICTS if name in self.can), '')

  def plain(self, weights, cond):
    """The denoiser, or what else the sampler calls, without guidance."""
    return getattr(self.model(weights), self.predicts)(cond)

  def prior(self, weights, keys, levels, shape):
    """What sampling starts from."""
    return (self.model(weights).prior or samplers.prior)(keys, levels, shape)

  def log_prob(self, weights, cond, estimate=None):
    """(x, noise) -> log p(cond | x_t), [B], of a model that guides another one, whose estimate (x, noise) -> x0 is."""
    model = self.model(weights)
    if model.log_prob:
      return model.log_prob(cond)
    noised = self.schedule is not None
    return guidance.cosine(model.embed_image, model.embed_text(cond), None if noised else estimate)

  def encode(self, frozen, key, batch):
    """(x0, cond) of a batch; frozen: given weights by owner."""
    return self.task.encode(frozen.get('task', ()), key, batch)

  def decode(self, frozen, x0, cond):
    """The outputs of the task."""
    return self.task.decode(frozen.get('task', ()), x0, cond)


def load_data(config):
  """The Source that config.data names."""
  return make('data', config.data)


def require(run, ability, hint=''):
  """Raises InputError where the model of a run lacks an ability: 'draws', or a field of objectives.base.Model."""
  if ability in run.can or ability == 'draws' and run.draws:
    return
  verb = 'draws nothing' if ability == 'draws' else f'has no {ability}'
  able = ', '.join(sorted(run.can)) or 'nothing'
  raise InputError(f'config.objective={run.config.objective!r}: the objective {run.objective.name} {verb} '
                   f'(its model has {able}){hint}')


def _net(config, mesh, task, **needs):
  """The Net of config.net, with fields that it must have, such as out_channels."""
  tokens = task.facts.get('tokens')
  text = dict(vocabulary=tokens['size'], length=tokens['length']) if tokens else {}
  try:
    module = CHOICES['net'][spec_name(config, 'net')]
    sizes = nets.sized(module, needs, constrain=sharding.constrain(mesh), **needs, **text)
  except InputError as error:
    raise InputError(f"config.net={config.net!r}: {error}; config.variance='learned' and "
                     'config.self_condition need it, so use unet') from error
  net = nets.make(make('net', config.net, **sizes))
  gather = partial(sharding.gather_params, mesh=mesh)
  return nets.Net(net.init, *map(gather, net[1:]))


def _initial(config, objective):
  """Shapes of (params, memory); raises InputError for sizes and options of the network that do not fit."""
  try:
    return jax.eval_shape(objective.init, jax.random.key(0))
  except InputError as error:
    if str(error).startswith('config.'):
      raise
    raise InputError(f'config.net={config.net!r}: {error}') from error
  except (TypeError, ValueError) as error:
    name = spec_name(config, 'net')
    usage = specs.usage(name, CHOICES['net'][name], ('classes', 'out_channels'))
    raise InputError(f'config.net={config.net!r}: {error}; expected {usage}'.replace('\n', ' ')) from error


def _away(config, parts, task, cond):
  """The condition that guidance leads away from, as a function of the condition: null, or a negative one."""
  negative = parts.guide.start.negative if parts.guide.start else ''
  field = f'config.guide={config.guide!r}'
  if parts.guide.doubles and not jax.tree.leaves(cond):
    raise InputError(f"{field} needs conditions, and these data have none: set config.guide=''")
  if not negative:
    return task.null
  if not task.takes:
    raise InputError(f'{field}: config.task={config.task!r} takes no request that could be the negative one')
  try:
    asked = quoted(negative) if negative in task.classes else negative  # it may hold a comma
    if task.takes[0] == 'classes' and len(split_names(asked)) > 1:
      raise InputError('expected one class; names with commas are written in quotes')
    other = task.ask({task.takes[0]: asked}, np.arange(1), 0).cond
  except InputError as error:
    raise InputError(f'{field}: negative={negative!r}: {error}') from error
  def away(cond):  # what is known stays known, tokens as well as pixels
    rest, known = without_known(cond)
    leaves = [jax.numpy.broadcast_to(jax.numpy.asarray(b, a.dtype), a.shape)
              for a, b in zip(jax.tree.leaves(rest), jax.tree.leaves(other), strict=True)]
    led = jax.tree.unflatten(jax.tree.structure(rest), leaves)
    if task.painted and isinstance(rest, dict):  # what is kept of a picture stays
      led = led | {name: rest[name] for name in ('kept', 'image') if name in rest}
    return led if known is None else (led or {}) | dict(known=known)
  return away


def _check_gaussian(config, objective):
  """Raises InputError where settings of noise levels are changed for an objective that has none."""
  changed = [field for field in GAUSSIAN if config[field] != default()[field] and
             not (field == 'guide' and objective.guided)]
  if changed:
    raise InputError(f'config.{changed[0]}={config[changed[0]]!r}: the objective {objective.name!r} has no noise '
                     'levels and does not use it; leave it at its default')


def _fits(name, parts, can):
  """Whether a sampler, by its bare name, takes the schedule and what the model can do."""
  try:
    return make('sampler', name, schedule=parts.schedule, levels=parts.levels).on in can
  except InputError:  # it needs another schedule
    return False


def _sampler(config, parts, can):
  """The sampler, or None for the model's own; raises InputError for one that needs what the model lacks."""
  if parts.sampler.on in can:
    return parts.sampler
  if config.sampler == default().sampler or not can & set(DRAWING):
    own = [name for field, name in OWN.items() if field in can]
    return make('sampler', own[0]) if own else None
  fits = [name for name in CHOICES['sampler'] if _fits(name, parts, can)]
  raise InputError(f'config.sampler={config.sampler!r} needs a model with {parts.sampler.on!r}, and this one has '
                   f'{", ".join(sorted(can))}; use {", ".join(fits) or "its own, " + repr(default().sampler)}')


def build(config, task, example, mesh, parts=None, open_model=None):
  """The experiment that a config describes, on a mesh.

  Args:
    task: the Task.
    example: (x0, cond) of one example, NumPy arrays [1, ...].
    parts: what validate.check has made of the config, if it was called before.
    open_model: opens the work directory of another model, for objectives that need one.
  Raises:
    InputError: anything that does not fit, before the first expensive step.
  """
  parts = parts or check(config)
  others = ('logvar_channels', 'self_condition', 'condition_dropout', 'batch')
  named = parts._asdict() | {key: config[key] for key in others}
  objective = make('objective', config.objective, net=partial(_net, config, mesh, task), task=task, example=example,
                   open_model=open_model, **named)
  initial, schedule = _initial(config, objective), objective.schedule(None)
  model = objective.model(None, (), ())._asdict()
  can = frozenset(name for name, value in model.items() if value and name not in ('prior', 'codes'))
  if schedule is None:
    _check_gaussian(config, objective)
  if config.grad_accumulation > 1 and objective.gradient is None:
    raise InputError(f'config.grad_accumulation={config.grad_accumulation}: the objective {objective.name!r} needs '
                     'whole batches; set it to 1')
  split = optimizer.trainable(config.trainable, initial[0])
  rate = lambda steps: parts.lr_schedule(config.learning_rate, steps)
  optimize = lambda steps: optimizer.optimizer(parts.optimizers, rate(steps), config.grad_clip, split(initial[0])[0],
                                               objective.group)
  optimize(config.steps)  # refuses groups that do not fit
  run = Experiment(
    config=config, mesh=mesh, task=task, objective=objective, example=example, initial=initial, can=can,
    plan=Plan(*(config[name] for name in Plan._fields)), split=split,
    optimizer=optimize, rate=rate, ema=ema.warmed_up(config.ema_decay), averages=parts.emas, schedule=schedule,
    levels=None if schedule is None else parts.levels, sampler=_sampler(config, parts, can), guide=parts.guide,
    guided=None, denoise=None)
  return _with_guidance(run, parts) if run.predicts else run


def _with_guidance(run, parts):
  config, task = run.config, run.task
  odd = [name for name in parts.guide.names if name not in ('cfg', 'autoguidance')]
  if odd and run.predicts != 'denoise':
    raise InputError(f'config.guide={config.guide!r}: {odd[0]} needs a denoiser of numbers, and the objective '
                     f'{run.objective.name} has tokens; use cfg or autoguidance')
  clipped = config.clip_x0 and task.bounds and run.predicts == 'denoise'
  clip = (lambda denoise: gaussian.clip(denoise, *task.bounds)) if clipped else lambda denoise: denoise
  guided = partial(guide.denoiser, parts.guide, run.plain, task.null, _away(config, parts, task, run.example[1]), clip,
                   config.condition_dropout > 0)
  return run._replace(guided=guided, denoise=guided(None))


def without_clip(run):
  """The experiment whose denoiser does not keep x0 in its bounds: for what differentiates it."""
  config = run.config.copy_and_resolve_references()
  config.clip_x0 = False
  return _with_guidance(run._replace(config=config), check(config))._replace(config=run.config)


def on_schedule(run, schedule):
  """The experiment with the sampler and the grid on another schedule, such as one that was learned."""
  levels = make_grid(run.config, schedule)
  sampler = make('sampler', run.config.sampler, schedule=schedule, levels=levels)
  return run._replace(schedule=schedule, levels=levels, sampler=sampler)
