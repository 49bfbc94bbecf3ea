r"""CIFAR-10 with the 35.7-million-parameter U-Net of DDPM (arXiv:2006.11239, appendix B), for GPUs and TPU pods.

  python -m diffusion.main --config=configs/cifar10.py        one accelerator: batch 128, 800,000 steps
  python -m diffusion.main --config=configs/cifar10.py:pod    a TPU pod, one command for all hosts: batch 2048
  python -m diffusion.main --config=configs/cifar10.py:tiny   a few seconds, for tests

Compiled for a v5e:16x16 (experiments/aot.py), a step of `:pod` with 8 images per chip uses 0.86 GB of the chip's 16 GB
for state, temporaries and program, and is limited by memory bandwidth. Fewer chips hold more images each;
experiments.aot reports what fits.

The data set must be prepared once, which needs TensorFlow (pip install 'diffusion-jax[tf]'):
  python -c "from tensorflow_datasets import builder; \
    builder('cifar10', file_format='array_record').download_and_prepare()"
The paper reports an FID of 3.17 with ancestral sampling in 1000 steps; this recipe has not been run at full length by
its authors.
"""
from diffusion.setup.config import default, variant

NET = ('unet(channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,), heads=1, film=False, groups=32, '
       "dropout=0.1, dtype='{dtype}')")


def pod(c):
  c.net = NET.format(dtype='bfloat16')
  c.batch = 2048
  c.steps = 50_000
  c.learning_rate = 8e-4
  return c


def get_config(name=''):
  c = default()
  c.data = 'tfds(cifar10)'
  c.task = 'image(flip=True)'
  c.net = NET.format(dtype='float32')
  c.schedule = 'linear(T=1000)'
  c.predict, c.loss_weight = 'eps', 'one'
  c.guide = ''  # conditional, without guidance
  c.timesteps = 'uniform'
  c.condition_dropout = .1
  c.batch, c.steps = 128, 800_000
  c.learning_rate, c.lr_schedule = 2e-4, 'constant(warmup=5000)'
  c.optimizer = 'adamw'
  c.ema_decay = .9999
  c.sampler = "ddpm(variance='large')"
  c.grid = 'trailing(1000)'
  c.log_every, c.val_every, c.val_samples = 100, 10_000, 1024
  c.save_every, c.sample_every = 5000, 50_000
  c.sample.num_samples = c.sample.batch = 100
  return variant(c, name, pod=pod)
