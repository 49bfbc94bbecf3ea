"""DDPM as in the paper (arXiv:2006.11239): linear betas, 1000 levels, ancestral sampling with the large variance.

  python -m diffusion.main --config=configs/linear_ddpm.py
  python -m diffusion.main --config=configs/linear_ddpm.py:tiny

The network, data and number of steps of cosine_ddim.py, so about its time for training; sampling takes 1000 network evaluations
instead of 50, so the pictures at the end take far longer. Its full length has not been timed; `:tiny` is tested. `--config.grid='trailing(100)'` shows what fewer steps cost.
"""
from diffusion.setup.config import default, variant


def get_config(name=''):
  c = default()
  c.schedule = 'linear(T=1000)'
  c.predict, c.loss_weight = 'eps', 'one'
  c.guide = ''  # conditional, without guidance
  c.timesteps = 'uniform'
  c.sampler = "ddpm(variance='large')"
  c.grid = 'trailing(1000)'
  c.sample_every = c.steps  # pictures at the end only: a thousand evaluations each
  return variant(c, name)
