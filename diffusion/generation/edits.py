"""Editing the user's own images: what --mode=edit draws and writes.

To add a task: write the function, name it in OPERATIONS, and name its input in edit_inputs.TASKS.
"""
import json

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from diffusion import samplers
from diffusion.core import operators
from diffusion.generation import embedding_edits, restoring, strips
from diffusion.generation.edit_inputs import name_of, wanted
from diffusion.generation.edit_parts import decoded, draw, encoded, noise_of, Result, unguided
from diffusion.samplers import constraints
from diffusion.setup.build import without_clip
from diffusion.system.files import numbered_folder, write_atomic, write_npz
from diffusion.tasks import pages
from diffusion.tasks.captioned_page import captioned_page
from diffusion.tasks.restore import eight_bits
from diffusion.training.open_model import with_guide_model

COLUMNS = 8  # of before_after.png
TINT = np.array([255, 0, 160])  # marks the area to paint


# ---- operations: (run, weights, inputs) -> Result; run is guided, and weights as with_guide_model returns them
def inpaint(run, weights, inputs):
  """Replaces the known pixels after every step; known tokens stay as they are.

  A model that has learned to paint is told what is kept, and where x0 is an image, that is its x0 at every step.
  """
  if run.task.painted:
    cond = run.task.painted(weights.frozen.get('task', ()), inputs.image[None], inputs.mask, inputs.cond)
    inputs = inputs._replace(cond=cond)
    if run.task.coarse:  # latents near the border are of pixels on both sides
      return _painted(run, weights, inputs, run.sampler)
    known = encoded(run, weights, inputs.image[None])[0]
    holding = wrapped(run, lambda denoise: operators.fixed(denoise, known, inputs.mask))
    return _painted(holding, weights, inputs, run.sampler)
  known = encoded(run, weights, inputs.image[None])[0]
  if run.predicts == 'logits':
    tokens = np.repeat(np.where(inputs.mask, -1, known)[None], len(inputs.labels), 0)
    named = {} if inputs.cond is None else dict(cond=inputs.cond)
    return _painted(run, weights, inputs._replace(cond=named | dict(known=tokens)), run.sampler)
  return _painted(run, weights, inputs, constraints.inpaint(run.sampler, known, _mask(run, inputs)))


def repaint(run, weights, inputs):
  """As inpaint, going up and down the noise levels, so that painted and known pixels agree."""
  options = run.config.edit
  if run.predicts == 'logits':
    return inpaint(run, weights, inputs)
  sampler = constraints.repaint(run.sampler, encoded(run, weights, inputs.image[None])[0], _mask(run, inputs),
                                options.jump, options.repeats)
  return _painted(run, weights, inputs, sampler)


def outpaint(run, weights, inputs):
  """Paints around the image."""
  return (inpaint if run.task.painted else repaint)(run, weights, inputs)


def _mask(run, inputs):
  """The mask of x0."""
  return run.task.coarse(inputs.mask, run.shape) if run.task.coarse else inputs.mask


def _painted(run, weights, inputs, sampler):
  images = draw(run, weights, inputs.cond, len(inputs.labels), sampler=sampler)
  if run.task.coarse:  # what comes out of an autoencoder is not quite what went in
    images = np.where(inputs.mask, images, inputs.image)
  marked = np.where(inputs.mask, TINT, _rgb(inputs.image)).astype(np.uint8)
  return Result(images, inputs.labels, [('input', inputs.image), ('to paint', marked)], dict(mask=inputs.mask))


def img2img(run, weights, inputs):
  """Adds noise to the image and denoises it."""
  number, options = len(inputs.labels), run.config.edit
  keys = samplers.sample_keys(options.seed, np.arange(number))
  x0 = np.repeat(encoded(run, weights, inputs.image[None]), number, 0)
  levels, start = constraints.sdedit(keys, run.levels, x0, options.strength)
  steps, start = len(levels.logsnr) - 1, np.asarray(start)
  images = draw(run, weights, inputs.cond, number, start, levels=levels) if steps else decoded(run, weights, start)
  noisy = decoded(run, weights, start[:1] / np.hypot(levels.alpha[0], levels.sigma[0]))[0]
  return Result(images, inputs.labels, [('input', inputs.image), ('with noise', noisy)], facts=dict(steps=steps))


def invert(run, weights, inputs):
  """The noise from which DDIM draws the image, its reconstruction, and what the noise becomes with other classes."""
  plain = unguided(run)
  noise = noise_of(plain, weights, inputs.image[None], inputs.source_cond)
  images, labels = draw(plain, weights, inputs.source_cond, 1, noise, samplers.ddim()), ['reconstruction']
  rms = float(np.sqrt(np.mean((images[0].astype(np.float64) - inputs.image) ** 2)))
  classes = wanted(run)
  if classes:
    n = len(classes)
    others = draw(run, weights, jax.tree.map(lambda a: a[:n], inputs.cond), n, np.repeat(noise, n, 0), samplers.ddim())
    images, labels = np.concatenate([images, others]), labels + classes
  shown = decoded(run, weights, noise[:1] / (2 * run.levels.sigma[0]))[0]  # two standard deviations
  before = [('input', inputs.image), ('noise', shown)]
  return Result(images, labels, before, dict(noise=noise), dict(reconstruction_rms=rms))


