"""Edits of an image by its embedding (DALL-E 2, arXiv:2204.06125, section 3).

An image is taken as a pair: its embedding z, and the noise from which the decoder draws it, given z, by DDIM without
guidance. Operations change the one, the other, or both, and draw again.
"""
import numpy as np

from diffusion import samplers
from diffusion.generation import requests
from diffusion.generation.edit_inputs import wanted
from diffusion.generation.edit_parts import draw, noise_of, Result, unguided
from diffusion.generation.strips import slerp


def condition(run, z, texts=('none',)):
  """The condition of unit vectors z [n, D], and of texts in turn, 'none' for no text."""
  asked = dict(prompt=list(texts), embedding=z)
  return requests.ask(run, asked, np.arange(len(z)), run.config.edit.seed, '').cond


def text_embedding(run, text):
  """The unit vector [D] of a text, 0 for the empty one."""
  cond = requests.ask(run, dict(prompt=text or 'none', embedding='text'), np.arange(1), 0, '').cond
  return cond['embedding'][0] / cond['embedding'].shape[-1] ** .5


def towards(z, target, source, shares):
  """z [D] turned by shares [n] of the way to the direction from the text `source` to `target` [D]: [n, D].

  At 0 it is z, bit for bit.
  """
  way = target - source
  return slerp(z, way / np.linalg.norm(way), shares).astype(np.float32)


def truncated(z, mean, axes, number):
  """z [D] by its first `number` principal components, scaled to length 1, [D]."""
  kept = mean + (z - mean) @ axes[:, :number] @ axes[:, :number].T
  return kept / np.linalg.norm(kept)


# ---- operations: (run, weights, inputs) -> edit_parts.Result
def variations(run, weights, inputs):
  """Other images with the same embedding: of the noise of the image, a share is drawn anew at each step."""
  options, number = run.config.edit, len(inputs.labels)
  z, plain = run.task.embed(inputs.image[None]), unguided(run)
  noise = noise_of(plain, weights, inputs.image[None], condition(run, z))
  cond = condition(run, np.repeat(z, number, 0), wanted(run) or ('none',))
  images = draw(run, weights, cond, number, np.repeat(noise, number, 0), samplers.ddim(eta=options.strength))
  labels = [f'variation {i}' for i in range(number)]
  return Result(images, labels, [('input', inputs.image)], dict(embedding=z, noise=noise))


def interpolate(run, weights, inputs):
  """From one image to another: along the great circles between their embeddings and between their noises."""
  pair, w, plain = np.stack([inputs.image, inputs.target]), np.linspace(0, 1, len(inputs.labels)), unguided(run)
  z = run.task.embed(pair)
  noise = noise_of(plain, weights, pair, condition(run, z))
  paths = [slerp(a[0], a[1], w).astype(np.float32) for a in (z, noise)]
  images = draw(plain, weights, condition(run, paths[0]), len(w), paths[1], samplers.ddim())
  before = [('first', inputs.image), ('second', inputs.target)]
  return Result(images, [f'{share:.2f}' for share in w], before, dict(embedding=paths[0], noise=noise))


def text_difference(run, weights, inputs):
  """The image on the way from what config.edit.source_class says to what the prompt says; at 0 its reconstruction."""
  options, [prompt] = run.config.edit, wanted(run)
  z, plain, w = run.task.embed(inputs.image[None]), unguided(run), np.linspace(0, options.strength, len(inputs.labels))
  path = towards(z[0], text_embedding(run, prompt), text_embedding(run, options.source_class), w)
  noise = noise_of(plain, weights, inputs.image[None], condition(run, z))
  images = draw(plain, weights, condition(run, path), len(w), np.repeat(noise, len(w), 0), samplers.ddim())
  labels = ['reconstruction', *(f'{share:.2f}' for share in w[1:])]
  return Result(images, labels, [('input', inputs.image)], dict(embedding=path, noise=noise))


def truncate(run, weights, inputs):
  """The image that the first principal components of its embedding give, from one noise, for more and more of them."""
  z, fitted = run.task.embed(inputs.image[None])[0], run.task.fitted
  numbers = np.unique(np.round(np.geomspace(1, len(z), len(inputs.labels))).astype(int))
  path = np.stack([truncated(z, fitted['pca_mean'], fitted['pca_axes'], k) for k in numbers]).astype(np.float32)
  keys = samplers.sample_keys(run.config.edit.seed, np.zeros(len(numbers), int))
  start = np.asarray(samplers.prior(keys, run.levels, run.shape))
  images = draw(run, weights, condition(run, path), len(numbers), start, samplers.ddim())
  labels = [f'first {k}' for k in numbers]  # longer ones do not fit
  return Result(images, labels, [('input', inputs.image)], dict(embedding=path))


OPERATIONS = dict(variations=variations, text_difference=text_difference, truncate=truncate)
