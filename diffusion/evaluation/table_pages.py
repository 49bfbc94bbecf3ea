"""Pictures of a drawn table beside real rows: columns.png, pairs.png, privacy.png."""
import io

import numpy as np

from diffusion.data.columns import to_text
from diffusion.evaluation.metrics.tables import associations, values
from diffusion.tasks.fonts import escaped

PANELS, ACROSS = 24, 6  # of columns.png
BARS = 8                # categories of a panel; the others are summed up
NAMED = 60              # columns up to which pairs.png writes their names
BINS = 24               # of a histogram of numbers, at most
REAL, DRAWN = 'black', 'tab:orange'


def columns(drawn, real, distances):
  """columns.png: the distributions of each column, those that are furthest apart first.

  Args:
    distances: {name of a column: its distance}.
  """
  worst = sorted(real.columns, key=lambda c: -distances[c['name']])[:PANELS]
  rows = -(-len(worst) // ACROSS)
  figure, panels = _figure((2.5 * ACROSS, 2.1 * rows + .5), (rows, ACROSS))
  for axes, column in zip(panels.flat, worst):
    paint = _numbers if column['kind'] == 'number' else _categories
    more = paint(axes, values(drawn, column), values(real, column), column)
    axes.set_title(f'{short(column["name"], 24)}\n{distances[column["name"]]:.3f}{more}', fontsize=8)
    axes.tick_params(labelsize=6)
  for axes in panels.flat[len(worst):]:
    axes.set_axis_off()
  left = f', {len(worst)} of {len(real.columns)}' if len(worst) < len(real.columns) else ''
  figure.suptitle(f'columns, and their distances, largest first{left}: rows held out (black) and drawn (orange)',
                  fontsize=10)
  return _png(figure)


def _numbers(axes, drawn, real, column):
  """Histograms over the central 98 % of both; what is beyond counts in the outermost bins. Returns what is missing."""
  known = [x[~np.isnan(x)] for x in (drawn, real)]
  both = np.concatenate(known)
  low, high = np.quantile(both, (.01, .99)) if len(both) else (0., 1.)
  edges = np.linspace(*((low, high) if high > low else (low - .5, low + .5)), bins(known, BINS) + 1)
  for x, every, colour, filled in zip(known, (drawn, real), (DRAWN, REAL), (True, False)):
    share = np.histogram(np.clip(x, edges[0], edges[-1]), edges)[0] / max(len(every), 1)
    axes.stairs(share, edges, color=colour, fill=filled, alpha=.6 if filled else 1)
  if column.get('form') == 'date':
    ends = edges[[0, -1]].round()
    axes.set_xticks(ends, [to_text(column, end) for end in ends])
  axes.set_yticks([])
  missing = [np.isnan(x).mean() for x in (real, drawn)]
  return '; missing {:.0%}, drawn {:.0%}'.format(*missing) if any(missing) else ''


def _categories(axes, drawn, real, column):
  """Shares of the most frequent categories."""
  names = column['categories']
  shares = [np.bincount(x, minlength=len(names)) / len(x) for x in (real, drawn)]
  order = np.argsort(-shares[0], kind='stable')
  shown, rest = order[:BARS], order[BARS:]
  labels = [short(names[k], 9) or '(missing)' for k in shown] + ['others'] * bool(len(rest))
  place = np.arange(len(labels))
  for share, shift, colour in zip(shares, (-.2, .2), (REAL, DRAWN)):
    axes.bar(place + shift, np.append(share[shown], [share[rest].sum()] * bool(len(rest))), .4, color=colour)
  axes.set_xticks(place, labels, rotation=90 if len(labels) > 3 else 0)
  axes.set_yticks([])
  return ''


def pairs(drawn, real):
  """pairs.png: the associations of columns in real rows and in drawn ones, and their difference."""
  matrices = [associations(table) for table in (real, drawn)]
  number = len(real.columns)
  side = min(max(3., .16 * number), 9.)
  figure, panels = _figure((3 * side + 2.5, side + 1.6), (1, 3))
  titles = ('rows held out', 'drawn', 'difference: drawn - held out')
  for k, (axes, matrix, title) in enumerate(zip(panels.flat, (*matrices, matrices[1] - matrices[0]), titles)):
    image = axes.imshow(matrix, cmap='RdBu_r', vmin=-1, vmax=1)
    axes.set_title(title, fontsize=9)
    axes.set(xticks=[], yticks=[])
    if number <= NAMED:
      labels = [short(c['name'], 20) for c in real.columns]
      axes.set_xticks(range(number), labels, rotation=90, fontsize=6)
      axes.set_yticks(range(number), labels if k == 0 else [], fontsize=6)
  figure.colorbar(image, ax=list(panels.flat), shrink=.8, label='association')
  return _png(figure)


def privacy(drawn, real, losses):
  """privacy.png: distances to the closest training row, and losses of rows that were trained on or not.

  Args:
    drawn, real: distances of drawn and of held-out rows, [n] and [m].
    losses: (of training rows, of held-out rows), or None.
  """
  figure, panels = _figure((5.5 if losses is None else 11, 3.6), (1, 1 if losses is None else 2))
  _histograms(panels.flat[0], dict(held_out=real, drawn=drawn), (REAL, DRAWN))
  panels.flat[0].set(xlabel='distance to the closest training row', ylabel='share of rows')
  if losses is not None:
    _histograms(panels.flat[1], dict(trained_on=losses[0], held_out=losses[1]), (DRAWN, REAL))
    panels.flat[1].set(xlabel='loss of a row', ylabel='share of rows')
  return _png(figure)


def _histograms(axes, groups, colours):
  every = np.concatenate(list(groups.values()))
  low, high = every.min(), np.quantile(every, .99)
  edges = np.linspace(low, high if high > low else low + 1, bins(groups.values(), 40) + 1)
  for (name, x), colour in zip(groups.items(), colours):
    share = np.histogram(np.clip(x, None, edges[-1]), edges)[0] / len(x)
    axes.stairs(share, edges, color=colour, label=f'{name.replace("_", " ")}, median {np.median(x):.3g}',
                fill=colour == DRAWN, alpha=.6 if colour == DRAWN else 1)
  axes.legend(fontsize=8)


def bins(groups, most):
  """How many bins a histogram has, by the smallest group: 2 n^(1/3), Rice's rule."""
  return int(np.clip(2 * min(map(len, groups)) ** (1 / 3), 8, most))


def short(name, most):
  """A name that fits: letters that the font lacks escaped, `$` taken literally."""
  name = ' '.join(escaped(name).split())
  return (name if len(name) <= most else name[:most - 1] + '…').replace('$', r'\$')


def _figure(inches, panels):
  from matplotlib.figure import Figure  # a second to import, and only needed here
  figure = Figure(figsize=inches, layout='constrained')
  return figure, figure.subplots(*panels, squeeze=False)


def _png(figure):
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=110)
  return buffer.getvalue()
