r"""A week-long run in miniature: do memory, step time, open files and threads stay flat?

  python -m experiments.benchmarks.endurance                        20,000 steps, some minutes on a quiet machine
  python -m experiments.benchmarks.endurance --steps=300 --every=25 --out=/tmp/endurance

The training of the command (diffusion.commands.train: input, log, lock and all) of a U-Net with a few thousand
parameters on the 8x8 digits, with a checkpoint, the held-out loss, a grid of samples and a point of the evaluation
curve every `--every` steps. A thread records resident memory, open file descriptors and threads; step times come from
the run's log. Writes report.md and curves.png to --out; exit code 1 if something is not flat. Linux only.

Each interval of `--every` steps gives one median; the first two, which contain the compilation, are excluded. 'Flat'
means that the median of the last quarter exceeds that of the first by no more than the bound in the table. The slope
is the Theil-Sen estimate (the median of the slopes of all pairs) with its 95 % interval, which assumes independent
intervals.
"""
import argparse
import io
import os
import pathlib
import sys
import tempfile
import threading
import time
from typing import NamedTuple

import numpy as np

from diffusion.system import platform

SKIPPED = 2  # intervals
# {quantity: (unit, bound on the change from the first to the last quarter, whether the bound is relative)}
MEASURED = {'resident memory': ('MB', .02, True), 'step time': ('ms', .05, True),
            'open descriptors': ('', 2, False), 'threads': ('', 2, False)}


class Trend(NamedTuple):
  """One series: medians of the quarters, the change over the run by the robust line with its interval, the verdict."""
  first: float
  last: float
  change: float
  low: float
  high: float
  flat: bool


