r"""Painting a part of an image by a prompt: a model trained for it, RePaint, replacement and SDEdit, on one model.

  python -m experiments.inpainting --workdir=runs/inpaint
  python -m experiments.inpainting --workdir=runs/inpaint --number=200 --budgets=10,50,250 --out=runs/inpainting

Held-out heroes get another hat, or something else in hand. The sprites are drawn from their attributes, so that the
area to paint is known: the box around all that changes. All methods use the weights, the guidance and the solver of
--workdir, with equal evaluations of the guided network, and all but the trained one show it nothing of the image, as a
model of whole images. Measured, with 95 % intervals:

  S      how often the judge sees the new hat or thing, from 0 (never more than by chance) to 1 (as often as in real
         sprites that have it); see diffusion/evaluation/metrics/alignment.py
  PSNR   inside of the area, in dB, when the prompt is the true caption: how well the rest says what belongs there
  seam   how much larger steps of brightness across the edge of the area are than in the real sprite, of 255
"""
import argparse
import json
import sys
from typing import Any, NamedTuple

import numpy as np

from diffusion import samplers
from diffusion.core import grids, operators
from diffusion.data import sprites
from diffusion.data.dataset import size
from diffusion.data.sprites import people
from diffusion.data.sprites.canvas import render
from diffusion.errors import InputError
from diffusion.evaluation.metrics import record
from diffusion.evaluation.metrics.alignment import alignment
from diffusion.evaluation.metrics.judge import judge, said, wanted
from diffusion.generation import edits, requests, sampling
from diffusion.samplers import constraints
from diffusion.setup.build import load_data
from diffusion.setup.choices import make
from diffusion.setup.specs import split
from diffusion.system import platform, sharding
from diffusion.system.files import output_folder, write_atomic
from diffusion.tasks import pages
from diffusion.tasks.inpaint import kept
from diffusion.training.open_model import load

METHODS = ('trained', 'repaint', 'replace', 'sdedit')
SHOWN = 8


def arguments():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--workdir', required=True, help='of configs/inpaint.py, trained on sprites')
  add('--out', default='experiments/reports/inpainting', help='folder to write to (default: %(default)s)')
  add('--budgets', default='10,100', help='evaluations, separated by commas (default: %(default)s)')
  add('--methods', default=', '.join(METHODS), help='(default: %(default)s)')
  add('--number', type=int, default=64, help='of sprites (default: 64)')
  add('--guide', default='cfg(3)', help='config.guide (default: cfg(3))')
  add('--jump', type=int, default=5, help='of RePaint (default: 5)')
  add('--repeats', type=int, default=5, help='of RePaint (default: 5)')
  add('--strength', type=float, default=.8, help='of SDEdit (default: .8)')
  add('--seed', type=int, default=0)
  return parser.parse_args()


# ---- what is asked for
class Task(NamedTuple):
  """A sprite, and what of it is to be changed."""
  image: Any    # uint8 [H, W, 3]
  mask: Any     # bool [H, W, 1], True where to paint
  caption: str  # of the sprite
  prompt: str   # of the sprite after the change
  wanted: dict  # {head of the judge: value}: the change


def other(label, attributes, head, rng):
  """Attributes with another hat or thing in hand, as a sprite of this class may have it."""
  side = label == 5
  choices = dict(hat=tuple(people.SIDE_HATS if side else people.FRONT_HATS),
                 item=tuple(item for item in people.ITEMS if item not in ('nothing', *['bow'] * side)))[head]
  changed = dict(attributes)
  changed[head] = str(rng.choice([value for value in choices if value != attributes[head]]))
  if changed.get('hat') in ('crown', 'helmet', 'horned helmet'):  # of metal
    changed.pop('hat_colour', None)
  elif head == 'hat':
    changed.setdefault('hat_colour', str(rng.choice(people.CLOTH)))
  return changed


def area(image, label, attributes, changed):
  """The mask of all that the change alters, or None where it alters nothing that can be seen."""
  canvases = [sprites.draw(label, a) for a in (attributes, changed)]
  for mirrored in (False, True):
    for canvas in canvases:
      canvas.move(0, 0, mirrored)
    before, after = render(canvases)
    if np.array_equal(before, image):
      break
  rows, columns = (np.flatnonzero((before != after).any((2, axis))) for axis in (1, 0))
  if not np.array_equal(before, image) or not len(rows):
    return None
  mask = np.zeros((*image.shape[:2], 1), bool)
  mask[max(rows[0] - 1, 0):rows[-1] + 2, max(columns[0] - 1, 0):columns[-1] + 2] = True
  return mask


