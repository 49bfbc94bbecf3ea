r"""SigLIP from nothing (arXiv:2303.15343): each pair of an image and a text is a yes or no of its own.

  python -m diffusion.main --config=configs/siglip.py                       game sprites, five minutes on 2 cores
  python -m diffusion.main --workdir=runs/siglip --mode=evaluate            retrieval and zero-shot classification
  python -m diffusion.main --config=configs/siglip.py:tiny                  the same in seconds, for tests

The learned bias starts at -log(batch - 1), the share of positives: -4.8 for 128, and the paper's -10 for 32,768. `:pod`
is SigLIP's B/16 on images of 224 pixels, with CLIP's byte pairs in place of its own vocabulary; not trained.
"""
from diffusion.setup.config import default, SPRITE_TEMPLATES, variant


def pod(c):
  c.data = 'folder(images, size=224, stream=True)'
  c.task = "pairs(tokens=clip, vocabulary='bpe_simple_vocab_16e6.txt.gz', length=64)"
  c.objective = 'contrastive(loss=sigmoid, chunks=8)'
  c.net = ('clip(form=siglip, activation=gelu_tanh, patch=16, width=768, blocks=12, heads=12, text_width=768, '
           'text_blocks=12, text_heads=12, dtype=bfloat16)')
  c.minutes, c.steps, c.batch, c.grad_accumulation = 0., 390_000, 32_768, 4
  c.learning_rate, c.lr_schedule = 1e-3, 'cosine(warmup=20_000)'
  c.optimizer = 'adamw(b2=.95, weight_decay=1e-4, vectors=False)'
  c.val_samples = 32_768
  c.log_every, c.val_every, c.save_every = 100, 2500, 2500
  return c


def get_config(name=''):
  c = default()
  c.task, c.objective = 'pairs', 'contrastive(loss=sigmoid)'
  c.net = ('clip(form=siglip, activation=gelu_tanh, patch=4, width=128, blocks=4, heads=4, text_width=128, '
           'text_blocks=3, text_heads=4)')
  c.minutes, c.batch = 5., 128
  c.learning_rate, c.optimizer = 1e-3, 'adamw(b2=.95, weight_decay=1e-4, vectors=False)'
  c.ema_decay = .99
  c.val_every = c.save_every = 200
  c.evaluate.templates = SPRITE_TEMPLATES
  return variant(c, name, pod=pod)
