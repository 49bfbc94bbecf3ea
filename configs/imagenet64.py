"""ImageNet at 64x64 with the 296-million-parameter U-Net of ADM (arXiv:2105.05233, appendix I), for TPU pods.

  python -m diffusion.main --config=configs/imagenet64.py:pod        256 chips with 16 GB, such as a v5e:16x16: 8 pictures each
  python -m diffusion.main --config=configs/imagenet64.py:quarter    64 such chips: 32 pictures each, in 4 parts
  python -m diffusion.main --config=configs/imagenet64.py            as :pod, with every chip holding the whole state
  python -m diffusion.main --config=configs/imagenet64.py:tiny

The same command runs on every host. The three train the same model: batch 2048, 540,000 steps. They differ in what a chip holds: with
fsdp=8 the state of 4.7 GB (parameters, average, AdamW's two moments) is divided by 8; with accumulate=4 there are activations of 8
pictures at a time. Fewer chips: raise config.grad_accumulation until batch / chips / accumulate is 8. `python -m experiments.aot` says what
fits before you have the chips: `:pod` takes 4.77 and `:quarter` 4.96 of the 17.18 GB of a v5e (those compiles took libtpu 40 minutes of
a core each).

The pictures are read from the disk while training. Prepared once, which needs TensorFlow (pip install 'diffusion-jax[tf]'):
  python -c "import tensorflow_datasets as tfds; tfds.builder('imagenet_resized/64x64', file_format='array_record').download_and_prepare()"
The paper reports an FID of 2.07 (table 5: 250 ancestral steps, no guidance); this recipe has not been run by its authors. It hides
a tenth of the classes, which the paper does not, so that --config.guide='cfg(2)' works.
"""
from diffusion.setup.config import default, variant

NET = ('unet(channels=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8), head_dim=64, resample=block, groups=32, dropout=0.1, '
       'dtype=bfloat16)')


def pod(c):
  c.fsdp = 8
  return c


def quarter(c):
  c.fsdp, c.grad_accumulation = 8, 4
  return c


def get_config(name=''):
  c = default()
  c.data = 'tfds(imagenet_resized/64x64, stream=True)'
  c.task = 'image(flip=True)'
  c.net = NET
  c.schedule = 'cosine(T=1000)'
  c.predict, c.loss_weight = 'eps', 'one'
  c.timesteps = 'uniform'
  c.variance = 'learned(strength=0.001)'
  c.guide = ''  # conditional, without guidance
  c.condition_dropout = .1
  c.batch, c.steps = 2048, 540_000
  c.learning_rate, c.lr_schedule = 3e-4, 'constant(warmup=5000)'
  c.optimizer = 'adamw'
  c.ema_decay = .9999
  c.data_workers = 8
  c.sampler = "ddpm(variance='learned')"
  c.grid = 'trailing(250)'
  c.log_every, c.val_every, c.val_samples = 100, 10_000, 4096
  c.save_every, c.sample_every, c.keep_every = 5000, 20_000, 100_000
  c.sample.num_samples = c.sample.batch = 256
  return variant(c, name, pod=pod, quarter=quarter)
