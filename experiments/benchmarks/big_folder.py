r"""What it takes to read a pipeline of the size of Stable Diffusion 1.5: peak memory of its own, and seconds.

  python -m experiments.benchmarks.big_folder                       float32, 4.3 GB of disk, removed at the end
  python -m experiments.benchmarks.big_folder --dtype=float16

The folder holds random weights, made here. Each row of the table is a process: `read`, the tensors of all networks;
`import`, --mode=import; `open`, diffusion.load of what was imported, on one device of the CPU. Memory is the largest
RssAnon that Linux tells of the process: without the pages of files, which the system may drop at any time.
"""
import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import safetensors.numpy

BLOCKS = dict(block_out_channels=[320, 640, 1280, 1280], layers_per_block=2)
CONFIGS = dict(
  unet=dict(_class_name='UNet2DConditionModel', sample_size=64, in_channels=4, out_channels=4, cross_attention_dim=768,
            attention_head_dim=8, down_block_types=['CrossAttnDownBlock2D'] * 3 + ['DownBlock2D'],
            up_block_types=['UpBlock2D'] + ['CrossAttnUpBlock2D'] * 3, **BLOCKS),
  vae=dict(_class_name='AutoencoderKL', block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4,
           down_block_types=['DownEncoderBlock2D'] * 4, up_block_types=['UpDecoderBlock2D'] * 4),
  text_encoder=dict(architectures=['CLIPTextModel'], hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                    num_attention_heads=12, vocab_size=49408, max_position_embeddings=77))
SCHEDULER = dict(_class_name='PNDMScheduler', beta_schedule='scaled_linear', beta_start=.00085, beta_end=.012,
                 skip_prk_steps=True, steps_offset=1)
INDEX = dict(_class_name='StableDiffusionPipeline', _diffusers_version='0.35.0')
READ = '''
import sys, jax
from diffusion.interop import models
found = [models.read(f'{sys.argv[1]}/{part}') for part in ('unet', 'vae', 'text_encoder')]
jax.block_until_ready([model.params for model in found])
'''
OPEN = '''
import sys, jax, diffusion
jax.block_until_ready(diffusion.load(sys.argv[2]).weights)
'''
IMPORT = '''
import sys
from diffusion import main
sys.argv = ['main', '--mode=import', f'--from={sys.argv[1]}', f'--workdir={sys.argv[2]}']
main.cli()
'''
NOTHING = 'import jax, diffusion.commands; jax.numpy.zeros(1).block_until_ready()'


def write_json(path, found):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(found))


def make_folder(folder, dtype):
  """Writes the pipeline; returns its number of parameters."""
  from diffusion.interop import models
  from diffusion.text.bpe_files import START, STOP, SYMBOLS
  rng, total = np.random.default_rng(0), 0
  write_json(folder / 'model_index.json', INDEX)
  write_json(folder / 'scheduler' / 'scheduler_config.json', SCHEDULER)
  write_json(folder / 'tokenizer' / 'tokenizer_config.json', dict(model_max_length=77))
  write_json(folder / 'tokenizer' / 'vocab.json', {t: i for i, t in enumerate([*SYMBOLS, START, STOP])})
  (folder / 'tokenizer' / 'merges.txt').write_text('#version: 0.2\n')
  for part, config in CONFIGS.items():
    write_json(folder / part / 'config.json', config)
    _, kind, module = models.describe(config, part)
    tensors = {kind.save(name): (.02 * rng.standard_normal(shape, np.float32)).astype(dtype)
               for name, shape in models.shapes(kind, module).items()}
    total += sum(a.size for a in tensors.values())
    safetensors.numpy.save_file(tensors, folder / part / f'{kind.stem}.safetensors', dict(format='pt'))
  return total


def measure(code, *words):
  """(peak bytes of memory of its own, seconds, seconds of processors) of a process that runs Python code."""
  env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS='--xla_force_host_platform_device_count=1')
  begun, most, before = time.monotonic(), 0, worked()
  with subprocess.Popen([sys.executable, '-c', code, *map(str, words)], env=env, stdout=subprocess.DEVNULL) as process:
    while process.poll() is None:
      most = max(most, anonymous(process.pid))
      time.sleep(.02)
  if process.returncode:
    raise SystemExit(f'error: a process ended with {process.returncode}')
  return most, time.monotonic() - begun, worked() - before


def worked():
  """Seconds of processors of all processes that have ended."""
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  return usage.ru_utime + usage.ru_stime


def anonymous(pid):
  """RssAnon of a process, bytes; 0 if it has ended."""
  try:
    text = pathlib.Path(f'/proc/{pid}/status').read_text()
  except OSError:
    return 0
  return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith('RssAnon')), 0)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--dtype', default='float32', choices=('float32', 'float16'), help='of the files')
  parser.add_argument('--place', default=None, help='where the folder is made (default: the temporary folder)')
  options = parser.parse_args()
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  with tempfile.TemporaryDirectory(dir=options.place) as place:
    folder, workdir = pathlib.Path(place) / 'folder', pathlib.Path(place) / 'work'
    size = 4 * make_folder(folder, options.dtype)  # in memory: float32
    idle, started, busy = measure(NOTHING)
    print(f'{size / 4e6:,.0f} million parameters, {size / 1e9:.2f} GB in float32, files of {options.dtype}; a process '
          f'that has only started: {idle / 1e9:.2f} GB, {started:.0f} s, {busy:.0f} of processors\n', flush=True)
    print('| | peak GB | of the size | less the start | seconds | less the start | of processors | less the start |\n'
          + '|---' * 8 + '|')
    for name, code in dict(read=READ, imported=IMPORT, opened=OPEN).items():
      most, seconds, work = measure(code, folder, workdir)
      print(f'| {name} | {most / 1e9:.2f} | {most / size:.2f} | {(most - idle) / size:.2f} | {seconds:.0f} | '
            f'{seconds - started:.0f} | {work:.0f} | {work - busy:.0f} |', flush=True)


if __name__ == '__main__':
  main()
