"""How should noise levels be weighted, and how often sampled?

  python -m experiments.run experiments/losses.py --workdir=runs/losses
  python -m experiments.run experiments/losses.py --workdir=runs/losses_search --search=optuna --trials=20

Loss weights by distributions of timesteps, everything else as in the recipe. Training depends on the product of both,
but the variance of the gradient does not: a weight scales an error, a distribution samples it more often. All weights
except `one` are defined in x0-space, so that they mean the same whatever the recipe predicts; `one` weights the error
of the network's output. logit_normal samples middle times (arXiv:2403.03206), loss_aware times with a large loss
(arXiv:2102.09672, section 3.3).

The search also varies the parameters of the weights. Losses under different weights cannot be compared, so trials are
pruned by the distance of a few samples during training.
"""
from experiments.sweep.search import grid_search

BASE = 'configs/cosine_ddim.py'
METRIC = 'fd_infinity'
STEPS = 1800
WEIGHTS = ['one', 'snr', 'min_snr(5)', 'p2', 'sigmoid(0)']
TIMESTEPS = ['uniform', 'stratified', 'logit_normal', 'loss_aware']
PRUNE = 'fd_infinity'
FIXED = {'config.guide': '', 'config.steps': STEPS, 'config.batch': 32, 'config.evaluate.parts': 'samples'}


def sweep():
  for point in grid_search(loss_weight=WEIGHTS, timesteps=TIMESTEPS):
    yield point | FIXED


def space(trial):
  """The overrides that --search=optuna tries."""
  kind = trial.suggest_categorical('weight', ['min_snr', 'p2', 'sigmoid'])
  low, high = dict(min_snr=(1., 20.), p2=(.2, 2.), sigmoid=(-4., 4.))[kind]
  number = trial.suggest_float(kind, low, high, log=low > 0)
  return FIXED | {'config.loss_weight': f'{kind}({number:.3g})',
                  'config.timesteps': trial.suggest_categorical('draw', TIMESTEPS),
                  'config.evaluate.every': STEPS // 6}
