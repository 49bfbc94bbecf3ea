r"""Text to image from nothing: 16x16 game sprites drawn as a sentence says, cosine schedule, DDIM in 50 steps.

  python -m diffusion.main --config=configs/text_to_image.py
  python -m diffusion.main --workdir=runs/text_to_image --mode=sample --prompt='a red dragon with two eyes'
  python -m diffusion.main --config=configs/text_to_image.py:tiny    the same in seconds, for tests
"""
from diffusion.setup.config import default, variant


def get_config(name=''):
  c = default()
  c.task = 'text_to_image'
  c.net = ('with_text(unet(channels=32, multipliers=(1, 2, 2), blocks=1, attention=(8, 4)), width=128, blocks=4, '
           'heads=4)')
  c.sampler = 'ddim'
  c.guide = 'cfg(3)'
  c.minutes = 10.
  return variant(c, name)
