"""From a trained model to pictures: samples, strips and animations."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffusion import samplers
from diffusion.core import grids
from diffusion.core.gaussian import Noise, q_sample
from diffusion.core.schedules import evaluate
from diffusion.errors import InputError
from diffusion.setup.specs import unknown
from diffusion.system import sharding
from diffusion.tasks.image import from_unit, to_unit

COMPARED = (5, 10, 20, 50)  # steps at which DDPM stands beside DDIM
SHOWN = ('film', 'gif', 'noising', 'interpolation', 'comparison')


def make_sample(run, seed, sampler=None, levels=None, trace=None):
  """The compiled sampler: (params, ids [B], cond [B, K] or None, start [B, H, W, C] or None) -> (uint8 [B, H, W, C], frames).

  One program for the whole batch and all steps, the batch split over the devices. Arguments as for make_stream.
  """
  sampler, levels = sampler or run.sampler, run.levels if levels is None else levels
  sampler = samplers.self_conditioned(sampler) if run.self_condition else sampler
  follow = None if trace is None else lambda state: run.task.decode(state.x[np.asarray(trace)])

  @partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
  def sample(params, ids, cond, start):
    keys = samplers.sample_keys(seed, ids)
    x = samplers.prior(keys, levels, run.shape) if start is None else start
    out = samplers.sample(keys, run.denoise(params, cond), sampler, levels, x, follow)
    if not follow:
      return run.task.decode(out), None
    return run.task.decode(out[0]), jnp.concatenate([follow(samplers.Sample(x))[None], out[1]])
  return sample


def make_stream(run, seed, batch, sampler=None, levels=None, trace=None):
  """stream(params, ids, cond=None, start=None) yields (uint8 pictures [n, H, W, C], frames), batch by batch.

  Picture k depends on (seed, k) and its condition alone, not on `batch` or the devices; the number of ids need not divide by either.

  Args:
    run: the Experiment.
    seed: of all samples.
    batch: pictures drawn at once; rounded up to the devices.
    sampler, levels: instead of the Experiment's.
    trace: None, or the indices (within each batch) of pictures whose every step is returned as frames,
      uint8 [S+1, len(trace), H, W, C], the starting noise first.
  """
  batch = -(-batch // run.mesh.size) * run.mesh.size
  some = make_sample(run, seed, sampler, levels, trace)

  def stream(params, ids, cond=None, start=None):
    for first in tqdm(range(0, len(ids), batch), 'sampling', unit='batch', leave=False, delay=2, disable=None):
      index = np.minimum(np.arange(first, first + batch), len(ids) - 1)  # the last batch is filled up with its last picture
      pick = lambda a: None if a is None else sharding.put_batch(np.asarray(a)[index], run.mesh)
      images, traced = jax.device_get(some(params, pick(np.asarray(ids)), pick(cond), pick(start)))
      yield images[:len(ids) - first], traced
  return stream


def make_draw(run, seed, batch, sampler=None, levels=None, trace=None):
  """draw(params, ids, cond=None, start=None) -> (pictures, frames): all of a stream at once, frames of its first batch (see make_stream)."""
  stream = make_stream(run, seed, batch, sampler, levels, trace)

  def draw(params, ids, cond=None, start=None):
    drawn, frames = zip(*stream(params, ids, cond, start))
    return np.concatenate(drawn), frames[0]
  return draw


# ---- conditions
def class_conditions(classes, wanted, number):
  """Conditions and captions of `number` pictures.

  Args:
    classes: names known to the model, K.
    wanted: '' for all in turn, names separated by commas, or 'none' for unconditional.
  Returns:
    (float32 [number, K] or None, list of captions or None).
  Raises:
    InputError: a name that the model does not know.
  """
  if not classes:
    if wanted not in ('', 'none'):
      raise InputError(f'config.sample.classes={wanted!r}: this model was trained without classes; leave it empty')
    return None, None
  if wanted == 'none':
    return np.zeros((number, len(classes)), np.float32), None
  names = [name.strip() for name in wanted.split(',') if name.strip()] or list(classes)
  index = np.array([_class_index(classes, name) for name in names])
  index = index[np.arange(number) % len(index)]  # picture k has the same class whatever the number
  return np.eye(len(classes), dtype=np.float32)[index], [classes[i] for i in index]


def _class_index(classes, name):
  if name not in classes:
    raise InputError(f'class {name!r}: {unknown(name, classes)}')
  return classes.index(name)


def parse_mix(classes, text):
  """'0.7 * hero + 0.3 * food' -> [(0.7, 'hero'), (0.3, 'food')]; a missing weight is 1 over the number of parts."""
  if not classes:
    raise InputError(f'config.sample.class_mix={text!r}: this model was trained without classes; leave it empty')
  parts = [part.strip() for part in text.split('+')]
  mix = []
  for part in parts:
    weight, star, name = part.rpartition('*')
    try:
      value = float(weight) if star else 1 / len(parts)
    except ValueError:
      value = float('nan')
    if not np.isfinite(value):
      raise InputError(f'config.sample.class_mix={text!r}: {weight.strip()!r} is no weight; write 0.5 * name + 0.5 * name')
    _class_index(classes, name.strip())
    mix.append((value, name.strip()))
  return mix


def mix_condition(classes, mix):
  """The weighted sum of one-hot conditions, float32 [K]."""
  return sum(weight * np.eye(len(classes), dtype=np.float32)[classes.index(name)] for weight, name in mix)


# ---- strips: each returns (rows [R][K, H, W, C], row labels, column labels)
def film(frames, labels, columns=12):
  """The denoising of some pictures, one a row, at about `columns` evenly spread steps. frames: uint8 [S+1, n, H, W, C]."""
  index = np.unique(np.round(np.linspace(0, len(frames) - 1, columns)).astype(int))
  return frames[index].swapaxes(0, 1), labels, ['noise', *(f'step {i}' for i in index[1:])]


def noising(images, labels, schedule, seed, columns=10):
  """q(x_t | x0) of some pictures at evenly spread times. images: uint8 [n, H, W, C]."""
  t = np.linspace(0, 1, columns)
  x0 = to_unit(images)
  eps = np.asarray(jax.random.normal(jax.random.key(seed), x0.shape))
  steps = [x0] + [q_sample(x0, Noise(*map(np.float32, evaluate(schedule, time))), eps) for time in t[1:]]
  return from_unit(np.stack(steps, 1)), labels, [f't = {time:.2f}' for time in t]


def slerp(a, b, weights):
  """Great-circle path between two noises a, b [...]: [len(weights), ...], which keeps the norm of Gaussian noise."""
  cosine = np.clip(np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1)
  angle = np.arccos(cosine)
  w = np.reshape(weights, (-1,) + (1,) * a.ndim)
  if angle < 1e-6:
    return (1 - w) * a + w * b
  return (np.sin((1 - w) * angle) * a + np.sin(w * angle) * b) / np.sin(angle)


def interpolation(run, params, seed, batch, cond, labels, columns=10):
  """DDIM (eta = 0) along the great circle between two starting noises; one pair, and one condition, a row."""
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
  """From the first to the second of two conditions in even weights, one starting noise a row."""
  (_, first), (_, second) = mix
  weights = np.linspace(0, 1, columns)
  conds = np.stack([mix_condition(run.classes, [(1 - w, first), (w, second)]) for w in weights])
  ids = np.repeat(np.arange(rows), columns)  # the same noise along a row
  images, _ = make_draw(run, seed, min(batch, len(ids)), samplers.ddim())(params, ids, np.tile(conds, (rows, 1)))
  return images.reshape(rows, columns, *run.shape), [f'noise {i}' for i in range(rows)], [f'{w:.2f} {second}' for w in weights]


def comparable(schedule, steps):
  """Those numbers of steps that a schedule has levels for; its number of levels where it has fewer than all of them."""
  return [S for S in steps if callable(schedule) or S <= len(schedule.logsnr)] or [len(schedule.logsnr)]


def comparison(run, params, seed, cond, labels, steps=COMPARED):
  """DDPM beside DDIM at equal numbers of steps, from the same noises: one picture for each of the labels, cond [len(labels), K]."""
  rows, names = [], []
  for S in comparable(run.schedule, steps):
    for name, sampler in (('DDPM', samplers.ddpm()), ('DDIM', samplers.ddim())):
      draw = make_draw(run, seed, len(labels), sampler, grids.trailing(S)(run.schedule))
      rows.append(draw(params, np.arange(len(labels)), cond)[0])
      names.append(f'{name} {S}')
  return rows, names, labels
