"""Tables of patients: numbers and categories by diffusion in one network, and a report of what the rows are worth.

  python -m diffusion.main --config=configs/patients.py
  python -m diffusion.main --config=configs/patients.py --workdir=runs/mine --config.data='csv(mine.csv, target=it)'

It learns from two thirds of scikit-learn's breast cancer table in a minute, writes table.csv and a page of every
column, and measures the rows beside simple models and real ones (evaluations/*/evaluation.md, baselines.md,
columns.png, pairs.png, privacy.png): a classifier trained on drawn rows should predict held-out patients as well as
one trained on real rows. docs/tables.md says what a CSV file may hold, and how to ask for rows with given values
and to fill the empty cells of your own.

:mixed is the German breast cancer study, numbers and categories (pip install lifelines).
"""
from diffusion.setup.config import default, variant


def get_config(name=''):
  c = default()
  c.data, c.task, c.objective, c.net = 'patients(breast_cancer)', 'table', 'mixed', 'mlp(width=128, blocks=3)'
  c.schedule, c.predict, c.loss_weight = 'cosine(None)', 'v', 'one'
  c.sampler, c.grid, c.guide = 'mixed(dpmpp_2m)', 'trailing(50)', ''
  c.condition_dropout = .2  # of the other rows, some columns are given
  c.batch, c.steps, c.learning_rate = 256, 1500, 1e-3
  c.log_every = c.val_every = 250
  c.sample_every = c.save_every = 500
  c.sample.num_samples, c.sample.batch, c.sample.show = 500, 500, ''
  c.evaluate.at_end, c.evaluate.num_samples = True, 379  # as many rows as there are to train on
  return variant(c, name, mixed=mixed)


def mixed(c):
  c.data, c.evaluate.num_samples = 'patients(gbsg2)', 457
  return c
