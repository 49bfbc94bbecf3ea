r"""Whether two checkouts of this program train to the same losses from the same checkpoint.

  python -m experiments.benchmarks.same_losses --old=../before                 this checkout against another
  python -m experiments.benchmarks.same_losses --old=../before --new=../after --steps=200
  python -m experiments.benchmarks.same_losses --old=../before --workdir=runs/cosine_ddim

Two copies of a work directory are resumed for some steps, one by `python -m diffusion.main` of each checkout, and
the metrics logged by both are compared. Without --workdir the old code first trains the tiny main job. The given
work directory is only read. Only the command line is used, so the checkouts may have different layouts. Each side
gets just two settings, steps and log_every; if a checkout names them differently, pass --old-names or --new-names:

  .. --new-names=train.steps,log.every

A learning rate schedule that depends on config.steps is the same on both sides. Both use the Python running this
program, share the cache $DIFFUSION_CACHE, and draw samples at the end as every training does.
The result is a line on stdout for each metric. Exit code 0: losses agree to a relative 1e-5; 1: they do not;
2: a command failed or logged other steps; the end of its output is on stderr.
2: a command failed or logged other steps, and its last words are on stderr.
"""
import argparse
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

BOUND = 1e-5
# Metrics that do not measure time; the first one decides.
METRICS = ('loss', 'grad_norm', 'heldout_loss', 'learning_rate', 'ema_decay')
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


class Failed(Exception):
  """The two checkouts cannot be compared."""


def arguments():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

  def names(text):
    if text.count(',') != 1:
      parser.error(f'{text!r}: expected two names, as in steps,log_every')
    return tuple(text.split(','))
  parser.add_argument('--old', type=pathlib.Path, required=True, help='the checkout to compare with')
  parser.add_argument('--new', type=pathlib.Path, default=ROOT, help='the other one (default: this one)')
  parser.add_argument('--workdir', type=pathlib.Path,
                      help='with a checkpoint to resume from (default: the tiny main job, trained by the old code)')
  parser.add_argument('--steps', type=int, default=50, help='number of steps to train (default: 50)')
  for side in ('old', 'new'):
    parser.add_argument(f'--{side}-names', type=names, default=('steps', 'log_every'), metavar='STEPS,LOG_EVERY',
                        help=f'names of these two settings in the {side} checkout (default: steps,log_every)')
  options = parser.parse_args()
  if options.steps < 1:
    parser.error(f'--steps={options.steps}: expected at least 1')
  return options


def run(checkout, *words):
  """Runs `python -m diffusion.main` of a checkout."""
  if not (checkout / 'diffusion' / 'main.py').is_file():
    raise Failed(f'{checkout} is not a checkout: it has no diffusion/main.py')
  env = dict(os.environ, PYTHONPATH=str(checkout.resolve()))
  done = subprocess.run([sys.executable, '-m', 'diffusion.main', *words], cwd=checkout, env=env, text=True,
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
  if done.returncode:
    raise Failed(f'exit code {done.returncode} in {checkout} of {" ".join(words)}\n{done.stdout[-2000:]}')


def last_step(workdir):
  """The step of the newest checkpoint."""
  folder = workdir / 'checkpoints'
  steps = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
  if not steps:
    raise Failed(f'{workdir} holds no checkpoint')
  return max(steps)


def resumed(checkout, names, workdir, copy, first, last):
  """{step: metrics} from `first` to `last` of a copy of a work directory, resumed by a checkout."""
  for part in ('checkpoints', 'snapshots'):
    if (workdir / part).is_dir():
      shutil.copytree(workdir / part, copy / part)
  run(checkout, f'--workdir={copy}', f'--config.{names[0]}={last}', f'--config.{names[1]}=1')
  lines = map(json.loads, (copy / 'metrics.jsonl').read_text().splitlines())
  metrics = {line['step']: {name: float(line[name]) for name in METRICS if name in line} for line in lines}
  if sorted(metrics) != list(range(first, last + 1)) or not all(METRICS[0] in values for values in metrics.values()):
    raise Failed(f'{checkout} did not log a loss at each of the steps {first} to {last}: it logged {sorted(metrics)}')
  return metrics


def difference(old, new):
  """Difference of two numbers relative to the larger one; infinite if exactly one is NaN."""
  if old == new or math.isnan(old) and math.isnan(new):
    return 0.
  relative = abs(old - new) / max(abs(old), abs(new))
  return math.inf if math.isnan(relative) else relative


def worst(old, new, name):
  """(largest relative difference, its step, number of steps compared), or None where neither logged the metric.

  Raises:
    Failed: the two logged it at different steps.
  """
  steps, others = ([step for step in side if name in side[step]] for side in (old, new))
  if steps != others:
    raise Failed(f'{name} is logged at steps {steps} by the old code, {others} by the new')
  return max((difference(old[step][name], new[step][name]), step) for step in steps) + (len(steps),) if steps else None


def compare(options, folder):
  """{metric: worst(..)} of the two checkouts; works in `folder`."""
  workdir = options.workdir
  if workdir is None:
    workdir = folder / 'made'
    run(options.old, '--config=configs/cosine_ddim.py:tiny', f'--workdir={workdir}')
  begin = last_step(workdir)
  end = begin + options.steps
  sides = [resumed(options.old, options.old_names, workdir, folder / 'old', begin + 1, end),
           resumed(options.new, options.new_names, workdir, folder / 'new', begin + 1, end)]
  return {name: result for name in METRICS if (result := worst(*sides, name))}


def main():
  options = arguments()
  try:
    with tempfile.TemporaryDirectory() as folder:
      results = compare(options, pathlib.Path(folder))
  except Failed as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  for name, (relative, step, steps) in results.items():
    where = f' at step {step}' if relative else ''
    print(f'{name:<14} largest relative difference {relative:.3g}{where}, of {steps} steps')
  relative = results[METRICS[0]][0]
  print(f'the losses {"agree" if relative <= BOUND else "DIFFER"}: {relative:.3g}, at most {BOUND:g} allowed')
  sys.exit(relative > BOUND)


if __name__ == '__main__':
  main()
