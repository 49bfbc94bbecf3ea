"""From a config to objects: with choices.py and validate.py the only reader of the config."""
from functools import partial
from typing import Any, Callable, NamedTuple

import jax
import numpy as np
import optax

from diffusion import nets, samplers
from diffusion.core import guidance, lookup
from diffusion.core.gaussian import clip, denoiser, Noise, with_estimate
from diffusion.errors import InputError
from diffusion.objectives import denoising, noisy_classifier, timesteps, vdm, weighting
from diffusion.setup import specs
from diffusion.setup.choices import CHOICES, make, parse_averages
from diffusion.setup.validate import check, grid, guidance_stack, is_classifier, learns_schedule, spec_name
from diffusion.system import sharding
from diffusion.tasks import Task


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
  snapshot_every: int
  accumulate: int
  workers: int


class Experiment(NamedTuple):
  """Everything that a config describes, as objects."""
  mesh: jax.sharding.Mesh
  shape: tuple           # of one x0: (H, W, C)
  classes: tuple         # names of the condition's entries; () = unconditional
  task: Task
  init: Callable         # key -> params
  loss: Callable         # (key, params, x0, cond, train, *memory, part=None) -> (scalar, {'mse', 'logsnr', 'each', 'memory' where one was given})
  optimizer: optax.GradientTransformation
  rate: Callable         # step -> learning rate
  ema: Callable          # step -> decay of the averaged weights
  averages: tuple        # of config.averages: (name, step -> decay)
  plain: Callable        # (params, cond) -> Denoise without guidance, (x, noise, previous=None); of a classifier, (params, label) -> its log-probability
  guided: Callable       # (pair of predictions, log_prob=None) -> Denoise, guided and clipped as configured
  denoise: Callable      # (params, cond) -> Denoise: both together; None of a classifier
  schedule: Any
  sampler: samplers.Sampler
  levels: Noise          # the sampling grid
  plan: Plan
  self_condition: bool = False
  memory: tuple = ()     # what the draw of times remembers before the first step (see times.loss_aware); () nothing


def load_data(config):
  """The Source that config.data names."""
  return make('data', config.data)


def _optimizer(config):
  warmup = dict(init_value=config.learning_rate / max(config.warmup, 1), peak_value=config.learning_rate, warmup_steps=config.warmup)
  if config.decay == 'cosine':
    warmup['decay_steps'] = max(config.steps, config.warmup + 1)
  rate = CHOICES['decay'][config.decay](**warmup)
  clipping = optax.clip_by_global_norm(config.clip_norm or np.inf)  # always there, so that the state keeps its shape
  decayed = lambda params: {key: key not in ('uncertainty', 'curve') for key in params}  # the network alone
  mask = decayed if config.uncertainty or learns_schedule(config) else None
  return optax.chain(clipping, optax.adamw(rate, b2=config.beta2, weight_decay=config.weight_decay, mask=mask)), rate


def _network(config, shape, example, mesh):
  """The Net, with extra channels for self-conditioning and a learned variance; its init adds the loss's own parameters, which the network
  ignores."""
  twice = spec_name(config, 'variance') == 'learned'
  channels = dict(out_channels=shape[-1] * (1 + twice)) if twice or config.self_condition else {}
  try:
    sizes = nets.sized(CHOICES['net'][spec_name(config, 'net')], channels, constrain=sharding.constrain(mesh),
                       classes=example.shape[-1] if example is not None else 0, **channels)
  except InputError as error:
    raise InputError(f"config.net={config.net!r}: {error}; config.variance='learned' and config.self_condition need it, so use unet") from error
  net = nets.make(make('net', config.net, **sizes))
  gather = partial(sharding.gather_params, mesh=mesh)
  init = partial(net.init, shape=(1, *shape[:-1], shape[-1] * (1 + config.self_condition)), cond=example)
  extra = dict(uncertainty=weighting.uncertainty(config.uncertainty)[0]) if config.uncertainty else {}
  if learns_schedule(config):
    _, args, kwargs = specs.parse(config.schedule)
    extra['curve'] = vdm.init_curve(*args, **kwargs)
  return nets.Net((lambda key: init(key) | extra) if extra else init, gather(net.apply), gather(net.prepare))


def _loss(config, net, schedule, target, null):
  """(loss, memory) of an Experiment."""
  part = lambda field: make(field, config[field], schedule=schedule)
  options = dict(prepare=net.prepare, predict=target, weight=part('weight'), error=part('error'), variance=part('variance'),
                 uncertainty=weighting.uncertainty(config.uncertainty)[1] if config.uncertainty else None,
                 self_condition=config.self_condition, null=null)
  drawn, aware, level = part('draw'), spec_name(config, 'draw') == 'loss_aware', lookup.levels_at(schedule)
  draw, noise = timesteps.draw_levels(timesteps.stratified() if aware else drawn, schedule), part('noise')

  def mode(train):  # held-out pictures are measured with plain noise and every condition
    return options | dict(dropout=config.condition_dropout if train else 0., train=train, corrupt=noise if train else denoising.gaussian_noise())

  if learns_schedule(config):
    def bound(key, params, x0, cond, train, part=None):
      call = lambda params, draw, weight: denoising.loss(key, net.apply, params, x0, cond, draw=draw, **(mode(train) | dict(weight=weight)))
      return vdm.bound(jax.random.fold_in(key, 5), params, x0, call)
    return bound, ()

  def loss(key, params, x0, cond, train, memory=None, part=None):
    call = partial(denoising.loss, key, net.apply, params, x0, cond, part=part, **mode(train))
    if memory is None:
      return call(draw=draw)
    return denoising.loss_aware_loss(call, jax.random.fold_in(key, 5), len(x0), drawn, level, memory)  # the loss splits its key in 5
  return loss, (drawn.start(),) if aware else ()


