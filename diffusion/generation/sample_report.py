"""What sampling writes: a new numbered folder with a page, the samples and a record of the settings."""
import json

import jax
import numpy as np
from PIL import Image

from diffusion.core import EMAS, ema, grids
from diffusion.errors import InputError
from diffusion.generation import chain, requests, sampling, strips, word_maps
from diffusion.setup.build import load_data
from diffusion.setup.choices import parse_emas
from diffusion.setup.specs import parse, resolve, unknown
from diffusion.system import multihost
from diffusion.system.files import numbered_folder, write_atomic
from diffusion.tasks import pages
from diffusion.tasks.classes import split_names
from diffusion.training.open_model import load

SHOWS = ('film', 'gif', 'noising', 'interpolation', 'comparison', 'words')
TRACED = 16  # samples in an animation
FILMED = 8   # samples in a strip
WORDED = 6   # samples with a picture of what each word looks at
GIF_FRAMES = 100


def check(run):
  """Raises InputError where config.sample does not fit the model: before training, and before anything is drawn."""
  options = run.config.sample
  for field in ('num_samples', 'batch', 'best_of'):
    if options[field] < 1:
      raise InputError(f'config.sample.{field}={options[field]}: expected at least 1')
  if options.best_of > 1 and not run.task.score:
    raise InputError(f'config.sample.best_of={options.best_of}: config.task={run.config.task!r} has no score by which '
                     'the best is chosen; set it to 1')
  check_params(run, options.params)
  chain.parse(options.then)
  shows = parse_show(options.show)
  if not run.draws:
    return
  request = requests.of_config(run)
  requests.ask(run, request, np.arange(options.num_samples), options.seed)
  fit = SHOWS[:-1] if 'denoise' in run.can else ('film', 'gif') if run.predicts else ()
  fit += ('words',) if 'attention' in run.can else ()
  if shows - set(fit if run.task.tiles else ()):
    able = f'use {", ".join(fit)}' if fit and run.task.tiles else "set it to ''"
    raise InputError(f'config.sample.show={options.show!r}: this model has no such pictures; {able}')
  if 'words' in shows and 'prompt_mix' in request:
    raise InputError(f'config.sample.show={options.show!r} shows the words of one text a sample, and prompt_mix='
                     f'{request["prompt_mix"]!r} has several; ask for a prompt, or show something else')
  if 'comparison' in shows:
    for S in strips.comparable(run.schedule):
      grids.trailing(S)(run.schedule)


def check_params(run, name):
  """Raises InputError where config.sample.params names parameters that the model does not keep."""
  key, names = 'config.sample.params', [name for name, _ in run.averages]
  if name in ('ema', 'raw'):
    return
  if parse(name)[0] == 'posthoc':
    resolve({'sample.params': dict(posthoc=ema.power)}, 'sample.params', name)
  elif parse(name)[0] not in EMAS or parse_emas(name)[0][0] not in names:
    more = f', {", ".join(names)}, posthoc(WIDTH)' if names else '; config.extra_emas adds more, in a new training'
    raise InputError(f'{key}={name!r}: expected ema, raw{more}')


def parse_show(text):
  """'film, gif' -> {'film', 'gif'}; 'all' is all that fit any model: 'words' needs one of texts."""
  names = set(split_names(text))
  for name in sorted(names - {'all', *SHOWS}):
    raise InputError(f'config.sample.show={text!r}: {unknown(name, (*SHOWS, "all"))}')
  return names - {'all'} | set(SHOWS[:-1]) if 'all' in names else names


def batch_size(options):
  """Images per batch of config.sample."""
  return min(options.batch, options.num_samples)


def traced(options):
  """Those samples of the first batch whose every step config.sample.show needs, or None."""
  shows = parse_show(options.show)
  return spread(batch_size(options), TRACED if 'gif' in shows else FILMED) if shows & {'film', 'gif'} else None


def write(model, parent, versions, data=None):
  """Draws what config.sample describes, and what the models that config.sample.then names make of it.

  Args:
    model: Loaded: the run, its weights with those of a second model where config.guide names one, and the step.
    parent: folder in which a numbered folder is made.
    versions: of the software, for the record.
    data: the Source, if it is loaded already; only the noising strip needs it.
  Returns:
    The folder.
  """
  config, options = model.run.config, model.run.config.sample
  if data is None and 'noising' in parse_show(options.show):
    data = load_data(config)
  models = [model] + [load(where, **settings) for where, settings in chain.parse(options.then)]
  chain.check(models)
  with numbered_folder(parent, model.step) as folder:
    _draw_into(folder, models, versions, data)
  return folder


