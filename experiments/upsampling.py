r"""How good an up-sampler is: on held-out images beside interpolation, and behind a model that draws small images.

  python -m experiments.upsampling --workdir=runs/upsample
  python -m experiments.upsampling --workdir=runs/upsample_emoji --factor=2
  python -m experiments.upsampling --workdir=runs/upsample --base=runs/text_to_image --levels=0,.25,.5,1

Held-out images: PSNR of one sample, and the Frechet distance of all to the images themselves (0 where equal), by the
features of config.evaluate.features. With --base, captions of held-out sprites are drawn and enlarged, with noise of
each level (a share of the strongest of the training): PSNR to the rule by which sprites are enlarged, Scale2x, applied
to what the base has drawn; and S of class, kind and colour in the enlarged images
(diffusion/evaluation/metrics/alignment.py). All with 95 % intervals.
"""
import argparse
import json
import sys

import numpy as np

from diffusion.data import sprites
from diffusion.data.dataset import first_captions, size, take
from diffusion.data.pairs import as_unit, from_unit_of
from diffusion.errors import InputError
from diffusion.evaluation import text
from diffusion.evaluation.metrics import frechet, make_features, record
from diffusion.evaluation.metrics.features import extract_all, make_extract
from diffusion.evaluation.metrics.judge import judge, said
from diffusion.evaluation.metrics.restoration import psnr
from diffusion.generation import chain, sampling
from diffusion.setup.build import load_data
from diffusion.system import platform, sharding
from diffusion.system.files import output_folder, write_atomic
from diffusion.tasks import pages
from diffusion.tasks.degradations import enlarged
from diffusion.tasks.restore import METHODS
from diffusion.training.open_model import load

SHOWN = 8
SCORES = ('caption_class', 'caption_kind', 'caption_colour')


def arguments():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--workdir', required=True, help='of configs/upsample.py')
  add('--base', default='', help='of a model of texts that draws sprites of the size that --workdir enlarges')
  add('--levels', default='0', help='of noise, from 0 to 1, separated by commas (default: 0)')
  add('--factor', type=int, default=2, help='by which it enlarges, where the data have no small images (default: 2)')
  add('--number', type=int, default=200, help='of images (default: 200)')
  add('--batch', type=int, default=50, help='drawn at once (default: 50)')
  add('--out', default='experiments/reports/upsampling', help='folder to write to (default: %(default)s)')
  add('--seed', type=int, default=0)
  return parser.parse_args()


