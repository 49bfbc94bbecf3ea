"""Strips: rows of pictures that show a process. Each function returns (rows, row labels, column labels) for pages.rows.

They take outputs of the task, {name: [..]}, and show them by its `tiles`.
"""
import jax
import numpy as np

from diffusion import samplers
from diffusion.core import grids
from diffusion.core.gaussian import Noise, q_sample
from diffusion.core.schedules import evaluate
from diffusion.errors import InputError
from diffusion.generation import requests
from diffusion.generation.sampling import make_draw

COMPARED = (5, 10, 20, 50)  # numbers of steps at which DDPM and DDIM are compared


def framed_tiles(run, frames):
  """frames {name: [S+1, n, ...]} -> a picture of each, uint8 [S+1, n, H, W, C]."""
  steps, n = next(iter(frames.values())).shape[:2]
  flat = {name: a.reshape(steps * n, *a.shape[2:]) for name, a in frames.items()}
  tiles = run.task.tiles(flat)
  return tiles.reshape(steps, n, *tiles.shape[1:])


def in_rows(run, outputs, columns):
  """outputs {name: [R * columns, ...]} -> pictures uint8 [R, columns, H, W, C]."""
  tiles = run.task.tiles(outputs)
  return tiles.reshape(-1, columns, *tiles.shape[1:])


def film(tiles, labels, columns=12):
  """Denoising, one sample per row, at about `columns` evenly spread steps. tiles: uint8 [S+1, n, H, W, C]."""
  index = np.unique(np.round(np.linspace(0, len(tiles) - 1, columns)).astype(int))
  return tiles[index].swapaxes(0, 1), labels, ['noise', *(f'step {i}' for i in index[1:])]


def noising(run, weights, batch, labels, seed, columns=10):
  """q(x_t | x0) at evenly spread times, one example per row. batch: of the task, [n, ...]."""
  times, (x0, cond) = np.linspace(0, 1, columns), run.encode(weights.frozen, None, batch)
  eps = np.asarray(jax.random.normal(jax.random.key(seed), x0.shape))
  steps = [x0] + [q_sample(x0, Noise(*map(np.float32, evaluate(run.schedule, t))), eps) for t in times[1:]]
  pictures = [run.task.tiles(jax.device_get(run.decode(weights.frozen, x, cond))) for x in steps]
  return np.stack(pictures, 1), labels, [f't = {t:.2f}' for t in times]


def slerp(a, b, weights):
  """The great-circle path [len(weights), ...] between a and b [...]; it keeps the norm of Gaussian noise, and of unit
  vectors. At 0 and 1 it is a and b, bit for bit.

  Raises:
    InputError: a and b point in opposite directions, and no circle through them is the shortest.
  """
  cosine = np.clip(np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1)
  angle = np.arccos(cosine)
  w = np.reshape(weights, (-1,) + (1,) * a.ndim)
  if angle < 1e-6:
    return (1 - w) * a + w * b
  if np.pi - angle < 1e-4:
    raise InputError('interpolation between opposite directions: all paths are equally long; choose others')
  path = (np.sin((1 - w) * angle) * a + np.sin(w * angle) * b) / np.sin(angle)
  return np.where(w == 0, a, np.where(w == 1, b, path))


def interpolation(run, weights, seed, batch, asked, labels, columns=10):
  """DDIM (eta = 0) along the great circle between two starting noises; one such pair and one request per row."""
  rows, shape = len(labels), asked.shape or run.shape
  noise = np.asarray(samplers.prior(samplers.sample_keys(seed, np.arange(2 * rows)), run.levels, shape))
  shares = np.linspace(0, 1, columns)
  start = np.concatenate([slerp(noise[2 * i], noise[2 * i + 1], shares) for i in range(rows)]).astype(np.float32)
  cond = requests.rows(asked, np.repeat(np.arange(rows), columns)).cond
  draw = make_draw(run, seed, min(batch, len(start)), samplers.ddim(), shape=asked.shape)
  outputs, _ = draw(weights, np.arange(len(start)), cond, start)
  return in_rows(run, outputs, columns), labels, [f'{share:.2f}' for share in shares]


def mixing(run, weights, seed, batch, ends, rows=4, columns=9):
  """From one request to another in even weights; one starting noise per row. ends: (name, cond [1, ...]) of the two."""
  (_, first), (second, last) = ends
  shares = np.linspace(0, 1, columns)
  cond = run.task.between(first, last, shares)
  ids = np.repeat(np.arange(rows), columns)  # the same noise along a row
  tiled = jax.tree.map(lambda a: np.concatenate([a] * rows), cond)
  outputs, _ = make_draw(run, seed, min(batch, len(ids)), samplers.ddim())(weights, ids, tiled)
  return in_rows(run, outputs, columns), [f'noise {i}' for i in range(rows)], [f'{w:.2f} {second}' for w in shares]


def comparable(schedule, steps=COMPARED):
  """The numbers of steps that a schedule has levels for; if none fits a table, its number of levels."""
  return [S for S in steps if callable(schedule) or S <= len(schedule.logsnr)] or [len(schedule.logsnr)]


def comparison(run, weights, seed, asked, labels, steps=COMPARED):
  """DDPM and DDIM at equal numbers of steps, from the same noises; one sample per label."""
  rows, names = [], []
  for S in comparable(run.schedule, steps):
    for name, sampler in (('DDPM', samplers.ddpm()), ('DDIM', samplers.ddim())):
      draw = make_draw(run, seed, len(labels), sampler, grids.trailing(S)(run.schedule), shape=asked.shape)
      rows.append(run.task.tiles(draw(weights, np.arange(len(labels)), asked.cond)[0]))
      names.append(f'{name} {S}')
  return rows, names, labels
