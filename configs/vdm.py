"""Variational diffusion models (arXiv:2107.00630): trained on the variational bound, with a learned noise schedule.

  python -m diffusion.main --config=configs/vdm.py
  python -m diffusion.main --config=configs/vdm.py:tiny

The loss is the bound in nats per dimension. This recipe has not been run at full length.
"""
from diffusion.setup.config import default, variant


def get_config(name=''):
  c = default()
  c.objective, c.schedule = 'vdm', 'learned(pieces=64)'
  c.predict, c.loss_weight, c.timesteps = 'eps', 'vlb', 'stratified'
  c.guide = ''  # conditional, without guidance
  return variant(c, name)
