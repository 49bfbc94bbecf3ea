"""The table of `python -m experiments.aot --table`: how cost grows with chips, with model size and with resolution.

Each row is compiled in its own process and stored as OUT/rows/NAME.json. A row whose file exists is not compiled
again, so an interrupted run resumes. The report is rewritten after each row.
"""
import argparse
import io
import json
import math
import subprocess
import sys


from diffusion.system.files import output_folder, write_atomic

CIFAR, IMAGENET = '--config=configs/cifar10.py:pod', '--config=configs/imagenet64.py:pod'
SMALL = ('--config.net=unet(channels=64, multipliers=(1, 2), blocks=1, attention=(16,), heads=1, film=False, '
         'groups=32, dropout=0.1, dtype=bfloat16)')


def small(topology, batch, *more):
  return [CIFAR, SMALL, f'--topology={topology}', f'--config.batch={batch}', '--programs=train', *more]


# name: (description, arguments of experiments.aot). The first three are the recipes, except config.sample.batch.
ROWS = {
  'cifar10-256': ('CIFAR-10, the recipe `:pod`; it samples 2048 images at a time',
                  [CIFAR, '--topology=v5e:16x16', '--config.batch=2048', '--config.sample.batch=2048']),
  'imagenet64-256': ('ImageNet-64, the recipe `:pod`', [IMAGENET, '--topology=v5e:16x16', '--programs=train']),
  'imagenet64-64': ('ImageNet-64, the recipe `:quarter`',
                    ['--config=configs/imagenet64.py:quarter', '--topology=v5e:8x8', '--programs=train']),
  'upsample-256': ('up-sampler of photographs from 64 to 256 pixels, the recipe `:pod`',
                   ['--config=configs/upsample.py:pod', '--topology=v5e:16x16', '--shape=256,256,3', '--classes=0',
                    '--programs=train']),
  'small-1': ('small, 32x32', small('v5e:1x1', 32)),
  'small-4': ('small, 32x32', small('v5e:2x2', 128)),
  'small-16': ('small, 32x32', small('v5e:4x4', 512)),
  'small-64': ('small, 32x32', small('v5e:8x8', 2048)),
  'small-256': ('small, 32x32', small('v5e:16x16', 8192)),
  'small-64-fsdp8': ('small, 32x32, fsdp=8', small('v5e:8x8', 2048, '--config.fsdp=8')),
  'small-64-64px': ('small, 64x64', small('v5e:8x8', 2048, '--shape=64,64,3')),
  'small-64-128px': ('small, 128x128', small('v5e:8x8', 2048, '--shape=128,128,3')),
}
ABOUT = """Memory is what XLA reserves on one chip: arguments, results, temporaries and code. Bytes moved are those of
XLA's cost analysis, bytes sent those of the collectives by the best ring algorithm. The time is the longest of FLOPs
over the peak, bytes over the memory bandwidth and bytes over the link bandwidth. It is an estimate: compute and links
are lower bounds, but memory uses XLA's count of the bytes that operations access, which may exceed the bytes moved.
The columns v5p and v6e use the program compiled for the v5e. The small network (`SMALL` in experiments/aot_table.py)
shows the scaling in a fraction of the compile time."""
COLUMNS = ['what', 'program', 'chips', 'fsdp', 'images per chip', 'parameters', 'memory per chip', 'GFLOP per image',
           'moved per chip', 'sent per chip', 'collectives', 'v5e: ms, bound by', 'images/s on v5e', 'per chip: v5e',
           'v5p', 'v6e']
SCALING = ('small-1', 'small-4', 'small-16', 'small-64', 'small-256')
RESOLUTION = ('small-64', 'small-64-64px', 'small-64-128px')


def main(argv):
  parser = argparse.ArgumentParser(prog='python -m experiments.aot --table', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', default='experiments/reports/aot',
                      help='folder of rows and report (default: experiments/reports/aot)')
  parser.add_argument('--only', nargs='*', default=[], choices=list(ROWS), metavar='ROW',
                      help=f'some of the rows: {", ".join(ROWS)}')
  options = parser.parse_args(argv)
  out = output_folder(options.out)
  for name in options.only or ROWS:
    path = out / 'rows' / f'{name}.json'
    if not path.exists():
      print(f'{name:<20} compiling ..', flush=True)
      words = [sys.executable, '-m', 'experiments.aot', *ROWS[name][1], f'--out={path}']
      done = subprocess.run(words, capture_output=True, text=True)
      last = (done.stderr.strip() or 'no message').splitlines()[-1]
      print(done.stdout if done.returncode == 0 else f'failed: {last}', flush=True)
    write_report(out)


def write_report(out):
  """OUT/report.md and aot.png of the finished rows."""
  paths = {name: out / 'rows' / f'{name}.json' for name in ROWS}
  rows = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
  if rows:
    write_atomic(out / 'aot.png', plot(rows))
    write_atomic(out / 'report.md', report(rows).encode())


