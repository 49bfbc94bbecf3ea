"""What sampling writes: a new numbered folder with images, arrays and a record of the settings."""
import io
import json

import numpy as np

from diffusion.core import ema, grids
from diffusion.errors import InputError
from diffusion.generation import pages, sampling, strips
from diffusion.setup.build import load_data
from diffusion.setup.choices import parse_emas
from diffusion.setup.specs import parse, resolve, unknown
from diffusion.system import multihost
from diffusion.system.files import write_atomic

SHOWS = ('film', 'gif', 'noising', 'interpolation', 'comparison')
TRACED = 16  # samples in an animation
FILMED = 8   # samples in a strip
GIF_FRAMES = 100


def check(run):
  """Raises InputError where config.sample does not fit the model: before training, and before anything is drawn."""
  options = run.config.sample
  for field in ('num_samples', 'batch'):
    if options[field] < 1:
      raise InputError(f'config.sample.{field}={options[field]}: expected at least 1')
  check_params(run, options.params)
  sampling.conditions(run, options.num_samples)
  if 'comparison' in parse_show(options.show):
    for S in strips.comparable(run.schedule):
      grids.trailing(S)(run.schedule)


def check_params(run, name):
  """Raises InputError where config.sample.params names parameters that the model does not keep."""
  key, names = 'config.sample.params', [name for name, _ in run.averages]
  if name in ('ema', 'raw'):
    return
  if parse(name)[0] == 'posthoc':
    resolve({'sample.params': dict(posthoc=ema.power)}, 'sample.params', name)
  elif parse(name)[0] not in ('decay', 'power') or parse_emas(name)[0][0] not in names:
    more = f', {", ".join(names)}, posthoc(WIDTH)' if names else '; config.extra_emas adds more, in a new training'
    raise InputError(f'{key}={name!r}: expected ema, raw{more}')


def parse_show(text):
  """'film, gif' -> {'film', 'gif'}; 'all' is all of them."""
  names = set(sampling.split_names(text))
  for name in sorted(names - {'all', *SHOWS}):
    raise InputError(f'config.sample.show={text!r}: {unknown(name, (*SHOWS, "all"))}')
  return set(SHOWS) if 'all' in names else names


def new_folder(parent, step):
  """Makes samples/001_step_5000, then 002_..: earlier folders stay as they are."""
  if not multihost.is_main():
    return parent / f'step_{step}'  # nothing is written there
  parent.mkdir(parents=True, exist_ok=True)
  taken = [int(number) for path in parent.iterdir() if (number := path.name.partition('_')[0]).isdigit()]
  folder = parent / f'{max(taken, default=0) + 1:03d}_step_{step}'
  folder.mkdir()
  return folder


def batch_size(options):
  """Images per batch of config.sample."""
  return min(options.batch, options.num_samples)


def traced(options):
  """Those samples of the first batch whose every step config.sample.show needs, or None."""
  shows = parse_show(options.show)
  return spread(batch_size(options), TRACED if 'gif' in shows else FILMED) if shows & {'film', 'gif'} else None


def write(run, parent, params, step, versions, data=None):
  """Draws what config.sample describes.

  Args:
    run: the Experiment.
    parent: folder in which a numbered folder is made.
    params: parameters, with those of a second model where config.guide names one.
    step, versions: of the parameters and of the software, for the record.
    data: the Source, if it is loaded already; only the noising strip needs it.
  Returns:
    The folder.
  """
  config, options = run.config, run.config.sample
  if data is None and 'noising' in parse_show(options.show):
    data = load_data(config)
  cond, labels = sampling.conditions(run, options.num_samples)
  draw = sampling.make_draw(run, options.seed, batch_size(options), trace=traced(options))
  images, frames = draw(params, np.arange(options.num_samples), cond)

  folder = new_folder(parent, step)
  title = ', '.join(filter(None, (f'step {step}', config.sampler, config.grid, config.guide, options.class_mix)))
  pages.save_png(page(images, labels, title), folder / 'grid.png')
  save_arrays(folder, images, cond, run.classes)
  record = dict(step=step, config=json.loads(config.to_json()), classes=list(run.classes), versions=versions)
  write_atomic(folder / 'record.json', json.dumps(record, indent=2).encode())
  _write_strips(run, params, data, folder, title, cond, labels, frames)
  return folder


def _write_strips(run, params, data, folder, title, cond, labels, frames):
  """Writes what config.sample.show asks for, and mix.png of a mix of two classes."""
  options, batch = run.config.sample, batch_size(run.config.sample)
  shows, seed, followed = parse_show(options.show), options.seed, traced(options)
  names = labels or [f'image {i}' for i in range(options.num_samples)]
  strip = lambda name, rows, row_labels, column_labels: pages.save_png(
    pages.rows(list(rows), row_labels, column_labels, title=f'{name}, {title}'), folder / f'{name}.png')

  def chosen(k):
    index = spread(options.num_samples, k)
    return None if cond is None else cond[index], [names[i] for i in index]

  if 'film' in shows:
    index = spread(len(followed), FILMED)
    strip('film', *strips.film(frames[:, index], [names[followed[i]] for i in index]))
  if 'gif' in shows:
    captions = labels and [labels[i] for i in followed]
    pages.save_gif(frames[spread(len(frames), GIF_FRAMES)], folder / 'denoising.gif', labels=captions, fps=12)
  if 'noising' in shows:
    examples = data.train.images[:6]
    strip('noising', *strips.noising(examples, [f'image {i}' for i in range(len(examples))], run.schedule, seed))
  if 'interpolation' in shows:
    strip('interpolation', *strips.interpolation(run, params, seed, batch, *chosen(6)))
  if 'comparison' in shows:
    strip('comparison', *strips.comparison(run, params, seed, *chosen(FILMED)))
  mix = sampling.parse_mix(run.classes, options.class_mix) if options.class_mix else ()
  if len(mix) == 2:
    strip('mix', *strips.mixing(run, params, seed, batch, mix))


def page(images, labels, title):
  """A grid of images, equal labels side by side."""
  order = sorted(range(len(images)), key=lambda i: labels.index(labels[i])) if labels else range(len(images))
  return pages.grid(images[list(order)], labels=labels and [labels[i] for i in order], title=title)


def spread(n, k):
  """At most k indices, evenly spread over 0 .. n-1, so that a strip shows several classes."""
  return np.unique(np.linspace(0, n - 1, min(n, k)).astype(int))


def save_arrays(folder, images, cond, classes):
  """Writes samples.npz: images uint8 [N, H, W, C]; with conditions also labels [N, K] and classes. No pickles."""
  buffer = io.BytesIO()
  arrays = dict(images=images) | ({} if cond is None else dict(labels=cond, classes=np.array(classes)))
  np.savez_compressed(buffer, **arrays)
  write_atomic(folder / 'samples.npz', buffer.getvalue())
