"""Editing the user's own images: what --mode=edit draws and writes.

To add a task: write the function, name it in OPERATIONS, and name its input in edit_inputs.TASKS.
"""
import io
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import samplers
from diffusion.core import operators
from diffusion.core.gaussian import clip
from diffusion.generation import pages, sampling, strips
from diffusion.generation.sample_report import new_folder
from diffusion.samplers import constraints
from diffusion.system import sharding
from diffusion.system.files import write_atomic
from diffusion.tasks.image import from_unit, to_unit
from diffusion.training.open_model import with_guide_model

COLUMNS = 8  # of before_after.png
TINT = np.array([255, 0, 160])  # marks the area to paint


class Result(NamedTuple):
  """What an operation draws."""
  images: np.ndarray   # uint8 [n, H, W, C]
  labels: list         # one each
  before: list         # (label, uint8 [H, W, C]) of what precedes them on the page
  arrays: dict = {}    # more arrays for samples.npz
  facts: dict = {}     # more entries for record.json


def draw(run, params, cond, number, start=None, sampler=None, levels=None):
  """Images uint8 [number, H, W, C] with the noise of config.edit.seed; the rest as for sampling.make_draw."""
  config = run.config
  drawn = sampling.make_draw(run, config.edit.seed, min(config.sample.batch, number), sampler, levels)
  return drawn(params, np.arange(number), cond, start)[0]


# ---- operations: (run, params, inputs) -> Result; run is guided, and params as with_guide_model returns them
def inpaint(run, params, inputs):
  """Replaces the known pixels after every step."""
  return _painted(run, params, inputs, constraints.inpaint(run.sampler, to_unit(inputs.image), inputs.mask))


def repaint(run, params, inputs):
  """As inpaint, going up and down the noise levels, so that painted and known pixels agree. Also outpaints."""
  options = run.config.edit
  sampler = constraints.repaint(run.sampler, to_unit(inputs.image), inputs.mask, options.jump, options.repeats)
  return _painted(run, params, inputs, sampler)


def _painted(run, params, inputs, sampler):
  images = draw(run, params, inputs.cond, len(inputs.labels), sampler=sampler)
  marked = np.where(inputs.mask, TINT, _rgb(inputs.image)).astype(np.uint8)
  return Result(images, inputs.labels, [('input', inputs.image), ('to paint', marked)], dict(mask=inputs.mask))


def img2img(run, params, inputs):
  """Adds noise to the image and denoises it."""
  number, options = len(inputs.labels), run.config.edit
  keys = samplers.sample_keys(options.seed, np.arange(number))
  x0 = np.repeat(to_unit(inputs.image)[None], number, 0)
  levels, start = constraints.sdedit(keys, run.levels, x0, options.strength)
  steps, start = len(levels.logsnr) - 1, np.asarray(start)
  images = draw(run, params, inputs.cond, number, start, levels=levels) if steps else from_unit(start)
  noisy = from_unit(start[0] / np.hypot(levels.alpha[0], levels.sigma[0]))
  return Result(images, inputs.labels, [('input', inputs.image), ('with noise', noisy)], facts=dict(steps=steps))


def invert(run, params, inputs):
  """The noise from which DDIM draws the image, its reconstruction, and what the noise becomes with other classes."""
  plain = _unguided(run)
  noise = _noise(plain, params, inputs.image[None], inputs.source_cond)
  images, labels = draw(plain, params, inputs.source_cond, 1, noise, samplers.ddim()), ['reconstruction']
  rms = float(np.sqrt(np.mean((images[0].astype(np.float64) - inputs.image) ** 2)))
  classes = sampling.split_names(run.config.edit.classes)
  if classes:
    n = len(classes)
    others = draw(run, params, inputs.cond[:n], n, np.repeat(noise, n, 0), samplers.ddim())
    images, labels = np.concatenate([images, others]), labels + classes
  shown = from_unit(noise[0] / (2 * run.levels.sigma[0]))  # two standard deviations
  before = [('input', inputs.image), ('noise', shown)]
  return Result(images, labels, before, dict(noise=noise), dict(reconstruction_rms=rms))


def interpolate(run, params, inputs):
  """From one image to another: along the great circle between their noises, and linearly between their classes."""
  plain, cond, w = _unguided(run), inputs.cond, np.linspace(0, 1, len(inputs.labels))
  noise = _noise(plain, params, np.stack([inputs.image, inputs.target]), None if cond is None else cond[:2])
  path = strips.slerp(noise[0], noise[1], w).astype(np.float32)
  between = None if cond is None else ((1 - w[:, None]) * cond[0] + w[:, None] * cond[1]).astype(np.float32)
  images = draw(plain, params, between, len(w), path, samplers.ddim())
  before = [('first', inputs.image), ('second', inputs.target)]
  return Result(images, [f'{share:.2f}' for share in w], before, dict(noise=noise))


