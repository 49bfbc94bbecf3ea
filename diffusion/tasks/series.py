"""Series: one-dimensional signals of any length, standardised; drawn as lines."""
import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from diffusion.data.dataset import condition_vectors
from diffusion.errors import InputError
from diffusion.system.files import write_atomic
from diffusion.tasks import pages
from diffusion.tasks.base import need, Task
from diffusion.tasks.classes import ask_classes, class_facts, TAKES

WIDTH, HEIGHT = 180, 90  # pixels of a picture
REACH = 3.               # standard deviations that it shows on each side of the mean
COLOURS = ('#1f4e9c', '#c43d2f', '#2b8a3e', '#8a5a00')  # of channels, in turn
LEAST, MOST = 8, 100_000  # lengths that may be asked for


def series(*, data=None, facts=None, fitted=None):
  """x0: series [length, channels], each channel with mean 0 and standard deviation 1; the condition: None, or a class.

  A request may name a `length`: a network of convolutions draws others than those it was trained on.
  """
  if data is not None:
    need(data, 'series')
    values = data.arrays['series']
    facts = dict(shape=list(values.shape[1:]), **class_facts(data))
    measured = dict(mean=values.mean((0, 1), np.float64), scale=values.std((0, 1), dtype=np.float64) + 1e-12)
    fitted = fitted or {name: a.astype(np.float32) for name, a in measured.items()}
  facts, fitted = facts or {}, fitted or dict(mean=np.zeros(1, np.float32), scale=np.ones(1, np.float32))
  classes, (mean, scale) = tuple(facts.get('classes', ())), (fitted['mean'], fitted['scale'])

  def batch(data, indices):
    conditional = dict(cond=condition_vectors(data.arrays['labels'][indices], classes)) if classes else {}
    return dict(series=data.arrays['series'][indices]) | conditional

  def ask(request, ids, seed):
    asked, text = ask_classes(facts)(request, ids, seed), str(request.get('length', '') or facts['shape'][0])
    if not (text.isdecimal() and LEAST <= int(text) <= MOST):
      raise InputError(f'length={text!r}: expected a whole number of samples, from {LEAST} to {MOST:,}')
    return asked._replace(shape=(int(text), facts['shape'][1]))

  def tiles(outputs):
    return np.stack([picture((one - mean) / scale) for one in np.asarray(outputs['series'], np.float32)])

  return Task(
    batch, lambda frozen, key, batch: ((batch['series'] - mean) / scale, batch.get('cond')),
    null=lambda cond: jax.tree.map(jnp.zeros_like, cond),
    decode=lambda frozen, x0, cond: dict(series=x0 * scale + mean), ask=ask,
    show=lambda outputs, labels, title: pages.grid(tiles(outputs), labels=labels, title=title), save=save, facts=facts,
    fitted=fitted, tiles=tiles, takes=(*TAKES, 'length'), gives='series', evaluators=('loss', 'spectrum'))


def save(folder, outputs, cond, labels):
  """series.npy: float32 [N, length, channels]; labels.txt: the class of each."""
  buffer = io.BytesIO()
  np.save(buffer, np.asarray(outputs['series'], np.float32))
  write_atomic(folder / 'series.npy', buffer.getvalue())
  if labels:
    write_atomic(folder / 'labels.txt', '\n'.join([*labels, '']).encode())


def picture(values):
  """Lines of a standardised series [length, channels], as uint8 [HEIGHT, WIDTH, 3]."""
  page = Image.new('RGB', (2 * WIDTH, 2 * HEIGHT), 'white')  # twice as large, then smoothed
  draw = ImageDraw.Draw(page)
  draw.line([(0, HEIGHT), (2 * WIDTH, HEIGHT)], '#dddddd', 2)
  x = np.linspace(0, 2 * WIDTH - 1, len(values))
  for channel, line in enumerate(np.nan_to_num(values).T):
    y = HEIGHT * (1 - np.clip(line, -REACH, REACH) / REACH)
    draw.line(list(zip(x.tolist(), y.tolist())), COLOURS[channel % len(COLOURS)], 3)
  return np.asarray(page.resize((WIDTH, HEIGHT), Image.Resampling.BOX))
