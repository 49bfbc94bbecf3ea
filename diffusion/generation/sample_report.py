"""What sampling writes: one new, numbered folder with pictures, arrays and the record of what made them."""
import io
import json

import numpy as np

from diffusion.core import grids
from diffusion.errors import InputError
from diffusion.generation import pages, sampling
from diffusion.setup.build import load_data
from diffusion.setup.choices import parse_emas
from diffusion.setup.specs import parse, resolve, unknown
from diffusion.system import multihost
from diffusion.system.files import write_atomic
from diffusion.core import ema

TRACED = 16  # pictures that an animation follows
FILMED = 8   # pictures that a strip shows
GIF_FRAMES = 100


def check(run, options):
  """Raises InputError where config.sample does not fit the model: before training, and before anything is drawn."""
  if options.num_samples < 1 or options.batch < 1:
    raise InputError(f'config.sample: num_samples={options.num_samples} and batch={options.batch} must be at least 1')
  check_weights(run, options.params)
  wanted_shows(options.show)
  conditions(run, options)
  if 'comparison' in wanted_shows(options.show):
    for S in sampling.comparable(run.schedule, sampling.COMPARED):
      grids.trailing(S)(run.schedule)


def check_weights(run, wanted):
  """Raises InputError where config.sample.params names weights that the model does not have."""
  field, names = 'config.sample.params', [name for name, _ in run.averages]
  if wanted in ('ema', 'raw'):
    return
  if parse(wanted)[0] == 'posthoc':
    resolve({field: dict(posthoc=ema.power)}, field, wanted)
  elif parse(wanted)[0] not in ('decay', 'power') or parse_emas(wanted)[0][0] not in names:
    more = f', {", ".join(names)}, posthoc(WIDTH)' if names else ' (config.extra_emas keeps more, from the first step on)'
    raise InputError(f'{field}={wanted!r}: expected ema, raw{more}')


def wanted_shows(text):
  """'film, gif' -> {'film', 'gif'}; 'all' is all of them."""
  names = {name.strip() for name in text.split(',') if name.strip()}
  for name in names - {'all', *sampling.SHOWN}:
    raise InputError(f'config.sample.show: {unknown(name, (*sampling.SHOWN, "all"))}')
  return set(sampling.SHOWN) if 'all' in names else names


def new_folder(parent, step):
  """samples/001_step_5000, 002_..: nothing that was drawn before is touched."""
  if not multihost.is_main():
    return parent / f'step_{step}'  # where nothing is written
  parent.mkdir(parents=True, exist_ok=True)
  taken = [int(number) for path in parent.iterdir() if (number := path.name.partition('_')[0]).isdigit()]
  folder = parent / f'{max(taken, default=0) + 1:03d}_step_{step}'
  folder.mkdir()
  return folder


def conditions(run, options):
  """(float32 [number, K] or None, captions or None, the parsed mix or None)."""
  if not options.class_mix:
    return *sampling.class_conditions(run.classes, options.classes, options.num_samples), None
  mix = sampling.parse_mix(run.classes, options.class_mix)
  return np.tile(sampling.mix_condition(run.classes, mix), (options.num_samples, 1)), None, mix


def make_draw(run, options):
  """(draw, batch, traced): the compiled sampler of config.sample, which follows the pictures `traced` where a strip needs them.

  draw(params, ids, cond) -> (pictures, frames or None). The pictures during training come from the same program, which the
  compile cache therefore has when training is done.
  """
  batch = min(options.batch, options.num_samples)
  shows = wanted_shows(options.show)
  traced = spread(batch, TRACED if 'gif' in shows else FILMED) if shows & {'film', 'gif'} else None
  return sampling.make_draw(run, options.seed, batch, trace=traced), batch, traced


def write(run, config, parent, params, step, versions, data=None):
  """Draws what config.sample describes.

  Args:
    run: the Experiment.
    config: its config.
    parent: folder in which a numbered folder is made.
    params: weights.
    step: of the weights, for the record.
    versions: of the software, for the record.
    data: the Source, where it is loaded already; the noising strip needs it.
  Returns:
    The folder.
  """
  options = config.sample
  shows = wanted_shows(options.show)
  cond, labels, mix = conditions(run, options)
  if 'noising' in shows and data is None:
    data = load_data(config)  # the only picture that needs the data set
  draw, batch, traced = make_draw(run, options)
  images, frames = draw(params, np.arange(options.num_samples), cond)

  folder = new_folder(parent, step)
  title = f'step {step}, {config.sampler}, {config.grid}' + (f', {config.guide}' if config.guide else '') + (f', {options.class_mix}' if mix else '')
  pages.save_png(page(images, labels, title), folder / 'grid.png')
  save_arrays(folder, images, cond, run.classes)
  record = dict(step=step, config=json.loads(config.to_json()), classes=list(run.classes), versions=versions)
  write_atomic(folder / 'record.json', json.dumps(record, indent=2).encode())

  names = labels or [f'picture {i}' for i in range(options.num_samples)]
  strips = {}
  if 'film' in shows:
    pick = spread(len(traced), FILMED)
    strips['film'] = sampling.film(frames[:, pick], [names[traced[i]] for i in pick])
  if 'gif' in shows:
    pages.save_gif(frames[spread(len(frames), GIF_FRAMES)], folder / 'denoising.gif', labels=labels and [labels[i] for i in traced], fps=12)
  if 'noising' in shows:
    shown = data.train.images[:6]
    strips['noising'] = sampling.noising(shown, [f'picture {i}' for i in range(len(shown))], run.schedule, options.seed)
  if 'interpolation' in shows:
    pick = spread(options.num_samples, 6)
    strips['interpolation'] = sampling.interpolation(run, params, options.seed, batch, None if cond is None else cond[pick],
                                                     [names[i] for i in pick])
  if 'comparison' in shows:
    pick = spread(options.num_samples, FILMED)
    strips['comparison'] = sampling.comparison(run, params, options.seed, None if cond is None else cond[pick], [names[i] for i in pick])
  if mix and len(mix) == 2:
    strips['mix'] = sampling.mixing(run, params, options.seed, batch, mix)
  for name, (rows, row_labels, column_labels) in strips.items():
    pages.save_png(pages.rows(list(rows), row_labels, column_labels, title=f'{name}, {title}'), folder / f'{name}.png')
  return folder


def page(images, labels, title):
  """The grid of some pictures, equal labels side by side."""
  order = sorted(range(len(images)), key=lambda i: labels.index(labels[i])) if labels else range(len(images))
  return pages.grid(images[list(order)], labels=labels and [labels[i] for i in order], title=title)


def spread(n, k):
  """k indices spread over 0..n-1, so that a strip shows several classes."""
  return np.unique(np.linspace(0, n - 1, min(n, k)).astype(int))


def save_arrays(folder, images, cond, classes):
  """samples.npz: images uint8 [N, H, W, C], and the conditions where there are some. No pickles."""
  buffer = io.BytesIO()
  arrays = dict(images=images) | ({} if cond is None else dict(labels=cond, classes=np.array(classes)))
  np.savez_compressed(buffer, **arrays)
  write_atomic(folder / 'samples.npz', buffer.getvalue())
