"""From a config to objects: the only reader of the config. To add a schedule, a sampler, a source: write the function and name it here."""
import inspect
from functools import partial
from typing import Any, Callable, NamedTuple

import jax
import numpy as np
import optax

from diffusion import classify, corrupt, grids, guidance, learned, losses, nets, predict, samplers, schedule_transforms, schedules, sharding
from diffusion import specs, times, weights
from diffusion.data import sources
from diffusion.denoise import beside, clip, denoiser, dynamic_threshold
from diffusion.errors import InputError
from diffusion.nets.classifier import Classifier
from diffusion.nets.unet import UNet
from diffusion.noise import Noise, take
from diffusion.tasks import Task
from diffusion.tasks.image import image


def _named(*functions):
  return {f.__name__: f for f in functions}


CHOICES = dict(
  data=_named(sources.sprites, sources.digits, sources.npy, sources.npz, sources.folder, sources.tfds),
  task=_named(image),
  net=dict(unet=UNet, classifier=Classifier),
  schedule=_named(schedules.linear, schedules.scaled_linear, schedules.cosine, schedules.offset_cosine, schedules.sigmoid, schedules.laplace,
                  schedules.polynomial, schedules.flow, schedules.cosine_flow, schedules.edm, schedules.from_betas,
                  schedule_transforms.shift, schedule_transforms.zero_terminal, schedule_transforms.sub_vp, learned.learned),
  predict=_named(predict.eps, predict.x0, predict.v, predict.flow, predict.score, predict.edm),
  draw=_named(times.uniform, times.stratified, times.table, times.logit_normal, times.edm_lognormal, times.loss_aware),
  weight=_named(weights.one, weights.snr, weights.min_snr, weights.p2, weights.edm, weights.vlb, weights.sigmoid),
  noise=_named(corrupt.plain, corrupt.offset, corrupt.perturbed, corrupt.paired),
  variance=_named(losses.fixed, losses.learned),
  error=_named(losses.mse, losses.mae, losses.huber),
  guide=_named(guidance.cfg, guidance.apg, guidance.rescale, guidance.interval, guidance.classifier, dynamic_threshold, clip),
  decay=dict(cosine=optax.warmup_cosine_decay_schedule, constant=optax.warmup_constant_schedule),
  sampler=_named(samplers.ddim, samplers.ddpm, samplers.euler, samplers.euler_ancestral, samplers.heun, samplers.churn, samplers.dpm_solver_2,
                 samplers.dpmpp_1s, samplers.dpmpp_2s, samplers.dpmpp_2m, samplers.dpmpp_3m, samplers.dpmpp_3m_shipped, samplers.dpmpp_sde_2m,
                 samplers.unipc, samplers.flow_pc, samplers.deis, samplers.lms, samplers.plms, samplers.flow_euler, samplers.flow_heun,
                 samplers.flow_lms, samplers.langevin, samplers.adaptive, samplers.consistency, samplers.best),
  grid=_named(grids.trailing, grids.leading, grids.linspace, grids.quadratic, grids.beta, grids.shifted, grids.times, grids.karras,
              grids.exponential, grids.cosine, grids.angle, grids.sigmas) | dict(logsnr=grids.exponential),
)


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
  loss: Callable         # (key, params, x0, cond, train, *memory) -> (scalar, {'mse', 'logsnr', 'each', 'memory' where one was given})
  optimizer: optax.GradientTransformation
  rate: Callable         # step -> learning rate
  ema: Callable          # step -> decay of the averaged weights
  plain: Callable        # (params, cond) -> Denoise without guidance; of a classifier, (params, label) -> its log-probability
  guided: Callable       # (pair of predictions, log_prob=None) -> Denoise, guided and clipped as configured
  denoise: Callable      # (params, cond) -> Denoise: both together; None of a classifier
  schedule: Any
  sampler: samplers.Sampler
  levels: Noise          # the sampling grid
  plan: Plan
  self_condition: bool = False
  memory: tuple = ()     # what the draw of times remembers before the first step (see times.loss_aware); () nothing


def make(field, spec, **extra):
  """The object that the spec of a config field describes; `extra` are given to those functions that ask for them by name.

  Raises:
    InputError: an unknown name or argument, with the valid ones.
  """
  return specs.resolve(CHOICES, field, spec, **extra)


# ---- checks
def _check_process(config, schedule, levels):
  """The parameterisation must be solvable at the noisiest level, and scale its input where the data is not."""
  row = make('predict', config.predict)(take(levels, 0))
  if predict.determinant(row, take(levels, 0)) == 0:
    raise InputError(f"config.predict={config.predict!r} says nothing about x0 where config.schedule={config.schedule!r} has no signal "
                     "left; use 'v', 'x0' or 'flow'")
  exploding = bool(np.all(levels.alpha == 1))
  if exploding != (specs.parse(config.predict)[0] == 'edm'):
    raise InputError(f"config.predict={config.predict!r} does not go with config.schedule={config.schedule!r}: the target 'edm' and the "
                     "schedule 'edm' (alpha = 1, its input needs scaling) belong together")