def tasks_of(data, number, seed):
  """Tasks on held-out sprites, a hat and a thing in hand in turn as far as there are both."""
  rng, found = np.random.default_rng(seed), []
  for i in rng.permutation(size(data)):
    label, attributes = int(data.arrays['labels'][i]), data.arrays['attributes'][i]
    heads = [head for head, known in (('hat', 'hat'), ('item', 'item_colour')) if known in attributes]
    if label not in (0, 5) or not heads or len(found) == number:
      continue
    head = heads[len(found) % len(heads)]
    changed, image = other(label, attributes, head, rng), data.arrays['images'][i]
    mask = area(image, label, attributes, changed)
    if mask is not None:
      found.append(Task(image, mask, sprites.caption(label, attributes), sprites.caption(label, changed),
                        {head: sprites.spoken(label, changed)[head]}))
  return found


# ---- the methods
def paint(model, method, budget, tasks, prompts, options):
  """(images uint8 [n, H, W, C], evaluations of the guided network for each)."""
  run, weights, _ = model
  n, ids = len(tasks), np.arange(len(tasks))
  images, mask = (np.stack([task[i] for task in tasks]) for i in (0, 1))
  known, start = edits.encoded(run, weights, images), None
  asked = dict(prompt=prompts) | (dict(kept=np.asarray(kept(known, mask))) if method == 'trained' else {})
  cond = requests.ask(run, asked, ids, options.seed, '').cond
  def wrap(sampler):
    made = dict(replace=lambda: constraints.inpaint(sampler, known, mask),
                repaint=lambda: constraints.repaint(sampler, known, mask, options.jump, options.repeats))
    return made.get(method, lambda: sampler)()
  sampler, levels = longest(run, wrap, round(budget / options.strength) if method == 'sdedit' else budget)
  if method == 'trained':
    run = edits.wrapped(run, lambda denoise: operators.fixed(denoise, known, mask))
  if method == 'sdedit':
    levels, start = constraints.sdedit(samplers.sample_keys(options.seed, ids), levels, known, options.strength)
    start = np.asarray(start)
  drawn = sampling.make_draw(run, options.seed, n, sampler, levels)(weights, ids, cond, start)[0]['images']
  return np.where(mask, drawn, images), len(sampler.plan(levels).h)


def longest(run, wrap, budget):
  """(sampler, levels) of the longest grid whose evaluations are within the budget."""
  for steps in range(budget, 0, -1):
    levels = grids.trailing(steps)(run.schedule)
    sampler = wrap(make('sampler', run.config.sampler, schedule=run.schedule, levels=levels))
    if len(sampler.plan(levels).h) <= budget:
      return sampler, levels
  raise InputError(f'--budgets: {budget} is less than a single step takes')


# ---- what is measured
def masked_psnr(images, truth, mask):
  """PSNR in dB of each image inside of its mask, float64 [n], at most that of an error of half a step."""
  error = (np.asarray(images, np.float64) - truth) ** 2 * mask
  mean = error.sum((1, 2, 3)) / (mask.sum((1, 2, 3)) * images.shape[-1])
  return 10 * np.log10(255 ** 2 / np.maximum(mean, .25))


def seam(images, mask):
  """Mean absolute difference of the two pixels on either side of the edge of the mask, float64 [n]."""
  total = count = 0.
  for axis in (1, 2):
    edge = np.diff(mask, axis=axis)
    step = np.abs(np.diff(images.astype(np.float64), axis=axis))
    total, count = total + (step * edge).sum((1, 2, 3)), count + edge.sum((1, 2, 3)) * images.shape[-1]
  return total / np.maximum(count, 1)


