"""The images of a report: PNG bytes, small enough to commit."""
import collections
import io
import re

import numpy as np
from PIL import Image

from diffusion.evaluation.metrics import record
from diffusion.tasks import pages
from diffusion.setup import specs
from experiments.sweep import results

LIMIT = 300_000  # bytes per image
SHOWN = 24       # trials in the image of samples
STYLES = [dict(color=f'C{i % 10}', linestyle=('-', '--', ':')[i // 10 % 3], marker='osv^D'[i // 10 % 5])
          for i in range(50)]


def _figure(width, height, panels=1):
  from matplotlib.figure import Figure
  figure = Figure(figsize=(width, height), layout='constrained')
  return figure, figure.subplots(1, panels, squeeze=False)[0]


def _png(figure):
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=100)
  return fit(Image.open(buffer).convert('RGB'))


def fit(page, limit=LIMIT):
  """A PIL image as PNG of at most `limit` bytes: lossless, else with 256 colours, else smaller."""
  for palette in (False, True):
    data = _bytes(page.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE) if palette else page)
    if len(data) <= limit:
      return data
  scale = .95 * (limit / len(data)) ** .5
  return fit(page.resize((int(page.width * scale), int(page.height * scale)), Image.Resampling.LANCZOS), limit)


def _bytes(page):
  buffer = io.BytesIO()
  page.save(buffer, 'PNG')
  return buffer.getvalue()


def _bars(estimate):
  """Distances from the interval's ends to the value, [2, 1]; 0 if the interval is unknown."""
  low, high = (estimate.value if end is None else end for end in (estimate.low, estimate.high))
  return np.maximum([[estimate.value - low], [high - estimate.value]], 0)


def dots(group, metric):
  """The metric with its interval, a row per trial, the best on top; one colour for those tied with the best."""
  best = group.ranked[0].estimate
  figure, (axes,) = _figure(7, 1.1 + .28 * len(group.ranked))
  for y, place in enumerate(group.ranked):
    axes.errorbar(place.estimate.value, y, xerr=_bars(place.estimate), fmt='o', capsize=3,
                  color='C0' if place.tied else '0.45')
  if best.low is not None and best.high is not None:
    axes.axvspan(best.low, best.high, color='C0', alpha=.12, lw=0)
  axes.set_yticks(range(len(group.ranked)), [place.row.label[:60] for place in group.ranked], fontsize=8)
  axes.invert_yaxis()
  axes.set(xlabel=f'{metric}, {"higher" if metric in record.HIGHER else "lower"} is better; 95 % intervals')
  axes.grid(alpha=.3, axis='x')
  return _png(figure)


def calls(row):
  """Network evaluations per sample, from the record of a trial."""
  subject = row.record['subject']
  return subject.get('network_calls') or subject.get('evaluations')


def _series(row, varied):
  """The label of a trial's line: all varied settings, without the number of steps of the grid."""
  settings = dict(row.settings)
  if 'config.grid' in varied:
    name, args, kwargs = specs.parse(settings['config.grid'])
    settings['config.grid'] = name + ''.join(f', {key}={value}' for key, value in kwargs.items() if key != 'steps')
  text = lambda key, value: str(value) if isinstance(value, str) else f'{results.short(key)}={value}'
  return ', '.join(text(key, settings[key]) for key in varied)


def quality(group, metric, varied):
  """The metric against network evaluations; None if no line has two trials with different numbers of them."""
  lines = collections.defaultdict(list)
  for _, row, estimate, _ in group.ranked:
    if calls(row):
      lines[_series(row, varied)].append((calls(row), estimate))
  if not any(len({number for number, _ in line}) > 1 for line in lines.values()):
    return None
  figure, (axes,) = _figure(7, 4.6)
  for style, (name, line) in zip(STYLES * len(lines), sorted(lines.items())):
    line.sort(key=lambda point: point[0])
    axes.errorbar([number for number, _ in line], [estimate.value for _, estimate in line],
                  np.concatenate([_bars(e) for _, e in line], 1), capsize=3, ms=4, lw=1.2, label=name[:50], **style)
  ticks = sorted({number for line in lines.values() for number, _ in line})
  axes.set(xscale='log', xlabel='network evaluations per sample', ylabel=metric)
  axes.set_xticks(ticks, ticks)
  axes.minorticks_off()
  values = [estimate.value for line in lines.values() for _, estimate in line]
  if min(values) > 0 and max(values) > 8 * min(values):
    axes.set_yscale('log')
  axes.grid(alpha=.3)
  axes.legend(fontsize=7, ncols=2)
  return _png(figure)