def _draw_into(folder, models, versions, data):
  (run, _, step), config = models[0], models[0].run.config
  options = config.sample
  parts = chain.draw(models, requests.of_config(run), options.num_samples, options.seed, batch_size(options),
                     traced(options) if len(models) == 1 else None)
  for i, (each, part) in enumerate(zip(models, parts)):
    place = folder / f'part_{i + 1}' if len(models) > 1 else folder
    if multihost.is_main():
      place.mkdir(exist_ok=True)
    save(each.run, place, part.outputs, part.asked, title_of(each))
  if len(models) > 1:
    write_chain(folder, models, parts)
  lost = sorted({id for part in parts for id in part.lost})
  record = dict(step=step, config=json.loads(config.to_json()), facts=run.task.facts, versions=versions,
                classes=list(run.classes), not_finite=lost)
  write_atomic(folder / 'record.json', json.dumps(record, indent=2).encode())
  try:
    sampling.check_finite(lost, options.num_samples)
  except InputError as error:
    raise InputError(f'{folder}: {error}') from error
  if len(models) == 1:
    _write_strips(models[0], data, folder, title_of(models[0]), parts[0])


def title_of(model):
  """How the samples of a model are drawn."""
  config, options = model.run.config, model.run.config.sample
  how = (config.sampler, config.grid, config.guide) if model.run.levels else ()
  return ', '.join(filter(None, (f'step {model.step}', *how, options.class_mix, options.ask)))


def write_chain(folder, models, parts):
  """grid.png: some samples, a row each, as every model that draws pictures has left them."""
  seen = [(i, model.run.task.tiles(part.outputs)) for i, (model, part) in enumerate(zip(models, parts))
          if model.run.task.tiles]
  if not seen:
    return
  index = spread(len(seen[0][1]), FILMED)
  shown = [pages.enlarged(tiles[index], f'part {i + 1}') for i, tiles in seen]
  size = max(column[0].size for column in shown)
  shown = [[np.asarray(tile.resize(size, Image.Resampling.NEAREST)) for tile in column] for column in shown]
  names = parts[seen[-1][0]].asked.labels or [f'sample {k}' for k in range(len(seen[0][1]))]
  pages.save_png(pages.rows([np.stack(row) for row in zip(*shown)], [names[k] for k in index],
                            [f'{i + 1}: {tiles.shape[1]}x{tiles.shape[2]}' for i, tiles in seen],
                            'what each model of the chain has drawn'), folder / 'grid.png')


def save(run, folder, outputs, asked, title):
  """Writes a page of the outputs, grid.png, and the files of the task."""
  pages.save_png(page(run.task, outputs, asked.labels, title), folder / 'grid.png')
  run.task.save(folder, outputs, asked.cond, asked.labels)


def _write_strips(model, data, folder, title, drawn):
  """Writes what config.sample.show asks for, and mix.png of a mix of two classes or texts."""
  (run, weights, _), asked, frames = model, drawn.asked, drawn.frames
  options, batch = run.config.sample, batch_size(run.config.sample)
  shows, seed, followed = parse_show(options.show), options.seed, traced(options)
  names = asked.labels or [f'sample {i}' for i in range(options.num_samples)]
  strip = lambda name, rows, row_labels, column_labels: pages.save_png(
    pages.rows(list(rows), row_labels, column_labels, title=f'{name}, {title}'), folder / f'{name}.png')

  def chosen(k):
    index = spread(options.num_samples, k)
    return requests.rows(asked, index), [names[i] for i in index]

  tiles = strips.framed_tiles(run, frames) if shows & {'film', 'gif'} else None
  if 'film' in shows:
    index = spread(len(followed), FILMED)
    strip('film', *strips.film(tiles[:, index], [names[followed[i]] for i in index]))
  if 'gif' in shows:
    captions = asked.labels and [asked.labels[i] for i in followed]
    pages.save_gif(tiles[spread(len(tiles), GIF_FRAMES)], folder / 'denoising.gif', labels=captions, fps=12)
  if 'noising' in shows:
    examples = run.task.batch(run.task.prepare(run.task.frozen, data.train), np.arange(6))
    strip('noising', *strips.noising(run, weights, examples, [f'example {i}' for i in range(6)], seed))
  if 'interpolation' in shows:
    strip('interpolation', *strips.interpolation(run, weights, seed, batch, *chosen(6)))
  if 'comparison' in shows:
    strip('comparison', *strips.comparison(run, weights, seed, *chosen(FILMED)))
  if 'words' in shows:
    index = spread(options.num_samples, WORDED)
    images = run.task.tiles(jax.tree.map(lambda a: a[index], drawn.outputs))
    pages.save_png(word_maps.page(run, weights, images, requests.rows(asked, index), title), folder / 'words.png')
  ends = requests.mixed(run) if run.task.tiles else ()
  if ends:
    strip('mix', *strips.mixing(run, weights, seed, batch, ends))


def page(task, outputs, labels, title):
  """A page of outputs, equal labels side by side."""
  number = len(jax.tree.leaves(outputs)[0])
  order = sorted(range(number), key=lambda i: labels.index(labels[i])) if labels else list(range(number))
  return task.show(jax.tree.map(lambda a: a[order], outputs), labels and [labels[i] for i in order], title)


def spread(n, k):
  """At most k indices, evenly spread over 0 .. n-1, so that a strip shows several classes."""
  return np.unique(np.linspace(0, n - 1, min(n, k)).astype(int))
