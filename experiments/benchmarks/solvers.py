r"""The cost of a solver besides the network: compile time by number of steps, and steps per second without a network.

  python -m experiments.benchmarks.solvers                       64 images of 16x16x3
  python -m experiments.benchmarks.solvers --batch=8 --rounds=9

A step is one evaluation. The solvers take turns; the table gives medians, the time of each relative to ddim, and that
ratio for a step that includes the main job's network (277 images per second, see the README). Solvers that draw noise
also pay for the noise.
"""
import argparse
import statistics
import time

from diffusion.system import platform

SOLVERS = ('ddim', 'dpmpp_2m', 'dpmpp_3m', 'unipc(2)', 'unipc(3)', 'flow_pc(2)', 'deis(3)', 'lms(4)', 'plms(4)',
           'heun', 'dpmpp_2s', 'ddpm', 'dpmpp_sde_2m', 'churn')
FORWARD = 277  # images per second of the main job's network on the machine of the README


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--batch', type=int, default=64)
  parser.add_argument('--rounds', type=int, default=7)
  options = parser.parse_args()
  platform.start()
  import jax
  import jax.numpy as jnp
  import numpy as np
  from diffusion import samplers
  from diffusion.core import grids, schedules
  from diffusion.core.gaussian import expand_to, from_x0
  from diffusion.setup import build
  schedule, keys = schedules.cosine(), samplers.sample_keys(0, np.arange(options.batch))
  x = samplers.gaussian(keys, 0, jnp.zeros((options.batch, 16, 16, 3)))
  denoise = lambda x, noise: from_x0(expand_to(noise, x), x, .5 * x)

  def compiled(name, steps):
    sampler, levels = build.make('sampler', name, schedule=schedule), grids.exponential(steps)(schedule)
    start = time.perf_counter()
    program = jax.jit(lambda keys, x: samplers.sample(keys, denoise, sampler, levels, x)).lower(keys, x).compile()
    return program, len(sampler.plan(levels).h), time.perf_counter() - start

  short, long = ({name: compiled(name, steps) for name in SOLVERS} for steps in (10, 1000))
  seconds = {name: [] for name in SOLVERS}
  for turn in range(options.rounds):
    for name in SOLVERS:
      program, evaluations, _ = long[name]
      start = time.perf_counter()
      jax.block_until_ready(program(keys, x))
      seconds[name].append((time.perf_counter() - start) / evaluations)
  base = statistics.median(seconds['ddim'])
  print('| solver | compile, 10 steps, s | compile, 1000 steps, s | steps/s without network | relative to ddim | '
        'with the network |\n|---|---|---|---|---|---|')
  for name in SOLVERS:
    step, network = statistics.median(seconds[name]), options.batch / FORWARD
    whole = (network + step) / (network + base)
    cells = f'{short[name][2]:.2f} | {long[name][2]:.2f} | {1 / step:,.0f} | {step / base:.2f} | {whole:.4f}'
    print(f'| {name} | {cells} |')


if __name__ == '__main__':
  main()
