"""The report of a sweep, finished or not: its results with error bars, and how they were measured.

  python -m experiments.report --workdir=runs/schedules
  python -m experiments.report --workdir=runs/schedules --metric=kid --out=experiments/reports/schedules

Writes WORKDIR/report (and a copy to --out, small enough to commit): report.html (one self-contained file), report.md
with its images, results.csv with every metric of every trial; and WORKDIR/tensorboard, the HParams of the finished
trials. experiments.run updates it after each trial. Trials whose 95 % intervals overlap are not ranked; records
measured by different protocols never share a table.
"""
import argparse
import csv
import io
import json
import shlex
import sys
import time


from diffusion.errors import InputError
from diffusion.evaluation.metrics import record
from diffusion.system.files import output_folder, user_path, write_atomic
from experiments.sweep import page, plots, results

# Further columns of the table.
BESIDE = ('clip_score', 'caption_class', 'caption_kind', 'caption_colour', 'fd_infinity', 'kid', 'precision', 'recall',
          'coverage', 'class_accuracy', 'authenticity', 'bits_bound', 'heldout_error')
# Settings that change the meaning of a loss.
LOSS_SETTINGS = ('predict', 'schedule', 'loss_weight', 'loss_type', 'timesteps')

CAVEAT = {
  False: 'Each trial is one training from one seed: intervals cover the measurement of its samples, not the variation '
         'over seeds. The first of many is favoured by chance.',
  True: 'All trials are of one model and start from the same noise, which the intervals do not use. The first of many '
        'is favoured by chance.'}

# ---- numbers as text
def value(estimate):
  """'12.31 [11.8, 12.9]'."""
  if estimate.get('value') is None:
    return ''
  known = estimate['low'] is not None and estimate['high'] is not None
  interval = f' [{estimate["low"]:.4g}, {estimate["high"]:.4g}]' if known else ' (no interval)'
  return f'{estimate["value"]:.4g}' + interval


def plus_minus(estimate):
  """'0.0123 ± 0.0011', one standard error."""
  if estimate.get('value') is None:
    return ''
  return f'{estimate["value"]:.3g}' + (f' ± {estimate["error"]:.1g}' if estimate['error'] is not None else '')


def code(text):
  return f'`{text}`' if text not in (None, '') else ''


# ---- blocks
def standing(sweep):
  """How many trials are finished, and the states of the others."""
  number = {status: sum(row.status == status for row in sweep.rows) for status in ('finished', *results.NOT_FINISHED)}
  rest = ', '.join(f'{count} {status}' for status, count in number.items() if count and status != 'finished')
  return (f'{number["finished"]} of {len(sweep.rows)} trials are finished' + (f' ({rest})' if rest else '')
          + f'. Written {time.strftime("%F %H:%M", time.gmtime())} UTC.')

def verdict(sweep):
  """What the intervals allow to be concluded about the best trial."""
  if not sweep.groups:
    return f'Nothing can be said yet: no finished trial has measured `{sweep.metric}`.'
  order = sweep.groups[0].ranked
  _, best, estimate, _ = order[0]
  first = (f'By `{sweep.metric}` ({"higher" if sweep.metric in record.HIGHER else "lower"} is better) the first is '
           f'{code(best.label)} with {value(estimate._asdict())}. ')
  same = [place.row.label for place in order[1:] if place.tied]
  if len(order) == 1:
    return first + 'There is nothing to compare it with.'
  if same:
    return first + f'Cannot be told apart from it, as their 95 % intervals overlap: {", ".join(map(code, same))}.'
  return first + 'Its 95 % interval overlaps no other.'


