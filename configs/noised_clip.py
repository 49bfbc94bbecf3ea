r"""A noised CLIP (GLIDE, arXiv:2112.10741, section 4.4): its images are noised as for the model that it is to guide.

  python -m diffusion.main --config=configs/noised_clip.py                  game sprites, five minutes on 2 cores
  python -m diffusion.main --workdir=runs/noised_clip --mode=evaluate       retrieval by log-SNR
  python -m diffusion.main --workdir=runs/text_to_image --mode=sample --prompt='a red dragon' \
    --config.guide='clip_guidance(runs/noised_clip, 300)'
  python -m diffusion.main --config=configs/noised_clip.py:tiny             the same in seconds, for tests

The image tower is told the noise level by a token in the place of the class token. config.schedule must be that of the
model to be guided. At the noisiest levels expect no less than log(batch): nothing is left to see. `:pod` is GLIDE's
size, a patch of 4 on 64 pixels in 12 blocks, with a batch of 32,768; not trained.
"""
from diffusion.setup.config import default, SPRITE_TEMPLATES, variant


def pod(c):
  c.data = 'folder(images, size=64, stream=True)'
  c.task = "pairs(tokens=clip, vocabulary='bpe_simple_vocab_16e6.txt.gz')"
  c.objective = 'contrastive(noised=True, chunks=8)'
  c.net = ('clip(size=512, patch=4, width=768, blocks=12, heads=12, text_width=512, text_blocks=12, text_heads=8, '
           'dtype=bfloat16)')
  c.minutes, c.steps, c.batch, c.grad_accumulation = 0., 390_000, 32_768, 4
  c.learning_rate, c.lr_schedule = 5e-4, 'cosine(warmup=2000)'
  c.optimizer = 'adamw(b2=.98, eps=1e-6, weight_decay=.2, vectors=False)'
  c.val_samples = 32_768
  c.log_every, c.val_every, c.save_every = 100, 2500, 2500
  return c


def get_config(name=''):
  c = default()
  c.task, c.objective = 'pairs', 'contrastive(noised=True)'
  c.net = 'clip(size=64, patch=4, width=128, blocks=4, heads=4, text_width=128, text_blocks=3, text_heads=4)'
  c.schedule, c.guide = 'cosine', ''
  c.minutes, c.batch = 5., 128
  c.learning_rate, c.optimizer = 1e-3, 'adamw(b2=.98, eps=1e-6, weight_decay=.1, vectors=False)'
  c.ema_decay = .99
  c.val_every = c.save_every = 200
  c.evaluate.templates = SPRITE_TEMPLATES
  return variant(c, name, pod=pod)
