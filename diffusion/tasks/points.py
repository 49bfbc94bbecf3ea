"""Points in the plane, standardised; drawn as a scatter plot."""
import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from diffusion.data.dataset import condition_vectors
from diffusion.errors import InputError
from diffusion.system.files import write_atomic, write_npz
from diffusion.tasks.base import need, Task
from diffusion.tasks.classes import ask_classes, class_facts, TAKES
from diffusion.tasks.fonts import escaped

REACH = 2.5  # standard deviations that a plot shows on each side


def points(*, data=None, facts=None, fitted=None):
  """x0: points [2] with mean 0 and standard deviation 1 in the training data; the condition: None, or a class."""
  if data is not None:
    need(data, 'points')
    xy = data.arrays['points']
    if xy.ndim != 2 or xy.shape[1] != 2:
      raise InputError(f'it needs points of the plane, [N, 2], and config.data has {list(xy.shape)}')
    facts = dict(data.facts) | class_facts(data)
    measured = dict(mean=xy.mean(0, np.float64), scale=xy.std(0, dtype=np.float64))
    fitted = fitted or {name: a.astype(np.float32) for name, a in measured.items()}
  facts, fitted = facts or {}, fitted or dict(mean=np.zeros(2, np.float32), scale=np.ones(2, np.float32))
  classes, (mean, scale) = tuple(facts.get('classes', ())), (fitted['mean'], fitted['scale'])

  def batch(data, indices):
    conditional = dict(cond=condition_vectors(data.arrays['labels'][indices], classes)) if classes else {}
    return dict(points=data.arrays['points'][indices]) | conditional

  def show(outputs, labels, title):
    return scatter(outputs['points'], labels, title, mean - REACH * scale, mean + REACH * scale)

  def save(folder, outputs, cond, labels):
    """points.csv: x, y and the class; samples.npz: points float32 [N, 2], and labels [N, K] of a conditional model."""
    rows = [f'{x:.6g},{y:.6g}' + (f',{label}' if labels else '')
            for (x, y), label in zip(outputs['points'], labels or [''] * len(outputs['points']))]
    write_atomic(folder / 'points.csv', '\n'.join(['x,y' + ',class' * bool(labels), *rows, '']).encode())
    write_npz(folder / 'samples.npz', outputs | ({} if cond is None else dict(labels=cond, classes=np.array(classes))))

  return Task(
    batch, lambda frozen, key, batch: ((batch['points'] - mean) / scale, batch.get('cond')),
    null=lambda cond: jax.tree.map(jnp.zeros_like, cond),
    decode=lambda frozen, x0, cond: dict(points=x0 * scale + mean), ask=ask_classes(facts), show=show, save=save,
    facts=facts, fitted=fitted, takes=TAKES, gives='points', evaluators=('loss', 'density'))


def scatter(xy, labels, title, low, high):
  """A PIL image of points [N, 2], coloured by label, in the rectangle from `low` to `high` [2]."""
  from matplotlib.figure import Figure  # a second to import, and only needed here
  width, height = high - low
  figure = Figure(figsize=(6, .6 + 5.6 * float(height / width)), layout='constrained')
  axes = figure.subplots()
  names = list(dict.fromkeys(labels)) if labels else [None]
  for name in sorted(names, key=str):
    chosen = np.array([label == name for label in labels]) if labels else slice(None)
    axes.scatter(*np.asarray(xy)[chosen].T, s=4, alpha=.6, linewidths=0, label=name and escaped(name))
  if labels:
    axes.legend(loc='upper right', markerscale=3)
  axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect='equal')
  axes.set_title(escaped(title), fontsize=9, wrap=True)
  return as_image(figure)


def as_image(figure):
  """A matplotlib figure as a PIL image."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=110)
  return Image.open(buffer).convert('RGB')