# ---- held-out images
def small(data, factor):
  """The small images of a Dataset, uint8 [N, h, w, C]: its column `low`, or means over blocks, rounded."""
  images = data.arrays['images']
  if 'low' in data.arrays:
    return data.arrays['low'][:]
  n, H, W, C = images.shape
  return np.round(images[:].reshape(n, H // factor, factor, W // factor, factor, C).mean((2, 4))).astype(np.uint8)


def interpolated(low, shape):
  """{method: images uint8} of small images, enlarged without a model."""
  return {method: from_unit_of(np.asarray(enlarged(as_unit(low), shape, method)), 255) for method in METHODS}


def heldout(model, data, options, extract, mesh):
  """(rows {what, psnr, fd}, {what: images}) of held-out images."""
  run, weights, _ = model
  some = take(data, np.random.default_rng(options.seed).permutation(size(data))[:options.number])
  truth, low = some.arrays['images'][:], small(some, options.factor)
  asked = run.task.ask(dict(images=low), np.arange(len(low)), options.seed)
  drawn = sampling.make_draw(run, options.seed, options.batch)(weights, np.arange(len(low)), asked.cond)[0]['images']
  columns, rows = interpolated(low, truth.shape[1:]) | dict(model=drawn), []
  moments = lambda images: extract_all(extract, [images], mesh)[0].moments
  real = moments(truth)
  for name, images in columns.items():
    rows.append(dict(what=name, psnr=record.mean(psnr(images, truth, 255)), fd=frechet.fd(moments(images), real)))
  return rows, dict(truth=truth) | columns


# ---- behind another model
def cascade(base, model, options, data, trained):
  """(rows {what, psnr, caption_..}, {what: images}) of a cascade at each level of noise."""
  index = np.random.default_rng(options.seed).permutation(size(data.heldout))[:options.number]
  some, rows, columns = take(data.heldout, index), [], {}
  real, texts = data.heldout.arrays['images'], said(some)
  for level in options.levels.split(','):
    asked = dict(prompt=[str(caption) for caption in first_captions(some)]) | (
      dict(level=level) if 'level' in model.run.task.takes else {})
    first, last = chain.draw([base, model], asked, len(index), options.seed, options.batch)
    images, drawn = last.outputs['images'], first.outputs['images']
    rule = sprites.enlarge(drawn, images.shape[1])
    columns |= dict(drawn=rule) if not columns else {}
    found, _ = text.scores(trained, images, texts, real, said(data.heldout))
    before, _ = text.scores(trained, rule, texts, real, said(data.heldout))
    if not rows:
      rows.append(dict(what='Scale2x', psnr=None) | {name: before.get(name) for name in SCORES})
    rows.append(dict(what=f'level {level}', psnr=record.mean(psnr(images, rule, 255))) |
                {name: found.get(name) for name in SCORES})
    columns[f'level {level}'] = images
  return rows, columns


# ---- what is written
def table(rows):
  """Rows {what, name: Estimate or None} as Markdown."""
  names = [name for name in rows[0] if name != 'what']
  cell = lambda e: '-' if e is None else f'{e.value:.3g} ({e.low:.3g} to {e.high:.3g})'
  lines = [f'| | {" | ".join(names)} |', '|' + '---|' * (len(names) + 1)]
  return '\n'.join(lines + [f'| {row["what"]} | {" | ".join(cell(row[name]) for name in names)} |' for row in rows])


def page(columns, title):
  """Some images, a row each: {name: images}."""
  few = [images[:SHOWN] for images in columns.values()]
  return pages.rows([np.stack(row) for row in zip(*few)], [''] * len(few[0]), list(columns), title)


def main(options):
  levels = [float(level) for level in options.levels.split(',')]
  model, folder = load(options.workdir), output_folder(options.out)
  if 'images' not in model.run.task.takes or not 0 <= min(levels) <= max(levels) <= 1:
    raise InputError('expected --workdir of configs/upsample.py, and --levels from 0 to 1')
  data, mesh = load_data(model.run.config), sharding.local_mesh(model.run.mesh)
  extract = make_extract(make_features(model.run.config)(data.train, mesh), mesh)
  rows, columns = heldout(model, data.heldout, options, extract, mesh)
  parts = [('Held-out images', 'heldout', rows, columns)]
  if options.base:
    if not said(data.heldout):
      raise InputError(f'--base: it is not known what captions of config.data={model.run.config.data!r} say; leave it '
                       'out, or use sprites')
    base = load(options.base)
    chain.check([base, model])
    parts.append((f'Behind {options.base}', 'cascade', *cascade(base, model, options, data, judge(data, mesh))))
  text = [f'# Up-sampling\n\n{model.run.config.task} on {model.run.config.data} at step {model.step}, '
          f'{model.run.config.sampler}, {model.run.config.grid}; {options.number} images. What is measured: '
          'experiments/upsampling.py.']
  for title, name, rows, columns in parts:
    pages.save_png(page(columns, title), folder / f'{name}.png')
    text.append(f'## {title}\n\n{table(rows)}\n\n![{title}]({name}.png)')
    print(table(rows), flush=True)
  write_atomic(folder / 'report.md', ('\n\n'.join(text) + '\n').encode())
  plain = lambda row: {key: value._asdict() if isinstance(value, record.Estimate) else value
                       for key, value in row.items()}
  facts = {name: list(map(plain, rows)) for _, name, rows, _ in parts}
  facts |= dict(step=model.step, config=json.loads(model.run.config.to_json()), number=options.number)
  write_atomic(folder / 'results.json', json.dumps(record.plain(facts), indent=2).encode())
  print(f'wrote {folder / "report.md"}', flush=True)


if __name__ == '__main__':
  platform.start()
  try:
    main(arguments())
  except InputError as error:
    sys.exit(f'error: {error}')
