"""What --mode=edit takes from the user: images, a mask and classes, checked and ready for the model.

A mask is white (or transparent) where the image is repainted and black where it is kept. Images have the size of the
model's; others are refused, or scaled and cropped with config.edit.resize.
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core import operators
from diffusion.data.decode_images import decoder, reason
from diffusion.data.pairs import as_unit, from_unit_of, read_image
from diffusion.errors import InputError
from diffusion.generation import requests, restoring
from diffusion.generation.edit_parts import mask_notes
from diffusion.samplers import constraints
from diffusion.setup import specs
from diffusion.setup.build import require
from diffusion.system.files import user_path
from diffusion.tasks.classes import split_names
from diffusion.tasks.restore import eight_bits, to_measurement
from diffusion.tasks.text_to_image import prompts_of
from diffusion.tasks.towers import scaled

# The tasks, and the file that each needs besides the image.
TASKS = dict(inpaint='mask', repaint='mask', outpaint='', img2img='', invert='', interpolate='target', colourise='',
             upscale='', restore='', variations='', text_difference='', truncate='')
MASKED = ('inpaint', 'repaint', 'outpaint')  # known pixels are replaced at every level
MEASURED = ('colourise', 'upscale', 'restore')  # what is measured is that of pixels
EMBEDDED = ('variations', 'text_difference', 'truncate')  # they change the embedding of the image
FILLED = ('inpaint', 'outpaint')  # what a model of tokens can do: known ones stay as they are
RANGES = dict(num_samples=(1, 10_000), factor=(2, 64), jump=(1, 10_000), repeats=(1, 10_000), strength=(0, 1))


class Inputs(NamedTuple):
  """The user's input as the model takes it."""
  image: np.ndarray        # uint8 [H, W, C]; of an upscale, the small one
  target: np.ndarray       # the same, or None
  mask: np.ndarray         # bool [H, W, 1], True where it is repainted; or None
  cond: Any                # a tree [number, ...] or None
  source_cond: Any         # [1, ...] or None
  labels: list             # one per result
  notes: tuple = ()        # lines for the user on what was asked for
  measured: Any = None     # of a restore: its numbers y, float32


def check(options):
  """Raises InputError for what is wrong with config.edit for any model."""
  task = name_of(options.task)
  if task not in TASKS:
    raise InputError(f'config.edit.task={options.task!r}: {specs.unknown(options.task, TASKS)}')
  if task == 'restore':
    restoring.parse(options.task)
  for field in ('image', 'mask', 'target'):
    needed = field in ('image', TASKS[task])
    if needed and not options[field]:
      raise InputError(f'config.edit.task={options.task!r} needs a file: give --config.edit.{field}=FILE')
    if options[field] and not needed:
      raise InputError(f'config.edit.{field}={options[field]!r}: {options.task} does not use it; leave it empty')
  for field, (low, high) in RANGES.items():
    low = 2 if field == 'num_samples' and options.task == 'interpolate' else low
    if not low <= options[field] <= high:
      raise InputError(f'config.edit.{field}={options[field]}: expected a number from {low} to {high}')
  if len(options.shift) != 2 or not all(type(n) is int for n in options.shift):
    raise InputError(f'config.edit.shift={tuple(options.shift)}: expected pixels (down, right), such as (4, 0)')


def name_of(task):
  """The name of a task; of 'restore(..)' without its arguments."""
  return 'restore' if restoring.is_restore(task) else task


def read(run):
  """The Inputs that config.edit describes.

  Raises:
    InputError: a missing or unreadable file; a size, a mask, a class or a colour that does not fit the model.
  """
  options = run.config.edit
  if run.predicts != 'logits' or options.task not in FILLED:
    require(run, 'denoise', f"; with tokens, --config.edit.task is one of {', '.join(FILLED)}"
            if run.predicts else '; give the work directory of a diffusion model')
  if run.task.gives != 'images':
    raise InputError(f'--mode=edit takes a model of images, and config.task={run.config.task!r} is none')
  if run.task.coarse and name_of(options.task) in MEASURED:
    raise InputError(f'config.edit.task={options.task!r} measures pixels, and this model has latents; use img2img, '
                     'inpaint or repaint, or a model of pixels')
  if name_of(options.task) == 'restore':
    return _to_restore(run)
  _check_embedded(run)
  if 'image' in run.task.takes:
    raise InputError(f'config.edit.task={options.task!r}: config.task={run.config.task!r} restores images; use '
                     '--config.edit.task=restore')
  size, channels = _input_size(run), picture_shape(run)[-1]
  learned = run.task.painted and options.task in FILLED
  if options.task in MASKED and run.predicts == 'denoise' and not learned:
    constraints.inpaint(run.sampler, 0., True).plan(run.levels)  # refuses samplers that skip levels
  number = max(1, len(wanted(run))) if options.task == 'invert' else options.num_samples
  cond, labels, _, notes = _conditions(run, 'classes', number)
  source_cond = _conditions(run, 'source_class', 1).cond
  if options.task == 'outpaint':
    image, mask = _canvas(options, size, channels)
  else:
    image, mask = _image(options, 'image', size, channels), _mask(options, size) if options.mask else None
  target = _image(options, 'target', size, channels) if options.target else None
  if run.task.embed:
    z = scaled(run.task.embed(image[None]))
    cond, source_cond = (given | dict(embedding=np.repeat(z, len(given['embedding']), 0))
                         for given in (cond, source_cond))
  labels = labels or [f'variant {i}' for i in range(options.num_samples)]
  notes = (*notes, *(mask_notes(mask, f'config.edit.mask={options.mask!r}') if options.mask else ()))
  return Inputs(image, target, mask, cond, source_cond, labels, notes)


