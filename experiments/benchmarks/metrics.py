r"""The cost of evaluation relative to sampling: features, distances, and 50 network evaluations for each sample.

  python -m experiments.benchmarks.metrics                             500 sprites
  python -m experiments.benchmarks.metrics --number=2000 --rounds=5

The network is that of the main job with its initial weights, without guidance; features are `own` (trained first if
not in the cache) and, with --wide, random ones of the size of Inception's. Everything is compiled before it is timed;
the parts take turns and the table gives medians.
"""
import argparse
import statistics
import time

from diffusion.system import platform


def arguments():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--number', type=int, default=500, help='samples (default: 500)')
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--wide', action='store_true', help='also the Frechet distance of 2048 features')
  return parser.parse_args()


def work(number, wide):
  """({name: function to time}, number of devices)."""
  import jax
  import numpy as np
  from diffusion.evaluation import sample_metrics
  from diffusion.evaluation.metrics import frechet, gaussian_stats, measure
  from diffusion.evaluation.metrics.features import extract_all
  from diffusion.generation import sampling
  from diffusion.setup import build
  from diffusion.setup.config import default
  from diffusion.system import sharding
  from diffusion.training.open_model import run_of
  from experiments.image_run import weights_of
  config = default()
  config.guide, config.sampler = '', 'ddim'
  data = build.load_data(config)
  run = run_of(config, data, sharding.make_mesh())
  weights = jax.device_put(weights_of(run), sharding.replicated(run.mesh))
  cond, classes = sample_metrics.conditions(run, data, number)
  draw = sampling.make_draw(run, 0, config.sample.batch)
  fixed = sample_metrics.make_protocol(run, data)
  images = data.train.arrays['images'][:number]  # of the same size as samples
  features, _ = extract_all(fixed.extract, [images], run.mesh)
  parts = dict(
    drawing=lambda: draw(weights, np.arange(number), cond),
    features=lambda: extract_all(fixed.extract, [images], run.mesh),
    frechet=lambda: frechet.both(features.moments, fixed.split.moments),
    neighbours=lambda: measure.copies(features.points, fixed.train, fixed.heldout[0].points, run.mesh),
    everything=lambda: measure.measure(features, fixed.split, 0, classes, run.mesh))
  if wide:
    points = [np.random.default_rng(i).normal(size=(4096, 2048)).astype(np.float32) for i in range(2)]
    moments = [gaussian_stats.moments([one]) for one in points]
    parts['frechet 2048'] = lambda: frechet.both(*moments)
  return parts, run.mesh.size


def main():
  options = arguments()
  platform.start()
  parts, devices = work(options.number, options.wide)
  seconds = {name: [] for name in parts}
  parts['drawing'](), parts['neighbours'](), parts['everything']()
  for _ in range(options.rounds):
    for name, run_once in parts.items():
      start = time.perf_counter()
      run_once()
      seconds[name].append(time.perf_counter() - start)
  medians = {name: statistics.median(times) for name, times in seconds.items()}
  print(f'{options.number} samples on {devices} devices, {options.rounds} rounds\n\n'
        '| part | s | samples/s | share of drawing |\n|---|---|---|---|')
  for name, value in medians.items():
    print(f'| {name} | {value:.3f} | {options.number / value:,.0f} | {value / medians["drawing"]:.2%} |')
  spent = medians['features'] + medians['neighbours'] + medians['everything']
  print(f'\nEvaluation (features, all distances and neighbours) takes {spent / medians["drawing"]:.1%} of the time of '
        'drawing.')


if __name__ == '__main__':
  main()
