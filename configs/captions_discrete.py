"""Texts by masked diffusion (MD4, arXiv:2406.04329): captions of the game sprites, word by word and by class.

  python -m diffusion.main --config=configs/captions_discrete.py
  python -m diffusion.main --mode=sample --workdir=runs/.. --config.sample.ask='text: a _ _ with a pink bow'

Your own texts, one for each line of a file:

  --config.data='text(poems.txt)' --config.task='words(character)'

:pod is for a corpus of the size of text8, 100 million characters in pieces of 256, on an accelerator or many:

  python -m diffusion.main --config=configs/captions_discrete.py:pod --config.data='text(text8, length=256)'
"""
from diffusion.setup.config import default, variant


def get_config(name=''):
  c = default()
  c.task, c.objective, c.net = 'words', 'discrete', 'transformer(width=96, blocks=3, heads=4)'
  c.schedule, c.guide = 'log_linear(None)', ''
  c.sampler, c.grid = 'confident(randomness=2.)', 'trailing(64)'
  c.batch, c.steps, c.learning_rate = 64, 4000, 2e-3
  c.log_every = c.val_every = 250
  c.sample_every = c.save_every = 1000
  c.sample.show = ''
  return variant(c, name, pod=pod)


def pod(c):
  """The sizes of MD4's text8 model (12 layers of 784, 512 texts a step)."""
  c.data, c.task = "text('text8', length=256)", 'words(character)'
  c.net = "transformer(width=784, blocks=12, heads=14, dtype='bfloat16')"
  c.batch, c.steps, c.learning_rate, c.lr_schedule = 512, 1_000_000, 3e-4, 'cosine(warmup=2000)'
  c.sampler, c.grid = 'ancestral(top_p=.98)', 'trailing(256)'
  c.ema_decay, c.condition_dropout = .9999, 0.
  c.log_every, c.val_every, c.val_samples = 100, 5000, 2048
  c.sample_every, c.save_every, c.keep_every = 10_000, 10_000, 100_000
  return c
