"""Series: sines, sawtooths and squares by class, with a small 1-D U-Net.

  python -m diffusion.main --config=configs/series.py
  python -m diffusion.main --config=configs/series.py --config.data='series(mine.npy)' --workdir=runs/mine
  python -m diffusion.main --workdir=runs/series --mode=sample --config.sample.ask='length: 300'

The samples are in series.npy, as arrays, and in grid.png, as lines: expect clean waves, some of which change their
period on the way. The network is made of convolutions alone, so that it draws other lengths than it was trained on.
On two busy CPU cores it trained for 8 minutes, to a loss near 0.26.
"""
from diffusion.setup.config import default, variant


def get_config(name=''):
  c = default()
  c.data, c.task, c.net = 'waves(128)', 'series', 'unet1d'
  c.schedule, c.predict, c.loss_weight = 'cosine', 'v', 'one'
  c.batch, c.steps, c.learning_rate = 32, 1500, 2e-3
  c.guide, c.sampler, c.grid = '', 'ddim', 'trailing(50)'
  c.sample.num_samples = 24
  c.evaluate.at_end = True
  return variant(c, name)