def _check_numbers(config):
  for name in (*Plan._fields[1:], 'keep'):
    if config[name] < 1:
      raise InputError(f'config.{name}={config[name]}: expected at least 1')
  for name, low, high in (('condition_dropout', 0, 1), ('ema', 0, 1), ('learning_rate', 0, np.inf), ('weight_decay', 0, np.inf),
                          ('clip_norm', 0, np.inf), ('warmup', 0, np.inf), ('uncertainty', 0, np.inf), ('keep_every', 0, np.inf), ('seed', 0, 2 ** 31), ('beta2', 0, .99999999),
                          ('guidance', -np.inf, np.inf)):
    if not low <= config[name] <= high or not np.isfinite(config[name]):
      raise InputError(f'config.{name}={config[name]}: expected a number from {low} to {high}')


# ---- the experiment
def load_data(config):
  """The Source that config.data names."""
  return make('data', config.data)


def _optimizer(config):
  warmup = dict(init_value=config.learning_rate / max(config.warmup, 1), peak_value=config.learning_rate, warmup_steps=config.warmup)
  if config.decay not in CHOICES['decay']:
    raise InputError(f'config.decay={config.decay!r}: {specs.unknown(config.decay, CHOICES["decay"])}')
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
  for field in ('task', 'draw', 'weight', 'error', 'noise', 'variance', 'sampler'):
    make(field, config[field], schedule=schedule, steps=1)
  if config.guidance != 1 and not config.condition_dropout and 'classifier' not in guides(config):
    raise InputError(f'config.guidance={config.guidance:g} needs a model that has learned to do without its condition: '
                     'set config.condition_dropout above 0, or config.guidance=1')
  if config.variance == 'fixed' and 'learned' in config.sampler:
    raise InputError(f"config.sampler={config.sampler!r} needs a model that has learned its variance: train with config.variance='learned'")
  if learns_schedule(config) and (config.weight != 'vlb' or config.uncertainty or config.draw != 'stratified' or config.variance != 'fixed'):
    raise InputError("config.schedule='learned' is trained by the variational bound: set config.weight='vlb', config.draw='stratified', "
                     "config.variance='fixed' and config.uncertainty=0")
  _stack(config)(None, None)
  make('net', config.net, classes=2)
  _optimizer(config)


def guides(config):
  """The names in the stack of config.guide."""
  return [specs.parse(part)[0] for part in config.guide.split('|')]


def _stack(config):
  """(cond, null, log_prob=None) -> Denoise: the transforms of config.guide, from left to right."""
  def stack(cond, null, log_prob=None):
    told = cond
    for part in config.guide.split('|'):
      told = make('guide', part, guided=told, denoise=told, cond=cond, plain=cond, null=null, scale=config.guidance, log_prob=log_prob)
    return told
  return stack


def _network(config, shape, example, mesh):
  """(init, net) as in nets.make, with the channels that self-conditioning and a learned variance take, and the parameters that the loss
  keeps beside the network's, which it ignores."""
  twice = specs.parse(config.variance)[0] == 'learned'
  sizes = dict(out_channels=shape[-1] * (1 + twice)) if twice or config.self_condition else {}
  if sizes and 'out_channels' not in inspect.signature(CHOICES['net'][specs.parse(config.net)[0]]).parameters:
    raise InputError(f'config.net={config.net!r} cannot learn its variance or see its own estimate: it has no out_channels; use unet')
  init, net = nets.make(make('net', config.net, constrain=sharding.constrain(mesh), classes=example.shape[-1] if example is not None else 0, **sizes))
  init = partial(init, shape=(1, *shape[:-1], shape[-1] * (1 + config.self_condition)), cond=example)
  extra = dict(uncertainty=jax.numpy.asarray(weights.uncertainty(config.uncertainty)[0])) if config.uncertainty else {}
  if learns_schedule(config):
    _, args, kwargs = specs.parse(config.schedule)
    extra['curve'] = jax.tree.map(jax.numpy.asarray, learned.init(*args, **kwargs))
  return (lambda key: init(key) | extra) if extra else init, net


def learns_schedule(config):
  """Whether the noise schedule is trained with the network."""
  return specs.parse(config.schedule)[0] == 'learned'


