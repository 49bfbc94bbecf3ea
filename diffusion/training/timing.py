"""config.minutes: how many steps fit into the time that a run has."""
import time
from functools import partial

import jax
import numpy as np

from diffusion.data.dataset import read_batch
from diffusion.errors import InputError
from diffusion.system import consensus, sharding

PILOT, UNTIMED = 50, 10  # steps after which the number of all steps is chosen, and those of them that are not timed
SHARE = .85              # of the time that is left for steps: the rest for checkpoints, validation and pictures


def stored_steps(config, old):
  """config.steps of a run that a checkpoint with the config `old` continues: in proportion, if the minutes differ."""
  return round(old.steps * config.minutes / old.minutes) if old.minutes else config.steps


def choose(run, data, state, step_fn, frozen, elapsed):
  """Takes the first steps of a run and says how many there will be: (state, number of all steps).

  While the rate of learning rises, it does not depend on that number. All processes get the same one.

  Args:
    run: the Experiment, with config.minutes above 0.
    data: the Dataset to train on.
    state: at step 0; it is donated.
    step_fn, frozen: as for loop.fit.
    elapsed: () -> seconds since the command was given.
  Raises:
    InputError: the minutes are over.
  """
  plan, rows = run.plan, sharding.local_rows(run.mesh, run.plan.batch)
  read = partial(read_batch, run.task.batch, data, plan.batch, plan.seed, rows)
  put = partial(sharding.put_rows, mesh=run.mesh, size=plan.batch)
  key, start = jax.random.key(plan.seed), None
  for i in range(PILOT):
    state, metrics = step_fn(state, put(read(i)), key, frozen=frozen, steps=np.int32(2 ** 30))
    jax.block_until_ready(metrics)
    if i + 1 == UNTIMED:
      start = time.monotonic()
  seconds = (time.monotonic() - start) / (PILOT - UNTIMED)
  left = SHARE * (60 * run.config.minutes - elapsed())
  slowest = min(float(text) for text in consensus.all_gather_text(str(left / seconds)))
  if slowest < 1:
    raise InputError(f'config.minutes={run.config.minutes:g}: they are over after the first {PILOT} steps, of '
                     f'{seconds:.3g} s each; give it more, or set config.steps instead')
  return state, PILOT + int(slowest)
