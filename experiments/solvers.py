r"""Every solver at equal numbers of network evaluations: the distance to the exact solution, and samples.

  python -m experiments.solvers                                   on mixtures of Gaussians with a known solution
  python -m experiments.solvers --workdir=runs/cosine_ddim        also on a trained model, against 400 steps of UniPC-3
  python -m experiments.solvers --published                       beside the same solvers of diffusers and k-diffusion
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
import math
import sys

from diffusion.system import platform
from experiments import published
from experiments.problems import mixture, model, stepwise

ODE = ('ddim', 'heun', 'flow_heun', 'dpm_2', 'dpm_solver_2', 'dpm_solver_3', 'dpmpp_2s', 'dpmpp_3s', 'dpmpp_2m',
       "dpmpp_2m('heun')", 'dpmpp_3m', 'dpmpp_3m_shipped', "dpmpp_3m_shipped('k')", 'unipc(1)', 'unipc(2)',
       "unipc(2, 'bh1')", 'unipc(3)', "unipc(2, of='eps')", "unipc(3, of='eps')", 'deis(2)', 'deis(3)', 'deis(4)',
       'lms(2)', 'lms(3)', 'lms(4)', 'flow_lms(2)', 'flow_lms(3)', 'flow_lms(4)', 'plms(2)', 'plms(3)', 'plms(4)',
       'flow_pc(1)', 'flow_pc(2)', 'flow_pc(3)', 'best')
NOISY = ('ddim(0.5)', 'ddim(1)', 'ddpm', 'dpmpp_sde', 'dpmpp_sde_2m', 'dpmpp_sde_3m', 'dpm_2_ancestral',
         'dpmpp_2s_ancestral', 'sa_solver', 'churn', 'langevin', 'consistency')
GRIDS = ('trailing', 'angle', 'karras', 'exponential', 'cosine')
SHOWN = (5, 10, 20, 40, 80)  # budgets of the Markdown table


def arguments():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--workdir', help='of a trained model (default: only the mixture)')
  add('--out', help='folder to write to (default: WORKDIR/solvers, or runs/solvers)')
  add('--samplers', default=', '.join(ODE + NOISY), help='specs, separated by commas (default: %(default)s)')
  add('--grids', default=', '.join(GRIDS),
      help='names of grids (default: %(default)s); the contact sheet uses the first')
  add('--budgets', default='1,2,3,5,7,10,15,20,30,40,60,80', help='numbers of evaluations (default: %(default)s)')
  add('--number', type=int, default=8, help='images drawn from the model (default: 8)')
  add('--published', action='store_true', help='also the forms of diffusers and k-diffusion, where installed')
  add('--seed', type=int, default=0)
  return parser.parse_args()


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
    error = float(np.sqrt(np.mean((np.asarray(x) - problem.truth(levels)) ** 2)))
    rows.append(dict(data=problem.name, solver=solver, grid=grid, budget=budget, steps=len(levels.logsnr) - 1,
                     evaluations=evaluations, error=error))
  return rows


# ---- output
def markdown(rows):
  """A table for each problem: the errors on each grid at the SHOWN budgets, sorted by their mean; the best in bold."""
  text = []
  for data in dict.fromkeys(row['data'] for row in rows):
    known = {(r['solver'], r['grid'], r['budget']): r['error'] for r in rows if r['data'] == data}
    solvers, grids, budgets = (list(dict.fromkeys(part)) for part in zip(*known))
    shown = [b for b in SHOWN if b in budgets] or sorted(budgets)
    least = {(g, b): min(known.get((s, g, b), math.inf) for s in solvers) for g in grids for b in shown}
    def mean(solver):
      return sum(math.log(known.get((solver, g, b), math.inf)) for g in grids for b in shown)
    def cell(solver, grid):
      errors = [(known.get((solver, grid, b), math.inf), least[grid, b]) for b in shown]
      return ' '.join('-' if e == math.inf else f'**{e:.2g}**' if e == best else f'{e:.2g}' for e, best in errors)
    text += [f'## {data}: RMS error after {", ".join(map(str, shown))} evaluations', '',
             f'| solver | {" | ".join(grids)} |', '|---' * (len(grids) + 1) + '|']
    text += [f'| {s} | ' + ' | '.join(cell(s, g) for g in grids) + ' |' for s in sorted(solvers, key=mean)]
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
      axes.loglog(sorted(best), [best[n][0] for n in sorted(best)], marker='osv^D'[i // 10 % 5],
                  color='black' if solver == 'best' else f'C{i % 10}', ms=4, lw=2 if solver == 'best' else 1,
                  label=solver)
    axes.set(xlabel='network evaluations', ylabel='RMS error', title=f'{data}: each solver on its best grid')
    axes.grid(alpha=.3, which='both')
  lines, labels = axes.get_legend_handles_labels()
  figure.legend(lines, labels, loc='outside right upper', fontsize=7, ncols=1 + len(labels) // 32)
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
  if not all(part.strip().isdecimal() and int(part) for part in text.split(',')):
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
  """Rows of errors, of the mixtures and of the model of --workdir; writes the contact sheet of the latter."""
  from diffusion.commands import report
  from diffusion.core import schedules
  from diffusion.tasks import pages
  from diffusion.setup import specs
  budgets, samplers, names = _budgets(options.budgets), specs.split(options.samplers), specs.split(options.grids)
  grids = {name: _grid(name) for name in names}
  toys = [mixture(options.seed, schedules.edm(), 'mixture on edm'),
          mixture(options.seed, schedules.flow(), 'mixture on flow')]
  solvers = deterministic(samplers, toys[0])
  trained = model(options.workdir, options.number, options.seed) if options.workdir else None
  rows = [row for toy in toys for row in errors(toy, solvers, grids, budgets)]
  if options.published:
    rows += [row for toy in toys for row in published.errors(toy, grids, budgets)]
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
  from diffusion.training.record import versions
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
