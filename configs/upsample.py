r"""Up-samplers: models that enlarge images, one after the other behind a model that draws small ones (a cascade).

  python -m diffusion.main --config=configs/upsample.py                            sprites, 16x16 to 32x32
  python -m diffusion.main --config=configs/upsample.py:64                         sprites, 32x32 to 64x64
  python -m diffusion.main --config=configs/upsample.py:emoji --config.data='npz(emoji_32x32.npz)'
  python -m diffusion.main --config=configs/upsample.py:tiny                       the first in seconds, for tests
  python -m diffusion.main --mode=sample --chain='runs/text_to_image, runs/upsample, runs/upsample_64' --prompt='a hero'
  python -m diffusion.main --workdir=runs/upsample --mode=evaluate                 PSNR of held-out images

The network sees the small image, enlarged, beside x. In training that gets noise (and photographs a blur) of random
strength, and the network is told how much, so that it forgives the faults of images that a model has drawn.
docs/glide.md says more.

`:pod` enlarges photographs from 64 to 256 pixels with a network of the size of GLIDE's (arXiv:2112.10741: 384 channels,
1.6 million steps of 512 images), but for its text; it has not been trained.
"""
from diffusion.setup.config import default, tiny, variant


def to_64(c):
  c.data = 'sprites(size=64, low=32)'
  return c


def emoji(c):
  c.data, c.task = 'npz(emoji_32x32.npz)', 'restore(downscale(2), noise=.1, blur=.6)'
  return c


def pod(c):
  c.data, c.task = 'folder(images, size=256, stream=True)', 'restore(downscale(4), noise=.2, blur=.6)'
  c.net = ('unet(channels=384, multipliers=(1, 1, 2, 2, 4, 4), blocks=2, attention=(32, 16, 8), head_dim=64, '
           'resample=block, groups=32, dropout=.1, dtype=bfloat16, remat=True)')
  c.grid, c.sampler = "sections('fast27')", 'ddim(eta=1)'
  c.minutes, c.steps, c.batch, c.learning_rate, c.ema_decay = 0., 1_600_000, 512, 1e-4, .9999
  c.fsdp, c.lr_schedule, c.data_workers = 8, 'constant(warmup=5000)', 16
  c.log_every, c.val_every, c.sample_every, c.save_every = 100, 2500, 5000, 2500
  c.sample.batch = 256
  return c


def small(c):
  c = tiny(c)
  c.data = 'sprites(size=32, n=256, low=16)'
  return c


def get_config(name=''):
  c = default()
  c.data = 'sprites(size=32, low=16)'
  c.task = 'restore(enlarge=linear, noise=.1)'
  c.net = 'unet(channels=48, multipliers=(1, 2), blocks=1, attention=(), patch=2)'
  c.schedule, c.guide, c.condition_dropout = 'linear', '', 0.
  c.sampler, c.grid = 'ddim', 'trailing(10)'
  c.minutes, c.batch = 4., 16
  c.val_every = c.save_every = 300
  c.sample_every = 600
  c.sample.num_samples = 32
  c.evaluate.num_samples = 1900  # 19 of each of 100 images
  return variant(c, name, emoji=emoji, pod=pod, tiny=small, **{'64': to_64})