def _check_embedded(run):
  """Raises InputError where an edit of embeddings is asked of a model without them, or without what it needs."""
  options = run.config.edit
  setting = f'config.edit.task={options.task!r}'
  if options.task in EMBEDDED and not run.task.embed:
    raise InputError(f'{setting} takes a model that draws from embeddings of images, as of configs/unclip.py; '
                     f'config.task={run.config.task!r} does not')
  if options.task == 'text_difference' and len(wanted(run)) != 1:
    raise InputError(f'{setting} leads to one text: give --prompt=TEXT, and --config.edit.source_class=TEXT for what '
                     'the image shows')


def _to_restore(run):
  """The Inputs of a restore, by a model that has learned to, or by any other one and what is measured."""
  options, how = run.config.edit, restoring.parse(run.config.edit.task)
  learned, setting = 'image' in run.task.takes, f'config.edit.task={options.task!r}'
  labels = [f'variant {i}' for i in range(options.num_samples)]
  if learned and how.degradation:
    raise InputError(f'{setting}: this model has learned what it restores, config.task={run.config.task!r}; use '
                     '--config.edit.task=restore')
  if learned:
    path = f'config.edit.image={options.image!r}'
    cond = requests.ask(run, dict(image=options.image), np.arange(options.num_samples), options.seed, '').cond
    shown = run.decode(run.frozen, jnp.zeros((1, *run.shape)), jax.tree.map(lambda a: a[:1], cond))['inputs']
    return Inputs(eight_bits(np.asarray(shown))[0], None, None, cond, None, labels)
  require(run, 'denoise')
  if not how.degradation:
    raise InputError(f"{setting}: say what was measured, such as 'restore(super_resolution(4))'")
  y, shown = _measurement(options, how.degradation, run.shape)
  try:
    restoring.conditioned(how, run.shape, jnp.asarray(y)[None])
  except InputError as error:
    raise InputError(f'{setting}: {error}') from error
  particles = how.particles if how.method == 'smc' else 0
  if particles and len(wanted(run)) > 1:
    raise InputError(f'{setting}: particles are of one posterior; ask for one class')
  if particles and particles < options.num_samples:
    raise InputError(f'{setting}: {particles} particles for config.edit.num_samples={options.num_samples}; set more')
  cond, asked, _, notes = _conditions(run, 'classes', particles or options.num_samples)
  return Inputs(shown, None, None, cond, None, (asked or labels)[:options.num_samples], notes, y)


def _measurement(options, degradation, shape):
  """(y float32, what to show of it, uint8 of about the size of the model's images)."""
  setting, path = f'config.edit.image={options.image!r}', user_path(options.image)
  try:
    operator = degradation.operator(shape)
  except InputError as error:
    raise InputError(f'config.edit.task={options.task!r}: {error}') from error
  if str(path).endswith('.npy') or not degradation.picture:
    y = to_measurement(degradation, read_image(path, setting), shape, setting)
  else:
    *size, channels = jax.eval_shape(operator.forward, jax.ShapeDtypeStruct(shape, jnp.float32)).shape
    image = _image(options, 'image', tuple(size), shape[-1])
    x = as_unit(image)
    y = np.asarray(operators.luma().forward(x)) if channels < shape[-1] else x
  view = np.asarray(degradation.view(jnp.asarray(y)[None], shape))[0]
  return y, from_unit_of(view, 255)


def picture_shape(run):
  """(height, width, channels) of the images of a model, whatever its x0 is."""
  decoded = lambda frozen: run.decode(frozen, jnp.zeros((1, *run.shape)), None)['images']
  return jax.eval_shape(decoded, run.frozen).shape[1:] if run.task.coarse else run.shape


