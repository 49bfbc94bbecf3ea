r"""The autoregressive prior of DALL-E 2 (arXiv:2204.06125): the CLIP embedding of an image as codes, drawn in turn.

  python -m diffusion.main --config=configs/clip.py               first the CLIP
  python -m diffusion.main --config=configs/prior_ar.py           then this, two minutes on 2 cores
  python -m diffusion.main --workdir=runs/prior_ar --mode=evaluate
  python -m diffusion.main --mode=sample --chain='runs/prior_ar, runs/unclip' --prompt='a red dragon'
  python -m diffusion.main --config=configs/prior_ar.py:tiny      the same in seconds, with runs/clip_tiny

It gives what configs/prior_diffusion.py gives, and an exact likelihood. `:pod` has the size, batch, optimizer and codes
of the paper (table 3), and needs the CLIP of configs/clip.py:pod; it has not been trained. docs/dalle2.md says what was
measured.
"""
from diffusion.setup.config import default, tiny as smaller, variant


def tiny(c):
  c = smaller(c)
  c.task = 'codes(clip=runs/clip_tiny, components=4, buckets=8, dots=4)'
  return c


def pod(c):
  c.data = 'folder(images, size=224, stream=True)'
  c.task = 'codes(clip=runs/clip, components=319, buckets=1024, dots=1024)'
  c.net = 'prior_ar(width=1664, blocks=24, heads=26, dtype=bfloat16)'
  c.minutes, c.steps, c.batch, c.learning_rate, c.ema_decay = 0., 1_000_000, 4096, 1.6e-4, .999
  c.optimizer, c.lr_schedule = 'adamw(b2=.91, weight_decay=.04, vectors=False)', 'constant(warmup=5000)'
  c.fsdp, c.data_workers = 8, 16
  c.log_every, c.val_every, c.sample_every, c.save_every = 100, 2500, 5000, 2500
  return c


def get_config(name=''):
  c = default()
  c.task, c.objective = 'codes(clip=runs/clip)', 'autoregressive'
  c.net = 'prior_ar(width=128, blocks=3, heads=4)'
  c.guide, c.sample.show = '', ''
  c.minutes, c.batch, c.learning_rate = 2., 64, 1e-3
  c.optimizer = 'adamw(b2=.91, weight_decay=.04, vectors=False)'
  c.ema_decay = .99
  c.val_every = c.save_every = 200
  c.sample_every = 1000
  return variant(c, name, tiny=tiny, pod=pod)
