r"""Text to image on real pictures with captions, 32x32, such as emoji: the recipe for your own captioned folder.

  python -m diffusion.main --config=configs/emoji.py --config.data='npz(emoji_32x32.npz)'
  python -m diffusion.main --config=configs/emoji.py --config.data='folder(/my/images, size=32)' --config.minutes=60
  python -m diffusion.main --workdir=runs/emoji --mode=sample --prompt='a yellow face with tears'

An .npz file has arrays `images` and `captions`; a folder has metadata.jsonl, or a .txt file beside each image; see
docs/text.md.
"""
from diffusion.setup.config import default, variant


def get_config(name=''):
  c = default()
  c.data = 'npz(emoji_32x32.npz)'
  c.task = 'text_to_image'
  c.net = ('with_text(unet(channels=64, multipliers=(1, 2), blocks=1, attention=(8,), patch=2), width=128, blocks=4, '
           'heads=4)')
  c.sampler, c.guide = 'ddim(eta=1)', 'cfg(3)'
  c.minutes, c.batch = 20., 16
  c.val_every = c.save_every = 600
  c.sample_every = 1000
  return variant(c, name)
