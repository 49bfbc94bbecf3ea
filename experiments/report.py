"""The report of a sweep, finished or not: what was found, with error bars, and how it was measured.

  python -m experiments.report --workdir=runs/schedules
  python -m experiments.report --workdir=runs/schedules --metric=kid --out=experiments/reports/schedules

Writes WORKDIR/report (and a copy to --out, small enough to commit): report.html (one file, no network), report.md with its pictures,
results.csv with every metric of every trial; and WORKDIR/tensorboard, the HParams of the finished trials. experiments.run does so after
each trial. Trials whose 95 % intervals overlap are not ranked; records of unlike protocols are never in one table.
"""
import argparse
import csv
import io
import json
import shlex
import sys
import time

from etils import epath

from diffusion.errors import InputError
from diffusion.evaluation.metrics import record
from diffusion.system.files import write_atomic
from experiments.sweep import page, plots, results

BESIDE = ('kid', 'precision', 'recall', 'coverage', 'class_accuracy', 'authenticity', 'bits_bound', 'heldout_error')  # in the table too

CAVEAT = {
  False: 'Each trial is one training from one seed: intervals tell how well its samples were measured, not how much another seed would change it. '
         'The first of many is favoured by chance.',
  True: 'All trials are of one model and start from the same noises, which the intervals do not count on. The first of many is favoured by chance.'}

# ---- numbers as text
def value(estimate):
  """'12.31 [11.8, 12.9]'."""
  if estimate.get('value') is None:
    return ''
  known = estimate['low'] is not None and estimate['high'] is not None
  return f'{estimate["value"]:.4g}' + (f' [{estimate["low"]:.4g}, {estimate["high"]:.4g}]' if known else ' (no interval)')


def plus_minus(estimate):
  """'0.0123 ± 0.0011', one standard error."""
  if estimate.get('value') is None:
    return ''
  return f'{estimate["value"]:.3g}' + (f' ± {estimate["error"]:.1g}' if estimate['error'] is not None else '')


def code(text):
  return f'`{text}`' if text not in (None, '') else ''


# ---- blocks
def standing(found):
  """How many of how many."""
  number = {status: sum(row.status == status for row in found.rows) for status in ('finished', *results.NOT_FINISHED)}
  rest = ', '.join(f'{count} {status}' for status, count in number.items() if count and status != 'finished')
  return (f'{number["finished"]} of {len(found.rows)} trials are finished' + (f' ({rest})' if rest else '')
          + f'. Written {time.strftime("%F %H:%M", time.gmtime())} UTC.')


def verdict(found):
  """What may be said about the best, and what may not."""
  if not found.groups:
    return f'Nothing can be said yet: no finished trial has measured `{found.metric}`.'
  order = found.groups[0].ranked
  _, best, estimate, _ = order[0]
  told = (f'By `{found.metric}` ({"lower" if found.metric in record.LOWER else "higher"} is better) the first is {code(best.label)} with '
          f'{value(estimate._asdict())}. ')
  same = [place.row.label for place in order[1:] if place.tied]
  if len(order) == 1:
    return told + 'There is nothing to compare it with.'
  if same:
    return told + f'Cannot be told apart from it, as their 95 % intervals overlap: {", ".join(map(code, same))}.'
  return told + 'Its 95 % interval overlaps no other.'


