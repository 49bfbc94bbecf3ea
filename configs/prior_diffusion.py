r"""The diffusion prior of DALL-E 2 (arXiv:2204.06125): from a caption to the CLIP embedding of an image that it fits.

  python -m diffusion.main --config=configs/clip.py                  first the CLIP
  python -m diffusion.main --config=configs/prior_diffusion.py       then this, two minutes on 2 cores
  python -m diffusion.main --workdir=runs/prior_diffusion --mode=evaluate
  python -m diffusion.main --mode=sample --chain='runs/prior_diffusion, runs/unclip' --prompt='a red dragon'
  python -m diffusion.main --config=configs/prior_diffusion.py:tiny  the same in seconds, with runs/clip_tiny

A causal transformer predicts the embedding itself, and of two samples the one nearer to its caption is kept. `:pod` has
the size, batch and optimizer of the paper (table 3), and needs the CLIP of configs/clip.py:pod; it has not been
trained. docs/dalle2.md says what was measured.
"""
from diffusion.setup.config import default, tiny as smaller, variant


def tiny(c):
  c = smaller(c)
  c.task = 'embeddings(clip=runs/clip_tiny)'
  return c


def pod(c):
  c.data = 'folder(images, size=224, stream=True)'
  c.net = 'prior(width=2048, blocks=24, heads=32, dtype=bfloat16)'
  c.minutes, c.steps, c.batch, c.learning_rate, c.ema_decay = 0., 600_000, 4096, 1.1e-4, .9999
  c.optimizer, c.lr_schedule = 'adamw(b2=.96, weight_decay=.06, vectors=False)', 'constant(warmup=5000)'
  c.fsdp, c.data_workers = 8, 16
  c.log_every, c.val_every, c.sample_every, c.save_every = 100, 2500, 5000, 2500
  return c


def get_config(name=''):
  c = default()
  c.task = 'embeddings(clip=runs/clip)'
  c.net = 'prior(width=128, blocks=4, heads=4)'
  c.loss_weight, c.clip_x0 = 'one', False
  c.sampler, c.guide, c.sample.best_of = 'ddim(eta=1)', '', 2
  c.minutes, c.batch, c.learning_rate = 2., 128, 1e-3
  c.optimizer = 'adamw(b2=.96, weight_decay=.06, vectors=False)'
  c.ema_decay = .99
  c.val_every = c.save_every = 200
  c.sample_every = 1000
  return variant(c, name, tiny=tiny, pod=pod)
