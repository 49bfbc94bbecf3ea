"""Editing the user's own pictures: what --mode=edit reads, checks, draws and writes.

A mask is white (or transparent) where the picture is painted anew and black where it stays. Pictures have the size of the model; those
of another size are refused, or scaled and cropped with config.edit.resize. To add a task: write the function, name it and what it
reads in TASKS.
"""
import io
import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import samplers
from diffusion.core import operators
from diffusion.core.gaussian import clip
from diffusion.data.decode_images import decoder
from diffusion.errors import InputError
from diffusion.generation import pages as sheets, sampling
from diffusion.generation.sample_report import new_folder
from diffusion.samplers import constraints
from diffusion.setup import build, specs
from diffusion.system import sharding
from diffusion.system.files import write_atomic
from diffusion.tasks.image import from_unit, to_unit
from diffusion.training.open_model import with_guide_model

COLUMNS = 8  # of the before/after page
TINT = np.array([255, 0, 160])  # of what is to be painted


class Given(NamedTuple):
  """What the user gave, ready for the model."""
  picture: np.ndarray  # uint8 [H, W, C]; of an upscale, small
  second: np.ndarray   # the same, or None
  mask: np.ndarray     # bool [H, W, 1], True is painted; or None
  cond: np.ndarray     # [number, K] or None
  source: np.ndarray   # [1, K] or None
  labels: list         # one a variant


class Done(NamedTuple):
  """What a task gives back."""
  images: np.ndarray   # uint8 [n, H, W, C]
  labels: list         # one each
  before: list         # (label, uint8 [H, W, C]) of what stands in front of them on the page
  arrays: dict = {}    # what else goes into samples.npz
  facts: dict = {}     # and into record.json


class Job(NamedTuple):
  """The model, and how to draw with it."""
  run: build.Experiment
  config: object
  params: object
  plain: object = None  # the Job of the same model without guidance, whose steps can be gone back

  def draw(self, cond, number, start=None, **other):
    """Pictures uint8 [number, H, W, C]; other: another sampler or grid."""
    batch = min(self.config.sample.batch, number)
    draw = sampling.make_draw(self.run, self.config.edit.seed, batch, **other)
    return draw(self.params, np.arange(number), cond, start)[0]


# ---- tasks: (job, given) -> Done
def inpaint(job, given):
  """Known pixels replaced at every step."""
  sampler = constraints.inpaint(job.run.sampler, to_unit(given.picture), given.mask)
  return _painted(job, given, sampler)


def repaint(job, given):
  """The same, up and down, so that what is painted agrees with what is known."""
  options = job.config.edit
  sampler = constraints.repaint(job.run.sampler, to_unit(given.picture), given.mask, options.jump, options.repeats)
  return _painted(job, given, sampler)


def _painted(job, given, sampler):
  images = job.draw(given.cond, len(given.labels), sampler=sampler)
  before = [('input', given.picture), ('to paint', _tinted(given.picture, given.mask))]
  return Done(images, given.labels, before, dict(mask=given.mask))


def img2img(job, given):
  """The picture with noise on it, denoised."""
  number, strength = len(given.labels), job.config.edit.strength
  keys = samplers.sample_keys(job.config.edit.seed, np.arange(number))
  x0 = np.repeat(to_unit(given.picture)[None], number, 0)
  levels, start = constraints.sdedit(keys, job.run.levels, x0, strength)
  n, start = len(levels.logsnr) - 1, np.asarray(start)
  images = job.draw(given.cond, number, start, levels=levels) if n else from_unit(start)
  before = [('input', given.picture), ('with noise', from_unit(start[0] / np.hypot(levels.alpha[0], levels.sigma[0])))]
  return Done(images, given.labels, before, facts=dict(steps=n))


