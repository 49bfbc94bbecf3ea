"""After chapter 8 of Foster, Generative Deep Learning: offset cosine rates, absolute error, 30 reverse steps.

  python -m diffusion.main --config=configs/offset_cosine.py
  python -m diffusion.main --config=configs/offset_cosine.py:tiny

The condition on the noise level is its variance; AdamW at 1e-3 with weight decay 1e-4; EMA 0.999. Because the signal
rate starts at 0.95 rather than 1, the last step has to add the finest details at once. The book trains on 64x64
flowers: --config.data='folder(/my/flowers, size=64)'
--config.net='unet(channels=32, multipliers=(1, 2, 3, 4), blocks=2, attention=())' is its network, for your own images.
On the sprites this recipe has not been run at full length; `:tiny` is tested.
"""
from diffusion.setup.config import default, variant


def get_config(name=''):
  c = default()
  c.schedule = "offset_cosine(min_signal=0.02, max_signal=0.95, told='variance')"
  c.predict, c.loss_weight = 'eps', 'one'
  c.guide = ''  # conditional, without guidance
  c.timesteps = 'uniform'
  c.loss_type = 'mae'
  c.learning_rate = 1e-3
  c.lr_schedule = 'constant(warmup=100)'
  c.optimizer = 'adamw(weight_decay=1e-4)'
  c.ema_decay = .999
  c.sampler = 'ddim'
  c.grid = 'trailing(30)'
  return variant(c, name)
