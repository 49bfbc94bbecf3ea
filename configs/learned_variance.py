"""Improved DDPM (arXiv:2102.09672): the network also learns the variance of each step, so that few ancestral steps lose less.

  python -m diffusion.main --config=configs/learned_variance.py
  python -m diffusion.main --config=configs/learned_variance.py:tiny

The loss is L_simple plus 0.001 times the variational bound in bits a dimension, whose gradient reaches the variance alone; the network's
output has twice the channels. `--config.sampler="ddpm(variance='small')"` shows the same weights without what they learned. Its full length has
not been run here. To train on the bound itself, as in the paper's section 3.3: --config.timesteps='loss_aware(bins=100)' --config.loss_weight=vlb.
"""
from diffusion.setup.config import default, variant


def get_config(name=''):
  c = default()
  c.schedule = 'cosine(T=1000)'
  c.predict, c.loss_weight = 'eps', 'one'
  c.timesteps = 'uniform'
  c.variance = 'learned(strength=0.001)'
  c.guide = ''  # conditional, without guidance
  c.sampler = "ddpm(variance='learned')"
  c.grid = 'trailing(100)'
  return variant(c, name)
