"""The mathematics of diffusion: jax and numpy alone.

Below is what a config can name: to add a schedule, a grid, a target or an average, write it and list it here. Guidance
is listed in setup/guide.py.
"""
from diffusion.core import ema, gaussian, grids, schedule_transforms, schedules, shipped_grids

SCHEDULES = dict(
  linear=schedules.linear, scaled_linear=schedules.scaled_linear, cosine=schedules.cosine,
  offset_cosine=schedules.offset_cosine, sigmoid=schedules.sigmoid, laplace=schedules.laplace,
  polynomial=schedules.polynomial, flow=schedules.flow, log_linear=schedules.log_linear,
  cosine_flow=schedules.cosine_flow, edm=schedules.edm,
  from_betas=schedules.from_betas, shift=schedule_transforms.shift, zero_terminal=schedule_transforms.zero_terminal,
  sub_vp=schedule_transforms.sub_vp)
GRIDS = dict(
  trailing=grids.trailing, leading=grids.leading, linspace=grids.linspace, quadratic=grids.quadratic, beta=grids.beta,
  shifted=grids.shifted, sections=grids.sections, times=grids.times, karras=grids.karras,
  exponential=grids.exponential, polyexponential=grids.polyexponential, cosine=grids.cosine, angle=grids.angle,
  sigmas=grids.sigmas, logsnr=grids.exponential, shipped=shipped_grids.shipped)
PREDICT = dict(
  eps=gaussian.predict_eps, x0=gaussian.predict_x0, v=gaussian.predict_v, flow=gaussian.predict_flow,
  score=gaussian.predict_score, edm=gaussian.predict_edm, scaled=gaussian.scaled)
EMAS = dict(decay=ema.decay, warmup=ema.warmup, halflife=ema.halflife, power=ema.power)
