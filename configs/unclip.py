r"""The decoder of DALL-E 2 (arXiv:2204.06125): game sprites from the CLIP embedding of an image, and a text.

  python -m diffusion.main --config=configs/clip.py                  first the CLIP
  python -m diffusion.main --config=configs/unclip.py
  python -m diffusion.main --config=configs/prior_diffusion.py       and a prior, or configs/prior_ar.py
  python -m diffusion.main --mode=sample --chain='runs/prior_diffusion, runs/unclip' --prompt='a red dragon'
  python -m diffusion.main --mode=edit --workdir=runs/unclip --config.edit.task=variations --config.edit.image=my.png
  python -m diffusion.main --config=configs/unclip.py:tiny           the same in seconds, with runs/clip_tiny

The embedding is added to that of the time, and is four more entries of the context beside the text. In training it is
missing in 10 % of the examples and the text in 50 %: 5 % have neither (condition_dropout), the rest is the task's.
`:pod` is for images of 64 pixels, with the width of the paper's decoder (table 3), and needs a CLIP of that size; it
has not been trained. docs/dalle2.md says what was measured.
"""
from diffusion.setup.config import default, tiny as smaller, variant


def tiny(c):
  c = smaller(c)
  c.task = 'unclip(clip=runs/clip_tiny)'
  return c


def pod(c):
  c.data = 'folder(images, size=64, stream=True)'
  c.net = ('with_text(unet(channels=512, multipliers=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8), head_dim=64, '
           'resample=block, groups=32, dtype=bfloat16, remat=True), width=2048, blocks=24, heads=32)')
  c.minutes, c.steps, c.batch = 0., 800_000, 2048
  c.fsdp, c.ema_decay, c.learning_rate, c.lr_schedule = 8, .9999, 1.2e-4, 'constant(warmup=5000)'
  c.optimizer, c.data_workers = 'adamw(b2=.999, vectors=False)', 16
  c.log_every, c.val_every, c.sample_every, c.save_every = 100, 2500, 5000, 2500
  c.sample.batch = 256
  return c


def get_config(name=''):
  c = default()
  c.task = 'unclip(clip=runs/clip, text_dropout=.475, embedding_dropout=.05)'
  c.net = 'with_text(unet(channels=32, multipliers=(1, 2, 2), blocks=1, attention=(4,)), width=64, blocks=1, heads=4)'
  c.condition_dropout = .05
  c.sampler, c.guide = 'ddim(eta=1)', 'cfg(2)'
  c.minutes, c.batch = 8., 16
  c.val_every = c.save_every = 600
  c.sample_every = 1000
  return variant(c, name, tiny=tiny, pod=pod)
