"""Points in the plane: all of a diffusion model in one minute, small enough to see its density and its field.

  python -m diffusion.main --config=configs/points.py
  python -m diffusion.main --config=configs/points.py --config.data='points(spirals)' --workdir=runs/spirals

kinds: moons, spirals, eight, checkerboard. It trains, draws 2,000 points (grid.png, coloured by class) and measures
them: field.png shows the density at four noise levels, and above it what the network has learned. The energy distance
to held-out points should be 0 within its error; the KL divergence from the true density, excess_nll, which sees more,
is about 0.01 nats for the moons and 0.25 for spirals and checkerboard, whose edges are sharper.
"""
from diffusion.setup.config import default, variant


def get_config(name=''):
  c = default()
  c.data, c.task, c.net = 'points(moons)', 'points', 'mlp'
  c.schedule, c.predict, c.loss_weight, c.loss_type = 'cosine', 'v', 'one', 'mse'
  c.condition_dropout = .5  # half of the examples train the unconditional model, whose field is drawn
  c.batch, c.steps, c.learning_rate = 256, 4000, 2e-3
  c.guide, c.sampler, c.grid = '', 'ddim', 'trailing(100)'
  c.log_every = c.val_every = 500
  c.sample_every = c.save_every = 2000
  c.sample.show, c.sample.num_samples, c.sample.batch = '', 2000, 2000
  c.evaluate.at_end, c.evaluate.num_samples, c.evaluate.likelihood_samples = True, 2000, 1000
  return variant(c, name)
