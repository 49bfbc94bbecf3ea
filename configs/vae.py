r"""A plain variational autoencoder (arXiv:1312.6114) of 16x16 game sprites, with a bound on the bits of an image.

  python -m diffusion.main --config=configs/vae.py
  python -m diffusion.main --workdir=runs/vae --mode=sample         drawn from N(0, 1): blurred, as of any plain VAE
  python -m diffusion.main --workdir=runs/vae --mode=evaluate       bits_bound, in bits for each value; PSNR, distances
  python -m diffusion.main --config=configs/vae.py:tiny             the same in seconds, for tests

The likelihood is that of 8-bit values (a discretised logistic distribution with one learned scale), so that the loss is
the negative ELBO in nats. gaussian(beta=4) is a beta-VAE.
"""
from diffusion.setup.config import default, variant


def get_config(name=''):
  c = default()
  c.objective = 'autoencoder(gaussian, likelihood=logistic)'
  c.net = 'autoencoder(channels=32, multipliers=(1, 2, 2), blocks=1, latent=16)'
  c.minutes, c.batch, c.learning_rate = 5., 16, 2e-3
  c.val_every = c.save_every = 600
  c.sample.show, c.sample.classes = '', 'none'  # it draws in one step, whatever the class
  return variant(c, name)
