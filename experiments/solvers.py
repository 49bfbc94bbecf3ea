r"""Every solver at equal numbers of network evaluations: how far its samples are from the exact solution, and what they look like.

  python -m experiments.solvers                                          on a mixture of Gaussians, whose solution is known
  python -m experiments.solvers --workdir=runs/cosine_ddim               and on a trained model, against 400 steps of UniPC-3
  python -m experiments.solvers --samplers='ddim, dpmpp_2m, unipc(3)' --grids='trailing, karras' --budgets=5,10,20

A budget is a number of evaluations; a solver that spends two a step takes half the steps. The error is the root mean square over all
values of all samples, from the same noise, so only solvers of the ODE have one; those that draw noise are in the contact sheet only.
Writes solvers.csv, solvers.md, solvers.png (error against evaluations), contact.png (one noise; solvers down, budgets across) and record.json.
"""
import argparse
import csv
import io
import json
import sys
from typing import Any, Callable, NamedTuple

from diffusion.system import platform

ODE = ('ddim', 'heun', 'flow_heun', 'dpm_solver_2', 'dpmpp_2s', 'dpmpp_2m', "dpmpp_2m('heun')", 'dpmpp_3m', 'dpmpp_3m_shipped', 'unipc(1)',
       'unipc(2)', "unipc(2, 'bh1')", 'unipc(3)', 'deis(2)', 'deis(3)', 'lms(2)', 'lms(3)', 'lms(4)', 'flow_lms(2)', 'flow_lms(3)', 'plms(3)', 'flow_pc(1)', 'flow_pc(2)',
       'flow_pc(3)', 'best')
NOISY = ('ddim(0.5)', 'ddim(1)', 'ddpm', 'dpmpp_sde_2m', 'churn', 'langevin', 'consistency')
GRIDS = ('trailing', 'angle', 'karras', 'exponential')
SHOWN = (5, 10, 20, 50)  # budgets of the Markdown table


def arguments():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--workdir', help='of a trained model; without it, only the mixture')
  add('--out', help='folder to write to (default: WORKDIR/solvers, or runs/solvers)')
  add('--samplers', default=', '.join(ODE + NOISY), help='specs, separated by commas (default: %(default)s)')
  add('--grids', default=', '.join(GRIDS), help='names of grids (default: %(default)s); the contact sheet uses the first')
  add('--budgets', default='1,2,3,5,7,10,15,20,30,50', help='numbers of evaluations (default: %(default)s)')
  add('--number', type=int, default=8, help='pictures drawn from the model (default: 8)')
  add('--seed', type=int, default=0)
  return parser.parse_args()


def stepwise(keys, denoise, sampler, levels, x):
  """samplers.sample, step by step: the network is compiled once for all solvers and grids, instead of every combination."""
  import jax
  import numpy as np
  plan = jax.tree.map(lambda a: a.astype(np.float32) if a.dtype == np.float64 else a, sampler.plan(levels))
  state = sampler.init(x)
  for i in range(len(plan.h)):
    state = sampler.step(keys, denoise, state, jax.tree.map(lambda a: a[i], plan))
  return state.x


def within(spec, grid, schedule, budget):
  """(sampler, levels, evaluations) of the longest grid whose evaluations stay within the budget; None where even one step takes more."""
  from diffusion.setup import build
  from diffusion.errors import InputError
  for steps in range(budget, 0, -1):
    try:
      levels = grid(steps)(schedule)
    except InputError:
      continue  # two steps on one level of this schedule: take fewer
    sampler = build.make('sampler', spec, schedule=schedule, levels=levels)
    evaluations = len(sampler.plan(levels).h)
    if evaluations <= budget:
      return sampler, levels, evaluations
  return None


def draws_noise(spec, problem):
  """Whether a solver draws noise: two sets of keys then give other samples."""
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
  """What is solved."""
  name: str
  schedule: Any
  denoise: Callable
  z: Any      # starting noise of unit variance
  keys: Any
  truth: Any  # the exact solution from it


