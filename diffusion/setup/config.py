"""Every setting of a run, with its default. Recipes in configs/ change a few of them.

Parts are one-string specs, 'name' or 'name(argument, key=value)', such as 'trailing(20)' or
"folder('/my/images', size=32)"; an unknown name is answered with the valid ones.
"""
import ast

import ml_collections

from diffusion.errors import InputError, unknown
from diffusion.setup.migrate import migrated

# Texts of the kinds of sprites, in all colours, for config.evaluate.templates.
SPRITE_TEMPLATES = ' | '.join(f'{tint} {colour} {{}}' for tint in ('a', 'a pale', 'a dark') for colour in (
  'red', 'yellow', 'lime', 'green', 'teal', 'cyan', 'blue', 'purple', 'pink', 'brown', 'white', 'gray', 'black', 'gold',
  'silver')) + ' | an orange {} | a pale orange {} | a dark orange {}'


def default():
  """The settings of the main job: class-conditional game sprites and the cosine schedule."""
  c = ml_collections.ConfigDict()
  c.seed = 0
  _model(c)
  _training(c)
  c.sample, c.edit, c.evaluate = _sample(c), _edit(), _evaluate()
  return c.lock()


def _model(c):
  # Data and network.
  c.data = 'sprites(size=16)'
  c.task = 'image(flip=False)'   # what the data mean: image, points, latent(runs/kl, task=image), .. (tasks/)
  c.objective = 'denoising'      # what is trained: denoising, vdm (with schedule 'learned'), classifier, discrete, ..,
                                 # autoencoder(kl) (objectives/)
  c.net = 'unet(channels=32, multipliers=(1, 2, 2), blocks=1, attention=(4,))'

  # The diffusion process and the loss.
  c.schedule = 'cosine'          # linear, cosine, flow, edm, learned, .. (core/schedules.py); 'shift(cosine(None), 2)'
  c.predict = 'x0'               # output of the network: eps, x0, v, flow, score, edm; scaled(eps) scales its input
  c.timesteps = 'stratified'     # uniform, stratified, table(weights), logit_normal, edm_lognormal, v_diffusion, ..,
                                 # loss_aware(bins) (objectives/timesteps.py)
  c.loss_weight = 'min_snr(5)'   # one, snr, min_snr(gamma), soft_min_snr, max_snr, p2(gamma, k), edm(sd), vlb, ..
  c.loss_type = 'mse'            # mse, mae, huber(delta)
  c.noise_type = 'gaussian'      # gaussian, offset(strength), perturbed(gamma), paired (optimal transport in the batch)
  c.variance = 'fixed'           # fixed, learned(strength) by extra output channels, or learned_log; needs T levels
  c.logvar_channels = 0          # of a learned log variance of the loss per noise level (EDM2: 128); 0: off
  c.self_condition = False       # the network also takes its own previous estimate of x0
  c.condition_dropout = .1       # share of training examples without their condition, for classifier-free guidance


def _training(c):
  # Optimisation; everything is a function of the step.
  c.batch = 32
  c.steps = 1800
  c.minutes = 0.                         # that a run may take; config.steps is then chosen after its first steps
  c.init_from = ''                       # work directory, or WORKDIR@STEP, of parameters to start from; '' random
  c.trainable = ''                       # regular expression: of parameters that are trained; '' all
  c.optimizer = 'adamw(b2=0.99)'         # adamw(b1, b2, eps, weight_decay), adam, radam, sgd(momentum), lion, muon;
                                         # 'adamw | disc: adam(b1=0)' for an objective with groups
  c.learning_rate = 2e-3                 # its peak
  c.lr_schedule = 'cosine(warmup=100)'   # cosine or linear (to 0 at the last step), or constant, after a linear warm-up
  c.grad_clip = 1.                       # largest global norm of the gradient; 0: off
  c.ema_decay = .998                     # of the averaged parameters; rises to it as (1 + step) / (10 + step)
  c.extra_emas = ''                      # more: 'decay(.9999) | warmup | halflife(5e5) | power(.05)' (core/ema.py)
  c.snapshot_every = 0                   # steps between snapshots of them, for averages of any width later; 0: none

  # Devices and input; none of these changes the numbers beyond rounding.
  c.fsdp = 1                   # devices that share one copy of the parameters, the optimizer state and the averages
  c.grad_accumulation = 1      # parts into which a batch is split, one after the other: less memory, the same update
  c.data_workers = 0           # processes that read and decode images of stream=True data; 0: threads
  c.on_save_error = 'stop'     # when a checkpoint cannot be written: 'stop', or 'continue' with a warning

  # What is written and when, in steps.
  c.log_every = 50
  c.val_every = 300
  c.val_samples = 512          # held-out images in the validation loss during training
  c.sample_every = 600
  c.save_every = 300
  c.keep_last = 2              # newest checkpoints that are kept
  c.keep_every = 0             # checkpoints at multiples of it are kept as well; 0: none


def _sample(c):
  c.sampler = 'best'           # the one for the grid; ddim(eta), ddpm(variance), heun, unipc(order), ..
  c.grid = 'trailing(50)'      # levels to visit: trailing, karras, angle, sections('ddim25'), .. (core/grids.py)
  c.guide = 'cfg(2)'           # left to right, such as 'cfg(2, lo=-3, hi=4) | rescale(.7)'; cfg(2, negative=weapon),
                               # apg(2), autoguidance(runs/x@600, 2), classifier(runs/noisy_classifier, 2); '' none
  c.clip_x0 = True             # keep x0 in [-1, 1] while sampling
  s = ml_collections.ConfigDict()
  s.num_samples = 48
  s.ask = ''                   # what else the task takes, such as 'length: 256 | prompt: a hero'
  s.prompt = ''                # of models of texts, one on each line, in turn (--prompt=TEXT); '' captions of the data
  s.classes = ''               # '' all in turn; 'hero, food'; 'none' for unconditional
  s.class_mix = ''             # one condition for all samples, a weighted sum such as '0.5 * hero + 0.5 * food'
  s.seed = 0                   # sample k is the same for any number of samples and any batch
  s.batch = 48
  s.best_of = 1                # samples drawn for each one that is kept, by a score of the task, as priors have
  s.params = 'ema'             # ema, raw, one of config.extra_emas, or 'posthoc(.07)' from snapshots
  s.then = ''                  # models that go on from the samples: 'runs/up grid=trailing(20) > runs/up2'
  s.show = 'film'              # besides the page, any of: film, gif, noising, interpolation, comparison; or all; and
                               # words: what each word of a prompt looks at
  return s


