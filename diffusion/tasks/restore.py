"""Restoration: images given a degraded one, which the network sees beside x.

SR3 (arXiv:2104.07636) and Palette (arXiv:2111.05826); in residual form SGMSE+ (arXiv:2208.05830) and ResShift
(arXiv:2307.12348): x_t = y + alpha (x0 - y) + sigma * eps, with the schedule of the config.
"""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.data.pairs import as_unit, from_unit_of, read_image
from diffusion import samplers
from diffusion.errors import InputError, unknown
from diffusion.system.files import user_path, write_npz
from diffusion.tasks import pages
from diffusion.tasks.augment import mirror
from diffusion.tasks.base import Asked, Task
from diffusion.tasks.degradations import check_measurement, enlarged, measured, strength

EXAMPLES = 16  # degraded images of the data that are restored where none is asked for


METHODS = ('cubic', 'linear', 'nearest')  # of enlarging the low images of pairs
APART = 2 ** 31 + 5  # folded into the key of a sample: the noise of its image is another than that of the sampler


def restore(degradation=None, residual=False, noise=0., blur=0., flip=False, enlarge='cubic', *, data=None, facts=None,
            fitted=None):
  """x0: images in [-1, 1], or in residual form what the degraded image lacks; the condition: the degraded `image`.

  Args:
    degradation: what makes pairs of images, such as super_resolution(4); see degradations.py. None: the data are pairs,
      columns `images` (or `high`) and `low`. Given both, the pairs are trained on, and the degradation is compared with
      them.
    residual: whether x0 is the image minus the degraded one.
    noise, blur: of augmentation: the degraded image gets noise of a standard deviation from 0 to `noise`, and a blur
      from 0 to `blur` pixels; the network is told which (CDM, arXiv:2106.15282; Imagen, arXiv:2205.11487). Samples are
      drawn with none, or with the share `level` of the strongest noise, from 0 to 1, that is asked for.
    flip: whether to mirror a random half of the training images left to right.
    enlarge: how the low images of pairs get the size of the others: cubic, linear or nearest.
  """
  _check(degradation, enlarge, noise=noise, blur=blur)
  if data is not None:
    facts, examples = _measured_on(data, degradation, residual, enlarge)
    fitted = fitted if fitted and np.shape(fitted.get('examples')) == examples.shape else dict(examples=examples)
  facts = facts or dict(shape=[1, 1, 1], bits=8)
  if data is not None and residual and facts['view'][-1] not in (1, facts['shape'][-1]):
    raise InputError(f'residual: {facts["view"][-1]} channels cannot be taken from {facts["shape"][-1]}; '
                     'set residual=False')
  shape, top = tuple(facts['shape']), 2 ** facts['bits'] - 1
  seen = partial(_view, degradation, enlarge)
  encode = partial(_encode, seen, residual, noise, blur, flip, shape)

  def null(cond):
    return jax.tree.map(jnp.zeros_like, cond)

  def decode(frozen, x0, cond):
    x0 = x0 + cond['image'] if residual else x0
    return dict(images=from_unit_of(x0, top)) | ({} if cond is None else dict(inputs=from_unit_of(cond['image'], top)))

  return Task(
    _batch, encode, null=null, decode=decode, ask=partial(_ask, degradation, enlarge, facts, fitted, noise, blur),
    show=_show, save=_save, facts=facts, fitted=fitted or {}, prepare=partial(_compared, degradation), tiles=_tiles,
    takes=('image', 'images', *['level'] * bool(noise)), gives='images',
    bounds=(-2., 2.) if residual else (-1., 1.), levels=None if residual else top + 1,
    evaluators=('loss', 'restoration'))


def _check(degradation, enlarge, **numbers):
  if enlarge not in METHODS:
    raise InputError(f'enlarge={enlarge!r}: {unknown(str(enlarge), METHODS)}')
  for name, value in numbers.items():
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float('inf'):
      raise InputError(f'{name}={value!r}: expected a number of at least 0')
  if degradation is not None and not hasattr(degradation, 'operator'):
    raise InputError(f"degradation={degradation!r}: expected one such as super_resolution(4), or none for pairs")


def high(data):
  """The column of the images to restore to."""
  for name in ('high', 'images'):
    if name in data.arrays:
      return data.arrays[name]
  raise InputError(f'it needs images, and config.data has {", ".join(data.arrays)}; choose a task for these data')