def table(group, sweep):
  """Blocks: a table of ranks, the varied settings, the metric and some others, and an explanation of its dashes."""
  rows, real = [row for _, row, *_ in group.ranked], heldout(group, sweep.metric)
  homes = {name: alike[0] for name in BESIDE if name != sweep.metric and (alike := results.alike(rows, name))}
  homes, gaps = dict(list(homes.items())[:5]), {}

  def cell(name, row):
    estimate = row.record['metrics'].get(name, {})
    apart = record.differences(homes[name][0].record, row.record, name) if estimate.get('value') is not None else []
    if apart:
      gaps.setdefault(name, '; '.join(apart))
    return '-' if apart else plus_minus(estimate)

  others = lambda row: [cell(name, row) for name in homes]
  header = ['rank', *map(results.short, sweep.varied), f'{sweep.metric} [95 %]', *(f'{name} ± s.e.' for name in homes)]
  lines = [[ranks, *(code(row.settings.get(key)) for key in sweep.varied), value(estimate._asdict()), *others(row)]
           for ranks, row, estimate, _ in group.ranked]
  if real:  # the values of real data, for comparison
    apart = record.differences(rows[0].record, real.record, sweep.metric)
    lines.append(['', 'held-out images', *[''] * (len(sweep.varied) - 1),
                  '-' if apart else value(real.record['metrics'][sweep.metric]), *others(real)])
    gaps |= {sweep.metric: '; '.join(apart)} if apart else {}
  if len({plots.calls(row) for row in rows}) > 1:
    header.append('evaluations')
    lines = [line + [plots.calls(row)] for line, row in zip(lines, rows)] + [line + [''] for line in lines[len(rows):]]
  reasons = '; '.join(f'`{name}`, {text}' for name, text in gaps.items())
  note = [('text', f'A dash: measured in another way than the rest of its column ({reasons}).')] if gaps else []
  return [('table', header, lines), *note]



def heldout(group, metric):
  """A Row with the metrics of held-out images, from the record of the group's first; None if that lacks the metric."""
  first = group.ranked[0].row
  real = first.record.get('heldout') or {}
  return first._replace(record=first.record | dict(metrics=real)) if real.get(metric) else None


def protocol(group):
  """How the records of a group were measured, and with which versions, as text."""
  lines = []
  for key, part in group.ranked[0].row.record['protocol'].items():
    if isinstance(part, dict):
      lines += [f'{key}: {inner}: {text}' for inner, text in part.items()]
    else:
      lines.append(f'{key}: {part}')
  lines += sorted({f'number: {place.estimate.n}' for place in group.ranked})
  versions = {json.dumps(row.record['subject'].get('versions'), sort_keys=True) for _, row, *_ in group.ranked}
  return '\n'.join(lines + [f'versions: {text}' for text in sorted(versions) if text != 'null'])


def blocks(sweep):
  """The report as blocks (page.py)."""
  made = [('title', sweep.title), ('text', standing(sweep)), ('text', verdict(sweep))]
  ordered = [row for group in sweep.groups for _, row, *_ in group.ranked]
  if sweep.groups:
    main = sweep.groups[0]
    caption = f'{sweep.metric} with 95 % intervals; blue: cannot be told apart from the best'
    ranks = 'Ranks are those that the intervals leave open: 2-4 may be any of them. '
    made += [('image', 'metric.png', caption, plots.dots(main, sweep.metric)), ('heading', 'Results')]
    made += table(main, sweep)
    made += [('text', ranks + CAVEAT[sweep.about.get('mode') == 'evaluate'])] * (len(ordered) > 1)
    if image := plots.quality(main, sweep.metric, sweep.varied):
      made.append(('image', 'quality.png', f'{sweep.metric} against network evaluations, with 95 % intervals', image))
    if image := plots.trade(main, sweep.metric):
      made.append(('image', 'trade.png', f'{sweep.metric} against fd_infinity, with 95 % intervals', image))
  if image := plots.curves(ordered + [row for row in sweep.rows if row not in ordered]):
    unlike = [results.short(key) for key in sweep.varied if results.short(key) in LOSS_SETTINGS]
    warning = f'; losses with different {", ".join(unlike)} cannot be compared' if unlike else ''
    made.append(('image', 'curves.png', 'Training curves' + warning, image))
  if image := plots.samples(ordered + sweep.unmeasured):
    caption = 'Samples of each trial, best first; within a column, from the same noise and class'
    limit = f' (the first {plots.SHOWN} trials)' if len(ordered) > plots.SHOWN else ''
    made.append(('image', 'samples.png', caption + limit, image))
  for group in sweep.groups[1:]:
    text = 'Not comparable with the results above: ' + '; '.join(group.differences) + '.'
    made += [('heading', 'Measured in another way'), ('text', text), *table(group, sweep)]
  return made + without_result(sweep) + settings(sweep)


def without_result(sweep):
  """Blocks: the trials that are not finished, and those without the metric."""
  rows = [[code(row.label), row.status, row.reason] for row in sweep.rows if row.status != 'finished']
  rows += [[code(row.label), 'finished', f'{sweep.metric} was not measured'] for row in sweep.unmeasured]
  return [('heading', 'Without a result'), ('table', ['trial', 'status', 'why'], rows)] if rows else []


