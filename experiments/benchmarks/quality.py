r"""What a given time of training is worth: fd_infinity and class accuracy of a recipe, beside PyTorch's diffusers.

  python -m experiments.benchmarks.quality                                        the main job, 150, 300 and 600 s
  python -m experiments.benchmarks.quality --seconds=120 --seeds=1 --goal=4
  python -m experiments.benchmarks.quality --config=configs/fashion_mnist.py --peer='' --workdir=runs/quality

Each training is a process of its own, whose seconds count from its start with warm caches; it plans its decay of the
learning rate for that time. Where torch and diffusers are installed, diffusers' UNet2DModel is trained on the same
images for as long (quality_torch.py; options for it in --peer). Both draw with the same number of steps and the same
guidance, which does not count, and are measured by the same features; intervals are of 95 %, of the samples of each
seed. The result is a Markdown table on stdout, with the seconds at which fd_infinity reaches --goal, by interpolation
of its logarithm against that of the time. What is in --workdir already is not trained again.
"""
import argparse
import importlib.util
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from diffusion.errors import InputError
from diffusion.system import platform


def arguments():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--config', default='configs/cosine_ddim.py', help='recipe of images (default: configs/cosine_ddim.py)')
  add('--set', action='append', default=[], metavar='KEY=VALUE', help='a setting of it, such as batch=32; repeatable')
  add('--seconds', type=float, nargs='+', default=[150, 300, 600], help='of training (default: 150 300 600)')
  add('--seeds', type=int, default=3, help='trainings of each (default: 3)')
  add('--samples', type=int, default=1000, help='drawn of each (default: 1000)')
  add('--goal', type=float, default=2., help='fd_infinity whose time is asked for (default: 2)')
  add('--peer', default=None, help="options of quality_torch, such as '--batch=128'; 'none' leaves it out")
  add('--workdir', default=None, help='where trainings are kept (default: a temporary folder)')
  return parser.parse_args()


# ---- a training
def run(words, log):
  """Runs a command; its output goes to the file `log`.

  Raises:
    SystemExit: it failed; the last line of its output is the message.
  """
  with open(log, 'w') as out:
    code = subprocess.run(words, stdout=out, stderr=subprocess.STDOUT).returncode
  if code:
    last = Path(log).read_text().strip().splitlines()[-1:]
    raise SystemExit(f'error: {shlex.join(words)} ended with {code}: {"".join(last)}')


def ours(options, seconds, seed, folder):
  """The samples of a recipe that has trained for some seconds: the .npz of an evaluation."""
  main = [sys.executable, '-m', 'diffusion.main', f'--workdir={folder}']
  settings = [f'--config.{item}' for item in options.set]
  run([*main, f'--config={options.config}', *settings, f'--config.minutes={seconds / 60}', f'--config.seed={seed}',
       '--config.sample_every=1000000', '--config.val_every=1000000', '--config.evaluate.at_end=False'],
      folder.with_suffix('.log'))
  run([*main, '--mode=evaluate', '--config.evaluate.parts=samples', f'--config.evaluate.folder={folder / "measured"}',
       f'--config.evaluate.num_samples={options.samples}'], folder.with_suffix('.evaluation.log'))


def theirs(options, seconds, seed, folder, data):
  """The same of PyTorch's diffusers."""
  folder.mkdir()
  run([sys.executable, '-m', 'experiments.benchmarks.quality_torch', f'--data={data}', f'--seconds={seconds}',
       f'--out={folder / "samples.npz"}', f'--samples={options.samples}', f'--seed={seed}',
       *shlex.split(options.peer or '')], folder.with_suffix('.log'))


