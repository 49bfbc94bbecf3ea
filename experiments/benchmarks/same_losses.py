r"""Whether two checkouts of this program train to the same losses from the same checkpoint.

  python -m experiments.benchmarks.same_losses --old=../before                 this checkout against another
  python -m experiments.benchmarks.same_losses --old=../before --new=../after --steps=200
  python -m experiments.benchmarks.same_losses --old=../before --workdir=runs/cosine_ddim

Two copies of a work directory are resumed for some steps, one by `python -m diffusion.main` of each checkout, and
the figures that both have logged are compared. Without --workdir the old code first trains the tiny main job.
The work directory itself is only read. Nothing but the command line is used, so the checkouts may be laid out
differently; where settings have other names in one of them, --old-names and --new-names say which:

  .. --new-names=train.steps,log.every

A learning rate that falls towards the last step falls towards the same one on both sides. Both run with the Python
that runs this, share the cache of $DIFFUSION_CACHE, and draw their samples in the end as every training does.
The result is a line on stdout for each figure. Exit code 0: losses agree to 1e-5 of their size; 1: they do not;
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
# Those that do not measure time; the first one counts.
FIGURES = ('loss', 'grad_norm', 'heldout_loss', 'learning_rate', 'ema_decay')
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


class Failed(Exception):
  """What keeps the two from being compared."""


def arguments():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

  def names(text):
    if text.count(',') != 1:
      parser.error(f'{text!r}: expected two names, as in steps,log_every')
    return tuple(text.split(','))
  parser.add_argument('--old', type=pathlib.Path, required=True, help='the checkout to compare with')
  parser.add_argument('--new', type=pathlib.Path, default=ROOT, help='the other one (default: this one)')
  parser.add_argument('--workdir', type=pathlib.Path,
                      help='with a checkpoint to go on from (default: the tiny main job, trained by the old code)')
  parser.add_argument('--steps', type=int, default=50, help='how many to train (default: 50)')
  for side in ('old', 'new'):
    parser.add_argument(f'--{side}-names', type=names, default=('steps', 'log_every'), metavar='STEPS,LOG_EVERY',
                        help=f'names of these two settings in the {side} checkout (default: steps,log_every)')
  options = parser.parse_args()
  if options.steps < 1:
    parser.error(f'--steps={options.steps}: expected at least 1')
  return options


def run(checkout, *words):
  """`python -m diffusion.main` of a checkout."""
  if not (checkout / 'diffusion' / 'main.py').is_file():
    raise Failed(f'{checkout} is no checkout: it has no diffusion/main.py')
  env = dict(os.environ, PYTHONPATH=str(checkout.resolve()))
  done = subprocess.run([sys.executable, '-m', 'diffusion.main', *words], cwd=checkout, env=env, text=True,
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
  if done.returncode:
    raise Failed(f'exit code {done.returncode} in {checkout} of {" ".join(words)}\n{done.stdout[-2000:]}')


def last_step(workdir):
  """The step of the newest checkpoint."""
  folder = workdir / 'checkpoints'
  steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
  if not steps:
    raise Failed(f'{workdir} holds no checkpoint')
  return max(steps)


def resumed(checkout, names, workdir, copy, first, last):
  """{step: figures} from `first` to `last` of a copy of a work directory, resumed by a checkout."""
  for part in ('checkpoints', 'snapshots'):
    if (workdir / part).is_dir():
      shutil.copytree(workdir / part, copy / part)
  run(checkout, f'--workdir={copy}', f'--config.{names[0]}={last}', f'--config.{names[1]}=1')
  lines = map(json.loads, (copy / 'metrics.jsonl').read_text().splitlines())
  figures = {line['step']: {name: float(line[name]) for name in FIGURES if name in line} for line in lines}
  if sorted(figures) != list(range(first, last + 1)) or not all(FIGURES[0] in values for values in figures.values()):
    raise Failed(f'{checkout} did not log a loss at each of the steps {first} to {last}: it logged {sorted(figures)}')
  return figures


def difference(old, new):
  """Between two numbers, relative to the larger one; infinite where one alone is no number."""
  if old == new or math.isnan(old) and math.isnan(new):
    return 0.
  apart = abs(old - new) / max(abs(old), abs(new))
  return math.inf if math.isnan(apart) else apart


def worst(old, new, name):
  """(largest relative difference, its step, how many steps have the figure), or None where not both have it.

  Raises:
    Failed: they have it at different steps.
  """
  steps, others = ([step for step in side if name in side[step]] for side in (old, new))
  if steps != others:
    raise Failed(f'{name} is logged at steps {steps} by the old code, {others} by the new')
  return max((difference(old[step][name], new[step][name]), step) for step in steps) + (len(steps),) if steps else None


def compare(options, folder):
  """{figure: worst(..)} of the two checkouts; works in `folder`."""
  workdir = options.workdir
  if workdir is None:
    workdir = folder / 'made'
    run(options.old, '--config=configs/cosine_ddim.py:tiny', f'--workdir={workdir}')
  begin = last_step(workdir)
  end = begin + options.steps
  sides = [resumed(options.old, options.old_names, workdir, folder / 'old', begin + 1, end),
           resumed(options.new, options.new_names, workdir, folder / 'new', begin + 1, end)]
  return {name: found for name in FIGURES if (found := worst(*sides, name))}


def main():
  options = arguments()
  try:
    with tempfile.TemporaryDirectory() as folder:
      found = compare(options, pathlib.Path(folder))
  except Failed as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  for name, (apart, step, steps) in found.items():
    where = f' at step {step}' if apart else ''
    print(f'{name:<14} largest relative difference {apart:.3g}{where}, of {steps} steps')
  apart = found[FIGURES[0]][0]
  print(f'the losses {"agree" if apart <= BOUND else "DIFFER"}: {apart:.3g}, at most {BOUND:g} allowed')
  sys.exit(apart > BOUND)


if __name__ == '__main__':
  main()
