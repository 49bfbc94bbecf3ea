"""From a config to objects: only setup/ interprets a config."""
from functools import partial
from typing import Any, Callable, NamedTuple

import jax
import numpy as np
import optax

from diffusion import nets, samplers
from diffusion.core import ema, gaussian, guidance
from diffusion.core.gaussian import Noise, with_estimate
from diffusion.errors import InputError
from diffusion.objectives import denoising, noisy_classifier, timesteps, vdm, weighting
from diffusion.setup import guide, specs
from diffusion.setup.choices import CHOICES, make
from diffusion.setup.validate import check, is_classifier, learns_schedule, make_grid, spec_name
from diffusion.system import sharding
from diffusion.tasks import Task


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


class Experiment(NamedTuple):
  """Everything that a config describes, as objects. Of a classifier, plain, guided and denoise are None; of any other
  model, log_prob."""
  config: Any            # the config: others show and record its strings, and read the options of their own section
  mesh: jax.sharding.Mesh
  shape: tuple           # of one x0: (H, W, C)
  classes: tuple         # names of the condition's entries; () = unconditional
  task: Task
  plan: Plan
  init: Callable         # key -> params
  loss: Callable         # (key, params, x0, cond, train, *memory, part=None) -> (scalar, {'mse', 'logsnr', 'each', ..})
  memory: tuple          # of loss-aware times before the first step, or ()
  optimizer: optax.GradientTransformation
  rate: Callable         # step -> learning rate
  ema: Callable          # step -> decay of the averaged parameters
  averages: tuple        # of config.extra_emas: (name, step -> decay)
  schedule: Any
  levels: Noise          # the sampling grid
  sampler: samplers.Sampler
  guide: guide.Guide
  self_condition: bool
  plain: Callable        # (params, cond) -> Denoise without guidance; (x, noise, previous=None) if self-conditioned
  guided: Callable       # the Experiment of a second model or None -> (params, cond) -> Denoise, guided and clipped
  denoise: Callable      # the same without a second model: guided(None)
  log_prob: Callable     # (params, label) -> (x, noise) -> log p(label | x_t) [B]


def load_data(config):
  """The Source that config.data names."""
  return make('data', config.data)


def _optimizer(config, parts):
  """(optax transformation, step -> rate)."""
  rate = parts.lr_schedule(config.learning_rate, config.steps)
  clipping = optax.clip_by_global_norm(config.grad_clip or np.inf)  # always there, so that the state keeps its shape
  decayed = lambda params: {key: key not in ('uncertainty', 'curve') for key in params}  # the network alone
  mask = decayed if config.logvar_channels or learns_schedule(config) else None
  return optax.chain(clipping, parts.optimizer(rate, mask)), rate


def _network(config, shape, example, mesh):
  """The Net, with extra channels for self-conditioning and learned variance.

  Its parameters also hold the loss's own, which the network ignores.
  """
  twice = spec_name(config, 'variance') == 'learned'
  channels = dict(out_channels=shape[-1] * (1 + twice)) if twice or config.self_condition else {}
  classes = example.shape[-1] if example is not None else 0
  try:
    module = CHOICES['net'][spec_name(config, 'net')]
    sizes = nets.sized(module, channels, constrain=sharding.constrain(mesh), classes=classes, **channels)
  except InputError as error:
    raise InputError(f"config.net={config.net!r}: {error}; config.variance='learned' and "
                     'config.self_condition need it, so use unet') from error
  net = nets.make(make('net', config.net, **sizes))
  init = partial(net.init, shape=(1, *shape[:-1], shape[-1] * (1 + config.self_condition)), cond=example)
  _check_network(config, init)
  extra = dict(uncertainty=weighting.uncertainty(config.logvar_channels)[0]) if config.logvar_channels else {}
  if learns_schedule(config):
    _, args, kwargs = specs.parse(config.schedule)
    extra['curve'] = vdm.init_curve(*args, **kwargs)
  gather = partial(sharding.gather_params, mesh=mesh)
  return nets.Net((lambda key: init(key) | extra) if extra else init, gather(net.apply), gather(net.prepare))


def _check_network(config, init):
  """Raises InputError for sizes and options of the network that do not fit."""
  try:
    jax.eval_shape(init, jax.random.key(0))
  except InputError:
    raise
  except (TypeError, ValueError) as error:
    name = spec_name(config, 'net')
    usage = specs.usage(name, CHOICES['net'][name], ('classes', 'out_channels'))
    raise InputError(f'config.net={config.net!r}: {error}; expected {usage}'.replace('\n', ' ')) from error


