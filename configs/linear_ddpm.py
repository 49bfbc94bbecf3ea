"""DDPM as in the paper (arXiv:2006.11239): linear betas, 1000 levels, ancestral sampling with the large variance.

  python -m diffusion.main --config=configs/linear_ddpm.py
  python -m diffusion.main --config=configs/linear_ddpm.py:tiny

Network, data and number of steps are those of cosine_ddim.py, so training takes about as long; sampling takes 1000
network evaluations instead of 50, so the final samples take 20 times as long. --config.grid='trailing(100)' shows the
effect of fewer steps. This recipe has not been run at full length; `:tiny` is tested.
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
  c.sample_every = c.steps  # samples only at the end: a thousand evaluations each
  return variant(c, name)
