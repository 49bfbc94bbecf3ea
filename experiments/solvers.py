r"""Every solver at equal numbers of network evaluations: the distance to the exact solution, and samples.

  python -m experiments.solvers                                   on a mixture of Gaussians with a known solution
  python -m experiments.solvers --workdir=runs/cosine_ddim        also on a trained model, against 400 steps of UniPC-3
  python -m experiments.solvers --samplers='ddim, dpmpp_2m, unipc(3)' --grids='trailing, karras' --budgets=5,10,20

A budget is a number of evaluations; a solver with two per step takes half the steps. The error is the root mean square
over all values of all samples, from the same initial noise. It is defined only for solvers of the ODE; solvers that
draw noise appear only in the contact sheet. Writes solvers.csv, solvers.md, solvers.png (error against evaluations),
contact.png (one initial noise; solvers down, budgets across) and record.json.
"""
import argparse
import csv
import io
import json
import sys
from typing import Any, Callable, NamedTuple

from diffusion.system import platform

ODE = ('ddim', 'heun', 'flow_heun', 'dpm_solver_2', 'dpmpp_2s', 'dpmpp_2m', "dpmpp_2m('heun')", 'dpmpp_3m',
       'dpmpp_3m_shipped', 'unipc(1)', 'unipc(2)', "unipc(2, 'bh1')", 'unipc(3)', 'deis(2)', 'deis(3)', 'lms(2)',
       'lms(3)', 'lms(4)', 'flow_lms(2)', 'flow_lms(3)', 'plms(3)', 'flow_pc(1)', 'flow_pc(2)', 'flow_pc(3)', 'best')
NOISY = ('ddim(0.5)', 'ddim(1)', 'ddpm', 'dpmpp_sde_2m', 'churn', 'langevin', 'consistency')
GRIDS = ('trailing', 'angle', 'karras', 'exponential')
SHOWN = (5, 10, 20, 50)  # budgets of the Markdown table


def arguments():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--workdir', help='of a trained model (default: only the mixture)')
  add('--out', help='folder to write to (default: WORKDIR/solvers, or runs/solvers)')
  add('--samplers', default=', '.join(ODE + NOISY), help='specs, separated by commas (default: %(default)s)')
  add('--grids', default=', '.join(GRIDS),
      help='names of grids (default: %(default)s); the contact sheet uses the first')
  add('--budgets', default='1,2,3,5,7,10,15,20,30,50', help='numbers of evaluations (default: %(default)s)')
  add('--number', type=int, default=8, help='images drawn from the model (default: 8)')
  add('--seed', type=int, default=0)
  return parser.parse_args()


def stepwise(keys, denoise, sampler, levels, x):
  """samplers.sample step by step, so that the network is compiled once for all solvers and grids."""
  import jax
  import numpy as np
  plan = jax.tree.map(lambda a: a.astype(np.float32) if a.dtype == np.float64 else a, sampler.plan(levels))
  state = sampler.init(x)
  for i in range(len(plan.h)):
    state = sampler.step(keys, denoise, state, jax.tree.map(lambda a: a[i], plan))
  return state.x


def within(spec, grid, schedule, budget):
  """(sampler, levels, evaluations) of the longest grid within the budget; None if even one step takes more."""
  from diffusion.setup import build
  from diffusion.errors import InputError
  for steps in range(budget, 0, -1):
    try:
      levels = grid(steps)(schedule)
    except InputError:
      continue  # two steps would fall on one level of this schedule: try fewer
    sampler = build.make('sampler', spec, schedule=schedule, levels=levels)
    evaluations = len(sampler.plan(levels).h)
    if evaluations <= budget:
      return sampler, levels, evaluations
  return None


def draws_noise(spec, problem):
  """Whether a solver draws noise: two sets of keys then give different samples."""
  import numpy as np
  from diffusion import samplers
  from diffusion.core import grids
  from diffusion.setup import build
  levels = grids.trailing(5)(problem.schedule)
  sampler = build.make('sampler', spec, schedule=problem.schedule, levels=levels)
  keys = (samplers.sample_keys(seed, np.arange(len(problem.z))) for seed in (0, 1))
  ends = [np.asarray(stepwise(k, problem.denoise, sampler, levels, float(levels.sigma[0]) * problem.z)) for k in keys]
  return bool(np.any(ends[0] != ends[1]))


class Problem(NamedTuple):
  """A starting noise and an ODE to solve from there."""
  name: str
  schedule: Any
  denoise: Callable
  z: Any      # starting noise of unit variance
  keys: Any
  truth: Any  # exact solution at the end


