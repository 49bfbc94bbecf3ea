r"""Text to image from nothing: 16x16 game sprites drawn as a sentence says, cosine schedule, DDIM in 50 steps.

  python -m diffusion.main --config=configs/text_to_image.py
  python -m diffusion.main --workdir=runs/text_to_image --mode=sample --prompt='a red dragon with two eyes'
  python -m diffusion.main --workdir=runs/text_to_image --mode=evaluate --config.evaluate.parts=text
  python -m diffusion.main --config=configs/text_to_image.py --config.task='text_to_image(encoder=runs/clip)'
                                                                     on a frozen encoder of texts (docs/text.md)
  python -m diffusion.main --config=configs/text_to_image.py:tiny    the same in seconds, for tests

`:pod` is for real captions: 64x64 images, CLIP's byte pairs, the U-Net of ADM (arXiv:2105.05233) with a text encoder
of the size of GLIDE's public one (arXiv:2112.10741: 16 blocks of 512), in bfloat16, from images read during training.
It needs the vocabulary that CLIP was published with (bpe_simple_vocab_16e6.txt.gz), and has not been trained:
  python -m diffusion.main --config=configs/text_to_image.py:pod \
    --config.data='folder(/my/images, size=64, stream=True)'
"""
from diffusion.setup.config import default, variant


def pod(c):
  c.data = 'folder(images, size=64, stream=True)'
  c.task = "text_to_image(tokens=clip, vocabulary='bpe_simple_vocab_16e6.txt.gz')"
  c.net = ('with_text(unet(channels=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8), head_dim=64, '
           'resample=block, groups=32, dropout=.1, dtype=bfloat16), width=512, blocks=16, heads=8)')
  c.minutes, c.steps, c.batch = 0., 500_000, 2048
  c.fsdp, c.ema_decay, c.learning_rate, c.lr_schedule = 8, .9999, 1e-4, 'constant(warmup=5000)'
  c.optimizer = 'adamw(b2=.99, weight_decay=.01)'
  c.log_every, c.val_every, c.sample_every, c.save_every = 100, 2500, 5000, 2500
  c.sample.batch = 256
  return c


def get_config(name=''):
  c = default()
  c.task = 'text_to_image'
  # Attention at 8x8 and an encoder of 3 blocks of 96 take 1.4 times as long a step, and were behind in equal time.
  c.net = 'with_text(unet(channels=32, multipliers=(1, 2, 2), blocks=1, attention=(4,)), width=64, blocks=1, heads=4)'
  c.sampler, c.guide = 'ddim(eta=1)', 'cfg(3)'
  c.minutes, c.batch = 10., 16
  c.val_every = c.save_every = 600
  c.sample_every = 1000
  return variant(c, name, pod=pod)