# ---- how good it is
def measured(config, files):
  """[{name: Estimate}] of .npz files of images and labels, by the features of the recipe's evaluation."""
  import numpy as np
  from diffusion.evaluation.metrics import make_features, measure
  from diffusion.evaluation.metrics.features import extract_all, make_extract, reference
  from diffusion.setup import build
  from diffusion.system import sharding
  data, mesh = build.load_data(config), sharding.make_mesh()
  extractor = make_features(config)(data.train, mesh)
  extract, results = make_extract(extractor, mesh), []
  real = reference(extractor, extract, data.train.arrays['images'], mesh)
  for file in files:
    with np.load(file) as drawn:
      features, _ = extract_all(extract, [drawn['images']], mesh)
      labels = drawn['labels'] if 'labels' in drawn and extractor.classes else None
      labels = labels.argmax(1) if labels is not None and labels.ndim == 2 else labels  # ours are one-hot
      results.append(measure.measure(features, real, 0, labels, mesh))
  return results


def seconds_to(goal, points):
  """Seconds at which a falling curve of (seconds, value) reaches `goal`, by interpolation of the logarithms.

  Returns:
    None if it does not within the points, or has reached it before the first.
  """
  for (t, a), (u, b) in zip(points, points[1:]):
    if a > goal >= b:
      return math.exp(math.log(t) + math.log(u / t) * math.log(a / goal) / math.log(a / b))
  return None


def rows(results, options):
  """Lines of the table: results {(name, seconds): [{metric: Estimate} of each seed]}."""
  show = lambda found, name: ', '.join(f'{one[name].value:.2f} ({one[name].low:.2f} to {one[name].high:.2f})'
                                       for one in found if name in one)
  yield '| | seconds | median fd_infinity | of each seed | class accuracy |'
  yield '|---|---|---|---|---|'
  middle = {key: statistics.median(one['fd_infinity'].value for one in found) for key, found in results.items()}
  for (name, seconds), found in results.items():
    yield (f'| {name} | {seconds:g} | {middle[name, seconds]:.2f} | {show(found, "fd_infinity")} | '
           f'{show(found, "class_accuracy")} |')
  for name in dict.fromkeys(name for name, _ in results):
    took = seconds_to(options.goal, [(s, value) for (who, s), value in sorted(middle.items()) if who == name])
    yield f'\n{name}: fd_infinity {options.goal:g} ' + (f'after {took:.0f} s' if took else 'is not crossed')


def main(options):
  platform.start()
  from diffusion.setup.config import put
  from experiments.benchmarks.same_step import recipe
  config = recipe(options.config)
  for item in options.set:
    put(config, *item.split('=', 1))
  kept = tempfile.TemporaryDirectory() if options.workdir is None else None
  root = Path(options.workdir or kept.name)
  root.mkdir(parents=True, exist_ok=True)
  peer = options.peer != 'none' and all(map(importlib.util.find_spec, ('torch', 'diffusers')))
  files = train_all(options, config, root, peer)
  found = measured(config, [file for _, file in files])
  results = {}
  for (key, _), metrics in zip(files, found):
    results.setdefault(key, []).append(metrics)
  print('\n'.join(rows(results, options)))
  record = [dict(name=name, seconds=seconds, seed=seed, **{metric: value._asdict() for metric, value in one.items()})
            for (name, seconds), each in results.items() for seed, one in enumerate(each)]
  (root / 'quality.json').write_text(json.dumps(record, indent=1))


def train_all(options, config, root, peer):
  """[((name, seconds), .npz of samples)] of all trainings; the two take turns, so that both meet the same machine."""
  import numpy as np
  from diffusion.setup import build
  data = root / 'data.npz'
  columns = build.load_data(config).train.arrays
  np.savez(data, images=columns['images'], labels=columns.get('labels', np.zeros(len(columns['images']), np.int32)))
  files = []
  for seconds in options.seconds:
    for seed in range(options.seeds):
      for name in ('ours', 'diffusers') if peer else ('ours',):
        folder = root / f'{name}_{seconds:g}_{seed}'
        file = folder / ('measured/samples.npz' if name == 'ours' else 'samples.npz')
        if not file.exists():
          print(f'{name}: {seconds:g} s, seed {seed}', file=sys.stderr, flush=True)
          ours(options, seconds, seed, folder) if name == 'ours' else theirs(options, seconds, seed, folder, data)
        files.append(((name, seconds), file))
  return files


if __name__ == '__main__':
  try:
    main(arguments())
  except InputError as error:
    raise SystemExit(f'error: {error}') from None
