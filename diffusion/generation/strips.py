"""Strips: rows of images that show a process.

Each function returns (rows uint8 [R][K, H, W, C], row labels, column labels), as pages.rows takes them.
"""
import jax
import numpy as np

from diffusion import samplers
from diffusion.core import grids
from diffusion.core.gaussian import Noise, q_sample
from diffusion.core.schedules import evaluate
from diffusion.tasks.image import from_unit, to_unit
from diffusion.generation.sampling import make_draw, mix_condition

COMPARED = (5, 10, 20, 50)  # numbers of steps at which DDPM and DDIM are compared


def film(frames, labels, columns=12):
  """Denoising, one sample per row, at about `columns` evenly spread steps. frames: uint8 [S+1, n, H, W, C]."""
  index = np.unique(np.round(np.linspace(0, len(frames) - 1, columns)).astype(int))
  return frames[index].swapaxes(0, 1), labels, ['noise', *(f'step {i}' for i in index[1:])]


def noising(images, labels, schedule, seed, columns=10):
  """q(x_t | x0) at evenly spread times, one image per row. images: uint8 [n, H, W, C]."""
  times, x0 = np.linspace(0, 1, columns), to_unit(images)
  eps = np.asarray(jax.random.normal(jax.random.key(seed), x0.shape))
  steps = [x0] + [q_sample(x0, Noise(*map(np.float32, evaluate(schedule, t))), eps) for t in times[1:]]
  return from_unit(np.stack(steps, 1)), labels, [f't = {t:.2f}' for t in times]


def slerp(a, b, weights):
  """The great-circle path [len(weights), ...] between two noises a, b [...]; it keeps the norm of Gaussian noise."""
  cosine = np.clip(np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1)
  angle = np.arccos(cosine)
  w = np.reshape(weights, (-1,) + (1,) * a.ndim)
  if angle < 1e-6:
    return (1 - w) * a + w * b
  return (np.sin((1 - w) * angle) * a + np.sin(w * angle) * b) / np.sin(angle)


def interpolation(run, params, seed, batch, cond, labels, columns=10):
  """DDIM (eta = 0) along the great circle between two starting noises; one such pair and one condition per row."""
  rows = len(labels)
  keys = samplers.sample_keys(seed, np.arange(2 * rows))
  noise = np.asarray(samplers.prior(keys, run.levels, run.shape))
  weights = np.linspace(0, 1, columns)
  start = np.concatenate([slerp(noise[2 * i], noise[2 * i + 1], weights) for i in range(rows)]).astype(np.float32)
  cond = None if cond is None else np.repeat(cond, columns, 0)
  draw = make_draw(run, seed, min(batch, len(start)), samplers.ddim())
  images, _ = draw(params, np.arange(len(start)), cond, start)
  return images.reshape(rows, columns, *run.shape), labels, [f'{w:.2f}' for w in weights]


def mixing(run, params, seed, batch, mix, rows=4, columns=9):
  """From the first class of a mix to the second in even weights; one starting noise per row."""
  (_, first), (_, second) = mix
  weights = np.linspace(0, 1, columns)
  cond = np.stack([mix_condition(run.classes, [(1 - w, first), (w, second)]) for w in weights])
  ids = np.repeat(np.arange(rows), columns)  # the same noise along a row
  images, _ = make_draw(run, seed, min(batch, len(ids)), samplers.ddim())(params, ids, np.tile(cond, (rows, 1)))
  labels = [f'noise {i}' for i in range(rows)], [f'{w:.2f} {second}' for w in weights]
  return images.reshape(rows, columns, *run.shape), *labels


def comparable(schedule, steps=COMPARED):
  """The numbers of steps that a schedule has levels for; if none fits a table, its number of levels."""
  return [S for S in steps if callable(schedule) or S <= len(schedule.logsnr)] or [len(schedule.logsnr)]


def comparison(run, params, seed, cond, labels, steps=COMPARED):
  """DDPM and DDIM at equal numbers of steps, from the same noises; one image per label. cond: [len(labels), K]."""
  rows, names = [], []
  for S in comparable(run.schedule, steps):
    for name, sampler in (('DDPM', samplers.ddpm()), ('DDIM', samplers.ddim())):
      draw = make_draw(run, seed, len(labels), sampler, grids.trailing(S)(run.schedule))
      rows.append(draw(params, np.arange(len(labels)), cond)[0])
      names.append(f'{name} {S}')
  return rows, names, labels