def _edit():
  """Editing your own images, with --mode=edit."""
  e = ml_collections.ConfigDict()
  e.task = 'inpaint'           # inpaint, repaint, outpaint, img2img, invert, interpolate, colourise, upscale,
                               # 'restore(super_resolution(4), tmpd)'; restore alone where the model is one; of
                               # decoders of embeddings: variations, text_difference, truncate
  e.image = ''                 # the file, any format, of the model's size
  e.mask = ''                  # inpaint, repaint: a file of the same size, white where the image is repainted
  e.target = ''                # interpolate: the other image
  e.resize = False             # scale and crop images of another size
  e.num_samples = 4            # variants; for interpolate, images along the way
  e.prompt = ''                # of models of texts: what the result shows; '' unconditional
  e.classes = ''               # of the result: '' unconditional; 'hero, food' in turn; of the two images
  e.source_class = ''          # invert, text_difference: class, or text, of the input image; '' unconditional
  e.strength = .6              # img2img: 0 keeps the image, 1 keeps nothing of it; variations: eta, how much noise is
                               # new; text_difference: how far it goes
  e.factor = 2                 # upscale: how many times larger the model's images are
  e.shift = (0, 0)             # outpaint: pixels by which the image is moved down and to the right
  e.jump = 5                   # repaint, outpaint: steps down before going up again
  e.repeats = 5                # repaint, outpaint: times each of these is repeated; 1 is inpaint
  e.seed = 1                   # not sample.seed, whose noise would reproduce an image that the model drew itself
  return e


def _evaluate():
  """Evaluation, with --mode=evaluate."""
  e = ml_collections.ConfigDict()
  e.parts = ''                 # '' all of the task; of images: loss (held-out), samples (their distances to the data),
                               # bound, ode (bits per dimension), text (whether they do what their captions say),
                               # clip_score (what a CLIP says of that); of CLIP: retrieval, zero_shot
  e.num_samples = 500          # classes as in the data, or those of config.sample.classes
  e.features = 'own'           # own (trained on this data, cached), inception(path), dinov2(path), clip(path)
  e.split = 'train'            # the reference: train or heldout
  e.statistics = ''            # .npz with mu and sigma, as FID tools write it, as reference of fd and fd_infinity
  e.likelihood_samples = 64    # held-out images whose likelihood is computed
  e.clip = ''                  # work directory of the CLIP of clip_score, not the one that guided the samples
  e.prior = ''                 # work directories of priors whose embeddings a decoder draws, 'runs/a, runs/b'
  e.templates = 'a {}'         # of zero_shot: texts of a class, such as 'a {} | a red {}', whose vectors are averaged
  e.seed = 1                   # of the samples and of everything drawn to measure them
  e.folder = ''                # output folder; '' a new, numbered folder under evaluations/
  e.at_end = False             # whether training ends with an evaluation
  e.every = 0                  # steps between points of a small fd_infinity curve during training; 0: none
  e.curve_samples = 128        # samples per point of that curve
  return e


def filled(config):
  """A stored config with the keys of this version; settings that came later are at their defaults.

  Raises:
    AttributeError, KeyError: a key that no version has.
  """
  complete = default()
  complete.update(migrated(config if isinstance(config, dict) else config.to_dict()))
  return complete


def put(config, key, value):
  """Changes one setting, such as 'grid' or 'sample.params'; text is read as a number or a bool where one is expected.

  Raises:
    InputError: an unknown setting, or a value of another type.
  """
  *sections, last = key.split('.')
  place = config
  for section in sections:
    place = place.get(section, {})
  if last not in place:
    raise InputError(f'{key}={value!r}: {unknown(key, list(config))}')
  try:
    text = isinstance(value, str) and not isinstance(place[last], str)
    value = ast.literal_eval(value) if text else value
    if value is None:
      raise ValueError('no setting is None')
    place[last] = value
  except (TypeError, ValueError, SyntaxError, MemoryError, RecursionError) as error:
    raise InputError(f'{key}={value!r}: expected a value such as {place[last]!r}') from error


def variant(config, name, **variants):
  """The variant of a recipe after the colon: '' as it is, 'tiny' for seconds, or one of its own.

  Args:
    variants: name -> function of the config.
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
  c.batch, c.steps, c.minutes, c.lr_schedule = 16, 8, 0., c.lr_schedule.split('(')[0] + '(warmup=2)'
  c.fsdp = c.grad_accumulation = 1
  c.data_workers = 0
  if not c.objective.startswith(('autoencoder', 'autoregressive', 'contrastive')):  # which have no grid
    c.grid = c.grid.split('(')[0] + '(4)'
  c.log_every = c.val_every = c.sample_every = c.save_every = 4
  c.val_samples = 16
  c.sample.num_samples, c.sample.batch = 12, 12
  c.evaluate.num_samples = c.evaluate.curve_samples = 16
  c.evaluate.features, c.evaluate.likelihood_samples = 'own(20)', 4
  return c
