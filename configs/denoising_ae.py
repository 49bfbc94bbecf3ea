r"""A denoising autoencoder (Vincent 2011): the denoiser of one noise level, sigma = .5, on 16x16 game sprites.

  python -m diffusion.main --config=configs/denoising_ae.py
  python -m diffusion.main --workdir=runs/denoising_ae --mode=evaluate --config.evaluate.parts=loss
  python -m diffusion.main --config=configs/denoising_ae.py:tiny    the same in seconds, for tests

It is a diffusion model whose schedule has a single level. The best one is r(x) = x + sigma^2 grad log p(x): it knows
the score of the data with noise, and no way from noise to data. Its samples, made of noise alone, mean nothing;
noising.png has images without and with the noise, and --mode=edit --config.edit.task=img2img --config.edit.strength=1.
--config.edit.image=FILE shows what it makes of a noisy image.
"""
from diffusion.setup.config import default, tiny as smaller, variant


def tiny(c):
  c = smaller(c)
  c.grid = 'trailing(1)'
  return c


def get_config(name=''):
  c = default()
  c.schedule = 'edm(None, sigma_min=.499, sigma_max=.5)'
  c.predict, c.loss_weight = 'x0', 'one'
  c.grid, c.sampler, c.guide = 'trailing(1)', 'ddim', ''
  c.minutes, c.batch = 5., 16
  c.val_every = c.save_every = 600
  c.sample_every = 10_000
  c.sample.show = 'noising'
  return variant(c, name, tiny=tiny)