def _measured_on(data, degradation, residual, enlarge):
  """(facts, degraded images of some examples) of the data."""
  images, pairs = high(data), 'low' in data.arrays
  if degradation is None and not pairs:
    raise InputError('the data are no pairs: name a degradation, such as restore(super_resolution(4))')
  shape = tuple(images.shape[1:])
  if degradation is not None:
    degradation.operator(shape)  # refuses sizes that do not fit
  first = _batch(data, np.unique(np.linspace(0, len(images) - 1, EXAMPLES).astype(int)))
  view = np.asarray(_view(degradation, enlarge, None, as_unit(first['images']), first, shape))
  facts = dict(shape=list(shape), bits=8 * images.dtype.itemsize, view=list(view.shape[1:]), residual=residual,
               degradation=degradation.name if degradation else '')
  if degradation is not None and degradation.draw:
    facts['noise'] = 'of the image'  # and so not the same for two images
  if pairs:
    facts['low'] = list(data.arrays['low'].shape[1:])
    facts |= dict(enlarge=enlarge) if enlarge != 'cubic' else {}  # which models of before have
  return facts, view


def _batch(data, indices):
  batch = dict(images=high(data)[indices])
  return batch | (dict(low=data.arrays['low'][indices]) if 'low' in data.arrays else {})


def _view(degradation, enlarge, key, x0, batch, shape):
  """The degraded image [B, H, W, C'] beside x."""
  if 'low' in batch:
    return enlarged(as_unit(batch['low']), shape, enlarge)
  return degradation.view(measured(degradation, key, x0), shape)


def _encode(seen, residual, noise, blur, flip, shape, frozen, key, batch):
  x0 = as_unit(batch['images'])
  keys = (None,) * 3 if key is None else jax.random.split(key, 3)
  view = seen(keys[0], x0, batch, shape)
  if flip and key is not None:
    x0, view = mirror(keys[1], x0), mirror(keys[1], view)
  told = {}
  if noise or blur:
    view, told = _augmented(keys[2], view, noise, blur)
  return x0 - view if residual else x0, dict(image=view, **told)


def _augmented(key, view, noise, blur):
  """(views, with a blur and noise of random strength; {'told': both as shares of the strongest, [B, 2]})."""
  B, H, W, _ = view.shape
  if key is None:
    return view, dict(told=jnp.zeros((B, 2)))
  keys = jax.random.split(key)
  told = jax.random.uniform(keys[0], (B, 2)) * np.array([noise > 0, blur > 0], np.float32)
  f = np.fft.fftfreq(H)[:, None] ** 2 + np.fft.fftfreq(W) ** 2
  gain = jnp.exp(-2 * (np.pi * blur) ** 2 * told[:, 1, None, None] ** 2 * f)[..., None]
  blurred = jnp.fft.ifft2(gain * jnp.fft.fft2(view, axes=(1, 2)), axes=(1, 2)).real if blur else view
  return blurred + noise * told[:, 0, None, None, None] * jax.random.normal(keys[1], view.shape), dict(told=told)


def _ask(degradation, enlarge, facts, fitted, noise, blur, request, ids, seed):
  """image: a file with a degraded image (or .npy with a measurement); images: one for each sample; else examples.

  level: share of the strongest noise that the image gets, and the network is told.
  """
  level = _level(request.get('level', 0.))
  wanted = request.get('images', request.get('image', ''))
  seen = partial(_view_of, degradation, enlarge, facts)
  if isinstance(wanted, str) and not wanted:
    index = np.asarray(ids) % len(fitted['examples'])
    view, labels = fitted['examples'][index], [f'example {i}' for i in index]
  elif isinstance(wanted, str):
    one = seen(read_image(user_path(wanted), f'image={wanted!r}'), f'image={wanted!r}')
    view, labels = np.repeat(one[None], len(ids), 0), [f'variant {i}' for i in ids]
  else:
    views = [seen(image, 'images') for image in wanted]
    if len(views) != len(ids):
      raise InputError(f'images: {len(views)} images for {len(ids)} samples; give one for each')
    view, labels = np.stack(views), None
  if level:
    keys = jax.vmap(lambda key: jax.random.fold_in(key, APART))(samplers.sample_keys(seed, np.asarray(ids)))
    view = view + np.float32(level * noise) * np.asarray(samplers.gaussian(keys, 0, view))
  told = np.tile(np.float32([level, 0.]), (len(ids), 1))
  return Asked(dict(image=view) | (dict(told=told) if noise or blur else {}), labels)


