"""Captions of the game sprites, word by word: masked diffusion (MD4) of texts, conditioned on the class.

  python -m diffusion.main --config=configs/captions_discrete.py
"""
from diffusion.setup.config import default, variant


def get_config(name=''):
  c = default()
  c.task, c.objective, c.net = 'words', 'discrete', 'transformer(width=96, blocks=3, heads=4)'
  c.schedule, c.sampler, c.grid, c.guide = 'log_linear(None)', 'ancestral', 'trailing(64)', ''
  c.batch, c.steps, c.learning_rate = 64, 4000, 2e-3
  c.log_every = c.val_every = 250
  c.sample_every = c.save_every = 1000
  c.sample.show = ''
  return variant(c, name)