def _unguided(run):
  """The Experiment without guidance and self-conditioning: its DDIM steps can be inverted."""
  def denoise(params, cond):
    plain = run.plain(params[0] if run.guide.model else params, cond)
    return clip(plain) if run.config.clip_x0 else plain
  return run._replace(denoise=denoise, self_condition=False)


def _noise(run, params, images, cond):
  """The noise, float32 [n, H, W, C], from which DDIM draws the images uint8 [n, H, W, C]."""
  up = lambda params, x0, cond: constraints.invert(run.denoise(params, cond), run.levels, x0)
  return np.asarray(jax.jit(up, out_shardings=sharding.replicated(run.mesh))(params, to_unit(images), cond))


def colourise(run, params, inputs):
  """Colour images whose luma is the grey image."""
  operator = operators.luma()
  grey = np.asarray(operator.forward(to_unit(inputs.image)))
  images = _constrained(run, params, inputs, operator, grey)
  coloured = [('input', inputs.image)] if np.ptp(inputs.image, -1).any() else []
  shown = np.repeat(from_unit(grey), 3, -1)
  return Result(images, inputs.labels, [*coloured, ('grey' if coloured else 'input', shown)])


def upscale(run, params, inputs):
  """Images whose block averages are the small image."""
  operator = operators.block_average(run.config.edit.factor)
  images = _constrained(run, params, inputs, operator, to_unit(inputs.image))
  return Result(images, inputs.labels, [('input', np.asarray(operator.inverse(inputs.image)))])


def _constrained(run, params, inputs, operator, y):
  """Images whose measurement by a linear operator is y (DDNM)."""
  def denoise(params, cond):
    unconstrained = run.denoise(params, cond)
    def constrained(x, noise, *previous):  # previous: the estimate that a self-conditioned network takes
      return operators.ddnm(lambda x, noise: unconstrained(x, noise, *previous), operator, jnp.asarray(y))(x, noise)
    return constrained
  return draw(run._replace(denoise=denoise), params, inputs.cond, len(inputs.labels))


OPERATIONS = dict(inpaint=inpaint, repaint=repaint, outpaint=repaint, img2img=img2img, invert=invert,
                  interpolate=interpolate, colourise=colourise, upscale=upscale)


# ---- what is written
def write(run, inputs, parent, params, step, versions):
  """Draws, and writes a new numbered folder: before_after.png, every result as PNG, samples.npz, record.json.

  Args:
    run: the Experiment.
    inputs: of edit_inputs.read.
    parent: folder in which the numbered folder is made.
    params: parameters.
    step, versions: of the parameters and of the software, for the record.
  Returns:
    The folder.
  """
  config, task = run.config, run.config.edit.task
  result = OPERATIONS[task](*with_guide_model(run, params, config.edit.classes or 'none'), inputs)
  folder = new_folder(parent, step)
  tiles = [_rgb(image) for _, image in result.before] + [_rgb(image) for image in result.images]
  labels = [label for label, _ in result.before] + list(result.labels)
  sampler = 'ddim' if task in ('invert', 'interpolate') else config.sampler
  title = f'{task}, step {step}, {sampler}, {config.grid}'
  pages.save_png(pages.grid(np.stack(tiles), COLUMNS, labels, title), folder / 'before_after.png')
  for i, image in enumerate(result.images):
    pages.save_png(image, folder / f'edit_{i:02d}.png')
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **(dict(images=result.images, picture=inputs.image) | result.arrays))
  write_atomic(folder / 'samples.npz', buffer.getvalue())
  record = dict(step=step, config=json.loads(config.to_json()), classes=list(run.classes), labels=labels,
                versions=versions)
  write_atomic(folder / 'record.json', json.dumps(record | result.facts, indent=2).encode())
  return folder


def _rgb(image):
  """uint8 [H, W, 1 to 4] -> [H, W, 3]; transparency shows white."""
  colour, alpha = image, None
  if image.shape[-1] in (2, 4):
    colour, alpha = image[..., :-1], image[..., -1:] / 255.
  colour = np.broadcast_to(colour, (*image.shape[:2], 3))
  return colour if alpha is None else np.round(alpha * colour + 255 * (1 - alpha)).astype(np.uint8)
