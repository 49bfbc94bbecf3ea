r"""A VQ autoencoder of 16x16 game sprites: 8x8 codes out of 512, 72 bytes for an image of 768.

  python -m diffusion.main --config=configs/vq.py
  python -m diffusion.main --workdir=runs/vq --mode=evaluate        PSNR, SSIM, usage of the codes; reconstructions.png
  python -m diffusion.main --config=configs/vq.py --config.objective='autoencoder(fsq((8, 5, 5, 5)))'
  python -m diffusion.main --config=configs/vq.py:tiny              the same in seconds, for tests

The codebook is made of exponential averages, and codes that nobody uses are drawn anew (objectives/bottlenecks.py).
:pod is the f8 model of latent diffusion with 16,384 codes (arXiv:2112.10752) for images of 256 pixels; it has not been
trained here.
"""
from diffusion.setup.config import default, variant


def pod(c):
  c.data = 'folder(images, size=256, stream=True)'
  c.net = ('autoencoder(channels=128, multipliers=(1, 2, 2, 4), blocks=2, groups=32, critic_channels=64, '
           'critic_layers=3, dtype=bfloat16, remat=True)')
  c.objective = 'autoencoder(vq(16384), adversarial=hinge(.5, start=50_000, warmup=5000))'
  c.optimizer = 'adam(b1=.5, b2=.9) | disc: adam(b1=.5, b2=.9)'
  c.minutes, c.steps, c.batch, c.learning_rate, c.ema_decay = 0., 200_000, 256, 1e-4, .9999
  c.lr_schedule, c.data_workers = 'constant(warmup=1000)', 16
  c.log_every, c.val_every, c.sample_every, c.save_every = 100, 2500, 5000, 2500
  return c


def get_config(name=''):
  c = default()
  c.objective = 'autoencoder(vq(512))'
  c.net = 'autoencoder(channels=32, multipliers=(1, 2), blocks=1, latent=4)'
  c.minutes, c.batch, c.learning_rate = 5., 16, 2e-3
  c.val_every = c.save_every = 600
  return variant(c, name, pod=pod)
