r"""A training run that is killed with SIGKILL at random moments and restarted, compared with one that is never killed.

  python -m experiments.benchmarks.chaos                  200 kills, some minutes
  python -m experiments.benchmarks.chaos --kills=25 --seed=1 --workdir=/tmp/chaos

The network has a few parameters; the training loop, the checkpoints, the lock and the log are the real ones. The
kills cycle through three kinds: during startup and restore, at a random moment of training, and right after the
folder of an unfinished checkpoint has appeared. After each kill all finished checkpoints must still exist, with at
most two save intervals lost; at the end the whole state and the logged metrics must equal those of the undisturbed
run bit for bit. The result is a Markdown table on stdout; exit code 1 if anything differs. Linux only: each start is
a fork of this process, which saves the time for imports.
"""
import os

for _name in ('OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS'):
  os.environ[_name] = '1'  # set before numpy is imported: a process with threads cannot be forked

import argparse
import contextlib
import gc
import pathlib
import random
import select
import signal
import statistics
import sys
import tempfile
import time
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import tensorboardX  # noqa: F401, so that the forks do not have to import it

from diffusion.data.arrays import image_dataset
from diffusion.setup.config import default, tiny
from diffusion.system import platform
from diffusion.system.checkpoint import open_checkpoints
from diffusion.system.lock import hold
from diffusion.system.log import open_log, quiet_orbax, read_metrics
from diffusion.training.loop import fit, Hooks
from diffusion.training.state import abstract_state, make_state
from experiments.image_run import image_run

SAVE_EVERY = 3
STEPS_A_KILL = 8  # planned steps per kill; a fork is killed after at most a few of them
KINDS = ('starting', 'training', 'saving')
LIMIT = 120  # seconds without progress


# ---- the run that is killed
def experiment(steps):
  """A matrix that learns to denoise images: a real Experiment except for its network and loss."""
  config = tiny(default())
  config.update(dict(net='unet(channels=8, multipliers=(1,), blocks=1, attention=())', guide='',
                     lr_schedule='constant(warmup=2)', batch=4, steps=steps, save_every=SAVE_EVERY, log_every=1,
                     sample_every=steps))

  def init(key):
    return dict(matrix=.1 * jax.random.normal(key, (64, 64)), shift=jnp.zeros(64)), ()

  def loss(key, params, x0, cond, **options):
    x = x0.reshape(-1, 64)
    noisy = x + jax.random.normal(key, x.shape)
    each = jnp.mean((jnp.tanh(noisy @ params['matrix'] + params['shift']) - x) ** 2, 1)
    return each.mean(), dict(mse=each, logsnr=jnp.zeros(len(x)))

  run = image_run(config, (8, 8, 1))
  objective = run.objective._replace(init=init, loss=loss)
  return run._replace(objective=objective, initial=jax.eval_shape(init, jax.random.key(0)))


def data():
  images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1)).astype(np.uint8)
  return image_dataset(images)


def go_on(workdir, steps, tell):
  """Trains `workdir` to the last step, calls tell(step) after each step, and writes the state to `final`."""
  quiet_orbax()
  with hold(workdir):
    run, checkpoints = experiment(steps), open_checkpoints(workdir / 'checkpoints')
    restored = checkpoints.restore(abstract_state(run))
    state = restored.state if restored else make_state(run, jax.random.key(0))
    log = open_log(workdir, int(state.step))

    def scalars(step, values):
      log.scalars(step, values)
      tell(step)
    state, _ = fit(run, data(), state, Hooks(checkpoints, scalars, {}))
    log.close()
    checkpoints.close()
    (workdir / 'final').write_bytes(b''.join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)))