def _level(value):
  try:
    level = float(value)
  except (TypeError, ValueError):
    level = -1.
  if not 0 <= level <= 1:
    raise InputError(f'level={value!r}: expected a number from 0 (the image as it is) to 1 (the strongest noise)')
  return level


def _view_of(degradation, enlarge, facts, image, setting):
  """The degraded image float32 [H, W, C'], as the network sees it, of one uint8 or uint16 [h, w, c] or a measurement.
  """
  shape, image = tuple(facts['shape']), np.asarray(image)
  if image.dtype.kind == 'u' and image.dtype.itemsize * 8 != facts['bits']:
    raise InputError(f'{setting} has {image.dtype.itemsize * 8} bits, and the model is of {facts["bits"]}; convert it')
  if degradation is None:
    if list(image.shape) != facts['low'] or image.dtype.kind != 'u':
      raise InputError(f'{setting}: {image.dtype} {list(image.shape)}, and the model takes images {facts["low"]}')
    return np.asarray(enlarged(as_unit(image)[None], shape, enlarge))[0]
  y = to_measurement(degradation, image, shape, setting)
  return np.asarray(degradation.view(y[None], shape))[0]


def to_measurement(degradation, image, shape, setting):
  """y float32 of an image uint8 or uint16 [h, w, c], or of an array that is one already."""
  if image.dtype.kind == 'u' and not degradation.picture:
    raise InputError(f'{setting}: {degradation.name} measures no image; give its numbers as a .npy file')
  return check_measurement(degradation, as_unit(image) if image.dtype.kind == 'u' else image, shape, setting)


def _compared(degradation, frozen, data):
  """The same Dataset; where it is of pairs and a degradation is named, with lines on how well they agree."""
  if degradation is None or 'low' not in data.arrays:
    return data
  lines = disagreement(degradation, high(data), data.arrays['low'])
  return data._replace(facts=data.facts | dict(lost=[*data.facts.get('lost', ()), *lines]))


def disagreement(degradation, images, low, most=64):
  """Lines for the user where a degradation does not make the low images of the high ones, [] where it does."""
  index = np.unique(np.linspace(0, len(images) - 1, most).astype(int))
  x0, y = as_unit(images[index]), as_unit(low[index])
  made = degradation.operator(x0.shape[1:]).forward(x0)
  if made.shape != y.shape:
    return [f'{degradation.name} makes {list(made.shape[1:])} of the images, and the low ones are {list(y.shape[1:])}']
  gap = float(np.sqrt(np.mean((np.asarray(made) - y) ** 2)))
  noise = float(np.sqrt(np.mean(np.square(strength(degradation, made)))))
  allowed = np.hypot(1.2 * noise, 1.5 / 255)
  if gap <= allowed:
    return []
  factor, hint = x0.shape[1] // y.shape[1], ''
  if factor > 1 and x0.shape[-1] == y.shape[-1]:
    strided = float(np.sqrt(np.mean((x0[:, ::factor, ::factor] - y) ** 2)))
    hint = ': they are every so many-th pixel (aliased), not means' if strided < gap / 4 else ''
  return [f'the low images differ from {degradation.name} by {127.5 * gap:.2g} of 255 (root mean square), and its '
          f'noise explains {127.5 * allowed:.2g}{hint}; a model for one does not serve the other']


# ---- pages
def eight_bits(images):
  """uint8 or uint16 -> uint8, rounded."""
  return images if images.dtype == np.uint8 else np.round(images / 257.).astype(np.uint8)


def _rgb(images):
  images = eight_bits(images)
  if images.shape[-1] == 2:  # as grey images side by side, since the second is no transparency
    images = np.concatenate([images[..., :1], images[..., 1:]], 2)
  return np.repeat(images, 3, -1) if images.shape[-1] == 1 else images[..., :3]


def _tiles(outputs):
  return _rgb(np.asarray(outputs['images']))


def _show(outputs, labels, title):
  """A grid of input and result, side by side."""
  tiles = _tiles(outputs)
  if 'inputs' in outputs:
    inputs = _rgb(np.asarray(outputs['inputs']))
    tiles = np.concatenate([inputs, np.full((*tiles.shape[:2], 1, 3), 255, np.uint8), tiles], 2)
  return pages.grid(tiles, labels=labels, title=title)


def _save(folder, outputs, cond, labels):
  """samples.npz: images and inputs, uint8 or uint16 [N, H, W, C]."""
  write_npz(folder / 'samples.npz', outputs)