def errors(problem, samplers, grids, budgets):
  """Rows {data, solver, grid, budget, steps, evaluations, error} of every valid combination."""
  import numpy as np
  from tqdm import tqdm
  work = [(s, g, b) for s in samplers for g in grids for b in budgets]
  rows = []
  for solver, grid, budget in tqdm(work, problem.name, unit='run', disable=None):
    fitting = within(solver, grids[grid], problem.schedule, budget)
    if fitting is None:
      continue
    sampler, levels, evaluations = fitting
    x = stepwise(problem.keys, problem.denoise, sampler, levels, float(levels.sigma[0]) * problem.z)
    rows.append(dict(data=problem.name, solver=solver, grid=grid, budget=budget, steps=len(levels.logsnr) - 1,
                     evaluations=evaluations, error=float(np.sqrt(np.mean((np.asarray(x) - problem.truth) ** 2)))))
  return rows


def mixture(seed, number=64):
  """Four Gaussians in eight dimensions on EDM's schedule, sigma from 80 to 0.002."""
  import jax
  import numpy as np
  from diffusion import samplers
  from diffusion.core import schedules
  from experiments.mixture import exact_flow, mixture_denoiser
  means, std = np.random.default_rng(0).normal(size=(4, 8)), .3
  z = np.random.default_rng(seed + 1).normal(size=(number, 8)).astype(np.float32)
  return Problem('mixture', schedules.edm(), jax.jit(mixture_denoiser(means.astype(np.float32), std)), z,
                 samplers.sample_keys(seed, np.arange(number)), exact_flow(means, std, 80. * z, 80., 1e-6))


def model(workdir, number, seed):
  """The newest checkpoint of a work directory, solved by 400 steps of UniPC-3 in log-SNR."""
  import jax
  import numpy as np
  from diffusion import samplers
  from diffusion.core import grids
  from diffusion.errors import InputError
  from diffusion.training.open_model import load
  run, weights, _ = load(workdir)
  if run.denoise is None or run.self_condition:
    raise InputError(f'--workdir={workdir}: a classifier cannot be sampled from, and a self-conditioned model '
                     'does not define an ODE; use another model')
  cond, labels, _ = run.task.ask({}, np.arange(number), seed)
  denoise = jax.jit(lambda x, noise: run.denoise(weights, cond)(x, noise))
  keys = samplers.sample_keys(seed, np.arange(number))
  z = samplers.gaussian(keys, 0, jax.ShapeDtypeStruct((number, *run.shape), np.float32))
  levels = grids.exponential(400)(run.schedule)
  print('solving the model with 400 steps of UniPC-3 ..', flush=True)
  truth = np.asarray(stepwise(keys, denoise, samplers.unipc(3), levels, float(levels.sigma[0]) * z))
  decode = lambda x: run.decode(weights.frozen, x, cond)['images']
  return Problem('model', run.schedule, denoise, z, keys, truth), decode, labels, run.config


# ---- output
def markdown(rows):
  """Tables of the errors, at SHOWN budgets if there are many, sorted by the error at 10 evaluations; best in bold."""
  text = []
  for data in dict.fromkeys(row['data'] for row in rows):
    known = {(r['solver'], r['grid'], r['budget']): r['error'] for r in rows if r['data'] == data}
    budgets = sorted({key[2] for key in known})
    shown = [b for b in SHOWN if b in budgets] if len(budgets) > 5 else budgets
    best = {b: min(e for key, e in known.items() if key[2] == b) for b in shown}
    sorted_by = 10 if 10 in shown else shown[-1]
    names = sorted({key[:2] for key in known}, key=lambda name: known.get((*name, sorted_by), float('inf')))
    cell = lambda e, b: '' if e is None else f'**{e:.4f}**' if e == best[b] else f'{e:.4f}'
    text += [f'## {data}: RMS error by evaluations', '', f'| solver | grid | {" | ".join(map(str, shown))} |',
             '|---' * (len(shown) + 2) + '|']
    text += [f'| {s} | {g} | ' + ' | '.join(cell(known.get((s, g, b)), b) for b in shown) + ' |' for s, g in names]
    text += ['']
  return '\n'.join(text)


def plot(rows):
  """Error against evaluations, log-log, one panel per data set; each solver on its best grid."""
  from matplotlib.figure import Figure
  names = list(dict.fromkeys(row['data'] for row in rows))
  figure = Figure(figsize=(8 * len(names), 6.5), layout='constrained')
  for axes, data in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
    selected = [row for row in rows if row['data'] == data]
    for i, solver in enumerate(dict.fromkeys(row['solver'] for row in selected)):
      best = {}
      for row in selected:
        if row['solver'] == solver and row['error'] <= best.get(row['evaluations'], (float('inf'),))[0]:
          best[row['evaluations']] = (row['error'], row['grid'])
      axes.loglog(sorted(best), [best[n][0] for n in sorted(best)], marker='osv^D'[i // 10 % 5], color=f'C{i % 10}',
                  ms=4, lw=1, label=solver)
    axes.set(xlabel='network evaluations', ylabel='RMS error', title=f'{data}: each solver on its best grid')
    axes.grid(alpha=.3, which='both')
    axes.legend(fontsize=7, ncols=2)
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=110)
  return buffer.getvalue()


