r"""CLIP from nothing (arXiv:2103.00020): two towers that find the caption of an image among others, and the reverse.

  python -m diffusion.main --config=configs/clip.py                         game sprites, five minutes on 2 cores
  python -m diffusion.main --config=configs/clip.py --config.data='npz(emoji_32x32.npz)' --workdir=runs/clip_emoji
  python -m diffusion.main --workdir=runs/clip --mode=evaluate              retrieval and zero-shot classification
  python -m diffusion.main --workdir=runs/text_to_image --mode=sample --prompt='a red dragon' \
    --config.guide='cfg(2) | clip_guidance(runs/clip, 50)'
  python -m diffusion.main --config=configs/clip.py:tiny                    the same in seconds, for tests

`:pod` is ViT-B/32 with the paper's batch of 32,768, in bfloat16, from images read during training, with CLIP's byte
pairs, whose published vocabulary (bpe_simple_vocab_16e6.txt.gz) it needs. It has not been trained. Compiled for a
v5e:8x8 (experiments/aot.py, with bytes in place of the byte pairs), a step takes 15.7 of the 17.2 GB of a chip and an
estimated .36 s; the table of byte pairs takes .4 GB more.
docs/clip.md says what was measured.
"""
from diffusion.setup.config import default, SPRITE_TEMPLATES, variant


def pod(c):
  c.data = 'folder(images, size=224, stream=True)'
  c.task = "pairs(tokens=clip, vocabulary='bpe_simple_vocab_16e6.txt.gz')"
  c.objective = 'contrastive(chunks=8)'
  c.net = ('clip(size=512, patch=32, width=768, blocks=12, heads=12, text_width=512, text_blocks=12, text_heads=8, '
           'dtype=bfloat16)')
  c.minutes, c.steps, c.batch = 0., 390_000, 32_768
  c.learning_rate, c.lr_schedule = 5e-4, 'cosine(warmup=2000)'
  c.optimizer = 'adamw(b2=.98, eps=1e-6, weight_decay=.2, vectors=False)'
  c.val_samples = 32_768
  c.log_every, c.val_every, c.save_every = 100, 2500, 2500
  return c


def get_config(name=''):
  c = default()
  c.task, c.objective = 'pairs', 'contrastive'
  c.net = 'clip(size=64, patch=4, width=128, blocks=4, heads=4, text_width=128, text_blocks=3, text_heads=4)'
  c.minutes, c.batch = 5., 128
  c.learning_rate, c.optimizer = 1e-3, 'adamw(b2=.98, eps=1e-6, weight_decay=.1, vectors=False)'
  c.ema_decay = .99
  c.val_every = c.save_every = 200
  c.evaluate.templates = SPRITE_TEMPLATES
  return variant(c, name, pod=pod)