def errors(problem, samplers, grids, budgets):
  """Rows {data, solver, grid, budget, steps, evaluations, error} of every combination that exists."""
  import numpy as np
  from tqdm import tqdm
  work = [(s, g, b) for s in samplers for g in grids for b in budgets]
  rows = []
  for solver, grid, budget in tqdm(work, problem.name, unit='run', disable=None):
    found = within(solver, grids[grid], problem.schedule, budget)
    if found is None:
      continue
    sampler, levels, evaluations = found
    x = stepwise(problem.keys, problem.denoise, sampler, levels, float(levels.sigma[0]) * problem.z)
    rows.append(dict(data=problem.name, solver=solver, grid=grid, budget=budget, steps=len(levels.logsnr) - 1, evaluations=evaluations,
                     error=float(np.sqrt(np.mean((np.asarray(x) - problem.truth) ** 2)))))
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
  """The newest checkpoint of a work directory; solved by 400 steps of UniPC-3 in log-SNR."""
  import jax
  import numpy as np
  from diffusion import samplers
  from diffusion.core import grids
  from diffusion.errors import InputError
  from diffusion.generation import sampling
  from diffusion.training.open_model import load
  run, params, _ = load(workdir)
  if run.denoise is None or run.self_condition:
    raise InputError(f'--workdir={workdir}: a classifier draws nothing, and a self-conditioned model is no ODE; use another model')
  cond, labels = sampling.class_conditions(run.classes, '', number)
  denoise = jax.jit(lambda x, noise: run.denoise(params, cond)(x, noise))
  keys = samplers.sample_keys(seed, np.arange(number))
  z = samplers.gaussian(keys, 0, jax.ShapeDtypeStruct((number, *run.shape), np.float32))
  levels = grids.exponential(400)(run.schedule)
  print('solving the model by 400 steps of UniPC-3 ..', flush=True)
  truth = np.asarray(stepwise(keys, denoise, samplers.unipc(3), levels, float(levels.sigma[0]) * z))
  return Problem('model', run.schedule, denoise, z, keys, truth), run.task.decode, labels, run.config


# ---- what is written
def markdown(rows):
  """Tables of the errors, at SHOWN budgets where there are many, best at 10 evaluations first; the best of each budget in bold."""
  text = []
  for data in dict.fromkeys(row['data'] for row in rows):
    here = {(r['solver'], r['grid'], r['budget']): r['error'] for r in rows if r['data'] == data}
    budgets = sorted({key[2] for key in here})
    shown = [b for b in SHOWN if b in budgets] if len(budgets) > 5 else budgets
    best = {b: min(e for key, e in here.items() if key[2] == b) for b in shown}
    names = sorted({key[:2] for key in here}, key=lambda name: here.get((*name, 10 if 10 in shown else shown[-1]), float('inf')))
    cell = lambda e, b: '' if e is None else f'**{e:.4f}**' if e == best[b] else f'{e:.4f}'
    text += [f'## {data}: RMS error by evaluations', '', '| solver | grid | ' + ' | '.join(map(str, shown)) + ' |', '|---' * (len(shown) + 2) + '|']
    text += [f'| {s} | {g} | ' + ' | '.join(cell(here.get((s, g, b)), b) for b in shown) + ' |' for s, g in names] + ['']
  return '\n'.join(text)