def contact(problem, samplers, grid, budgets, decode, label):
  """A contact sheet from the first initial noise: solvers down, budgets across."""
  import numpy as np
  from tqdm import tqdm
  from diffusion.tasks import pages
  cells = []
  for solver in tqdm(samplers, 'contact sheet', unit='solver', disable=None):
    row = []
    for budget in budgets:
      fitting = within(solver, grid, problem.schedule, budget)
      x = np.ones_like(problem.z[:1])
      if fitting is not None:
        sampler, levels, _ = fitting
        x = stepwise(problem.keys, problem.denoise, sampler, levels, float(levels.sigma[0]) * problem.z)[:1]
      row.append(np.asarray(decode(x))[0])
    cells.append(np.stack(row))
  return pages.rows(cells, list(samplers), [f'{b} evals' for b in budgets], title=label)

def _budgets(text):
  """'5,10' -> [5, 10]."""
  from diffusion.errors import InputError
  if not all(part.strip().isdigit() and int(part) for part in text.split(',')):
    raise InputError(f'--budgets={text!r}: expected numbers of evaluations from 1, such as 5,10,20')
  return sorted({int(part) for part in text.split(',')})


def _grid(name):
  """The grid function with a given name, called with a number of steps."""
  from diffusion.setup import build, specs
  from diffusion.errors import InputError
  explicit = ('times', 'sigmas', 'logsnr')  # given by their levels, not by a number of steps
  names = [key for key in build.CHOICES['grid'] if key not in explicit]
  if name not in names:
    raise InputError(f'--grids: {specs.unknown(name, names)}')
  return build.CHOICES['grid'][name]


def deterministic(samplers, problem):
  """Those of the samplers that solve the ODE.

  Raises:
    InputError: 'adaptive' is among them, or none solves the ODE.
  """
  from diffusion.errors import InputError
  from diffusion.setup import specs
  if any(specs.parse(s)[0] == 'adaptive' for s in samplers):
    raise InputError("--samplers: 'adaptive' chooses its own number of evaluations and cannot be compared at equal "
                     'ones; leave it out')
  kept = [s for s in samplers if not draws_noise(s, problem)]
  if not kept:
    raise InputError(f'--samplers={", ".join(samplers)!r}: all of these draw noise and have no error; '
                     'add a solver of the ODE, such as ddim')
  return kept


def compare(options, out):
  """Rows of errors, of the mixture and of the model of --workdir; writes the contact sheet of the latter."""
  from diffusion.commands import report
  from diffusion.tasks import pages
  from diffusion.setup import specs
  budgets, samplers, names = _budgets(options.budgets), specs.split(options.samplers), specs.split(options.grids)
  grids = {name: _grid(name) for name in names}
  toy = mixture(options.seed)
  solvers = deterministic(samplers, toy)
  trained = model(options.workdir, options.number, options.seed) if options.workdir else None
  rows = errors(toy, solvers, grids, budgets)
  out.mkdir(parents=True, exist_ok=True)
  if trained:
    problem, decode, labels, config = trained
    rows += errors(problem, solvers, grids, budgets)
    title = f'{labels[0] if labels else "one noise"}, grid {names[0]}' + (f', {config.guide}' if config.guide else '')
    page = contact(problem, samplers, grids[names[0]], budgets, decode, title)
    pages.save_png(page, out / 'contact.png')
    report('wrote', out / 'contact.png')
  return rows


def main():
  options = arguments()
  platform.start()
  from etils import epath
  from diffusion.commands import report
  from diffusion.errors import InputError
  from diffusion.system.files import write_atomic
  from diffusion.training.open_model import versions
  out = epath.Path(options.out or (f'{options.workdir}/solvers' if options.workdir else 'runs/solvers'))
  try:
    rows = compare(options, out)
  except (InputError, OSError, ValueError) as error:
    sys.exit(f'error: {error}')
  table = io.StringIO()
  writer = csv.DictWriter(table, rows[0])
  writer.writeheader()
  writer.writerows(rows)
  record = dict(arguments=vars(options), versions=versions(),
                reference='mixture: SciPy DOP853, 1e-12; model: UniPC-3, 400 steps in log-SNR')
  text = markdown(rows)
  for name, content in (('solvers.csv', table.getvalue().encode()), ('solvers.md', text.encode()),
                        ('solvers.png', plot(rows)), ('record.json', json.dumps(record, indent=2).encode())):
    write_atomic(out / name, content)
    report('wrote', out / name)
  print(text)


if __name__ == '__main__':
  main()