def invert(job, given):
  """The noise that DDIM makes the picture of, what it makes of it, and what it makes with other classes."""
  noise = _noise(job.plain, given.picture[None], given.source)
  images, labels = job.plain.draw(given.source, 1, noise, sampler=samplers.ddim()), ['back again']
  rms = float(np.sqrt(np.mean((images[0].astype(np.float64) - given.picture) ** 2)))
  wanted = [name.strip() for name in job.config.edit.classes.split(',') if name.strip()]
  if wanted:
    others = job.draw(given.cond[:len(wanted)], len(wanted), np.repeat(noise, len(wanted), 0), sampler=samplers.ddim())
    images, labels = np.concatenate([images, others]), labels + wanted
  shown = from_unit(noise[0] / (2 * job.run.levels.sigma[0]))  # two standard deviations
  return Done(images, labels, [('input', given.picture), ('its noise', shown)], dict(noise=noise), dict(reconstruction_rms=rms))


def interpolate(job, given):
  """From one picture to another along the great circle between their noises, and evenly between their classes."""
  cond, w = given.cond, np.linspace(0, 1, len(given.labels))
  noise = _noise(job.plain, np.stack([given.picture, given.second]), None if cond is None else cond[:2])
  path = sampling.slerp(noise[0], noise[1], w).astype(np.float32)
  between = None if cond is None else ((1 - w[:, None]) * cond[0] + w[:, None] * cond[1]).astype(np.float32)
  images = job.plain.draw(between, len(w), path, sampler=samplers.ddim())
  return Done(images, [f'{share:.2f}' for share in w], [('first', given.picture), ('second', given.second)], dict(noise=noise))


def _noise(plain, images, cond):
  """The noises of pictures uint8 [n, H, W, C]: float32 [n, H, W, C]."""
  run = plain.run
  back = jax.jit(lambda params, x0, cond: constraints.invert(run.denoise(params, cond), run.levels, x0), out_shardings=sharding.replicated(run.mesh))
  return np.asarray(back(plain.params, to_unit(images), cond))


def colourise(job, given):
  """Colours whose luma is the grey picture."""
  operator = operators.luma()
  grey = np.asarray(operator.forward(to_unit(given.picture)))
  images = _measured(job, given, operator, grey)
  coloured = [('input', given.picture)] if np.ptp(given.picture, -1).any() else []
  shown = np.repeat(from_unit(grey), 3, -1)
  return Done(images, given.labels, [*coloured, ('grey' if coloured else 'input', shown)])


def upscale(job, given):
  """A picture whose block averages are the small one."""
  operator = operators.block_average(job.config.edit.factor)
  images = _measured(job, given, operator, to_unit(given.picture))
  return Done(images, given.labels, [('input', np.asarray(operator.inverse(given.picture)))])


def _measured(job, given, operator, y):
  def denoise(params, cond):
    told = job.run.denoise(params, cond)
    def constrained(x, noise, *previous):  # its own earlier estimate, where the network sees that
      return operators.ddnm(lambda x, noise: told(x, noise, *previous), operator, jnp.asarray(y))(x, noise)
    return constrained
  return job._replace(run=job.run._replace(denoise=denoise)).draw(given.cond, len(given.labels))


# What each reads besides the picture. Outpaint is repaint of what a picture that is small or moved leaves bare.
TASKS = dict(inpaint=(inpaint, 'mask'), repaint=(repaint, 'mask'), outpaint=(repaint, ''), img2img=(img2img, ''), invert=(invert, ''),
             interpolate=(interpolate, 'target'), colourise=(colourise, ''), upscale=(upscale, ''))


# ---- what the user gives
def check(options):
  """Raises InputError for what is wrong with config.edit whatever the model."""
  if options.task not in TASKS:
    raise InputError(f'config.edit.task: {specs.unknown(options.task, TASKS)}')
  for field in ('image', 'mask', 'target'):
    needed = field in ('image', TASKS[options.task][1])
    if needed and not options[field]:
      raise InputError(f'config.edit.task={options.task!r} needs a file: give --config.edit.{field}=FILE')
    if options[field] and not needed:
      raise InputError(f'config.edit.{field}={options[field]!r}: the task {options.task!r} does not use it; leave it out')
  fewest = 2 if options.task == 'interpolate' else 1
  for field, low, high in (('num_samples', fewest, 10_000), ('factor', 2, 64), ('jump', 1, 10_000), ('repeats', 1, 10_000),
                           ('seed', 0, 2 ** 31 - 1), ('strength', 0, 1)):
    if not low <= options[field] <= high:
      raise InputError(f'config.edit.{field}={options[field]}: expected a number from {low} to {high}')
  if len(options.shift) != 2 or not all(type(n) is int for n in options.shift):
    raise InputError(f'config.edit.shift={tuple(options.shift)}: expected pixels down and to the right, such as (4, 0)')


