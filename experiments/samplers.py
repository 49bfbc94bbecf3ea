r"""Which solver, on which grid, in how many steps?

  python -m experiments.run experiments/samplers.py --model=runs/cosine_ddim --workdir=runs/samplers
  python -m experiments.run experiments/samplers.py --model=runs/cosine_ddim --workdir=runs/samplers \
    --only 'grid=trailing'

On one trained model: ancestral sampling, DDIM, two multistep solvers and the default, on uniform times and on Karras'
grid, which has more steps near the clean end (from sigma/alpha = 40, which all schedules here reach). For all of these
one step is one network evaluation. Every trial starts from the same noise; the intervals do not use this, so for a
comparison they are wider than needed, never narrower. No guidance, as in schedules.py.
"""
from experiments.sweep.search import grid_search

MODE = 'evaluate'
METRIC = 'fd_infinity'
SAMPLERS = ['ddpm', 'ddim', 'dpmpp_2m', 'unipc(2)', 'best']
GRIDS = ['trailing({})', 'karras({}, sigma_max=40)']
STEPS = [5, 10, 20, 50]
FIXED = {'config.guide': '', 'config.evaluate.parts': 'samples'}


def sweep():
  for point in grid_search(sampler=SAMPLERS, grid=[grid.format(steps) for grid in GRIDS for steps in STEPS]):
    yield point | FIXED