def report(rows):
  versions = sorted({f'jax {r["versions"]["jax"]}, libtpu {r["versions"]["libtpu"]}' for r in rows.values()})
  head = ['# The cost of training on pods', '',
          f'Compiled for absent TPUs by `python -m experiments.aot --table` ({"; ".join(versions)}); '
          f'{len(rows)} of {len(ROWS)} rows are finished.', '', *ABOUT.splitlines(), '']
  lines = ['| ' + ' | '.join(COLUMNS) + ' |', '|' + '---|' * len(COLUMNS)]
  for name, row in rows.items():
    lines += [line(ROWS[name][0], row, program, p) for program, p in row['programs'].items()]
  return '\n'.join(head + lines + ['', '![Scaling, resolution, memory](aot.png)', '', *notes(rows)]) + '\n'


def line(what, row, program, p):
  n = row['chips']
  parts = f' in {row["accumulate"]} parts' if row['accumulate'] > 1 and program == 'train' else ''
  memory = f'{p["needed"] / 1e9:.2f} of {p["there"] / 1e9:.1f} GB' + ('' if p['fits'] else ', **does not fit**')
  cells = [what, program, n, row['fsdp'], f'{p["images"] / n:g}{parts}', f'{row["parameters"] / 1e6:.1f} M', memory,
           f'{p["flops"] / p["images"] / 1e9:,.1f}']
  if 'roofline' in p:
    rate = {chip: p['images'] / r['seconds'] for chip, r in p['roofline'].items()}
    times, kinds = p['roofline']['v5e'], ', '.join(f'{count} {kind}' for kind, (count, _) in p['collectives'].items())
    cells += [f'{p["bytes"] / 1e9:,.1f} GB', f'{p["sent"] / 1e6:,.1f} MB', kinds or 'none',
              f'{times["seconds"] * 1e3:,.1f}, {times["bound"]}', f'{rate["v5e"]:,.0f}',
              *(f'{rate[chip] / n:,.1f}' for chip in rate)]
  return '| ' + ' | '.join(map(str, cells + [''] * (len(COLUMNS) - len(cells)))) + ' |'


def notes(rows):
  """Remarks on single rows; then, for each train step, the arrays gathered that are not parameters, or exchanged."""
  yield from (f'* {name}: {row["remark"]}' for name, row in rows.items() if 'remark' in row)
  yield ''
  yield 'Arrays in a train step that chips gather and that have the size of no parameter, or that they exchange:'
  yield ''
  for name, row in rows.items():
    p = row['programs'].get('train', {})
    if 'strangers' in p:
      listed = sorted({f'{kind} {dtype}{shape}' for kind, dtype, shape, _ in p['strangers']})
      more = f' and {len(listed) - 8} more' if len(listed) > 8 else ''
      yield f'* {name}: ' + (', '.join(listed[:8]) + more if listed else 'none')


def plot(rows):
  """PNG bytes: time by chips, time by resolution, memory by row."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
  figure = Figure((14, 4.5), layout='constrained')
  FigureCanvasAgg(figure)
  chips, pixels, memory = figure.subplots(1, 3)
  by_chips = lambda row: row['chips']
  by_pixels = lambda row: row['shape'][0]
  _scaling(chips, rows, SCALING, by_chips, 'chips', 'small network, 32 images per chip')
  _scaling(pixels, rows, RESOLUTION, by_pixels, 'pixels across', 'small network, 32 images per chip, 64 chips')
  bars = [(f'{name} {program}', p) for name, row in rows.items() for program, p in row['programs'].items()]
  memory.barh([name for name, _ in bars], [p['needed'] / 1e9 for _, p in bars],
              color=['tab:blue' if p['fits'] else 'tab:red' for _, p in bars])
  memory.axvline(16 * 2 ** 30 / 1e9, color='black', linestyle=':')
  memory.invert_yaxis()
  memory.set(title='memory per chip (dotted: available on a v5e)', xlabel='GB')
  memory.tick_params(axis='y', labelsize=7)
  data = io.BytesIO()
  figure.savefig(data, format='png', dpi=90)
  return data.getvalue()


def _scaling(axes, rows, names, x, label, title):
  """Milliseconds of the parts of a train step on a v5e against x(row), for the finished rows among `names`."""
  train = {name: row['programs'].get('train', {}) for name, row in rows.items()}
  names = [name for name in names if 'roofline' in train.get(name, {})]
  axes.set_visible(bool(names))
  if not names:
    return
  at = [x(rows[name]) for name in names]
  for part in ('compute', 'memory', 'links'):
    axes.plot(at, [train[name]['roofline']['v5e'][part] * 1e3 or math.nan for name in names], 'o-', label=part)
  axes.set(xscale='log', yscale='log', title=title, ylabel='ms per train step, v5e', xlabel=label)
  axes.set_xticks(at, list(map(str, at)))
  axes.minorticks_off()
  axes.legend()