def measured(judge, data, tasks, changed, same):
  """{name: Estimate}: S of images that were painted as prompts say; PSNR and seam of those that true captions led."""
  heads = [list(judge.values).index(head) for head in ('hat', 'item')]
  asked = wanted([task.wanted for task in tasks], judge.values)[:, heads]
  real = wanted(said(data), judge.values)[:, heads]
  score = alignment(judge.predict(changed)[:, heads], asked, judge.predict(data.arrays['images'])[:, heads], real)
  truth, mask = (np.stack([task[i] for task in tasks]) for i in (0, 1))
  return dict(S=score, psnr=record.mean(masked_psnr(same, truth, mask)),
              seam=record.mean(seam(same, mask) - seam(truth, mask)))


# ---- what is written
def table(rows):
  """The Markdown table of rows {method, evaluations, S, psnr, seam}."""
  cell = lambda e, digits: '-' if e is None else (
    f'{e["value"]:.{digits}f} ({e["low"]:.{digits}f} to {e["high"]:.{digits}f})')
  lines = ['| method | evaluations | S | PSNR in the area, dB | seam, of 255 |', '|---|---|---|---|---|']
  for row in rows:
    parts = [row['method'], str(row['evaluations']), *(cell(row[name], n) for name, n in (('S', 2), ('psnr', 1),
                                                                                          ('seam', 1)))]
    lines.append(f'| {" | ".join(parts)} |')
  return '\n'.join(lines)


def page(tasks, columns):
  """A row for each of some tasks: the sprite, the area, and what each method has painted. columns: {name: images}."""
  few = tasks[:SHOWN]
  rows = [np.stack([task.image, np.where(task.mask, edits.TINT, task.image).astype(np.uint8),
                    *(images[k] for images in columns.values())]) for k, task in enumerate(few)]
  names = [', '.join(f'{head}: {value}' for head, value in task.wanted.items()) for task in few]
  return pages.rows(rows, names, ['sprite', 'to paint', *columns], 'painted as the prompt says; evaluations')


def report(folder, model, options, tasks, rows, columns):
  """Writes report.md, inpainting.png and results.json."""
  config = model.run.config
  about = (f'{len(tasks)} held-out sprites of {config.data}; {config.task} at step {model.step}, {config.sampler}, '
           f'{config.guide}; repaint({options.jump}, {options.repeats}), SDEdit with strength {options.strength:g}. '
           'What S, PSNR and seam are: experiments/inpainting.py.')
  pages.save_png(page(tasks, columns), folder / 'inpainting.png')
  text = f'# Painting a part of an image\n\n{about}\n\n{table(rows)}\n\n![What was painted](inpainting.png)\n'
  write_atomic(folder / 'report.md', text.encode())
  facts = dict(step=model.step, config=json.loads(config.to_json()), number=len(tasks), seed=options.seed, rows=rows)
  write_atomic(folder / 'results.json', json.dumps(record.plain(facts), indent=2).encode())


def main(options):
  methods, budgets = split(options.methods), [int(budget) for budget in options.budgets.split(',')]
  if set(methods) - set(METHODS) or min(budgets) < 1:
    raise InputError(f'expected --methods among {", ".join(METHODS)}, and --budgets of at least 1')
  model, folder = load(options.workdir, guide=options.guide), output_folder(options.out)
  data = load_data(model.run.config)
  if 'kept' not in model.run.task.takes or not said(data.heldout):
    raise InputError(f'--workdir={options.workdir}: expected a run of configs/inpaint.py on sprites')
  tasks = tasks_of(data.heldout, options.number, options.seed)
  tasks = tasks[:len(tasks) // model.run.mesh.size * model.run.mesh.size]
  trained, rows, columns = judge(data, sharding.local_mesh(model.run.mesh)), [], {}
  for budget in budgets:
    for method in methods:
      changed, used = paint(model, method, budget, tasks, [task.prompt for task in tasks], options)
      same, _ = paint(model, method, budget, tasks, [task.caption for task in tasks], options)
      found = measured(trained, data.heldout, tasks, changed, same)
      rows.append(dict(method=method, evaluations=used) | {k: e and e._asdict() for k, e in found.items()})
      columns[f'{method}, {used}'] = changed
      print(table(rows[-1:]).splitlines()[-1], flush=True)
      report(folder, model, options, tasks, rows, columns)
  print(f'wrote {folder / "report.md"}', flush=True)


if __name__ == '__main__':
  platform.start()
  try:
    main(arguments())
  except InputError as error:
    sys.exit(f'error: {error}')
