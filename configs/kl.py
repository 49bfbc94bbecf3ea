r"""A KL autoencoder of 16x16 game sprites: 8x8 latents of 4 channels, the first half of latent diffusion.

  python -m diffusion.main --config=configs/kl.py
  python -m diffusion.main --workdir=runs/kl --mode=evaluate        PSNR, SSIM, distances; reconstructions.png
  python -m diffusion.main --config=configs/latent.py               diffusion in its latents (docs/latents.md)
  python -m diffusion.main --config=configs/kl.py:tiny              the same in seconds, for tests

:adversarial adds a discriminator for the last third of the training. :pod is Stable Diffusion's autoencoder (f8, 84
million parameters, arXiv:2112.10752) for images of 256 pixels; it has not been trained here.
"""
from diffusion.setup.config import default, variant


def adversarial(c):
  c.minutes, c.steps = 0., 3000
  c.objective = 'autoencoder(kl(1e-4), adversarial=hinge(.5, start=2000, warmup=300))'
  c.optimizer = 'adamw(b2=.99) | disc: adam(b1=.5, b2=.9)'
  return c


def pod(c):
  c.data = 'folder(images, size=256, stream=True)'
  c.net = ('autoencoder(channels=128, multipliers=(1, 2, 4, 4), blocks=2, groups=32, critic_channels=64, '
           'critic_layers=3, dtype=bfloat16, remat=True)')
  c.objective = 'autoencoder(kl(1e-6), adversarial=hinge(.5, start=50_000, warmup=5000))'
  c.optimizer = 'adam(b1=.5, b2=.9) | disc: adam(b1=.5, b2=.9)'
  c.minutes, c.steps, c.batch, c.learning_rate, c.ema_decay = 0., 200_000, 256, 1e-4, .9999
  c.lr_schedule, c.data_workers = 'constant(warmup=1000)', 16
  c.log_every, c.val_every, c.sample_every, c.save_every = 100, 2500, 5000, 2500
  return c


def get_config(name=''):
  c = default()
  c.objective = 'autoencoder(kl(1e-4))'
  c.net = 'autoencoder(channels=32, multipliers=(1, 2), blocks=1, latent=4)'
  c.minutes, c.batch, c.learning_rate = 5., 16, 2e-3
  c.val_every = c.save_every = 600
  return variant(c, name, adversarial=adversarial, pod=pod)