def trade(group, metric, other='fd_infinity'):
  """A metric that should be high against one that should be low; None if a trial lacks it, or no metric is high.

  Trials whose labels differ in their last number alone are a line; one without a number is a point.
  """
  rows = [place.row for place in group.ranked]
  if metric not in record.HIGHER or len(rows) < 2 or [len(rows)] != [*map(len, results.alike(rows, other))]:
    return None
  lines = collections.defaultdict(list)
  for _, row, estimate, _ in group.ranked:
    head, number, tail = re.fullmatch(r'(.*?)(\d+\.?\d*|\.\d+)?(\D*)', row.label).groups()
    name = f'{head}..{tail}' if number else row.label
    distance = record.Estimate(**row.record['metrics'][other])
    lines[name].append((float(number or 'nan'), distance, estimate))
  figure, (axes,) = _figure(7, 4.6)
  for style, (name, line) in zip(STYLES * len(lines), sorted(lines.items())):
    numbers, *both = zip(*sorted(line))
    (x, x_bars), (y, y_bars) = (([e.value for e in all], np.concatenate([_bars(e) for e in all], 1)) for all in both)
    axes.errorbar(x, y, y_bars, x_bars, capsize=2, ms=4, lw=1.2, label=name[:50], **style)
    for number, *place in zip(numbers, x, y):
      if number == number:
        axes.annotate(f'{number:g}', place, textcoords='offset points', xytext=(4, 4), fontsize=7)
  axes.set(xlabel=f'{other}, lower is better', ylabel=f'{metric}, higher is better')
  axes.grid(alpha=.3)
  axes.legend(fontsize=7)
  return _png(figure)


def curves(rows):
  """Training curves: held-out loss (or training loss, if that has few points), and the distance. None without any."""
  names = {'heldout_loss': 'held-out loss', 'loss': 'training loss', 'fd_infinity': 'fd_infinity'}
  lines = [(row, results.curve(row.folder)) for row in rows]
  having = lambda name: [(row, [point for point in line if name in point]) for row, line in lines]
  known = {name: [(row, points) for row, points in having(name) if points] for name in names}
  few = max((len(points) for _, points in known['heldout_loss']), default=0) < 4
  shown = [name for name in ('loss' if few else 'heldout_loss', 'fd_infinity') if known[name]]
  if not shown:
    return None
  figure, panels = _figure(7 if len(shown) == 1 else 10, 4.2, len(shown))
  styles = dict(zip([row.name for row in rows], STYLES * len(rows)))
  for axes, name in zip(panels, shown):
    for row, points in known[name]:
      _curve(axes, name, points, row.label[:40], styles[row.name])
    finite = np.concatenate([[point[name] for point in points] for _, points in known[name]])
    finite = finite[np.isfinite(finite)]
    axes.set(xlabel='step', ylabel=names[name])
    if len(finite) and finite.min() > 0 and finite.max() > 5 * finite.min():
      axes.set_yscale('log')
    axes.grid(alpha=.3)
  panels[0].legend(fontsize=6, ncols=1 + (len(rows) > 8))
  return _png(figure)


def _curve(axes, name, points, label, style):
  """One line, with a band of 95 % where the standard error is known."""
  style = style | dict(marker='o' if len(points) < 3 else None)
  steps, values = [point['step'] for point in points], np.array([point[name] for point in points], float)
  axes.plot(steps, values, lw=1.2, label=label, **style)
  if f'{name}_error' in points[0]:
    error = 1.96 * np.array([point.get(f'{name}_error', np.nan) for point in points], float)
    axes.fill_between(steps, values - error, values + error, alpha=.12, lw=0, color=style['color'])


def _samples(row):
  """The samples of a trial (uint8 [N, H, W, C], their classes or None), or None."""
  try:
    with np.load(row.folder / 'evaluation' / 'samples.npz') as arrays:
      labels = arrays['labels'] if 'labels' in arrays else None
      return arrays['images'], labels if labels is None or labels.ndim == 1 else labels.argmax(1)
  except (OSError, ValueError, KeyError):
    return None


def samples(rows):
  """The first samples of each trial in a row, from the same noise; in turn by class if known. None without any."""
  drawn = [(row.label, *arrays) for row in rows[:SHOWN] if (arrays := _samples(row))]
  if not drawn:
    return None
  columns = max(4, min(12, 900 // max(64, *drawn[0][1].shape[1:3])))
  cells = [images[_in_turn(labels, len(images))[:columns]] for _, images, labels in drawn]
  return fit(pages.rows(cells, [label for label, *_ in drawn]))


def _in_turn(labels, n):
  """Indices: the first sample of each class, then the second of each, .."""
  if labels is None:
    return np.arange(n)
  counts = collections.Counter()
  order = []
  for i, label in enumerate(labels.tolist()):
    order.append((counts[label], label, i))
    counts[label] += 1
  return np.array([i for *_, i in sorted(order)])
