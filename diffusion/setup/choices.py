"""The parts that a config names: to add a schedule, a sampler, a source, write the function and name it here."""
import optax

from diffusion import samplers
from diffusion.core import ema, gaussian, grids, guidance, schedule_transforms, schedules
from diffusion.core.gaussian import clip, dynamic_threshold
from diffusion.data import sources
from diffusion.nets import NETS
from diffusion.objectives import denoising, timesteps, vdm, weighting
from diffusion.errors import InputError
from diffusion.setup import specs
from diffusion.tasks.image import image


def _named(*functions):
  return {f.__name__: f for f in functions}


CHOICES = dict(
  data=_named(sources.sprites, sources.digits, sources.npy, sources.npz, sources.folder, sources.tfds),
  task=_named(image),
  net=NETS,
  schedule=_named(schedules.linear, schedules.scaled_linear, schedules.cosine, schedules.offset_cosine, schedules.sigmoid, schedules.laplace,
                  schedules.polynomial, schedules.flow, schedules.cosine_flow, schedules.edm, schedules.from_betas,
                  schedule_transforms.shift, schedule_transforms.zero_terminal, schedule_transforms.sub_vp, vdm.learned),
  predict=dict(eps=gaussian.predict_eps, x0=gaussian.predict_x0, v=gaussian.predict_v, flow=gaussian.predict_flow, score=gaussian.predict_score,
               edm=gaussian.predict_edm),
  draw=_named(timesteps.uniform, timesteps.stratified, timesteps.table, timesteps.logit_normal, timesteps.edm_lognormal, timesteps.loss_aware),
  weight=_named(weighting.one, weighting.snr, weighting.min_snr, weighting.p2, weighting.edm, weighting.vlb, weighting.sigmoid),
  noise=dict(plain=denoising.gaussian_noise, offset=denoising.offset_noise, perturbed=denoising.perturbed_noise, paired=denoising.paired_noise),
  variance=dict(fixed=denoising.fixed_variance, learned=denoising.learned_variance),
  error=_named(denoising.mse, denoising.mae, denoising.huber),
  guide=_named(guidance.cfg, guidance.apg, guidance.rescale, guidance.interval, guidance.classifier, dynamic_threshold, clip),
  decay=dict(cosine=optax.warmup_cosine_decay_schedule, constant=optax.warmup_constant_schedule),
  sampler=_named(samplers.ddim, samplers.ddpm, samplers.euler, samplers.euler_ancestral, samplers.heun, samplers.churn, samplers.dpm_solver_2,
                 samplers.dpmpp_1s, samplers.dpmpp_2s, samplers.dpmpp_2m, samplers.dpmpp_3m, samplers.dpmpp_3m_shipped, samplers.dpmpp_sde_2m,
                 samplers.unipc, samplers.flow_pc, samplers.deis, samplers.lms, samplers.plms, samplers.flow_euler, samplers.flow_heun,
                 samplers.flow_lms, samplers.langevin, samplers.adaptive, samplers.consistency, samplers.best),
  grid=_named(grids.trailing, grids.leading, grids.linspace, grids.quadratic, grids.beta, grids.shifted, grids.times, grids.karras,
              grids.exponential, grids.cosine, grids.angle, grids.sigmas) | dict(logsnr=grids.exponential),
)


def make(field, spec, **extra):
  """The object that the spec of a config field describes; `extra` are given to those functions that ask for them by name.

  Raises:
    InputError: an unknown name or argument, with the valid ones.
  """
  return specs.resolve(CHOICES, field, spec, **extra)


def parse_averages(text):
  """The averages that config.averages asks for.

  Args:
    text: such as 'decay(.9999) | power(.05) | power(.1)'; '' none.
  Returns:
    Tuple of (name, step -> decay): the name is canonical, such as 'power(0.05)'. After update number `step`, counted
    from 0, the average becomes decay * average + (1 - decay) * params.
  Raises:
    InputError: an unknown kind, a value out of range, or the same average twice.
  """
  found = {}
  for part in text.split('|') if text.strip() else ():
    rule = specs.resolve(dict(averages=dict(decay=ema.decay, power=ema.power)), 'averages', part.strip())
    kind, args, kwargs = specs.parse(part)
    name = f'{kind}({float([*args, *kwargs.values()][0])})'
    if name in found:
      raise InputError(f'config.averages={text!r}: {name} is there twice; give each average once')
    found[name] = rule
  return tuple(found.items())
