"""How strong should guidance be, and at which noise levels?

  python -m experiments.run experiments/guidance.py --model=runs/cosine_ddim --workdir=runs/guidance

Scales by intervals of log-SNR on one trained model; outside of its interval a sampler is not guided at all (arXiv:2404.07724, which
found that guidance harms at high noise and is idle at low). Look at recall and precision beside the distance: guidance buys the one with
the other. At scale 1 the interval changes nothing, so that this scale stands there once.
"""
from experiments.sweep.search import grid_search

MODE = 'evaluate'
METRIC = 'fd_infinity'
SCALES = [1.5, 2., 3., 5.]
INTERVALS = ['cfg', 'cfg(lo=-4)', 'cfg(hi=4)', 'cfg(lo=-4, hi=4)']
FIXED = {'config.evaluate.what': 'samples'}


def sweep():
  yield {'config.guidance': 1., 'config.guide': 'cfg'} | FIXED
  for point in grid_search(guidance=SCALES, guide=INTERVALS):
    yield point | FIXED
