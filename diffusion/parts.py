"""The parts that a config names: to add a schedule, a sampler, a source, write the function and name it here."""
import functools

import optax

from diffusion import corrupt, grids, guidance, learned, losses, predict, samplers, schedule_transforms, schedules, specs, times, weights
from diffusion.data import sources
from diffusion.denoise import clip, dynamic_threshold
from diffusion.metrics import own, pretrained
from diffusion.nets.classifier import Classifier
from diffusion.nets.unet import UNet
from diffusion.tasks.image import image


def _named(*functions):
  return {f.__name__: f for f in functions}


def _whatever(make):
  """A maker of extractors as one of (data, mesh) -> Extractor, which needs neither; the file is read then, not when the config is checked."""
  @functools.wraps(make)
  def made(*args, **kwargs):
    return lambda data, mesh: make(*args, **kwargs)
  return made


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
) | {
  'evaluate.features': _named(own.own, *map(_whatever, (pretrained.inception, pretrained.dinov2, pretrained.clip)))}


def make(field, spec, **extra):
  """The object that the spec of a config field describes; `extra` are given to those functions that ask for them by name.

  Raises:
    InputError: an unknown name or argument, with the valid ones.
  """
  return specs.resolve(CHOICES, field, spec, **extra)