def _input_size(run):
  """(height, width) of the image that the task takes."""
  options, (*size, channels) = run.config.edit, picture_shape(run)
  size = tuple(size)
  if options.task == 'colourise' and channels != 3:
    raise InputError(f"config.edit.task='colourise': this model has {channels} channels, expected 3 (RGB)")
  if options.task != 'upscale':
    return size
  if any(side % options.factor for side in size):
    raise InputError(f'config.edit.factor={options.factor} does not divide the size of this model, {_by(size)}')
  return tuple(side // options.factor for side in size)


def wanted(run):
  """The classes or prompts that the results should have."""
  options = run.config.edit
  return prompts_of(options.prompt, ()) if _of_texts(run) else split_names(options.classes)


def _of_texts(run):
  return 'prompt' in run.task.takes


def _conditions(run, field, number):
  """The Asked of config.edit.classes or config.edit.source_class, where '' is unconditional.

  Models of texts take config.edit.prompt in place of classes, and config.edit.source_class as a text.
  """
  config, key = run.config, f'config.edit.{field}'
  if _of_texts(run):
    if config.edit.classes:
      raise InputError(f'config.edit.classes={config.edit.classes!r}: this model takes texts; give --prompt=TEXT')
    text = config.edit.prompt if field == 'classes' else config.edit.source_class
    none = dict(embedding='none') if run.task.embed else {}  # that of the image is put in its place
    return requests.ask(run, dict(prompt=text or 'none') | none, np.arange(number), config.edit.seed, '')
  if config.edit.prompt:
    raise InputError(f'config.edit.prompt={config.edit.prompt!r}: this model takes no texts; give '
                     '--config.edit.classes=NAME')
  names, used = config.edit[field], field == 'classes' or config.edit.task == 'invert'
  if used and not names and run.classes and not config.condition_dropout:
    raise InputError(f"{key}='': this model was always trained with a class; give one of {', '.join(run.classes)}")
  if field == 'source_class' and len(split_names(names)) > 1:
    raise InputError(f'{key}={names!r}: expected one class')
  try:
    return requests.ask(run, dict(classes=names or 'none'), np.arange(number), config.edit.seed, '')
  except InputError as error:
    raise InputError(f'config.edit.{str(error).replace("classes", field, 1)}') from error


def _by(size):
  return f'{size[0]}x{size[1]}'


def _decode(options, field, **how):
  path = user_path(options[field])
  if not path.is_file():
    raise InputError(f'config.edit.{field}={options[field]!r}: no such file')
  try:
    return decoder(**how)(path)
  except Exception as error:  # decoders of broken files raise nearly anything
    setting = f'config.edit.{field}={options[field]!r}'
    raise InputError(f'{setting} cannot be read as an image ({reason(error)}); save it as PNG') from error


def _image(options, field, size, channels):
  """uint8 [*size, channels]; checked for size and colour."""
  native, setting = _decode(options, field, channels=3), f'config.edit.{field}={options[field]!r}'
  if channels < 3 and np.ptp(native, -1).any():
    raise InputError(f'{setting} is in colour, and this model is grey; convert the image to grey')
  if native.shape[:2] == size:
    return _decode(options, field, channels=channels)
  if not options.resize:
    raise InputError(f'{setting} is {_by(native.shape)} (height x width), and {options.task} '
                     f'with this model takes {_by(size)}; crop it, or set --config.edit.resize=True to scale and crop')
  return _decode(options, field, channels=channels, size=size)


def _mask(options, size):
  """bool [*size, 1]: True, repainted, where the file is lighter than mid-grey or transparent."""
  setting = f'config.edit.mask={options.mask!r}'
  native, image = _decode(options, 'mask', channels=1), _decode(options, 'image', channels=1)
  if native.shape != image.shape:
    raise InputError(f'{setting} is {_by(native.shape)} (height x width), and the image is {_by(image.shape)}; '
                     'make them the same size')
  if native.shape[:2] != size:
    native = _decode(options, 'mask', channels=1, size=size, resample='nearest')
  mask = native > 127
  if not mask.any():
    raise InputError(f'{setting} is black everywhere: nothing to paint; make the area to repaint white')
  if mask.all():
    raise InputError(f'{setting} is white (or transparent) everywhere: nothing of the image would be kept; '
                     'make the area to keep black')
  return mask


def _canvas(options, size, channels):
  """(image, mask) of an outpaint: the image at the centre of a white canvas, moved by config.edit.shift."""
  native = _decode(options, 'image', channels=3)
  fits = all(a <= b for a, b in zip(native.shape, size))
  image = _image(options, 'image', native.shape[:2] if fits else size, channels)
  (H, W), (h, w) = size, image.shape[:2]
  canvas = np.full((3 * H, 3 * W, channels), 255, np.uint8)  # with room on all sides
  mask = np.ones((3 * H, 3 * W, 1), bool)
  down, right = np.clip(options.shift, -np.array(size), size)
  top, left = H + (H - h) // 2 + down, W + (W - w) // 2 + right
  canvas[top:top + h, left:left + w], mask[top:top + h, left:left + w] = image, False
  canvas, mask = canvas[H:2 * H, W:2 * W], mask[H:2 * H, W:2 * W]
  if not mask.any():
    raise InputError(f'config.edit.image={options.image!r} fills all {_by(size)} pixels: nothing to paint; '
                     "give a smaller image, or move it with --config.edit.shift='(4, 0)' (down, right)")
  if mask.all():
    raise InputError(f'config.edit.shift={tuple(options.shift)}: nothing of the image is left on {_by(size)} pixels; '
                     'shift it by less')
  return canvas, mask
