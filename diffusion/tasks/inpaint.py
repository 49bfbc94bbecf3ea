"""In-painting: the network of a task of images also sees what is kept of the image, and learns to paint the rest.

GLIDE (arXiv:2112.10741, sections 2.4 and 4.2): random regions are erased, and four more channels show it what is left,
x0 times the mask and the mask. It starts from a model without them (config.init_from), whose output it has at first.

A mask is ours throughout: True, 1 or white where the image is painted, as in --mode=edit and Stable Diffusion. GLIDE's
is the opposite, 1 where it is kept, and so is the channel that the network sees; `kept` alone converts.
"""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.data.arrays import to_unit
from diffusion.errors import InputError

POINTS = 4          # of a stroke
BOX = (.25, .75)    # sides of a box, and where the image is halved, as shares of its sides
WIDTH = (.06, .15)  # half of that of a stroke


def inpaint(task, empty=.25, *, data=None, facts=None):
  """x0 and the rest are those of `task`; the condition also has `kept`, float [B, H, W, C + 1], see the function.

  A request of --mode=sample is one of `task`, with nothing kept, so that the model still draws whole images.

  Args:
    task: a task of images, such as text_to_image or image.
    empty: share of training examples of which nothing is kept; without them the text tends to be ignored in favour of
      what surrounds the painted part (GLIDE, appendix E).
  """
  if isinstance(empty, bool) or not isinstance(empty, (int, float)) or not 0 <= empty <= 1:
    raise InputError(f'empty={empty!r}: expected a share from 0 to 1')
  if task.gives != 'images' or task.bounds != (-1., 1.) or 'image' in task.takes:
    raise InputError('inpaint takes a task of whole images in pixels, such as inpaint(task=text_to_image)')
  return task._replace(
    encode=partial(_encode, task.encode, empty), null=lambda cond: shown(task.null(_rest(cond)), cond['kept']),
    decode=lambda frozen, x0, cond: task.decode(frozen, x0, _rest(cond)), ask=partial(_ask, task),
    save=lambda folder, outputs, cond, labels: task.save(folder, outputs, _rest(cond), labels),
    between=partial(_between, task.between), facts=task.facts | dict(inpaint=True), takes=(*task.takes, 'kept'),
    painted=_painted)


def kept(x0, mask):
  """What the network sees: x0 [.., H, W, C] but 0 where the mask [.., H, W, 1] is True, and 1 where it is not, or 0."""
  known = jnp.broadcast_to(1. - jnp.asarray(mask, jnp.float32), (*x0.shape[:-1], 1))
  return jnp.concatenate([jnp.where(mask, 0., x0), known], -1)


def shown(cond, kept):
  """The condition of the network: that of the task, None, an array or a dict, with what is kept."""
  rest = {} if cond is None else cond if isinstance(cond, dict) else dict(cond=cond)
  return rest | dict(kept=kept)


def _rest(cond):
  """The inverse of `shown`: the condition of the task."""
  rest = {name: value for name, value in (cond or {}).items() if name != 'kept'}
  return rest['cond'] if set(rest) == {'cond'} else rest or None


def _encode(inner, empty, frozen, key, batch):
  """(x0, cond); without a key nothing is kept, as when a whole image is drawn."""
  x0, cond = inner(frozen, key, batch)
  mask = jnp.ones((*x0.shape[:-1], 1), bool) if key is None else masks(
    jax.random.fold_in(key, 3), len(x0), x0.shape[1:3], empty)
  return x0, shown(cond, kept(x0, mask))


def _painted(frozen, image, mask, cond):
  """The condition with what is kept of an image, see Task.painted."""
  seen = np.asarray(kept(to_unit(image), mask))
  return shown(_rest(cond), np.repeat(seen, len(cond['kept']), 0))


# ---- masks
def masks(key, number, size, empty=.25):
  """Random masks for training, bool [number, *size, 1], True where to paint: boxes, halves, strokes, or all.

  Args:
    size: (height, width).
    empty: share of those that are True everywhere.
  """
  keys = jax.random.split(key, 5)
  y, x = ((jnp.arange(n) + .5) / n for n in size)
  places = jnp.stack(jnp.meshgrid(y, x, indexing='ij'), -1)  # [H, W, 2], in (0, 1)
  each = [draw(k, number, places) for draw, k in zip((_boxes, _halves, _strokes), keys)]
  kind = jax.random.randint(keys[3], (number, 1, 1), 0, len(each))
  mask = jnp.select([kind == i for i in range(len(each))], each)
  return (mask | (jax.random.uniform(keys[4], (number, 1, 1)) < empty))[..., None]


def _boxes(key, number, places):
  sides, corner = jax.random.split(key)
  size = jax.random.uniform(sides, (number, 1, 1, 2), minval=BOX[0], maxval=BOX[1])
  low = jax.random.uniform(corner, size.shape) * (1 - size)
  return jnp.all((places >= low) & (places <= low + size), -1)


def _halves(key, number, places):
  """What lies above, below, to the left or to the right of a line."""
  keys = jax.random.split(key, 3)
  line = jax.random.uniform(keys[0], (number, 1, 1), minval=BOX[0], maxval=BOX[1])
  along = jnp.where(jax.random.bernoulli(keys[1], shape=line.shape), places[..., 0], places[..., 1])
  return (along < line) ^ jax.random.bernoulli(keys[2], shape=line.shape)


def _strokes(key, number, places):
  """Lines through random points, of a random width."""
  points, width = jax.random.split(key)
  ends = jax.random.uniform(points, (number, POINTS, 1, 1, 2))
  a, b = ends[:, :-1], ends[:, 1:]
  share = jnp.sum((places - a) * (b - a), -1) / jnp.maximum(jnp.sum((b - a) ** 2, -1), 1e-6)
  nearest = a + jnp.clip(share, 0, 1)[..., None] * (b - a)
  distance = jnp.min(jnp.linalg.norm(places - nearest, axis=-1), 1)
  return distance < jax.random.uniform(width, (number, 1, 1), minval=WIDTH[0], maxval=WIDTH[1])


# ---- requests
def _ask(task, request, ids, seed):
  """That of the task, and `kept`, one for all samples or one for each; nothing is kept without it."""
  own = {name: value for name, value in request.items() if name != 'kept'}
  asked, shape = task.ask(own, ids, seed), task.facts.get('shape', [1, 1, 1])
  shape = (*shape[:-1], shape[-1] + 1)
  found = request.get('kept')
  found = np.zeros(shape, np.float32) if found is None else found
  if isinstance(found, str) or np.shape(found)[-3:] != shape:
    raise InputError(f'kept: expected an array {list(shape)} as tasks.inpaint.kept makes it; to paint a part of an '
                     'image of yours, use --mode=edit')
  return asked._replace(cond=shown(asked.cond, np.broadcast_to(found, (len(ids), *shape)).astype(np.float32)))


def _between(inner, a, b, shares):
  return shown(inner(_rest(a), _rest(b), shares), np.repeat(a['kept'], len(shares), 0))