def _loss(config, parts, net):
  """(loss, memory) of an Experiment."""
  base = denoising.loss
  if config.logvar_channels:
    base = denoising.with_uncertainty(base, weighting.uncertainty(config.logvar_channels)[1])
  if config.self_condition:
    base = denoising.with_self_conditioning(base)
  base = denoising.with_prepared_condition(base, net.prepare)
  options = dict(predict=parts.target, weight=parts.loss_weight, error=parts.loss_type, variance=parts.variance)
  aware = spec_name(config, 'timesteps') == 'loss_aware'
  draw = timesteps.draw_levels(timesteps.stratified() if aware else parts.timesteps, parts.schedule)

  def call(key, params, x0, cond, train, part=None, **more):  # validation is with Gaussian noise and every condition
    loss = denoising.with_micro_batch(base, *part) if part else base
    if train:
      loss = denoising.with_condition_dropout(loss, parts.task.null, config.condition_dropout)
    noise = parts.noise_type if train else denoising.gaussian_noise()
    return loss(key, net.apply, params, x0, cond, corrupt=noise, train=train, **(options | more))

  if learns_schedule(config):
    def bound(key, params, x0, cond, train, part=None):
      measure = lambda params, **more: call(key, params, x0, cond, train, **more)
      return vdm.bound(jax.random.fold_in(key, 5), params, x0, measure)
    return bound, ()

  def loss(key, params, x0, cond, train, memory=None, part=None):
    measure = partial(call, key, params, x0, cond, train, part)
    if memory is None:
      return measure(draw=draw)
    times_key = jax.random.fold_in(key, 5)  # the loss splits its key in 5
    levels = timesteps.levels_at(parts.schedule)
    return denoising.loss_aware_loss(measure, times_key, len(x0), parts.timesteps, levels, memory)
  return loss, (parts.timesteps.start(),) if aware else ()


def _classifier_loss(parts, net):
  draw = timesteps.draw_levels(parts.timesteps, parts.schedule)
  def loss(key, params, x0, cond, train, part=None):
    options = dict(draw=draw, predict=parts.target, train=train, part=part)
    return noisy_classifier.loss(key, net.apply, params, x0, cond, **options)
  return loss


def _denoisers(config, parts, net, classes):
  """(plain, guided) of an Experiment."""
  null, negative = parts.task.null, parts.guide.start.negative if parts.guide.start else ''
  if parts.guide.doubles and not classes:
    raise InputError(f"config.guide={config.guide!r} needs conditions, and these images have no classes: "
                     "set config.guide=''")
  if negative and negative not in classes:
    raise InputError(f'config.guide={config.guide!r}: negative={negative!r}: {specs.unknown(negative, classes)}')

  def away(cond):  # the condition that guidance leads away from
    return null(cond) if not negative else jax.numpy.zeros_like(cond).at[..., classes.index(negative)].set(1.)

  def unguided(params, prepared, previous):
    apply = with_estimate(net.apply, previous) if config.self_condition else net.apply
    return gaussian.denoiser(apply, params, prepared, parts.target)

  def plain(params, cond):
    prepared = net.prepare(params, cond)
    return lambda x, noise, previous=None: unguided(params, prepared, previous)(x, noise)

  def pair(params, cond):
    conds = net.prepare(params, cond), net.prepare(params, away(cond))
    if config.self_condition:  # its estimates would have to be doubled too
      return lambda x, noise, previous=None: tuple(unguided(params, c, previous)(x, noise) for c in conds)
    batched = guidance.batched_pair(net.apply, params, *conds, parts.target)
    return lambda x, noise, previous=None: batched(x, noise)
  return plain, partial(guide.denoiser, parts.guide, plain, pair, null, config.clip_x0, config.condition_dropout > 0)


def build(config, shape, classes, mesh, parts=None):
  """The experiment that a config describes, for images of `shape` [H, W, C] and these classes, on a mesh.

  Args:
    parts: what validate.check has made of the config, if it was called before.
  Raises:
    InputError: anything that does not fit, before the first expensive step.
  """
  parts, classes = parts or check(config), tuple(classes)
  net = _network(config, shape, np.zeros((1, len(classes)), np.float32) if classes else None, mesh)
  optimizer, rate = _optimizer(config, parts)
  plain = guided = log_prob = None
  if is_classifier(config):
    loss, memory = _classifier_loss(parts, net), ()
    log_prob = lambda params, label: noisy_classifier.log_prob(net.apply, params, label, parts.target)
  else:
    (loss, memory), (plain, guided) = _loss(config, parts, net), _denoisers(config, parts, net, classes)
  return Experiment(
    config=config, mesh=mesh, shape=tuple(shape), classes=classes, task=parts.task,
    plan=Plan(*(config[name] for name in Plan._fields)), init=net.init, loss=loss, memory=memory,
    optimizer=optimizer, rate=rate,
    ema=ema.warmed_up(config.ema_decay), averages=parts.emas,
    schedule=parts.schedule, levels=parts.levels, sampler=parts.sampler, guide=parts.guide,
    self_condition=config.self_condition, plain=plain, guided=guided, denoise=guided and guided(None),
    log_prob=log_prob)


def on_schedule(run, schedule):
  """The experiment with the sampler and the grid on another schedule, such as one that was learned."""
  levels = make_grid(run.config, schedule)
  sampler = make('sampler', run.config.sampler, schedule=schedule, levels=levels)
  return run._replace(schedule=schedule, levels=levels, sampler=sampler)
