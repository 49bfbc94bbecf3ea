"""Another task in the latents of an autoencoder: x0 is what it makes of images, with mean 0 and deviation 1 a channel.

The autoencoder is given weights: an argument of compiled functions, and in the checkpoint by its hash alone. The mean
and standard deviation of each channel are measured here, kept in the checkpoint, and used in `encode` and `decode`
alone.
"""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.data.dataset import fingerprint, size, take
from diffusion.errors import InputError
from diffusion.system import cache, sharding, tensors
from diffusion.tasks.prepare import with_column

MEASURED = 10_000  # images whose latents are measured
TRIED = 64         # images by which it is seen whether a task changes them at random
BATCH = 256        # images encoded at once
PIXELS = ('bound', 'ode')  # evaluators that measure the bits of pixels


def latent(autoencoder, task, cached=True, *, data=None, facts=None, fitted=None, open_model=None):
  """x0: latents float32 [h, w, c] with mean 0 and standard deviation 1 in each channel; the rest is that of `task`.

  Args:
    autoencoder: the work directory of an autoencoder, or WORKDIR@STEP.
    task: a task of images, such as image or text_to_image.
    cached: whether images are encoded once, before training, and their latents kept on disk; with False each batch is
      encoded on the way, which augmentation needs.
  Raises:
    InputError: no autoencoder, or another one than the model was trained with; images that do not fit; cached latents
      of a task that changes its images.
  """
  if not isinstance(cached, bool):
    raise InputError(f'cached={cached!r}: expected True or False')
  if open_model is None:  # only the arguments are checked
    return task
  opened = open_autoencoder(autoencoder, open_model)
  _check(autoencoder, task, opened)
  weights = given(opened)
  own = _same(autoencoder, weights, facts or {})
  model = lambda frozen: opened.run.model(frozen['autoencoder'])
  frozen = dict(autoencoder=weights, task=task.frozen)
  if data is not None:
    _check_size(autoencoder, task, data, opened, frozen)
    if cached:
      _require_still(task, data)
  fitted = fitted or {}
  if 'latent_mean' not in fitted and data is not None:
    fitted = task.fitted | _measured(model, task, frozen, data, own)
  mean, std = fitted.get('latent_mean', np.float32(0)), fitted.get('latent_std', np.float32(1))
  return task._replace(
    batch=partial(_batch, task.batch), encode=partial(_encode, task.encode, model, mean, std),
    decode=partial(_decode, task.decode, model, mean, std), facts=task.facts | dict(autoencoder=own),
    fitted=task.fitted | {name: fitted[name] for name in ('latent_mean', 'latent_std') if name in fitted},
    frozen=frozen, prepare=partial(_prepare, model, task, own) if cached else _prepared_by(task),
    coarse=coarse, bounds=None, levels=None,
    evaluators=tuple(name for name in task.evaluators if name not in PIXELS))


# ---- the autoencoder
def open_autoencoder(where, open_model):
  """The Loaded autoencoder of a work directory; raises InputError where there is none."""
  try:
    opened = open_model(where)
  except InputError as error:
    raise InputError(f'autoencoder={where!r}: {error}; --config=configs/kl.py trains an autoencoder') from error
  if 'encode' not in opened.run.can:
    raise InputError(f'autoencoder={where!r}: the objective {opened.run.objective.name} there has no latents; give the '
                     'work directory of an autoencoder, as of configs/kl.py')
  return opened


def given(opened):
  """The Weights of an autoencoder on the host, without what was only trained against it."""
  group, weights = opened.run.objective.group, sharding.fetch(opened.weights)
  params = {name: tree for name, tree in weights.params.items() if not group(name + '/')}
  return weights._replace(params=params)


def _same(where, weights, facts):
  """The hash of the weights; raises InputError if a model with these facts was trained with others."""
  own = tensors.digest(weights)
  known = facts.get('autoencoder', own)
  if known != own:
    raise InputError(f'autoencoder={where!r}: its weights have the hash {own[:8]}, and this model was trained on '
                     f'latents of {known[:8]}; give that autoencoder, or train anew in another --workdir')
  return own


def _check(where, task, opened):
  if task.gives != 'images' or task.bounds != (-1., 1.):
    raise InputError(f'autoencoder={where!r}: latents are those of images in [-1, 1], and the task gives '
                     f'{task.gives or "something else"}; use task=image or task=text_to_image')
  here, there = task.facts.get('shape'), opened.run.task.facts.get('shape')
  if here and here[-1] != there[-1]:
    raise InputError(f'autoencoder={where!r}: it was trained on images of {there[-1]} channels, and these have '
                     f'{here[-1]}; use images of the same kind')