def _loss(config, net, schedule, target, null):
  """(loss, memory) of an Experiment."""
  part = lambda field: make(field, config[field], schedule=schedule)
  options = dict(predict=target, weight=part('weight'), error=part('error'), corrupt=part('noise'), variance=part('variance'),
                 uncertainty=weights.uncertainty(config.uncertainty)[1] if config.uncertainty else None,
                 self_condition=config.self_condition, null=null)
  drawn, aware, level = part('draw'), specs.parse(config.draw)[0] == 'loss_aware', times.levels(schedule)
  draw = times.drawn_from(times.stratified() if aware else drawn, schedule)

  if learns_schedule(config):
    def bound(key, params, x0, cond, train):
      dropped = options | dict(dropout=config.condition_dropout if train else 0., train=train)
      call = lambda params, draw, weight: losses.loss(key, net, params, x0, cond, draw=draw, **(dropped | dict(weight=weight)))
      return learned.bound(jax.random.fold_in(key, 5), params, x0, call)
    return bound, ()

  def loss(key, params, x0, cond, train, memory=None):
    call = partial(losses.loss, key, net, params, x0, cond, dropout=config.condition_dropout if train else 0., train=train, **options)
    if memory is None:
      return call(draw=draw)
    return losses.with_memory(call, jax.random.fold_in(key, 5), len(x0), drawn, level, memory)  # the loss splits its key in 5
  return loss, (drawn.start(),) if aware else ()


def is_classifier(config):
  """Whether the config trains a noisy classifier, which draws nothing."""
  return specs.parse(config.net)[0] == 'classifier'


def _classifier_loss(config, net, schedule, target):
  draw = times.drawn_from(make('draw', config.draw, schedule=schedule), schedule)
  return lambda key, params, x0, cond, train: classify.loss(key, net, params, x0, cond, draw=draw, predict=target, train=train)


def _denoisers(config, net, target, classes, null):
  """(plain, guided, denoise) of an Experiment."""
  stack = _stack(config)
  if config.negative and config.negative not in classes:
    raise InputError(f'config.negative={config.negative!r}: {specs.unknown(config.negative, classes)}')
  if config.guidance != 1 and not classes:
    raise InputError(f'config.guidance={config.guidance:g} needs conditions, and these pictures have no classes: set config.guidance=1')

  def away(cond):  # the condition that guidance leads away from
    return null(cond) if not config.negative else jax.numpy.zeros_like(cond).at[..., classes.index(config.negative)].set(1.)

  def plain(params, cond, previous=None):
    return denoiser(beside(net, previous) if config.self_condition else net, params, cond, target)

  def guided(pair, log_prob=None):
    told = guidance.once(pair, lambda cond, null: stack(cond, null, log_prob))
    return clip(told) if config.clip else told

  def pair(params, cond, previous):
    if cond is None or config.guidance == 1:
      return lambda x, noise: (plain(params, cond, previous)(x, noise),) * 2  # one call, whatever the stack makes of it
    if config.self_condition:  # its estimates would have to be doubled too
      return guidance.two_calls(plain(params, cond, previous), plain(params, away(cond), previous))
    return guidance.one_call(net, params, cond, away(cond), target)

  def denoise(params, cond):
    return lambda x, noise, previous=None: guided(pair(params, cond, previous))(x, noise)
  return plain, guided, denoise


def build(config, shape, classes, mesh):
  """The experiment that a config describes, for pictures of `shape` [H, W, C] and these classes, on a mesh.

  Raises:
    InputError: anything that does not fit, before the first expensive step.
  """
  check(config)
  task = make('task', config.task)
  schedule, target = make('schedule', config.schedule), make('predict', config.predict)
  init, net = _network(config, shape, np.zeros((1, len(classes)), np.float32) if classes else None, mesh)
  try:
    jax.eval_shape(init, jax.random.key(0))  # sizes and options that do not fit are named here
  except InputError:
    raise
  except (TypeError, ValueError) as error:
    raise InputError(f'config.net={config.net!r}: {error}; expected {specs.usage("unet", UNet)}'.replace('\n', ' ')) from error
  optimizer, rate = _optimizer(config)
  ema = lambda step: jax.numpy.minimum(config.ema, (1. + step) / (10. + step))
  if is_classifier(config):
    loss, memory, plain, guided, denoise = (
      _classifier_loss(config, net, schedule, target), (), lambda params, label: classify.log_prob(net, params, label, target), None, None)
  else:
    loss, memory = _loss(config, net, schedule, target, task.null)
    plain, guided, denoise = _denoisers(config, net, target, tuple(classes), task.null)
  plan = Plan(*(config[name] for name in Plan._fields))
  run = Experiment(mesh, tuple(shape), tuple(classes), task, init, loss, optimizer, rate, ema, plain, guided, denoise, schedule, None, None, plan,
                   config.self_condition, memory)
  return on_schedule(run, config, schedule)


def on_schedule(run, config, schedule):
  """The experiment with the sampler and the grid of a schedule."""
  levels = make('grid', config.grid)(schedule)
  sampler = make('sampler', config.sampler, schedule=schedule, steps=len(levels.logsnr) - 1)
  return run._replace(schedule=schedule, levels=levels, sampler=sampler)