def _classifier_loss(config, net, schedule, target):
  draw = timesteps.draw_levels(make('draw', config.draw, schedule=schedule), schedule)
  def loss(key, params, x0, cond, train, part=None):
    return noisy_classifier.loss(key, net.apply, params, x0, cond, draw=draw, predict=target, train=train, part=part)
  return loss


def _denoisers(config, net, target, classes, null):
  """(plain, guided, denoise) of an Experiment."""
  transforms = guidance_stack(config)
  if config.guidance != 1 and not classes and not config.sample.bad:
    raise InputError(f'config.guidance={config.guidance:g} needs conditions, and these pictures have no classes: set config.guidance=1')
  if config.negative and config.negative not in classes:
    raise InputError(f'config.negative={config.negative!r}: {specs.unknown(config.negative, classes)}')

  def away(cond):  # the condition that guidance leads away from
    return null(cond) if not config.negative else jax.numpy.zeros_like(cond).at[..., classes.index(config.negative)].set(1.)

  def unguided(params, cond, previous):  # cond: prepared
    return denoiser(with_estimate(net.apply, previous) if config.self_condition else net.apply, params, cond, target)

  def plain(params, cond):
    cond = net.prepare(params, cond)
    return lambda x, noise, previous=None: unguided(params, cond, previous)(x, noise)

  def guided(pair, log_prob=None):
    told = guidance.shared_predictions(pair, lambda cond, null: transforms(cond, null, log_prob))
    return clip(told) if config.clip else told

  def pair(params, cond, null, previous):  # cond, null: prepared; null None: not guided
    if null is None:
      return lambda x, noise: (unguided(params, cond, previous)(x, noise),) * 2  # one call, whatever the stack makes of it
    if config.self_condition:  # its estimates would have to be doubled too
      return guidance.separate_pair(unguided(params, cond, previous), unguided(params, null, previous))
    return guidance.batched_pair(net.apply, params, cond, null, target)

  def denoise(params, cond):
    null = None if cond is None or config.guidance == 1 else net.prepare(params, away(cond))
    cond = net.prepare(params, cond)
    return lambda x, noise, previous=None: guided(pair(params, cond, null, previous))(x, noise)
  return plain, guided, denoise


def build(config, shape, classes, mesh):
  """The experiment that a config describes, for pictures of `shape` [H, W, C] and these classes, on a mesh.

  Raises:
    InputError: anything that does not fit, before the first expensive step.
  """
  check(config)
  task = make('task', config.task)
  schedule, target = make('schedule', config.schedule), make('predict', config.predict)
  net = _network(config, shape, np.zeros((1, len(classes)), np.float32) if classes else None, mesh)
  try:
    jax.eval_shape(net.init, jax.random.key(0))  # sizes and options that do not fit are named here
  except InputError:
    raise
  except (TypeError, ValueError) as error:
    name = spec_name(config, 'net')
    usage = specs.usage(name, CHOICES['net'][name], ('classes', 'out_channels'))
    raise InputError(f'config.net={config.net!r}: {error}; expected {usage}'.replace('\n', ' ')) from error
  optimizer, rate = _optimizer(config)
  ema = lambda step: jax.numpy.minimum(config.ema, (1. + step) / (10. + step))
  others = parse_averages(config.averages)
  if is_classifier(config):
    loss, memory, plain, guided, denoise = (
      _classifier_loss(config, net, schedule, target), (), lambda params, label: noisy_classifier.log_prob(net.apply, params, label, target), None, None)
  else:
    loss, memory = _loss(config, net, schedule, target, task.null)
    plain, guided, denoise = _denoisers(config, net, target, tuple(classes), task.null)
  plan = Plan(*(config[name] for name in Plan._fields))
  run = Experiment(mesh, tuple(shape), tuple(classes), task, net.init, loss, optimizer, rate, ema, others, plain, guided, denoise, schedule, None, None, plan,
                   config.self_condition, memory)
  return on_schedule(run, config, schedule)


def on_schedule(run, config, schedule):
  """The experiment with the sampler and the grid of a schedule."""
  levels = grid(config, schedule)
  return run._replace(schedule=schedule, levels=levels, sampler=make('sampler', config.sampler, schedule=schedule, levels=levels))
