"""From a trained model to images: the compiled sampler, batch by batch, and the conditions that it is given."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffusion import samplers
from diffusion.errors import InputError
from diffusion.setup.specs import unknown
from diffusion.system import sharding


def make_sample(run, seed, sampler=None, levels=None, trace=None):
  """The compiled sampler of one batch: all steps in one program, the batch divided over the devices.

  Args:
    run: the Experiment.
    seed: of all samples.
    sampler, levels: in place of the Experiment's.
    trace: None, or the indices (within the batch) of samples whose every step is returned.
  Returns:
    sample(params, ids [B], cond [B, K] or None, start [B, H, W, C] or None)
      -> (images uint8 [B, H, W, C], frames uint8 [S+1, len(trace), H, W, C], the starting noise first, or None).
  """
  sampler, levels = sampler or run.sampler, run.levels if levels is None else levels
  sampler = samplers.self_conditioned(sampler) if run.self_condition else sampler
  frame = None if trace is None else lambda state: run.task.decode(state.x[np.asarray(trace)])

  @partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
  def sample(params, ids, cond, start):
    keys = samplers.sample_keys(seed, ids)
    x = samplers.prior(keys, levels, run.shape) if start is None else start
    out = samplers.sample(keys, run.denoise(params, cond), sampler, levels, x, frame)
    if not frame:
      return run.task.decode(out), None
    return run.task.decode(out[0]), jnp.concatenate([frame(samplers.Sample(x))[None], out[1]])
  return sample


def stream(run, sample, batch, params, ids, cond=None, start=None):
  """Yields what `sample` (see make_sample) returns, batch by batch, for any number of ids.

  Args:
    batch: images per batch; rounded up to a multiple of the devices.
    ids, cond, start: [N, ...], as for make_sample.
  Yields:
    (images uint8 [n, H, W, C], frames or None); the images of all batches are N.
  """
  batch = -(-batch // run.mesh.size) * run.mesh.size
  for first in tqdm(range(0, len(ids), batch), 'sampling', unit='batch', leave=False, delay=2, disable=None):
    index = np.minimum(np.arange(first, first + batch), len(ids) - 1)  # the last id fills up the last batch
    rows = (None if a is None else sharding.put_batch(np.asarray(a)[index], run.mesh) for a in (ids, cond, start))
    images, frames = jax.device_get(sample(params, *rows))
    yield images[:len(ids) - first], frames


def make_draw(run, seed, batch, sampler=None, levels=None, trace=None):
  """The sampler for any number of images: make_sample, batch by batch.

  Args: as for make_sample and stream.
  Returns:
    draw(params, ids [N], cond=None, start=None) -> (images uint8 [N, H, W, C], frames of the first batch or None).
    Image k depends on (seed, k) and its condition alone, not on `batch` or the devices.
  """
  sample = make_sample(run, seed, sampler, levels, trace)

  def draw(params, ids, cond=None, start=None):
    images, frames = zip(*stream(run, sample, batch, params, ids, cond, start))
    return np.concatenate(images), frames[0]
  return draw


def draw(model, number, classes='', seed=0, batch=48):
  """Images of a model that diffusion.load opened.

  Args:
    model: Loaded(run, params, step).
    number: of images.
    classes: '' all in turn; 'hero, food'; 'none' for unconditional.
    seed: image k depends on (seed, k) and its class alone.
    batch: images drawn at once.
  Returns:
    uint8 [number, H, W, C].
  Raises:
    InputError: a classifier, or a class that the model does not have.
  """
  if model.run.denoise is None:
    raise InputError('this model is a classifier, which draws nothing')
  cond, _ = class_conditions(model.run.classes, classes, number, 'classes')
  return make_draw(model.run, seed, min(batch, number))(model.params, np.arange(number), cond)[0]


# ---- conditions
def conditions(run, number):
  """What config.sample.classes or .class_mix asks for: (float32 [number, K] or None, captions or None)."""
  options = run.config.sample
  if not options.class_mix:
    return class_conditions(run.classes, options.classes, number)
  mix = parse_mix(run.classes, options.class_mix)
  return np.tile(mix_condition(run.classes, mix), (number, 1)), None


def split_names(text):
  """'hero, food' -> ['hero', 'food']."""
  return [name.strip() for name in text.split(',') if name.strip()]


def class_conditions(classes, text, number, key='config.sample.classes'):
  """Conditions and captions of `number` images.

  Args:
    classes: names of the K classes of the model.
    text: '' for all in turn, names separated by commas, or 'none' for unconditional.
    key: the setting that the text comes from, for messages.
  Returns:
    (float32 [number, K] or None, list of captions or None).
  Raises:
    InputError: a class that the model does not have.
  """
  if not classes:
    if text not in ('', 'none'):
      raise InputError(f'{key}={text!r}: this model was trained without classes; leave it empty')
    return None, None
  if text == 'none':
    return np.zeros((number, len(classes)), np.float32), None
  index = np.array([_class_index(classes, name, f'{key}={text!r}') for name in split_names(text) or classes])
  index = index[np.arange(number) % len(index)]  # image k has the same class for any number
  return np.eye(len(classes), dtype=np.float32)[index], [classes[i] for i in index]


def _class_index(classes, name, setting):
  if name not in classes:
    raise InputError(f'{setting}: {unknown(name, classes)}')
  return classes.index(name)


def parse_mix(classes, text):
  """'0.7 * hero + 0.3 * food' -> [(0.7, 'hero'), (0.3, 'food')]; a missing weight is 1 over the number of terms."""
  setting = f'config.sample.class_mix={text!r}'
  if not classes:
    raise InputError(f'{setting}: this model was trained without classes; leave it empty')
  terms, mix = text.split('+'), []
  for term in terms:
    weight, star, name = term.strip().rpartition('*')
    try:
      value = float(weight) if star else 1 / len(terms)
    except ValueError:
      value = float('nan')
    if not np.isfinite(value):
      raise InputError(f'{setting}: the weight {weight.strip()!r} is not a number; '
                       f'write 0.5 * {classes[0]} + 0.5 * {classes[-1]}')
    _class_index(classes, name.strip(), setting)
    mix.append((value, name.strip()))
  return mix


def mix_condition(classes, mix):
  """The weighted sum of one-hot conditions, float32 [K]."""
  return sum(weight * np.eye(len(classes), dtype=np.float32)[classes.index(name)] for weight, name in mix)
