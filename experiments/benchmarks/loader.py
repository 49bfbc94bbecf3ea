r"""Images per second that reach the devices: from memory, and read from disk during training.

  python -m experiments.benchmarks.loader                                      2,000 images of 64x64
  python -m experiments.benchmarks.loader --number=5000 --size=256 --read=64   larger files, scaled down when read
  python -m experiments.benchmarks.loader --tfds=fashion_mnist --data_dir=DIR  also a data set prepared by TFDS

It writes its own images, PNG and JPEG, to a temporary folder. Nothing consumes the batches, so this is the highest
rate of the loader: if the config.data_workers processes have their own cores, a slower network never waits. The
operating system caches the files, so the disk itself is not measured. The result is a Markdown table on stdout.
"""
import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path

from diffusion.system import platform


def arguments():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--number', type=int, default=2000, help='number of images (default: 2000)')
  add('--size', type=int, default=64, help='height and width of the files (default: 64)')
  add('--read', type=int, default=None, help='height and width after scaling (default: unscaled)')
  add('--batch', type=int, default=128, help='images per batch (default: 128)')
  add('--workers', type=int, nargs='+', default=[0, 2], help='worker processes to compare (default: 0 2)')
  add('--seconds', type=float, default=4., help='time for each row (default: 4)')
  add('--tfds', default='', help='name of a prepared data set')
  add('--data_dir', default=None, help='its location (default: that of TFDS)')
  return parser.parse_args()


def write_images(folder, ending, number, size):
  """Coloured noise over a gradient: about as hard to decode as photographs."""
  import numpy as np
  from PIL import Image
  random, (y, x) = np.random.default_rng(0), np.mgrid[:size, :size] / size
  folder.mkdir()
  for i in range(number):
    smooth = np.stack([x, y, (x + y) / 2], -1) * random.uniform(50, 200, 3)
    noisy = smooth + random.normal(scale=12, size=smooth.shape) + 25
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f'{i:06}.{ending}')


def measure(data, batch, seconds, put, workers):
  """(seconds until the first batch, images per second after it) of a feed whose consumer is never busy."""
  import jax
  import numpy as np
  from diffusion.data.arrays import images_batch
  from diffusion.data.dataset import read_batch
  from diffusion.data.prefetch import feed
  begun = time.perf_counter()
  source = feed(partial(read_batch, images_batch, data, batch, 0, np.arange(batch)), 0, 10 ** 9, put, workers)
  try:
    jax.block_until_ready(source.next())
    first = time.perf_counter() - begun
    for _ in range(2 * workers + 2):   # batches read while the first was under way do not count
      source.next()
    begun, done = time.perf_counter(), 0
    while time.perf_counter() < begun + seconds:
      jax.block_until_ready(source.next())
      done += 1
    return first, done * batch / (time.perf_counter() - begun)
  finally:
    source.close()


def contenders(options, folder):
  """name -> (Dataset, numbers of workers)."""
  from diffusion.data import sources
  datasets = {}
  for ending in ('png', 'jpg'):
    write_images(folder / ending, ending, options.number, options.size)
    arguments = dict(path=str(folder / ending), size=options.read, heldout=0)
    if not datasets:
      datasets['in memory'] = sources.folder(**arguments).train, [0]
    datasets[f'folder of {ending}, stream=True'] = sources.folder(**arguments, stream=True).train, options.workers
  if options.tfds:
    data = sources.tfds(options.tfds, options.data_dir, options.read, stream=True).train
    datasets[f'tfds({options.tfds}), stream=True'] = data, options.workers
  return datasets


def main():
  options = arguments()
  platform.start()
  from diffusion.system import sharding
  mesh = sharding.make_mesh()
  sharding.check_batch('--batch', options.batch, mesh)
  put = lambda batch: sharding.put_batch(batch, mesh)
  print('| data | images | workers | images/s | first batch after, s |\n|---|---|---|---|---|')
  with tempfile.TemporaryDirectory() as folder:
    for name, (data, several) in contenders(options, Path(folder)).items():
      shape = 'x'.join(map(str, data.images.shape))
      for workers in several:
        first, rate = measure(data, options.batch, options.seconds, put, workers)
        print(f'| {name} | {shape} | {workers} | {rate:,.0f} | {first:.2f} |', flush=True)
  print(f'\nbatch {options.batch}; files of {options.size}x{options.size}; '
        f'load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.')


if __name__ == '__main__':
  main()