def table(group, found):
  """Blocks: a table of ranks, what varies, the metric and some others, and what its dashes mean."""
  rows, real, calls = [row for _, row, *_ in group.ranked], heldout(group, found.metric), {plots.calls(row) for _, row, *_ in group.ranked}
  homes = {name: alike[0] for name in BESIDE if name != found.metric and (alike := results.alike(rows, name))}
  homes, gaps = dict(list(homes.items())[:5]), {}

  def cell(name, row):
    estimate = row.record['metrics'].get(name, {})
    apart = record.differences(homes[name][0].record, row.record, name) if estimate.get('value') is not None else []
    if apart:
      gaps.setdefault(name, '; '.join(apart))
    return '-' if apart else plus_minus(estimate)

  header = ['rank', *map(results.short, found.varied), f'{found.metric} [95 %]', *(f'{name} ± s.e.' for name in homes)]
  lines = [[ranks, *(code(row.settings.get(key)) for key in found.varied), value(estimate._asdict()), *(cell(name, row) for name in homes)]
           for ranks, row, estimate, _ in group.ranked]
  if real:  # what there is to reach
    apart = record.differences(rows[0].record, real.record, found.metric)
    lines.append(['', 'held-out pictures', *[''] * (len(found.varied) - 1), '-' if apart else value(real.record['metrics'][found.metric]),
                  *(cell(name, real) for name in homes)])
    gaps |= {found.metric: '; '.join(apart)} if apart else {}
  if len(calls) > 1:
    header.append('evaluations')
    lines = [line + [plots.calls(row)] for line, row in zip(lines, rows)] + [line + [''] for line in lines[len(rows):]]
  note = [('text', 'A dash: measured in another way than the rest of its column ('
           + '; '.join(f'`{name}`, {told}' for name, told in gaps.items()) + ').')] if gaps else []
  return [('table', header, lines), *note]


def heldout(group, metric):
  """A Row of what held-out pictures have, by the record of the first of a group; None where that lacks the metric."""
  first = group.ranked[0].row
  real = first.record.get('heldout') or {}
  return first._replace(record=first.record | dict(metrics=real)) if real.get(metric) else None


def protocol(group):
  """How the records of a group were measured, with which versions, as text."""
  lines = []
  for key, found in group.ranked[0].row.record['protocol'].items():
    lines += [f'{key}: {inner}: {text}' for inner, text in found.items()] if isinstance(found, dict) else [f'{key}: {found}']
  lines += sorted({f'number: {place.estimate.n}' for place in group.ranked})
  versions = {json.dumps(row.record['subject'].get('versions'), sort_keys=True) for _, row, *_ in group.ranked}
  return '\n'.join(lines + [f'versions: {text}' for text in sorted(versions) if text != 'null'])


def blocks(found):
  """The report as blocks (page.py)."""
  made = [('title', found.title), ('text', standing(found)), ('text', verdict(found))]
  ordered = [row for group in found.groups for _, row, *_ in group.ranked]
  if found.groups:
    main = found.groups[0]
    made += [('image', 'metric.png', f'{found.metric} with 95 % intervals; blue: cannot be told apart from the best', plots.dots(main, found.metric)),
             ('heading', 'Results'), *table(main, found),
             *[('text', 'Ranks are those that the intervals leave open: 2-4 may be any of them. ' + CAVEAT[found.about.get('mode') == 'evaluate'])]
             * (len(ordered) > 1)]
    if picture := plots.quality(main, found.metric, found.varied):
      made.append(('image', 'quality.png', f'{found.metric} against evaluations of the network, with 95 % intervals', picture))
  if picture := plots.curves(ordered + [row for row in found.rows if row not in ordered]):
    unlike = [results.short(key) for key in found.varied if results.short(key) in ('predict', 'schedule', 'weight', 'error', 'draw')]
    told = f'; losses of unlike {", ".join(unlike)} cannot be compared' if unlike else ''
    made.append(('image', 'curves.png', 'Training curves' + told, picture))
  if picture := plots.samples(ordered + found.unmeasured):
    told = 'Samples of each trial, best first; within a column, from the same noise and class'
    made.append(('image', 'samples.png', told + (f' (the first {plots.SHOWN} trials)' if len(ordered) > plots.SHOWN else ''), picture))
  for group in found.groups[1:]:
    made += [('heading', 'Measured in another way'), ('text', 'Not comparable with the results above: ' + '; '.join(group.differences) + '.'),
             *table(group, found)]
  left = [row for row in found.rows if row.status != 'finished']
  if left or found.unmeasured:
    rows = [[code(row.label), row.status, row.reason] for row in left] + [[code(row.label), 'finished', f'{found.metric} was not measured']
                                                                         for row in found.unmeasured]
    made += [('heading', 'Without a result'), ('table', ['trial', 'status', 'why'], rows)]
  return made + settings(found)


