r"""What measuring costs beside drawing: features, the distances, and 50 evaluations of the network for each sample.

  python -m experiments.benchmarks.metrics                             500 sprites
  python -m experiments.benchmarks.metrics --number=2000 --rounds=5

The network is the main job's with its initial weights, without guidance; features are `own` (trained first where the cache has none) and,
with --wide, random ones of Inception's size. Everything is compiled before it is timed; turns alternate and the table gives medians.
"""
import argparse
import statistics
import time

from diffusion.system import platform


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--number', type=int, default=500, help='samples (default: 500)')
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--wide', action='store_true', help='also the Frechet distance of 2048 features')
  options = parser.parse_args()
  platform.start()
  import jax
  import numpy as np
  from diffusion.evaluation import sample_metrics
  from diffusion.generation import sampling
  from diffusion.setup import build
  from diffusion.system import sharding
  from diffusion.setup.config import default
  from diffusion.evaluation.metrics import frechet, gaussian_stats, measure
  from diffusion.evaluation.metrics.features import extract_all
  config, number = default(), options.number
  config.guide, config.sampler = '', 'ddim'
  data = build.load_data(config)
  run = build.build(config, data.train.images.shape[1:], data.train.classes, sharding.make_mesh())
  params = jax.device_put(run.init(jax.random.key(0)), sharding.replicated(run.mesh))
  cond, wanted = sample_metrics.conditions(run, data, number)
  draw, fixed = sampling.make_draw(run, 0, config.sample.batch), sample_metrics.make_protocol(run, data)
  images = data.train.images[:number]  # of the same size as samples
  seen, _ = extract_all(fixed.extract, [images], run.mesh)
  wide = [np.random.default_rng(i).normal(size=(4096, 2048)).astype(np.float32) for i in range(2)] if options.wide else []
  wide_moments = [gaussian_stats.moments([points]) for points in wide]
  work = dict(
    drawing=lambda: draw(params, np.arange(number), cond),
    features=lambda: extract_all(fixed.extract, [images], run.mesh),
    frechet=lambda: frechet.both(seen.moments, fixed.split.moments),
    neighbours=lambda: measure.copies(seen.points, fixed.train, fixed.heldout[0].points, run.mesh),
    everything=lambda: measure.measure(seen, fixed.split, 0, wanted, run.mesh))
  if wide:
    work['frechet 2048'] = lambda: frechet.both(*wide_moments)
  seconds = {name: [] for name in work}
  work['drawing'](), work['neighbours'](), work['everything']()
  for _ in range(options.rounds):
    for name, run_once in work.items():
      start = time.perf_counter()
      run_once()
      seconds[name].append(time.perf_counter() - start)
  medians = {name: statistics.median(times) for name, times in seconds.items()}
  print(f'{number} samples on {run.mesh.size} devices, {options.rounds} turns\n\n| what | s | samples/s | share of drawing |\n|---|---|---|---|')
  for name, value in medians.items():
    print(f'| {name} | {value:.3f} | {number / value:,.0f} | {value / medians["drawing"]:.2%} |')
  spent = medians['features'] + medians['neighbours'] + medians['everything']
  print(f'\nEvaluation (features, all distances and neighbours) takes {spent / medians["drawing"]:.1%} of the time of drawing.')


if __name__ == '__main__':
  main()
