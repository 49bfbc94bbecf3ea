r"""In-painting by a prompt: goes on from configs/text_to_image.py and learns to paint a part of an image (GLIDE).

  python -m diffusion.main --config=configs/text_to_image.py                       first the model of whole images
  python -m diffusion.main --config=configs/inpaint.py
  python -m diffusion.main --workdir=runs/inpaint --mode=edit --config.edit.image=my.png --config.edit.mask=mask.png \
    --prompt='a hero with a crown'
  python -m diffusion.main --config=configs/inpaint.py --config.init_from=runs/mine --config.net=..    that of runs/mine
  python -m diffusion.main --config=configs/inpaint.py:tiny                        from nothing, in seconds, for tests

The mask is white where the image is painted. The network sees what is kept in four more channels, whose weights start
at zero, so that at first it draws what the other model does; and it still draws whole images with --mode=sample.
"""
from diffusion.setup.config import default, tiny as smaller, variant


def tiny(c):
  c = smaller(c)
  c.init_from = ''
  return c


def get_config(name=''):
  c = default()
  c.task = 'inpaint(task=text_to_image)'
  c.net = 'with_text(unet(channels=32, multipliers=(1, 2, 2), blocks=1, attention=(4,)), width=64, blocks=1, heads=4)'
  c.init_from = 'runs/text_to_image'
  c.sampler, c.guide = 'ddim(eta=1)', 'cfg(3)'
  c.minutes, c.batch, c.learning_rate = 3., 16, 1e-3
  c.val_every = c.save_every = 300
  c.sample_every = 600
  return variant(c, name, tiny=tiny)
