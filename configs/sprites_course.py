"""After the short course How Diffusion Models Work: 500 linear steps, the condition dropped one time in ten.

  python -m diffusion.main --config=configs/sprites_course.py               DDPM, 500 steps
  python -m diffusion.main --config=configs/sprites_course.py:ddim          DDIM, 20 steps: 25 times faster
  python -m diffusion.main --config=configs/sprites_course.py:collapse      DDPM without added noise: only blurs
  python -m diffusion.main --config=configs/sprites_course.py:tiny

Network, data and number of steps are those of cosine_ddim.py, so training takes about as long; sampling takes 500
evaluations per image. This recipe has not been run at full length; `:tiny` is tested.

For the files of the course: --config.data='npy(sprites.npy, sprites_labels.npy)'. The variants differ only in
sampling, so one training serves all of them: --mode=sample --workdir=runs/sprites_course
--config.sampler="ddpm('none')" shows the collapse, and --config.sample.class_mix='0.5 * hero + 0.5 * food' mixes two
classes.
"""
from diffusion.setup.config import default, variant


def ddim(c):
  c.sampler = 'ddim'
  c.grid = 'trailing(20)'
  return c


def collapse(c):
  c.sampler = "ddpm(variance='none')"
  return c


def get_config(name=''):
  c = default()
  c.schedule = 'linear(T=500, start=5e-5, end=0.01)'  # betas are scaled by 1000/T: 1e-4 to 0.02, as in the course
  c.predict, c.loss_weight = 'eps', 'one'
  c.guide = ''  # conditional, without guidance
  c.timesteps = 'uniform'
  c.condition_dropout = .1
  c.learning_rate = 1e-3
  c.sampler = 'ddpm'
  c.grid = 'trailing(500)'
  c.sample_every = c.steps  # samples only at the end: 500 evaluations each
  return variant(c, name, ddim=ddim, collapse=collapse)