def read(run, config):
  """Everything the user gave, as the model takes it.

  Raises:
    InputError: a file that is missing or no picture, a size, a mask, a class or colours that do not fit.
  """
  options = config.edit
  if run.denoise is None:
    raise InputError('this work directory holds a classifier, which draws nothing; give that of a diffusion model')
  size, channels = run.shape[:2], run.shape[-1]
  if options.task == 'upscale':
    if any(side % options.factor for side in size):
      raise InputError(f'config.edit.factor={options.factor}: the model draws {_by(size)}, which does not divide by it')
    size = tuple(side // options.factor for side in size)
  if options.task == 'colourise' and channels != 3:
    raise InputError(f'config.edit.task={options.task!r}: this model draws pictures of {channels} channels; colours need 3 (RGB)')
  if TASKS[options.task][0] in (inpaint, repaint):
    constraints.inpaint(run.sampler, 0., True).plan(run.levels)
  cond, labels = _conditions(run, config, 'classes', options.num_samples if options.task != 'invert' else options.classes.count(',') + 1)
  source, _ = _conditions(run, config, 'source_class', 1)
  labels = labels or [f'variant {i}' for i in range(options.num_samples)]
  if options.task == 'outpaint':
    return Given(*_canvas(options, size, channels), cond, source, labels)
  picture = _picture(options, 'image', size, channels)
  second = _picture(options, 'target', size, channels) if options.target else None
  mask = _mask(options, size) if options.mask else None
  return Given(picture, second, mask, cond, source, labels)


def _conditions(run, config, field, number):
  """(conditions, labels) of config.edit.classes or source, where '' is without a class."""
  wanted = config.edit[field]
  if wanted and not run.classes:
    raise InputError(f'config.edit.{field}={wanted!r}: this model was trained without classes; leave it empty')
  needed = field == 'classes' or config.edit.task == 'invert'
  if needed and not wanted and run.classes and not config.condition_dropout:
    raise InputError(f'config.edit.{field}: this model knows nothing without a class; give one of {", ".join(run.classes)}')
  return sampling.class_conditions(run.classes, wanted or ('none' if run.classes else ''), number)


def _by(size):
  return f'{size[0]}x{size[1]}'


def _decode(options, field, **how):
  path = options[field]
  if not pathlib.Path(path).is_file():
    raise InputError(f'config.edit.{field}={path!r}: no such file')
  try:
    return decoder(**how)(path)
  except Exception as error:  # readers of broken files raise nearly anything
    why = ' '.join(str(error).split())
    raise InputError(f'config.edit.{field}={path!r} cannot be read as a picture ({why}); save it anew as PNG') from error


def _picture(options, field, size, channels):
  """uint8 [*size, channels]; checked for size and colour."""
  native = _decode(options, field, channels=3)
  if channels < 3 and np.ptp(native, -1).any():
    raise InputError(f'config.edit.{field}={options[field]!r} is in colour and the model draws grey; save the picture as grey')
  if native.shape[:2] == size:
    return _decode(options, field, channels=channels)
  if not options.resize:
    raise InputError(f'config.edit.{field}={options[field]!r} is {_by(native.shape)} (height x width), {options.task} with this '
                     f'model takes {_by(size)}; crop it, or set --config.edit.resize=True to scale and crop')
  return _decode(options, field, channels=channels, size=size)


def _mask(options, size):
  """bool [*size, 1]: True, painted, where the file is lighter than the middle or transparent."""
  native, picture = _decode(options, 'mask', channels=1), _decode(options, 'image', channels=1)
  if native.shape != picture.shape:
    raise InputError(f'config.edit.mask={options.mask!r} is {_by(native.shape)} (height x width), the picture is {_by(picture.shape)}; '
                     'make them equal')
  if native.shape[:2] != size:
    native = _decode(options, 'mask', channels=1, size=size, resample='nearest')
  mask = native > 127
  if not mask.any():
    raise InputError(f'config.edit.mask={options.mask!r} is black everywhere: there is nothing to paint; make white what is '
                     'to be painted')
  if mask.all():
    raise InputError(f'config.edit.mask={options.mask!r} is white (or transparent) everywhere: nothing of the picture would stay; '
                     'make black what is to stay')
  return mask


def _canvas(options, size, channels):
  """(picture, None, mask) of an outpaint: the picture in the middle of a white canvas, moved by the shift."""
  native = _decode(options, 'image', channels=3)
  fits = all(a <= b for a, b in zip(native.shape, size))
  picture = _picture(options, 'image', native.shape[:2] if fits else size, channels)
  (H, W), (h, w) = size, picture.shape[:2]
  wide, bare = np.full((3 * H, 3 * W, channels), 255, np.uint8), np.ones((3 * H, 3 * W, 1), bool)  # room on all sides
  down, right = np.clip(options.shift, -np.array(size), size)
  top, left = H + (H - h) // 2 + down, W + (W - w) // 2 + right
  wide[top:top + h, left:left + w], bare[top:top + h, left:left + w] = picture, False
  canvas, bare = wide[H:2 * H, W:2 * W], bare[H:2 * H, W:2 * W]
  if not bare.any():
    raise InputError(f'config.edit.image={options.image!r} fills all {_by(size)} pixels: there is nothing to paint; give a smaller '
                     "picture, or move it with --config.edit.shift='(4, 0)' (down, right)")
  if bare.all():
    raise InputError(f'config.edit.shift={tuple(options.shift)}: nothing of the picture is left on {_by(size)} pixels; move it by less')
  return canvas, None, bare


# ---- what is written
def write(run, config, given, parent, params, step, versions):
  """Draws and writes a new numbered folder: before_after.png, every result as PNG, samples.npz, record.json.

  Args:
    run, config: the Experiment and its config.
    given: what `read` gave.
    parent: folder in which the numbered folder is made.
    params, step, versions: weights, and what the record says of them.
  Returns:
    The folder.
  """
  guided, both = with_guide_model(run, params, config.edit.classes or 'none')
  def unguided(params, cond):
    told = run.plain(params, cond)
    return clip(told) if config.clip_x0 else told
  plain = Job(guided._replace(denoise=unguided, self_condition=False), config, params)
  done = TASKS[config.edit.task][0](Job(guided, config, both, plain), given)
  folder = new_folder(parent, step)
  pages = [_rgb(picture) for _, picture in done.before] + [_rgb(image) for image in done.images]
  labels = [label for label, _ in done.before] + list(done.labels)
  sampler = 'ddim' if config.edit.task in ('invert', 'interpolate') else config.sampler
  title = f'{config.edit.task}, step {step}, {sampler}, {config.grid}'
  sheets.save_png(sheets.grid(np.stack(pages), COLUMNS, labels, title), folder / 'before_after.png')
  for i, image in enumerate(done.images):
    sheets.save_png(image, folder / f'edit_{i:02d}.png')
  buffer = io.BytesIO()
  arrays = dict(images=done.images, picture=given.picture) | done.arrays
  np.savez_compressed(buffer, **arrays)
  write_atomic(folder / 'samples.npz', buffer.getvalue())
  record = dict(step=step, config=json.loads(config.to_json()), classes=list(run.classes), labels=labels, versions=versions)
  write_atomic(folder / 'record.json', json.dumps(record | done.facts, indent=2).encode())
  return folder


def _rgb(picture):
  """uint8 [H, W, 1 to 4] -> [H, W, 3]; transparency shows white."""
  colour, alpha = picture, None
  if picture.shape[-1] in (2, 4):
    colour, alpha = picture[..., :-1], picture[..., -1:] / 255.
  colour = np.broadcast_to(colour, (*picture.shape[:2], 3))
  return colour if alpha is None else np.round(alpha * colour + 255 * (1 - alpha)).astype(np.uint8)


def _tinted(picture, mask):
  """The picture as RGB, with what is to be painted in a colour of its own."""
  return np.where(mask, TINT, _rgb(picture)).astype(np.uint8)
