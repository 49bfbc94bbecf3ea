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
  c.schedule = 'cosine'       # linear, cosine, flow, edm, .. (core/schedules.py); nested: 'shift(cosine(None), 2)', 'zero_terminal(linear)'; learned
  c.predict = 'x0'           # what the network outputs: eps, x0, v, flow, score, edm
  c.draw = 'stratified'       # how times are drawn: uniform, stratified, table(weights), logit_normal, edm_lognormal, loss_aware(bins)
  c.weight = 'min_snr(5)'     # one, snr, min_snr(gamma), p2(gamma, k), edm(sd), vlb, sigmoid(bias)
  c.error = 'mse'             # mse, mae, huber(delta)
  c.noise = 'plain'           # plain, offset(strength), perturbed(gamma), paired (optimal transport within the batch)
  c.variance = 'fixed'        # fixed, or learned(strength) with a second half of output channels; needs a schedule of T levels
  c.uncertainty = 0           # size of a learned log error, by which each level is divided (EDM2: 128); 0: off
  c.self_condition = False    # the network also sees its own earlier estimate of x0
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
  c.averages = ''             # more averaged copies of the weights, such as 'decay(.9999) | power(.05) | power(.1)' (training/ema.py)
  c.snapshot_every = 0        # steps between snapshots of them, from which any width of power average is reconstructed later; 0: none

  # Devices, and data that is read while training; none of these changes the numbers beyond rounding.
  c.fsdp = 1                  # devices that share one copy of the parameters, the optimizer's state and the averages
  c.accumulate = 1            # parts into which a batch is divided, one after the other: less memory, the same update
  c.workers = 0               # processes that read and decode pictures of stream=True data; 0: a thread
  c.save_failure = 'stop'     # where a checkpoint cannot be written: stop, or 'go on' from the older ones and say so

  # Sampling.
  c.sampler = 'best'          # of the steps of a `trailing` grid, the one of least error; ddim(eta), ddpm(variance), heun, unipc(order), .. (samplers/)
  c.grid = 'trailing(50)'     # which noise levels are visited: trailing, karras, angle, times([..]), .. (core/grids.py)
  c.guidance = 2.             # 1: conditional, 0: unconditional, above 1: exaggerated
  c.guide = 'cfg'             # from left to right, such as 'cfg(lo=-3, hi=4) | rescale(.7) | dynamic_threshold'; apg(eta, norm), classifier
  c.negative = ''             # a class to lead away from, in place of no class
  c.clip = True               # keep x0 in [-1, 1] on the way
  c.sample = ml_collections.ConfigDict()
  c.sample.number = 48
  c.sample.classes = ''       # '' all in turn; 'hero, food'; 'none' for unconditional
  c.sample.mix = ''           # one condition for all, a weighted sum such as '0.5 * hero + 0.5 * food'
  c.sample.seed = 0           # picture k is the same whatever the number and the batch
  c.sample.batch = 48
  c.sample.weights = 'ema'    # ema, raw, one of config.averages, or 'posthoc(.07)': the power average of that width, from snapshots
  c.sample.bad = ''           # autoguidance: leads away from this work directory's weights, 'runs/x' or 'runs/x@600' of an earlier step
  c.sample.classifier = ''    # work directory of configs/noisy_classifier.py, for config.guide='classifier'
  c.sample.show = 'film'      # besides the grid, of: film, gif, noising, interpolation, comparison; or all

  # Editing your own pictures, with --mode=edit.
  c.edit = ml_collections.ConfigDict()
  c.edit.task = 'inpaint'     # inpaint, repaint, outpaint, img2img, invert, interpolate, colourise, upscale
  c.edit.picture = ''         # the file, any format, of the model's size
  c.edit.mask = ''            # inpaint, repaint: a file of the same size, white where the picture is painted anew
  c.edit.second = ''          # interpolate: the other picture
  c.edit.resize = False       # scale and crop pictures of another size
  c.edit.number = 4           # variants; of an interpolation, pictures on the way
  c.edit.classes = ''         # what is painted: '' no class; 'hero, food' in turn; of an interpolation, of the first and the second
  c.edit.source = ''          # invert: the class of the picture as it is; '' no class
  c.edit.strength = .6        # img2img: 0 the picture as it is, 1 nothing of it
  c.edit.factor = 2           # upscale: by how much the model's pictures are larger
  c.edit.shift = (0, 0)       # outpaint: pixels by which the picture is moved down and to the right
  c.edit.jump = 5             # repaint, outpaint: steps in a way down and up again
  c.edit.repeats = 5          # repaint, outpaint: times that each is gone; 1 is inpaint
  c.edit.seed = 1             # not that of sampling: its noises would paint a picture of yours that they have made just as it was

  # Evaluation, with --mode=evaluate.
  c.evaluate = ml_collections.ConfigDict()
  c.evaluate.what = 'loss, samples, bound, ode'  # of: loss (held-out), samples (distances to the data), bound and ode (bits per dimension)
  c.evaluate.number = 500         # samples drawn as config.sampler, config.grid and config.guidance say, of classes as in the data (or config.sample.classes)
  c.evaluate.features = 'own'     # own (a classifier trained on this data, kept for the next time), inception(path), dinov2(path), clip(path)
  c.evaluate.split = 'train'      # the reference: train or heldout
  c.evaluate.statistics = ''      # .npz with mu and sigma, as FID tools write it, to compare the features of samples with in fd and fd_infinity
  c.evaluate.likelihood_number = 64  # held-out pictures whose likelihood is computed
  c.evaluate.seed = 1             # of the samples and of all that is drawn to measure them
  c.evaluate.folder = ''          # where it is written; '' a new, numbered folder under evaluations/
  c.evaluate.at_end = False       # whether training ends with it
  c.evaluate.every = 0            # steps between the points of a small curve of fd_infinity during training; 0: none
  c.evaluate.curve_number = 128   # samples of a point of that curve

  # What is written and when, in steps.
  c.log_every = 50
  c.heldout_every = 300
  c.sample_every = 600
  c.save_every = 300
  c.heldout_number = 512      # held-out pictures in the loss that is followed during training
  c.keep = 2                  # newest checkpoints that stay
  c.keep_every = 0            # steps that divide by it stay as well; 0: none do
  return c


def filled(config):
  """A stored config with the settings that have come since, at their defaults; its sampler stays what it was."""
  complete = default()
  complete.update(config)
  return complete


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
  from diffusion.nets import TINY  # not at start-up: it imports Flax, and --help should be quick
  c.net = TINY.get(c.net.split('(')[0], c.net)
  c.batch, c.steps, c.warmup = 16, 8, 2
  c.fsdp = c.accumulate = 1
  c.workers = 0
  c.grid = c.grid.split('(')[0] + '(4)'
  c.log_every = c.heldout_every = c.sample_every = c.save_every = 4
  c.heldout_number = 16
  c.sample.number, c.sample.batch = 12, 12
  c.evaluate.number = c.evaluate.curve_number = 16
  c.evaluate.features, c.evaluate.likelihood_number = 'own(20)', 4
  return c