def settings(sweep):
  """Blocks: what all trials share, how it was measured, and the command to repeat it."""
  odd = results.unusual(sweep.common)
  made = [('heading', 'What all trials share')]
  made.append(('table', ['setting', 'value'], [[results.short(key), code(value)] for key, value in odd.items()]))
  common = '\n'.join(f'{results.short(key)} = {value!r}' for key, value in sweep.common.items())
  made.append(('details', 'every common setting', common))
  if sweep.groups:
    text = '\n\n'.join(map(protocol, sweep.groups))
    made += [('heading', 'How it was measured'), ('details', 'protocol and versions', text)]
  if sweep.about.get('command'):
    made.append(('details', 'command', 'python -m experiments.run ' + shlex.join(sweep.about['command'])))
  return made


def table_csv(sweep):
  """results.csv: a line per trial, with all metrics measured."""
  place = {row.name: (i + 1, ranks) for i, group in enumerate(sweep.groups) for ranks, row, *_ in group.ranked}
  order = [row for group in sweep.groups for _, row, *_ in group.ranked]
  names = list(dict.fromkeys(name for row in sweep.rows if row.record for name in row.record['metrics']))
  names = [name for name in [sweep.metric] if name in names] + [name for name in names if name != sweep.metric]
  parts = record.Estimate._fields
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  columns = [(name, part) for name in names for part in parts]
  writer.writerow(['trial', 'status', 'table', 'ranks', *map(results.short, sweep.varied), 'evaluations',
                   *(name + ('' if part == 'value' else f'_{part}') for name, part in columns), 'seconds', 'reason'])
  for row in order + [row for row in sweep.rows if row not in order]:
    metrics = row.record['metrics'] if row.record else {}
    writer.writerow([row.name, row.status, *place.get(row.name, ('', '')),
                     *(row.settings.get(key) for key in sweep.varied), plots.calls(row) if row.record else '',
                     *(metrics.get(name, {}).get(part) for name, part in columns), row.seconds, row.reason])
  return buffer.getvalue()


# ---- TensorBoard
def tensorboard(sweep, folder):
  """HParams: what each finished trial set, with its metrics; written once per record."""
  from diffusion.system.log import open_board
  for row in sweep.rows:
    own, made = folder / row.name, row.folder / 'evaluation' / 'evaluation.json'
    if not row.record or own.exists() and own.stat().mtime > made.stat().mtime:
      continue
    if own.exists():
      own.rmtree()
    plain = lambda value: value if isinstance(value, (bool, int, float, str)) else str(value)
    metrics = row.record['metrics'].items()
    metrics = {name: estimate['value'] for name, estimate in metrics if estimate['value'] is not None}
    hparams = {results.short(key): plain(row.settings.get(key)) for key in sweep.varied}
    writer = open_board(own, 0)
    from tensorboardX import summary  # not earlier: `open_board` keeps it from importing PyTorch
    for part in summary.hparams(hparams, metrics):
      writer.file_writer.add_summary(part)
    for name, number in metrics.items():
      writer.add_scalar(name, number, 0)
    writer.close()


# ---- all of it
def report(workdir, metric=None, out=None):
  """Writes the report of a sweep in its current state.

  Args:
    workdir: of the sweep.
    metric: to rank by; None: that of the sweep.
    out: folder for a copy.
  Returns:
    The path of report.html.
  Raises:
    InputError: no trials in the work directory, or an unknown metric.
  """
  workdir, copy = user_path(workdir), out and output_folder(out)
  sweep = results.collect(workdir, metric)
  made = blocks(sweep)
  files = {kind[1]: kind[3] for kind in made if kind[0] == 'image'}
  files |= {'report.md': page.markdown(made).encode(), 'report.html': page.html(made).encode(),
            'results.csv': table_csv(sweep).encode()}
  for folder in [workdir / 'report'] + ([copy] if copy else []):
    for name, data in files.items():
      write_atomic(folder / name, data)
    for name in ('metric.png', 'quality.png', 'trade.png', 'curves.png', 'samples.png'):
      if name not in files:
        (folder / name).unlink(missing_ok=True)  # of an earlier report
  tensorboard(sweep, workdir / 'tensorboard')
  return (copy or workdir / 'report') / 'report.html'


def main(argv=None):
  parser = argparse.ArgumentParser(prog='python -m experiments.report', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workdir', required=True, help='of the sweep')
  parser.add_argument('--metric', help='metric to rank by (default: that of the sweep)')
  parser.add_argument('--out', help='folder for a copy, such as experiments/reports/schedules')
  options = parser.parse_args(argv)
  try:
    print(f'wrote {report(options.workdir, options.metric, options.out)}')
  except (InputError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