# ---- the run and its measurements
def settings(steps, every):
  from diffusion.setup.config import default, tiny
  config = tiny(default())
  config.update(dict(
    data='digits', net='unet(channels=8, multipliers=(1,), blocks=1, attention=())', batch=16, steps=steps,
    log_every=max(1, every // 10), save_every=every, val_every=every, sample_every=every,
    lr_schedule='constant(warmup=2)'))
  config.evaluate.every, config.evaluate.curve_samples = every, 16
  return config


def state_of_process():
  """(Unix time, resident MB, open descriptors, threads)."""
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  tasks, files = (len(os.listdir(f'/proc/self/{name}')) for name in ('task', 'fd'))
  return time.time(), pages * os.sysconf('SC_PAGESIZE') / 1e6, files, tasks


def watched(run, seconds):
  """state_of_process() every so many seconds while run() works: float [samples, 4]."""
  samples, over = [], threading.Event()

  def watch():
    while not over.wait(seconds):
      samples.append(state_of_process())
  thread = threading.Thread(target=watch, daemon=True)
  thread.start()
  try:
    run()
  finally:
    over.set()
    thread.join()
  return np.array(samples)


def series(samples, metrics, batch):
  """{name of MEASURED: (steps [n], values [n])}, from the samples of the process and the lines of metrics.jsonl."""
  steps, times = (np.array([line[name] for line in metrics], float) for name in ('step', 'time'))
  training = samples[(samples[:, 0] > times[0]) & (samples[:, 0] < times[-1])]  # excludes startup and shutdown
  at = np.interp(training[:, 0], times, steps)
  speed = np.array([1000 * batch / line['images_per_second'] for line in metrics])
  return {'resident memory': (at, training[:, 1]), 'step time': (steps, speed),
          'open descriptors': (at, training[:, 2]), 'threads': (at, training[:, 3])}


# ---- evaluation
def medians(steps, values, every):
  """The median of each interval of `every` steps except the first ones: (middles [m], medians [m])."""
  interval = np.ceil(np.asarray(steps) / every).astype(int) - 1  # step `every` ends the first
  kept = [i for i in np.unique(interval) if i >= SKIPPED]
  return (np.array(kept) + .5) * every, np.array([np.median(values[interval == i]) for i in kept])


def trend(x, y, bound, relative) -> Trend:
  """Whether medians y at steps x grow by no more than the bound: relative to the first quarter, or absolute."""
  from scipy.stats import theilslopes
  quarter = max(1, len(y) // 4)
  first, last = np.median(y[:quarter]), np.median(y[-quarter:])
  slope, _, low, high = theilslopes(y, x)
  flat = bool(last - first <= (bound * first if relative else bound))
  return Trend(first, last, *(np.array([slope, low, high]) * (x[-1] - x[0])), flat)


def table(trends):
  rows = ['| | first quarter | last quarter | change by the robust line (95 %) | bound | |',
          '|---|---|---|---|---|---|']
  for name, (unit, bound, relative) in MEASURED.items():
    t = trends[name]
    limit = f'{100 * bound:g} %' if relative else f'{bound:g}'
    verdict = 'flat' if t.flat else '**not flat**'
    line = f'{t.change:+.3g} ({t.low:+.3g} to {t.high:+.3g})'
    rows.append(f'| {name}{unit and ", " + unit} | {t.first:.4g} | {t.last:.4g} | {line} | {limit} | {verdict} |')
  return '\n'.join(rows)


def plot(measured, every):
  from matplotlib.figure import Figure
  figure = Figure(figsize=(9, 8), layout='constrained')
  for axes, (name, (steps, values)) in zip(figure.subplots(len(MEASURED), sharex=True), measured.items()):
    x, y = medians(steps, values, every)
    axes.plot(steps, values, '.', ms=2, alpha=.3, color='C0')
    axes.plot(x, y, '-', color='C1', label=f'medians of {every} steps')
    unit = MEASURED[name][0]
    axes.set(ylabel=f'{name}{unit and ", " + unit}', ylim=(0, 1.3 * np.quantile(values, .99)))
    axes.grid(alpha=.3)
  axes.set(xlabel='step')
  axes.legend(loc='lower right')
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=110)
  return buffer.getvalue()


def endure(steps, every, seconds):
  """Trains and measures: {name of MEASURED: (steps, values)}."""
  from etils import epath
  from diffusion import commands
  from diffusion.system.log import quiet_orbax, read_metrics
  quiet_orbax()
  config = settings(steps, every)
  with tempfile.TemporaryDirectory() as folder:
    workdir = epath.Path(folder)
    samples = watched(lambda: commands.train(config, workdir), seconds)
    return series(samples, read_metrics(workdir / 'metrics.jsonl'), config.batch)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--steps', type=int, default=20000, help='of the run (default: 20000)')
  add('--every', type=int, default=500, help='steps between checkpoints and evaluations (default: 500)')
  add('--seconds', type=float, default=.5, help='between two measurements of the process (default: 0.5)')
  add('--devices', type=int, default=None, help='CPU devices (default: one per core)')
  add('--out', type=pathlib.Path, default=pathlib.Path('experiments/reports/endurance'), help='folder for the report')
  options = parser.parse_args()
  if options.steps < (SKIPPED + 4) * options.every:
    parser.error(f'--steps={options.steps}: expected at least {SKIPPED + 4} times --every={options.every}')
  platform.start(options.devices)
  begin = time.monotonic()
  measured = endure(options.steps, options.every, options.seconds)
  trends = {name: trend(*medians(*measured[name], options.every), *MEASURED[name][1:]) for name in MEASURED}
  command = f'python -m experiments.benchmarks.endurance --steps={options.steps} --every={options.every}'
  done = int(measured['step time'][0][-1])
  short = '' if done == options.steps else f' (stopped before {options.steps:,})'
  text = (f'# {done:,} steps{short}, a checkpoint and an evaluation every {options.every}\n\n`{command}`\n\n'
          f'{table(trends)}\n\n'
          f'{time.monotonic() - begin:.0f} s, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores. The quarters '
          f'and the line are computed from medians of {options.every} steps, without the first {SKIPPED}, which '
          'contain the compilation. Flat: the last quarter exceeds the first by no more than the bound.\n\n'
          '![Resources used by the process, by step](curves.png)\n')
  from diffusion.system.files import write_atomic
  write_atomic(options.out / 'report.md', text.encode())
  write_atomic(options.out / 'curves.png', plot(measured, options.every))
  print(text)
  sys.exit(not all(t.flat for t in trends.values()))


if __name__ == '__main__':
  main()
