r"""ImageNet at 64x64 with the 296-million-parameter U-Net of ADM (arXiv:2105.05233, appendix I), for TPU pods.

  python -m diffusion.main --config=configs/imagenet64.py:pod        256 chips with 16 GB, such as a v5e:16x16
  python -m diffusion.main --config=configs/imagenet64.py:quarter    64 such chips, with gradient accumulation
  python -m diffusion.main --config=configs/imagenet64.py            as :pod, with the whole state on every chip
  python -m diffusion.main --config=configs/imagenet64.py:tiny       a few seconds, for tests

The same command runs on every host. The three variants train the same model: batch 2048, 540,000 steps. They differ in
memory per chip: fsdp=8 divides the state of 4.7 GB (parameters, EMA, AdamW's two moments) by 8; `:quarter` processes
its 32 images per chip in 4 parts (grad_accumulation=4), with the activations of 8 images at a time. With fewer chips,
raise config.grad_accumulation until batch / chips / grad_accumulation is 8. `python -m experiments.aot` reports what
fits before you have the chips: `:pod` takes 4.77 and `:quarter` 4.96 of the 17.18 GB of a v5e (each compile took
libtpu 40 minutes on one core).

Images are read from disk during training. The data set must be prepared once, which needs TensorFlow
(pip install 'diffusion-jax[tf]'):
  python -c "from tensorflow_datasets import builder; \
    builder('imagenet_resized/64x64', file_format='array_record').download_and_prepare()"
The paper reports an FID of 2.07 (table 5: 250 ancestral steps, no guidance); this recipe has not been run by its
authors. Unlike the paper it drops the class for a tenth of the images, so that --config.guide='cfg(2)' works.
"""
from diffusion.setup.config import default, variant

NET = ('unet(channels=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8), head_dim=64, resample=block, '
       'groups=32, dropout=0.1, dtype=bfloat16)')


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
