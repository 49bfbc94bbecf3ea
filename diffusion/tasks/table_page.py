"""A page of a table: the distribution of each column among samples, and in the training data as an outline."""
import numpy as np
from scipy.special import ndtr

from diffusion.data import columns
from diffusion.tasks.fonts import escaped

MOST = 24     # columns on a page
ACROSS = 6
BINS = 24
BARS = 8      # categories with a bar of their own
LONG = 12     # characters of a number under an axis, beyond which it is written as 1.23e+18
REACH = 2.6   # of the training distribution, in z: where the axis of a number ends
COLOURS = ('#4c78a8', '#f2a65a', '#6aa56e', '#b07aa1')  # of samples by what was given, stacked


def page(facts, fitted, table, labels, title):
  """A PIL image of samples: a histogram or bars for each column, the target first.

  Args:
    facts, fitted: of the task.   table: dict(numbers [N, Dn], categories [N, Dc]).
    labels: N texts of what was given, coloured if they are at most 4, or None.
  """
  from matplotlib.figure import Figure  # a second to import, and only needed here
  from diffusion.tasks.points import as_image
  described = sorted(facts['columns'], key=lambda c: c['name'] != facts['target'])
  shown, names = described[:MOST], sorted(set(labels or ['']))
  groups = [np.array([label == name for label in labels]) for name in names] if 1 < len(names) <= len(COLOURS) else \
    [np.ones(len(table['categories']), bool)]
  across = min(ACROSS, max(len(shown), 2))
  down = max(-(-len(shown) // across), 1)
  figure = Figure(figsize=(2.3 * across, 1.9 * down + .7), layout='constrained')
  axes = figure.subplots(down, across, squeeze=False).ravel()
  for column, ax in zip(shown, axes):
    (_histogram if column['kind'] == 'number' else _bars)(ax, facts, fitted, column, table, groups)
    ax.set_title(_short(column['name'], 26) + (' (target)' if column['name'] == facts['target'] else ''), fontsize=9)
    ax.tick_params(labelsize=7)
    ax.spines[['top', 'right', 'left']].set_visible(False)
    ax.set(yticks=[])
  for ax in axes[len(shown):]:
    ax.set_axis_off()
  more = f'; {len(described) - MOST} more columns are not shown' if len(described) > MOST else ''
  figure.suptitle(escaped(title) + f'\nblack: training data{more}', fontsize=9)
  if len(groups) > 1:
    handles = [figure.axes[0].plot([], [], 's', color=colour)[0] for colour in COLOURS[:len(groups)]]
    figure.legend(handles, [_short(name, 60) for name in names], loc='outside lower center', ncols=2, fontsize=8)
  return as_image(figure)


def _short(text, most):
  text = escaped(text)
  return text if len(text) <= most else text[:most - 2] + '..'


def _histogram(ax, facts, fitted, column, table, groups):
  """Numbers: samples as stacked bars, the training data as a line, both in shares of the numbers that are there."""
  d = column['place']
  x, z, step = fitted['x'][d], fitted['z'][d], fitted['step'][d]
  edges = edges_of(x, z, step)
  values = table['numbers'][:, d]
  total, bottom = max(np.sum(~np.isnan(values)), 1), 0
  width = np.diff(edges)
  for group, colour in zip(groups, COLOURS):
    inside = np.clip(values[group & ~np.isnan(values)], edges[0], np.nextafter(edges[-1], -np.inf))
    share = np.histogram(inside, edges)[0] / total
    ax.bar(edges[:-1], share, width, bottom, align='edge', color=colour)
    bottom = bottom + share
  ax.stairs(shares(x, z, edges), edges, color='black', linewidth=1)
  ticks = np.round(np.linspace(edges[0] + step / 2, edges[-1] - step / 2, 3) / step) * step
  ticks = np.unique(ticks if len(edges) > 3 else ticks[::2])
  decimals = int(np.clip(2 - np.floor(np.log10(max(np.ptp(edges), 1e-300))), 0, max(column['decimals'], 0)))
  texts = [columns.to_text(column | dict(decimals=decimals, least=0), tick) for tick in ticks]
  if column['form'] == 'plain' and max(map(len, texts)) > LONG:
    texts = [column['before'] + f'{tick + column["origin"]:.3g}' + column['after'] for tick in ticks]
  ax.set_xticks(ticks, texts)
  if column['missing']:
    flags = [c['place'] for c in facts['columns'] if c['kind'] == 'number' and c['missing']]
    trained = fitted['frequencies'][len(fitted['frequencies']) - 2 * len(flags) + 2 * flags.index(d) + 1]
    ax.set_xlabel(f'missing {np.mean(np.isnan(values)):.0%} (training {trained:.0%})', fontsize=7)


def edges_of(x, z, step):
  """Edges of bins, in the middle between grid points, that hold nearly all of a column's training numbers."""
  low, high = np.interp([-REACH, REACH], z, x)
  low, high = ((np.floor(end / step - .5 + 1e-6) + .5) for end in (low, high))
  width = max(np.ceil((high - low) / BINS), 1)
  return (low + width * np.arange(max(np.ceil((high - low) / width), 1) + 1)) * step


def shares(x, z, edges):
  """The probability of each bin in the training data; the outer bins hold what lies beyond them."""
  last = np.searchsorted(x, x[-1])
  below = ndtr(np.interp(edges, x[:last + 1], z[:last + 1]))
  below[[0, -1]] = 0, 1
  return np.diff(below)


def _bars(ax, facts, fitted, column, table, groups):
  """Categories: a bar each, the most frequent ones of the training data first where there are many."""
  sizes = [len(c['categories']) for c in facts['columns'] if c['kind'] == 'category']
  start, names = sum(sizes[:column['place']]), column['categories']
  trained = fitted['frequencies'][start:start + len(names)]
  chosen = np.arange(len(names)) if len(names) <= BARS else np.argsort(-trained, kind='stable')[:BARS - 1]
  values, bottom = table['categories'][:, column['place']], 0
  merge = lambda share: np.append(share[chosen], [share.sum() - share[chosen].sum()] * (len(chosen) < len(names)))
  for group, colour in zip(groups, COLOURS):
    share = merge(np.bincount(values[group], minlength=len(names)) / max(len(values), 1))
    ax.bar(np.arange(len(share)), share, .8, bottom, color=colour)
    bottom = bottom + share
  outline = merge(trained)
  for i, height in enumerate(outline):
    ax.stairs([height], [i - .4, i + .4], color='black', linewidth=1)
  labels = [_short(names[k] or 'missing', 10) for k in chosen] + ['others'] * (len(outline) > len(chosen))
  long = max(map(len, labels)) * len(labels) > 24
  ax.set_xticks(np.arange(len(labels)), labels, rotation=45 if long else 0, ha='right' if long else 'center')
