"""Tables of patients: numbers and categories by diffusion in one network, and a report of what the rows are worth.

  python -m diffusion.main --config=configs/patients.py
"""
from diffusion.setup.config import default, variant


def get_config(name=''):
  c = default()
  c.data, c.task, c.objective = 'patients(breast_cancer)', 'table', 'mixed'
  c.net = 'mlp(width=256, blocks=3)'
  c.schedule, c.predict, c.loss_weight = 'cosine(None)', 'v', 'one'
  c.sampler, c.grid, c.guide = 'mixed(ddpm)', 'trailing(100)', ''
  c.condition_dropout = .5
  c.batch, c.steps, c.learning_rate, c.ema_decay = 256, 3000, 1e-3, .998
  c.log_every = c.val_every = 250
  c.sample_every = c.save_every = 1500
  c.sample.num_samples, c.sample.batch, c.sample.show = 500, 500, ''
  c.evaluate.num_samples = 379
  return variant(c, name)
