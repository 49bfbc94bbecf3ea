r"""The time of the compiled training step in two checkouts of this program, measured alternately on the same machine.

  python -m experiments.benchmarks.same_step --old=../before                      the main job, at full size
  python -m experiments.benchmarks.same_step --old=../before --new=../after --config=configs/cifar10.py:tiny

Each checkout has its own process, which compiles the step of a recipe (its own copy of it), runs two steps and then
waits for requests to run more. The two take turns, and alternate in going first, so that other load on the machine
affects both equally; while one works the other waits. Every step uses the same batch, already on the device.
The result is on stdout: the median step time of each, and the ratio of the medians, new / old, with the quartiles
of the ratios of single turns; if these enclose 1, no difference was detected.
"""
import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


# ---- in a worker: only this part depends on the layout of a checkout
def recipe(path):
  """The config of 'configs/cosine_ddim.py' or 'configs/cosine_ddim.py:tiny' of the checkout."""
  path, _, variant = path.partition(':')
  spec = importlib.util.spec_from_file_location('recipe', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(variant)


def make_step_old(config):
  """(state, step): step(state) -> (state, metrics), compiled by its first call. When all data were images."""
  import jax
  import numpy as np
  from diffusion.data.dataset import host_batch
  from diffusion.setup import build
  from diffusion.system import sharding
  from diffusion.training import loop
  from diffusion.training.state import make_state
  data, mesh = build.load_data(config).train, sharding.make_mesh(config.fsdp)
  run = build.build(config, data.images.shape[1:], data.classes, mesh)
  batch = sharding.put_batch(host_batch(data, np.arange(config.batch) % len(data.images)), mesh)
  key, step = jax.random.key(config.seed), loop.make_train_step(run)
  return make_state(run, key), lambda state: step(state, batch, key)


def make_step_new(config):
  """As make_step_old, for any data."""
  import jax
  import numpy as np
  from diffusion.data.dataset import size
  from diffusion.setup import build
  from diffusion.system import sharding
  from diffusion.training import loop
  from diffusion.training.open_model import placed_frozen, run_of
  from diffusion.training.state import make_state
  data, mesh = build.load_data(config), sharding.make_mesh(config.fsdp)
  run = run_of(config, data, mesh)
  batch = run.task.batch(run.task.prepare(run.task.frozen, data.train), np.arange(config.batch) % size(data.train))
  key, step, frozen = jax.random.key(config.seed), loop.make_train_step(run), placed_frozen(run)
  batch = sharding.put_batch(batch, mesh)
  return make_state(run, key), lambda state: step(state, batch, key, frozen=frozen)


def make_step(path):
  from diffusion.system import platform
  platform.start()
  old = importlib.util.find_spec('diffusion.tasks.classes') is None
  return (make_step_old if old else make_step_new)(recipe(path))


def work(path):
  """Answers each number of steps on stdin with the seconds they took."""
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # other output must not mix with the answers
  import jax
  state, step = make_step(path)

  def seconds(steps):
    nonlocal state
    begin = time.perf_counter()
    for _ in range(steps):
      state, metrics = step(state)
      jax.block_until_ready(metrics)  # like the training loop on CPU, where simulated devices share the threads
    jax.block_until_ready(state)
    return time.perf_counter() - begin

  print(json.dumps(seconds(2)), file=answers, flush=True)  # compiles
  for line in sys.stdin:
    print(json.dumps(seconds(int(line))), file=answers, flush=True)


# ---- the driver
def arguments():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--old', type=pathlib.Path, help='the checkout to compare with')
  parser.add_argument('--new', type=pathlib.Path, default=ROOT, help='the other one (default: this one)')
  parser.add_argument('--config', default='configs/cosine_ddim.py',
                      help='the recipe, a path in both (default: configs/cosine_ddim.py)')
  parser.add_argument('--rounds', type=int, default=15, help='turns of each (default: 15)')
  parser.add_argument('--steps', type=int, default=10, help='steps in a turn (default: 10)')
  parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
  options = parser.parse_args()
  if not options.worker and options.old is None:
    parser.error('give the checkout to compare with: --old=DIR')
  if options.rounds < 2 or options.steps < 1:
    parser.error(f'--rounds={options.rounds} --steps={options.steps}: expected at least 2 rounds and 1 step')
  return options


def start(checkout, config):
  """Starts a worker and waits until it has compiled its step: (steps -> seconds, its process)."""
  if not (checkout / 'diffusion' / 'main.py').is_file():
    raise SystemExit(f'error: {checkout} is not a checkout: it has no diffusion/main.py')
  # -P keeps this folder out of the module path: it holds other modules than those of the checkout.
  words = [sys.executable, '-P', __file__, '--worker', f'--config={config}']
  env = dict(os.environ, PYTHONPATH=str(checkout.resolve()))
  process = subprocess.Popen(words, cwd=checkout, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

  def answer():
    line = process.stdout.readline()
    if not line:
      raise SystemExit(f'error: the worker of {checkout} ended with exit code {process.wait()}; see its output above')
    return json.loads(line)

  def timed(steps):
    print(steps, file=process.stdin, flush=True)
    return answer()
  print(f'{checkout}: {answer():.1f} s to compile and run two steps', file=sys.stderr)
  return timed, process


def measure(old, new, rounds, steps):
  """Seconds per step in every turn: (of the old [rounds], of the new [rounds])."""
  seconds = [], []
  for turn in range(rounds):
    for side in ((0, 1), (1, 0))[turn % 2]:
      seconds[side].append((old, new)[side](steps) / steps)
  return seconds


def report(old, new, steps):
  medians = [statistics.median(side) for side in (old, new)]
  ratios = [b / a for a, b in zip(old, new)]
  low, _, high = statistics.quantiles(ratios, n=4)
  for name, side, median in zip(('old', 'new'), (old, new), medians):
    print(f'{name}  {1e3 * median:.3f} ms per step (from {1e3 * min(side):.3f} to {1e3 * max(side):.3f})')
  print(f'new / old  {medians[1] / medians[0]:.4f}, quartiles of the turns {low:.4f} and {high:.4f}; '
        f'{len(old)} turns of {steps} steps, load {os.getloadavg()[0]:.1f}')


def main():
  options = arguments()
  if options.worker:
    return work(options.config)
  workers = []
  try:
    for checkout in (options.old, options.new):
      workers.append(start(checkout, options.config))
    report(*measure(*(timed for timed, _ in workers), options.rounds, options.steps), options.steps)
  finally:
    for _, process in workers:
      process.stdin.close()  # then it ends by itself
      process.wait()


if __name__ == '__main__':
  main()