# ---- the driver
def start(workdir, steps):
  """Forks a process that continues the run: (process id, file with a line for each step done)."""
  workdir.mkdir(parents=True, exist_ok=True)
  reader, writer = os.pipe()
  child = os.fork()
  if child:
    os.close(writer)
    return child, os.fdopen(reader, 'rb', buffering=0)
  code = 1
  try:
    output = os.open(workdir / 'output.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.alarm(LIMIT)

    def tell(step):
      signal.alarm(LIMIT)
      os.write(writer, b'%d\n' % step)
    go_on(workdir, steps, tell)
    code = 0
  except BaseException:
    traceback.print_exc()
  finally:
    os._exit(code)


def finished(workdir):
  """(step of the newest finished checkpoint or 0, whether there is an unfinished one)."""
  folder = workdir / 'checkpoints'
  names = os.listdir(folder) if folder.exists() else []
  return max([int(name) for name in names if name.isdecimal()], default=0), any('tmp' in name for name in names)


def aim(kind, draw, progress, workdir, usual):
  """Waits for the moment of a kill; `usual`: seconds that a start takes."""
  if kind == 'starting':
    return select.select([progress], [], [], draw.uniform(0, usual))
  for _ in range(draw.randint(1, STEPS_A_KILL)):
    progress.readline()
  if kind == 'training':
    return time.sleep(draw.uniform(0, .05))
  deadline = time.monotonic() + 1
  while not finished(workdir)[1] and time.monotonic() < deadline:
    pass
  time.sleep(draw.uniform(0, .01))


def kill(kind, draw, workdir, steps, usual):
  """Starts the run and kills it: {'kind', 'killed', 'saving', 'lost': steps}.

  Raises:
    RuntimeError: more steps are lost than two save intervals, or the run failed on its own.
  """
  before, _ = finished(workdir)
  child, progress = start(workdir, steps)
  with progress:
    aim(kind, draw, progress, workdir, usual)
    os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    kept, saving = finished(workdir)
  if code not in (0, -signal.SIGKILL):
    raise RuntimeError(f'a start failed on its own (exit code {code}): see {workdir / "output.txt"}')
  logged = read_metrics(workdir / 'metrics.jsonl') if (workdir / 'metrics.jsonl').exists() else []
  reached = max([line['step'] for line in logged], default=0)
  if kept < before or kept < reached - 2 * SAVE_EVERY:
    raise RuntimeError(f'checkpoint {before} existed and step {reached} was reached, but the newest is now {kept}')
  return dict(kind=kind, killed=code != 0, saving=saving, lost=max(0, reached - kept))


def finish(workdir, steps):
  """Runs to the end without a kill; returns the seconds to the first step."""
  begin = time.monotonic()
  child, progress = start(workdir, steps)
  with progress:
    progress.readline()
    first = time.monotonic() - begin
    while progress.read(4096):
      pass
  if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
    raise RuntimeError(f'the run failed: see {workdir / "output.txt"}')
  return first


def compare(one, other):
  """How the ends of two runs differ: a list of 'the state', 'the metrics'."""
  def metrics(workdir):
    timed = ('time', 'images_per_second', 'data_wait')
    lines = read_metrics(workdir / 'metrics.jsonl')
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]
  same = dict(state=(one / 'final').read_bytes() == (other / 'final').read_bytes(),
              metrics=metrics(one) == metrics(other))
  return [f'the {what}' for what, equal in same.items() if not equal]


def chaos(kills, seed, workdir):
  """Runs both; returns (steps, the result of each kill, what differs at the end)."""
  gc.freeze()  # the forks' garbage collector then ignores everything imported
  if len(os.listdir('/proc/self/task')) > 1:
    raise RuntimeError('cannot fork a process with threads: an import has started some')
  steps, draw = STEPS_A_KILL * kills, random.Random(seed)
  finish(workdir / 'warm', 2)  # fills the compile cache
  usual = finish(workdir / 'whole', steps)
  results = [kill(KINDS[i % 3], draw, workdir / 'killed', steps, usual) for i in range(kills)]
  finish(workdir / 'killed', steps)
  return steps, results, compare(workdir / 'whole', workdir / 'killed')


def table(steps, results, differs, seconds):
  rows = ['| killed during | kills | with a checkpoint half-written | steps lost, median | most |',
          '|---|---|---|---|---|']
  for kind in (*KINDS, 'all'):
    killed = [result for result in results if result['killed'] and kind in (result['kind'], 'all')]
    lost = [result['lost'] for result in killed] or [0]
    half = sum(result['saving'] for result in killed)
    rows.append(f'| {kind} | {len(killed)} | {half} | {statistics.median(lost):g} | {max(lost)} |')
  end = f'different: {" and ".join(differs)}' if differs else 'the same, bit for bit, in state and logged metrics'
  rows += ['', f'{steps} steps, a checkpoint every {SAVE_EVERY}; compared with the undisturbed run the end is {end}; '
               f'{seconds:.0f} s, load {os.getloadavg()[0]:.1f}']
  return '\n'.join(rows)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--kills', type=int, default=200, help='number of kills (default: 200)')
  parser.add_argument('--seed', type=int, default=0, help='of the kill times (default: 0)')
  parser.add_argument('--workdir', type=pathlib.Path, help='must be new, and is kept (default: a temporary directory)')
  options = parser.parse_args()
  platform.start(1)
  begin = time.monotonic()
  with contextlib.ExitStack() as stack:
    workdir = options.workdir or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    steps, results, differs = chaos(options.kills, options.seed, workdir)
  print(table(steps, results, differs, time.monotonic() - begin))
  sys.exit(bool(differs))


if __name__ == '__main__':
  main()