def plot(rows):
  """Error against evaluations, log-log, a panel for each kind of data; each solver on its best grid."""
  from matplotlib.figure import Figure
  names = list(dict.fromkeys(row['data'] for row in rows))
  figure = Figure(figsize=(8 * len(names), 6.5), layout='constrained')
  for axes, data in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
    here = [row for row in rows if row['data'] == data]
    for i, solver in enumerate(dict.fromkeys(row['solver'] for row in here)):
      best = {}
      for row in here:
        if row['solver'] == solver and row['error'] <= best.get(row['evaluations'], (float('inf'),))[0]:
          best[row['evaluations']] = (row['error'], row['grid'])
      axes.loglog(sorted(best), [best[n][0] for n in sorted(best)], marker='osv^D'[i // 10 % 5], color=f'C{i % 10}', ms=4, lw=1, label=solver)
    axes.set(xlabel='network evaluations', ylabel='RMS error', title=f'{data}: each solver on its best grid')
    axes.grid(alpha=.3, which='both')
    axes.legend(fontsize=7, ncols=2)
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=110)
  return buffer.getvalue()


def contact(problem, samplers, grid, budgets, decode, label):
  """A page: the first noise, solvers down, budgets across."""
  import numpy as np
  from tqdm import tqdm
  from diffusion.generation import pages as sheets
  pages = []
  for solver in tqdm(samplers, 'contact sheet', unit='solver', disable=None):
    row = []
    for budget in budgets:
      found = within(solver, grid, problem.schedule, budget)
      x = np.ones_like(problem.z[:1])
      if found is not None:
        sampler, levels, _ = found
        x = stepwise(problem.keys, problem.denoise, sampler, levels, float(levels.sigma[0]) * problem.z)[:1]
      row.append(np.asarray(decode(x))[0])
    pages.append(np.stack(row))
  return sheets.rows(pages, list(samplers), [f'{b} evals' for b in budgets], title=label)


def _budgets(text):
  """'5,10' -> [5, 10]."""
  from diffusion.errors import InputError
  if not all(part.strip().isdigit() and int(part) for part in text.split(',')):
    raise InputError(f'--budgets={text!r}: expected numbers of evaluations from 1, such as 5,10,20')
  return sorted({int(part) for part in text.split(',')})


def _grid(name):
  """The grid function of a name, called with a number of steps."""
  from diffusion.setup import build, specs
  from diffusion.errors import InputError
  names = [key for key in build.CHOICES['grid'] if key not in ('times', 'sigmas', 'logsnr')]  # those made by a number of steps
  if name not in names:
    raise InputError(f'--grids: {specs.unknown(name, names)}')
  return build.CHOICES['grid'][name]


def main():
  options = arguments()
  platform.start()
  from etils import epath
  from diffusion.generation import pages as sheets
  from diffusion.setup import specs
  from diffusion.errors import InputError
  from diffusion.system.files import write_atomic
  from diffusion.commands import report
  from diffusion.training.open_model import versions
  try:
    budgets = _budgets(options.budgets)
    wanted, names = specs.split(options.samplers), specs.split(options.grids)
    grids = {name: _grid(name) for name in names}
    out = epath.Path(options.out or (f'{options.workdir}/solvers' if options.workdir else 'runs/solvers'))
    toy = mixture(options.seed)
    if any(specs.parse(s)[0] == 'adaptive' for s in wanted):
      raise InputError("--samplers: 'adaptive' chooses its evaluations itself, so that it has no place at equal ones; leave it out")
    deterministic = [s for s in wanted if not draws_noise(s, toy)]
    if not deterministic:
      raise InputError(f'--samplers={options.samplers!r}: all of these draw noise, and have no error; add one of the ODE, such as ddim')
    trained = model(options.workdir, options.number, options.seed) if options.workdir else None
    rows = errors(toy, deterministic, grids, budgets)
    out.mkdir(parents=True, exist_ok=True)
    if trained:
      problem, decode, labels, config = trained
      rows += errors(problem, deterministic, grids, budgets)
      title = f'{labels[0] if labels else "one noise"}, grid {names[0]}' + (f', {config.guide}' if config.guide else '')
      page = contact(problem, wanted, grids[names[0]], budgets, decode, title)
      sheets.save_png(page, out / 'contact.png')
      report('wrote', out / 'contact.png')
  except (InputError, OSError, ValueError) as error:
    sys.exit(f'error: {error}')
  table = io.StringIO()
  writer = csv.DictWriter(table, rows[0])
  writer.writeheader()
  writer.writerows(rows)
  record = dict(arguments=vars(options), versions=versions(), reference='mixture: SciPy DOP853, 1e-12; model: UniPC-3, 400 steps in log-SNR')
  text = markdown(rows)
  for name, content in (('solvers.csv', table.getvalue().encode()), ('solvers.md', text.encode()), ('solvers.png', plot(rows)),
                        ('record.json', json.dumps(record, indent=2).encode())):
    write_atomic(out / name, content)
    report('wrote', out / name)
  print(text)


if __name__ == '__main__':
  main()
