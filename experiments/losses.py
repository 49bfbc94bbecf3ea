"""How should noise levels be weighed, and how often drawn?

  python -m experiments.run experiments/losses.py --workdir=runs/losses
  python -m experiments.run experiments/losses.py --workdir=runs/losses_search --search=optuna --trials=20

Weights by draws of time, all else as in the recipe. What training sees is the product of both, but the variance of the gradient is
not: a weight counts an error more, a draw looks at it more often. All weights but `one` are defined in x0-space, so that they mean
the same whatever the recipe predicts; `one` is the error of the output as it is. logit_normal draws middle times (arXiv:2403.03206),
loss_aware those where the loss is large (arXiv:2102.09672, section 3.3).

The search also moves the weights' own numbers. Losses under unlike weights cannot be compared, so that it gives up trials by the distance
of a few samples during training.
"""
from experiments.sweep.search import grid_search

BASE = 'configs/cosine_ddim.py'
METRIC = 'fd_infinity'
STEPS = 1800
WEIGHTS = ['one', 'snr', 'min_snr(5)', 'p2', 'sigmoid(0)']
DRAWS = ['uniform', 'stratified', 'logit_normal', 'loss_aware']
PRUNE = 'fd_infinity'
FIXED = {'config.guide': '', 'config.steps': STEPS, 'config.evaluate.parts': 'samples'}


def sweep():
  for point in grid_search(loss_weight=WEIGHTS, timesteps=DRAWS):
    yield point | FIXED


def space(trial):
  """What --search=optuna tries."""
  kind = trial.suggest_categorical('weight', ['min_snr', 'p2', 'sigmoid'])
  low, high = dict(min_snr=(1., 20.), p2=(.2, 2.), sigmoid=(-4., 4.))[kind]
  number = trial.suggest_float(kind, low, high, log=low > 0)
  return FIXED | {'config.loss_weight': f'{kind}({number:.3g})', 'config.timesteps': trial.suggest_categorical('draw', DRAWS),
                  'config.evaluate.every': STEPS // 6}
