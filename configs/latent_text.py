r"""Stable Diffusion in small, from nothing: text to image in the latents of configs/kl.py.

  python -m diffusion.main --config=configs/kl.py                   first the autoencoder
  python -m diffusion.main --config=configs/latent_text.py
  python -m diffusion.main --workdir=runs/latent_text --mode=sample --prompt='a red dragon with two eyes'
  python -m diffusion.main --config=configs/latent_text.py:tiny     the same in seconds, with runs/kl_tiny
"""
from diffusion.setup.config import default, tiny as smaller, variant


def tiny(c):
  c = smaller(c)
  c.task = 'latent(autoencoder=runs/kl_tiny, task=text_to_image)'
  return c


def get_config(name=''):
  c = default()
  c.task = 'latent(autoencoder=runs/kl, task=text_to_image)'
  c.net = ('with_text(unet(channels=48, multipliers=(1, 2), blocks=1, attention=(8, 4)), width=96, blocks=3, heads=4)')
  c.sampler, c.guide = 'ddim(eta=1)', 'cfg(3)'
  c.minutes, c.batch = 10., 16
  c.val_every = c.save_every = 600
  c.sample_every = 1000
  return variant(c, name, tiny=tiny)