def interpolate(run, weights, inputs):
  """From one image to another: along the great circle between their noises, and linearly between their classes."""
  if run.task.embed:
    return embedding_edits.interpolate(run, weights, inputs)
  plain, cond, w = unguided(run), inputs.cond, np.linspace(0, 1, len(inputs.labels))
  first, second = (jax.tree.map(lambda a: a[i:i + 1], cond) for i in (0, 1))
  noise = noise_of(plain, weights, np.stack([inputs.image, inputs.target]), jax.tree.map(lambda a: a[:2], cond))
  path = strips.slerp(noise[0], noise[1], w).astype(np.float32)
  between = run.task.between(first, second, w)
  images = draw(plain, weights, between, len(w), path, samplers.ddim())
  before = [('first', inputs.image), ('second', inputs.target)]
  return Result(images, [f'{share:.2f}' for share in w], before, dict(noise=noise))


def colourise(run, weights, inputs):
  """Colour images whose luma is the grey image."""
  operator = operators.luma()
  grey = np.asarray(operator.forward(encoded(run, weights, inputs.image[None])[0]))
  images = _constrained(run, weights, inputs, operator, grey)
  coloured = [('input', inputs.image)] if np.ptp(inputs.image, -1).any() else []
  shown = np.repeat(decoded(run, weights, grey), 3, -1)
  return Result(images, inputs.labels, [*coloured, ('grey' if coloured else 'input', shown)])


def upscale(run, weights, inputs):
  """Images whose block averages are the small image."""
  operator = operators.block_average(run.config.edit.factor)
  images = _constrained(run, weights, inputs, operator, encoded(run, weights, inputs.image[None])[0])
  return Result(images, inputs.labels, [('input', np.asarray(operator.inverse(inputs.image)))])


def _constrained(run, weights, inputs, operator, y):
  """Images whose measurement by a linear operator is y (DDNM)."""
  constrained = wrapped(run, lambda denoise: operators.ddnm(denoise, operator, jnp.asarray(y)))
  return draw(constrained, weights, inputs.cond, len(inputs.labels))


def wrapped(run, wrap):
  """The Experiment whose denoiser is wrap(denoiser)."""
  def denoise(weights, cond):
    plain = run.denoise(weights, cond)
    def wrapped(x, noise, *previous):  # previous: the estimate that a self-conditioned network takes
      return wrap(lambda x, noise: plain(x, noise, *previous))(x, noise)
    return wrapped
  return run._replace(denoise=denoise)


def restore(run, weights, inputs):
  """Images of which the input may be a degraded one: samples of the posterior."""
  how = restoring.parse(run.config.edit.task)
  if how.degradation is None:
    images, facts = draw(run, weights, inputs.cond, len(inputs.labels)), {}
  else:
    images, facts = restoring.draw(run, weights, how, inputs.measured, inputs.cond, len(inputs.labels))
  average = np.round(images.mean(0)).astype(images.dtype)
  before = [('input', inputs.image), (f'mean of {len(images)}', eight_bits(average))]
  arrays = dict(spread=images.std(0)) | ({} if inputs.measured is None else dict(measured=inputs.measured))
  return Result(images, inputs.labels, before, arrays, facts)


OPERATIONS = dict(inpaint=inpaint, repaint=repaint, outpaint=outpaint, img2img=img2img, invert=invert,
                  interpolate=interpolate, colourise=colourise, upscale=upscale,
                  restore=restore, **embedding_edits.OPERATIONS)


# ---- what is written
def write(run, inputs, parent, weights, step, versions):
  """Draws, and writes a new numbered folder: before_after.png, every result as PNG, samples.npz, record.json.

  Args:
    run: the Experiment.
    inputs: of edit_inputs.read.
    parent: folder in which the numbered folder is made.
    weights: its Weights.
    step, versions: of the weights and of the software, for the record.
  Returns:
    The folder.
  """
  name = name_of(run.config.edit.task)
  run = without_clip(run) if name == 'restore' and inputs.measured is not None else run
  with numbered_folder(parent, step) as folder:
    result = OPERATIONS[name](
      *with_guide_model(run, weights, run.config.edit.classes or run.config.edit.prompt or 'none'), inputs)
    _write_result(folder, run, inputs, result, step, versions)
  return folder


def _write_result(folder, run, inputs, result, step, versions):
  config, task = run.config, run.config.edit.task
  tiles = [_rgb(image) for _, image in result.before] + [_rgb(image) for image in eight_bits(result.images)]
  labels = [label for label, _ in result.before] + list(result.labels)
  sampler = 'ddim' if task in ('invert', 'interpolate', *embedding_edits.OPERATIONS) else config.sampler
  title = f'{task}, step {step}, {sampler}, {config.grid}'
  page = (captioned_page(np.stack(tiles), labels, title) if 'prompt' in run.task.takes
          else pages.grid(np.stack(tiles), COLUMNS, labels, title))
  pages.save_png(page, folder / 'before_after.png')
  for i, image in enumerate(result.images):
    pages.save_png(_file(image), folder / f'edit_{i:02d}.png')
  write_npz(folder / 'samples.npz', dict(images=result.images, picture=inputs.image) | result.arrays)
  record = dict(step=step, config=json.loads(config.to_json()), classes=list(run.classes), labels=labels,
                versions=versions)
  write_atomic(folder / 'record.json', json.dumps(record | result.facts, indent=2).encode())


def _file(image):
  """What a PNG can hold of an image: all of 8 bits, and grey of 16."""
  whole = image.dtype == np.uint8 or image.shape[-1] > 1
  return eight_bits(image) if whole else Image.fromarray(np.ascontiguousarray(image[..., 0]))


def _rgb(image):
  """uint8 [H, W, 1 to 4] -> [H, W, 3]; transparency shows white."""
  colour, alpha = image, None
  if image.shape[-1] in (2, 4):
    colour, alpha = image[..., :-1], image[..., -1:] / 255.
  colour = np.broadcast_to(colour, (*image.shape[:2], 3))
  return colour if alpha is None else np.round(alpha * colour + 255 * (1 - alpha)).astype(np.uint8)
