"""Variational diffusion models (arXiv:2107.00630): trained on the variational bound, with a noise schedule that is learned with the network.

  python -m diffusion.main --config=configs/vdm.py
  python -m diffusion.main --config=configs/vdm.py:tiny

The loss is the bound in nats per dimension. Its full length has not been run here.
"""
from diffusion.setup.config import default, variant


def get_config(name=''):
  c = default()
  c.schedule = 'learned(pieces=64)'
  c.predict, c.loss_weight, c.timesteps = 'eps', 'vlb', 'stratified'
  c.guide = ''  # conditional, without guidance
  return variant(c, name)
