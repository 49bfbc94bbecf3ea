r"""Seconds from the command to its first training step, with empty caches and with warm ones.

  python -m experiments.benchmarks.startup                                    the main job
  python -m experiments.benchmarks.startup --config=configs/cifar10.py:tiny --rounds=3

Each start is a process with its own work directory, stopped after its first step. The first start of a round finds the
caches empty (data are created, programs compiled), the second reuses the results of the first. The held-out loss and
the sampler are compiled later and are not included. The result is a Markdown table of medians on stdout.
"""
import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

LIMIT = 1200  # seconds to wait for the first step
# {stage: first word of the output line that ends it}; the first step is taken from the log of metrics
STAGES = {'imports and data': 'training', 'building and compiling': 'memory'}


def arguments():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--config', default='configs/cosine_ddim.py', help='recipe (default: configs/cosine_ddim.py)')
  parser.add_argument('--rounds', type=int, default=1, help='pairs of starts (default: 1)')
  return parser.parse_args()


def start(config, workdir, cache):
  """Seconds of each stage of one start.

  Raises:
    SystemExit: the command failed; its last line is the message.
  """
  words = [sys.executable, '-u', '-m', 'diffusion.main', f'--config={config}', f'--workdir={workdir}',
           '--config.log_every=1']
  ended, stages = {}, dict(STAGES)
  begun, last = time.time(), ''
  with subprocess.Popen(words, env=dict(os.environ, DIFFUSION_CACHE=str(cache)), text=True,
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
    try:
      for line in process.stdout:
        last = line.strip() or last
        for name in [name for name, word in stages.items() if line.startswith(word)]:
          ended[name] = time.time() - begun
          del stages[name]
        if not stages:
          ended['first step'] = first_step(process, pathlib.Path(workdir) / 'metrics.jsonl') - begun
          break
    finally:
      process.kill()
  if 'first step' not in ended:
    raise SystemExit(f'error: the command ended before its first step: {last}')
  times = list(ended.values())
  return dict(zip(ended, [after - before for before, after in zip([0, *times], times)])) | {'all': times[-1]}


def first_step(process, log):
  """Unix time at which the first step was logged."""
  deadline = time.time() + LIMIT
  while time.time() < deadline and process.poll() is None:
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError, IndexError):  # not written yet, or incomplete
      return json.loads(log.read_text().splitlines()[0])['time']
    time.sleep(.02)
  raise SystemExit(f'error: no first step within {LIMIT} s')


def main():
  options = arguments()
  starts = {'empty caches': [], 'warm caches': []}
  for _ in range(options.rounds):
    with tempfile.TemporaryDirectory() as folder:
      for name in starts:
        starts[name].append(start(options.config, pathlib.Path(folder) / name, pathlib.Path(folder) / 'cache'))
  stages = list(starts['empty caches'][0])
  print(f'| seconds | {" | ".join(stages)} |\n{"|---" * (1 + len(stages))}|')
  for name, rounds in starts.items():
    cells = [f'{statistics.median(one[stage] for one in rounds):.1f}' for stage in stages]
    print(f'| {name} | {" | ".join(cells)} |')
  print(f'\n{options.config}; medians of {options.rounds}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.')


if __name__ == '__main__':
  main()
