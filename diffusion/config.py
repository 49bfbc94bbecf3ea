"""Every setting of a run, with its default. Recipes in configs/ change a few of them.

Parts are one-string specs, 'name' or 'name(argument, key=value)', such as 'trailing(20)' or "folder('/my/pictures', size=32)";
build.py turns them into objects and lists the valid ones when it meets another.
"""
import ml_collections

from diffusion.errors import InputError


def default():
  """The settings of the main job: class-conditional game sprites, cosine schedule, DDIM."""
  c = ml_collections.ConfigDict()
  c.seed = 0

  # Data and network.
  c.data = 'sprites(size=16)'
  c.task = 'image(flip=False)'
  c.net = 'unet(channels=32, multipliers=(1, 2, 2), blocks=1, attention=(4,))'

  # The process and the loss.
  c.schedule = 'cosine'
  c.predict = 'x0'           # what the network outputs: eps, x0, v, flow, score, edm
  c.draw = 'stratified'       # how times are drawn: uniform, stratified, table(weights)
  c.weight = 'min_snr(5)'     # one, snr, min_snr(gamma), p2(gamma, k), edm(sd)
  c.error = 'mse'             # mse, mae, huber(delta)
  c.condition_dropout = .1    # share of the training pictures whose condition is hidden, for guidance

  # Optimisation; everything is a function of the step.
  c.batch = 32
  c.steps = 1800
  c.learning_rate = 2e-3
  c.warmup = 100              # steps of linear rise
  c.decay = 'cosine'          # then: cosine (to 0 at the last step) or constant
  c.weight_decay = 0.
  c.clip_norm = 1.            # of the gradient; 0: off
  c.beta2 = .99
  c.ema = .998                # decay of the averaged weights; rises to it as (1 + step) / (10 + step)

  # Sampling.
  c.sampler = 'ddim'          # ddim(eta), ddpm(variance)
  c.grid = 'trailing(50)'     # which noise levels are visited: trailing, leading, linspace
  c.guidance = 2.             # 1: conditional, 0: unconditional, above 1: exaggerated
  c.clip = True               # keep x0 in [-1, 1] on the way
  c.sample = ml_collections.ConfigDict()
  c.sample.number = 48
  c.sample.classes = ''       # '' all in turn; 'hero, food'; 'none' for unconditional
  c.sample.mix = ''           # one condition for all, a weighted sum such as '0.5 * hero + 0.5 * food'
  c.sample.seed = 0           # picture k is the same whatever the number and the batch
  c.sample.batch = 48
  c.sample.weights = 'ema'    # ema or raw
  c.sample.show = 'film'      # besides the grid, of: film, gif, noising, interpolation, comparison; or all

  # What is written and when, in steps.
  c.log_every = 50
  c.heldout_every = 300
  c.sample_every = 600
  c.save_every = 300
  c.heldout_number = 512      # held-out pictures in the loss that is followed during training
  c.keep = 2                  # newest checkpoints that stay
  return c


def variant(config, name, **variants):
  """The recipe as asked for after the colon: '' as it is, 'tiny' for seconds, or one of its own variants (functions of the config).

  Raises:
    InputError: a variant that the recipe does not have.
  """
  variants = dict(tiny=tiny) | variants
  if name and name not in variants:
    raise InputError(f'unknown variant {name!r} of this recipe; valid: {", ".join(variants)}')
  return variants[name](config) if name else config


def tiny(c):
  """The same recipe, small enough to run in seconds: for tests, and to see that everything is in place."""
  if c.data.startswith('sprites'):
    c.data = 'sprites(size=16, n=256)'
  c.net = "unet(channels=16, multipliers=(1, 2), blocks=1, attention=())"
  c.batch, c.steps, c.warmup = 16, 8, 2
  c.grid = c.grid.split('(')[0] + '(4)'
  c.log_every = c.heldout_every = c.sample_every = c.save_every = 4
  c.heldout_number = 16
  c.sample.number, c.sample.batch = 12, 12
  return c
