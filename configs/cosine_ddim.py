"""The main job: class-conditional 16x16 game sprites, cosine schedule, DDIM in 50 steps.

  python -m diffusion.main --config=configs/cosine_ddim.py
  python -m diffusion.main --config=configs/cosine_ddim.py:tiny      the same in seconds, for tests

On 2 CPU cores (2 GHz) it trains at about 135 images per second on an idle machine; a run on a busy one took 10
minutes. Expect a loss near 0.042 at the end, clean heroes, side heroes and creatures, and food and spells with the
right colours and outlines; some weapons come out malformed; train longer to improve them.
"""
from diffusion.setup.config import default, variant


def get_config(name=''):
  c = default()
  c.schedule = 'cosine'
  c.sampler = 'ddim'
  c.grid = 'trailing(50)'
  # x0 with this weight gave flat colours within 600 steps; a trial with v (on a coarser network) was still grainy
  # after 800; eps has not been tried.
  c.predict = 'x0'
  c.loss_weight = 'min_snr(5)'
  return variant(c, name)
