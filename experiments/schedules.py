r"""Which noise schedule, and what should the network predict?

  python -m experiments.run experiments/schedules.py --workdir=runs/schedules
  python -m experiments.run experiments/schedules.py --workdir=runs/schedules_quick --set config.steps=600 \
    --only 'schedule=linear|cosine|offset_cosine, predict=eps|v'

Five schedules by three targets, each trained for STEPS steps with the recipe's network and sampled in the same way.
`flow` has no signal left at t = 1, where an eps-prediction contains no information about x0 (arXiv:2305.08891),
so this pair is left out.

All trials use the same weight, min_snr(5). It is defined in x0-space and means the same for every target, so that two
trials differ in the target itself and not also in the weighting of noise levels. For eps it is min(SNR, 5)/SNR, for
x0 min(SNR, 5), for v min(SNR, 5)/(SNR + 1) times the squared error of the output (arXiv:2303.09556, section 3.4).
losses.py varies the weight. The schedule still decides how often each level is trained and where the sampler's steps
fall, which is what this sweep compares.

There is no guidance: this measures the model itself, and costs half the evaluations of guided sampling.
"""
from experiments.sweep.search import grid_search

BASE = 'configs/cosine_ddim.py'
METRIC = 'fd_infinity'
STEPS = 1800
SCHEDULES = ['linear', 'cosine', 'offset_cosine', 'sigmoid', 'flow']
TARGETS = ['eps', 'x0', 'v']
FIXED = {'config.loss_weight': 'min_snr(5)', 'config.guide': '', 'config.steps': STEPS, 'config.batch': 32,
         'config.evaluate.parts': 'samples'}


def sweep():
  for point in grid_search(schedule=SCHEDULES, predict=TARGETS):
    if (point['config.schedule'], point['config.predict']) != ('flow', 'eps'):
      yield point | FIXED
