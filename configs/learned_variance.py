r"""Improved DDPM (arXiv:2102.09672): the network also learns the variance of each step, for sampling in few steps.

  python -m diffusion.main --config=configs/learned_variance.py
  python -m diffusion.main --config=configs/learned_variance.py:tiny
  python -m diffusion.main --config=configs/learned_variance.py \
    --config.timesteps='loss_aware(bins=100)' --config.loss_weight=vlb       trains on the bound itself (section 3.3)

The loss is L_simple plus 0.001 times the variational bound in bits per dimension, whose gradient reaches only the
variance; the network has twice the output channels. For comparison, --config.sampler="ddpm(variance='small')" samples
from the same weights with a fixed variance. This recipe has not been run at full length; `:tiny` is tested.
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
