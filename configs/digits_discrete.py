"""Handwritten digits as 64 tokens of 17 grey levels: masked diffusion (MD4) of images.

  python -m diffusion.main --config=configs/digits_discrete.py
"""
from diffusion.setup.config import default, variant


def get_config(name=''):
  c = default()
  c.data, c.task, c.objective = 'digits(8, heldout=.1)', 'grey_levels(17)', 'discrete'
  c.net = 'unet(channels=32, multipliers=(1, 2), blocks=1, attention=(4,))'
  c.schedule, c.sampler, c.grid, c.guide = 'log_linear(None)', 'ancestral', 'trailing(64)', ''
  c.batch, c.steps, c.learning_rate = 64, 3000, 2e-3
  c.log_every = c.val_every = 250
  c.sample_every = c.save_every = 1000
  c.sample.show = 'film'
  return variant(c, name)
