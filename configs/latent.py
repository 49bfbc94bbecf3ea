r"""Latent diffusion (arXiv:2112.10752): class-conditional game sprites, in the latents of configs/kl.py.

  python -m diffusion.main --config=configs/kl.py                   first the autoencoder
  python -m diffusion.main --config=configs/latent.py
  python -m diffusion.main --config=configs/latent.py --config.task='latent(runs/vq, task=image)'
  python -m diffusion.main --config=configs/latent.py:tiny          the same in seconds, with runs/kl_tiny

x0 is 8x8x4 instead of 16x16x3, and images are encoded once, before the training. :pod is for images of 256 pixels in
32x32x4 latents, with the network of latent diffusion's table 12; it has not been trained here.
"""
from diffusion.setup.config import default, tiny as smaller, variant


def tiny(c):
  c = smaller(c)
  c.task = 'latent(autoencoder=runs/kl_tiny, task=image)'
  return c


def pod(c):
  c.data = 'folder(images, size=256, stream=True)'
  c.net = ('unet(channels=256, multipliers=(1, 2, 4), blocks=2, attention=(32, 16, 8), head_dim=64, groups=32, '
           'dtype=bfloat16, remat=True)')
  c.minutes, c.steps, c.batch, c.learning_rate, c.ema_decay = 0., 400_000, 1024, 1e-4, .9999
  c.fsdp, c.lr_schedule, c.data_workers = 8, 'constant(warmup=5000)', 16
  c.log_every, c.val_every, c.sample_every, c.save_every = 100, 2500, 5000, 2500
  return c


def get_config(name=''):
  c = default()
  c.task = 'latent(autoencoder=runs/kl, task=image)'
  c.net = 'unet(channels=48, multipliers=(1, 2), blocks=1, attention=(8, 4))'
  c.sampler = 'ddim(eta=1)'
  c.minutes, c.batch = 5., 32
  c.val_every = c.save_every = 600
  c.sample_every = 1000
  return variant(c, name, tiny=tiny, pod=pod)