def settings(found):
  """What all trials share, how it was measured, and how to do it again."""
  odd = results.unusual(found.common)
  made = [('heading', 'What all trials share')]
  made.append(('table', ['setting', 'value'], [[results.short(key), code(value)] for key, value in odd.items()]))
  made.append(('details', 'every common setting', '\n'.join(f'{results.short(key)} = {value!r}' for key, value in found.common.items())))
  if found.groups:
    made += [('heading', 'How it was measured'), ('details', 'protocol and versions', '\n\n'.join(map(protocol, found.groups)))]
  if found.about.get('command'):
    made.append(('details', 'command', 'python -m experiments.run ' + shlex.join(found.about['command'])))
  return made


def table_csv(found):
  """results.csv: a line for each trial, with all that was measured."""
  place = {row.name: (i + 1, ranks) for i, group in enumerate(found.groups) for ranks, row, *_ in group.ranked}
  order = [row for group in found.groups for _, row, *_ in group.ranked]
  names = list(dict.fromkeys(name for row in found.rows if row.record for name in row.record['metrics']))
  names = [name for name in [found.metric] if name in names] + [name for name in names if name != found.metric]
  parts = record.Estimate._fields
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  writer.writerow(['trial', 'status', 'table', 'ranks', *map(results.short, found.varied), 'evaluations',
                   *(name + ('' if part == 'value' else f'_{part}') for name in names for part in parts), 'seconds', 'reason'])
  for row in order + [row for row in found.rows if row not in order]:
    metrics = row.record['metrics'] if row.record else {}
    writer.writerow([row.name, row.status, *place.get(row.name, ('', '')), *(row.settings.get(key) for key in found.varied),
                     plots.calls(row) if row.record else '', *(metrics.get(name, {}).get(part) for name in names for part in parts),
                     row.seconds, row.reason])
  return buffer.getvalue()


# ---- TensorBoard
def tensorboard(found, folder):
  """HParams: what each finished trial set, with its metrics; written once for each record."""
  from diffusion.system.log import open_board
  for row in found.rows:
    own, made = folder / row.name, row.folder / 'evaluation' / 'evaluation.json'
    if not row.record or own.exists() and own.stat().mtime > made.stat().mtime:
      continue
    if own.exists():
      own.rmtree()
    plain = lambda value: value if isinstance(value, (bool, int, float, str)) else str(value)
    metrics = {name: estimate['value'] for name, estimate in row.record['metrics'].items() if estimate['value'] is not None}
    writer = open_board(own, 0)
    from tensorboardX import summary  # not earlier: `open_board` keeps it from importing PyTorch
    for part in summary.hparams({results.short(key): plain(row.settings.get(key)) for key in found.varied}, metrics):
      writer.file_writer.add_summary(part)
    for name, number in metrics.items():
      writer.add_scalar(name, number, 0)
    writer.close()


# ---- all of it
def report(workdir, metric=None, out=None):
  """Writes the report of a sweep as it stands.

  Args:
    workdir: of the sweep.   metric: to rank by; None: as the sweep says.   out: a folder for a copy.
  Returns:
    The path of report.html.
  Raises:
    InputError: no trials there, or an unknown metric.
  """
  workdir = epath.Path(workdir)
  found = results.collect(workdir, metric)
  made = blocks(found)
  files = {kind[1]: kind[3] for kind in made if kind[0] == 'image'}
  files |= {'report.md': page.markdown(made).encode(), 'report.html': page.html(made).encode(), 'results.csv': table_csv(found).encode()}
  for folder in [workdir / 'report'] + ([epath.Path(out)] if out else []):
    for name, data in files.items():
      write_atomic(folder / name, data)
    for name in ('metric.png', 'quality.png', 'curves.png', 'samples.png'):
      if name not in files:
        (folder / name).unlink(missing_ok=True)  # of an earlier report
  tensorboard(found, workdir / 'tensorboard')
  return epath.Path(out or workdir / 'report') / 'report.html'


def main(argv=None):
  parser = argparse.ArgumentParser(prog='python -m experiments.report', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workdir', required=True, help='of the sweep')
  parser.add_argument('--metric', help='to rank by (default: as the sweep says)')
  parser.add_argument('--out', help='a folder for a copy, such as experiments/reports/schedules')
  options = parser.parse_args(argv)
  try:
    print(f'wrote {report(options.workdir, options.metric, options.out)}')
  except (InputError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