def _check_size(where, task, data, opened, frozen):
  """Raises InputError for images whose size the autoencoder cannot halve."""
  encode = lambda frozen, images: opened.run.model(frozen['autoencoder']).encode(
    task.encode(frozen['task'], None, dict(images=images))[0])
  try:
    jax.eval_shape(encode, frozen, data.arrays['images'][:1])
  except InputError as error:
    raise InputError(f'autoencoder={where!r}: {error}') from error


def _require_still(task, data):
  """Raises InputError if the task changes its images at random, which cached latents do not hold."""
  some = task.prepare(task.frozen, take(data, slice(TRIED)))
  batch = task.batch(some, np.arange(size(some)))
  as_it_is, drawn = (task.encode(task.frozen, key, batch)[0] for key in (None, jax.random.key(0)))
  if np.any(np.asarray(as_it_is) != np.asarray(drawn)):
    raise InputError('cached=True: latents of the images as they are would be kept, and the task changes images at '
                     'random (flip or augment); set cached=False')


def _moments(model, task, frozen, data):
  """indices [B] -> moments [B, h, w, ..] of examples, compiled."""
  placed = jax.device_put(frozen)
  encode = jax.jit(lambda frozen, batch: model(frozen).encode(task.encode(frozen['task'], None, batch)[0]))
  return lambda index: encode(placed, dict(images=data.arrays['images'][index]))


def _measured(model, task, frozen, data, own):
  """Mean and standard deviation of each channel of sampled latents, {'latent_mean', 'latent_std': float32 [c]}."""
  some = take(data, np.unique(np.linspace(0, size(data) - 1, MEASURED).astype(int)))

  def make():
    moments, latents = _moments(model, task, frozen, some), jax.jit(lambda key, m: model(frozen).latent(key, m))
    number, key, sums = 0, jax.random.key(0), [0., 0.]
    for first in range(0, size(some), BATCH):
      found = moments(np.minimum(np.arange(first, first + BATCH), size(some) - 1))
      z = np.asarray(latents(jax.random.fold_in(key, first), found), np.float64)[:size(some) - first]
      number += z[..., 0].size
      sums = [total + part for total, part in zip(sums, (z.sum((0, 1, 2)), (z * z).sum((0, 1, 2))))]
    mean, square = (total / number for total in sums)
    return dict(latent_mean=np.float32(mean), latent_std=np.float32(np.sqrt(np.maximum(square - mean ** 2, 1e-12))))
  return cache.cached('latent-statistics', [own, fingerprint((some,))], make, min_seconds=1)


# ---- the functions of the task
def _prepare(model, task, own, frozen, data):
  """The Dataset with the column `latents`: moments of each image, float16."""
  moments = _moments(model, task, frozen, data)
  data = with_column(data, 'latents', lambda index: moments(index).astype(jnp.float16), [own, fingerprint((data,))],
                     BATCH)
  return task.prepare(frozen['task'], data)


def _prepared_by(task):
  return lambda frozen, data: task.prepare(frozen['task'], data)


def _batch(inner, data, indices):
  """The batch of the task; where there are latents, its images are not read."""
  if 'latents' not in data.arrays:
    return inner(data, indices)
  images = data.arrays['images']
  blank = np.broadcast_to(np.zeros((), images.dtype), images.shape)
  return inner(data._replace(arrays=data.arrays | dict(images=blank)), indices) | dict(
    latents=data.arrays['latents'][indices])


def _encode(inner, model, mean, std, frozen, key, batch):
  """(latents, cond): with a key they are drawn from their posterior, without one they are its mean."""
  rest = {name: a for name, a in batch.items() if name != 'latents'}
  x0, cond = inner(frozen['task'], key, rest)
  made = model(frozen)
  moments = batch['latents'].astype(jnp.float32) if 'latents' in batch else made.encode(x0)
  z = made.latent(None if key is None else jax.random.fold_in(key, 2), moments)
  return (z - mean) / std, cond


def _decode(inner, model, mean, std, frozen, x0, cond):
  return inner(frozen['task'], model(frozen).decode(x0 * std + mean), cond)


def coarse(mask, shape):
  """The mask of latents of a shape, bool [h, w, 1]: True where it is for any of their pixels in mask [H, W, 1]."""
  h, w = shape[:2]
  return mask.reshape(h, mask.shape[0] // h, w, mask.shape[1] // w).any((1, 3))[..., None]
