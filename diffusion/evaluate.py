"""--mode=evaluate: everything that can be measured of a model, each number with its error, in one folder."""
import io
import json
from typing import Any, Callable, NamedTuple

import jax
import numpy as np

from diffusion import bits, generate, heldout, pictures, samples
from diffusion.build import make
from diffusion.data.dataset import context
from diffusion.errors import InputError
from diffusion.files import write_atomic
from diffusion.metrics import frechet, measure, moments, record
from diffusion.metrics.extractor import Extractor
from diffusion.metrics.reference import Reference, reference, viewer
from diffusion.second import helped
from diffusion.specs import unknown

WHAT = ('loss', 'samples', 'bound', 'ode')
SHOWN = 64   # samples on the page
PANEL = 12   # samples beside their nearest training pictures


def check(options):
  """Raises InputError where config.evaluate does not hold together: before anything is computed."""
  parts(options.what)
  for field, least in (('number', 16), ('likelihood_number', 1), ('curve_number', 16), ('every', 0), ('seed', 0)):
    if options[field] < least:
      raise InputError(f'config.evaluate.{field}={options[field]}: expected at least {least}')
  if options.split not in ('train', 'heldout'):
    raise InputError(f"config.evaluate.split={options.split!r}: expected 'train' or 'heldout'")


def parts(text):
  """'loss, samples' -> ['loss', 'samples']."""
  names = [name.strip() for name in text.split(',') if name.strip()]
  for name in names:
    if name not in WHAT:
      raise InputError(f'config.evaluate.what: {unknown(name, WHAT)}')
  if not names:
    raise InputError(f'config.evaluate.what is empty: name some of {", ".join(WHAT)}')
  return names


# ---- how it is measured
class Gauge(NamedTuple):
  """The extractor and the data: what samples are measured with."""
  extractor: Extractor
  see: Callable     # pictures -> Features
  split: Reference  # what the samples are compared with
  train: Reference  # what they may be copies of
  heldout: Any      # Seen of held-out pictures, or None


def gauge(run, config, data):
  """The Gauge of a config: trains or loads the features, and looks at the data, unless the cache has them."""
  options = config.evaluate
  extractor = make('evaluate.features', options.features)(data.train, run.mesh)
  see = viewer(extractor, run.mesh)
  train = reference(extractor, see, data.train.images)
  if not len(data.heldout.images):
    if options.split == 'heldout':
      raise InputError("config.evaluate.split='heldout', but this data set has no held-out pictures; use 'train'")
    return Gauge(extractor, see, train, train, None)
  kept = data.heldout.images[np.random.default_rng(0).permutation(len(data.heldout.images))[:options.number]]
  split = train if options.split == 'train' else reference(extractor, see, data.heldout.images)
  return Gauge(extractor, see, split, train, look(see, [kept])[0])


def look(see, batches, limit=measure.MANIFOLD):
  """(Seen, the first pictures) of batches of pictures, of any number: only `limit` features and pictures are kept."""
  kept, room = [], limit
  def points():
    nonlocal room
    for images in batches:
      seen = see(images)
      kept.append((seen.points[:room], None if seen.logits is None else seen.logits[:room], images[:room]))
      room -= len(kept[-1][0])
      yield seen.points
  found = moments.moments(points())
  first, logits, images = zip(*kept)
  return measure.Seen(found, np.concatenate(first), None if logits[0] is None else np.concatenate(logits)), np.concatenate(images)


def protocol(config, gauge):
  """How it is measured, for the record."""
  return dict(reference=config.data, reference_hash=gauge.split.digest, split=config.evaluate.split, extractor=config.evaluate.features,
              extractor_hash=gauge.extractor.digest, resize=gauge.extractor.resize)


def subject(run, config, step, workdir, versions):
  """What is measured, for the record."""
  told = ('sampler', 'grid', 'guidance', 'guide', 'negative', 'clip')
  evaluations = len(run.sampler.plan(run.levels).h) if run.denoise else 0
  return dict(checkpoint=str(workdir), step=step, weights=config.sample.weights, **{name: config[name] for name in told},
              evaluations=evaluations, network_calls=evaluations * (1 if config.guidance == 1 else 2), seed=config.evaluate.seed,
              config=json.loads(config.to_json()), versions=versions)


# ---- the samples
def conditions(run, config, data, number):
  """(conditions [number, K] or None, classes asked for [number] or None): those that config.sample.classes names, else as in the data."""
  if config.sample.classes or not run.classes:
    cond, labels = generate.class_conditions(run.classes, config.sample.classes, number)
    return cond, np.array([run.classes.index(label) for label in labels]) if labels else None
  order = np.random.default_rng(config.evaluate.seed).permutation(len(data.train.labels))
  labels = data.train.labels[np.resize(order, number)]
  return context(labels, run.classes), labels if labels.ndim == 1 else None


def make_curve(run, config, data):
  """params -> {'fd_infinity', 'fd_infinity_error'} of a few samples: a point of the curve that follows a training."""
  options, fixed = config.evaluate, gauge(run, config, data)
  number = options.curve_number
  cond, _ = conditions(run, config, data, number)
  stream = generate.make_stream(run, options.seed, min(config.sample.batch, number))

  def point(params):
    seen, _ = look(fixed.see, (images for images, _ in stream(params, np.arange(number), cond)))
    found = frechet.fd_infinity(seen.moments, fixed.split.moments)
    return dict(fd_infinity=found.value, fd_infinity_error=found.error)
  return point


def plateau(points, last=3):
  """Whether the `last` points of a curve, [(step, value, error)], are no better than the best before them, by two standard errors."""
  if len(points) < last + 1:
    return False
  before, after = (min(part, key=lambda point: point[1]) for part in (points[:-last], points[-last:]))
  return before[1] - after[1] < 2 * np.hypot(before[2], after[2])


def of_samples(run, config, params, data, fixed, folder):
  """Draws config.evaluate.number samples and writes samples.png, samples.npz and memorisation.png: ({name: Estimate}, the same of held-out
  pictures)."""
  options = config.evaluate
  cond, wanted = conditions(run, config, data, options.number)
  stream = generate.make_stream(run, options.seed, min(config.sample.batch, options.number))
  seen, images = look(fixed.see, (images for images, _ in stream(params, np.arange(options.number), cond)))
  names = None if wanted is None else [run.classes[i] for i in wanted]
  shown = slice(0, SHOWN)
  title = f'{config.sampler}, {config.grid}, guidance {config.guidance:g}'
  pictures.save_png(samples.page(images[shown], names and names[shown], title), folder / 'samples.png')
  samples.save_arrays(folder, images, cond, run.classes)
  known = fixed.extractor.classes == run.classes
  found = measure.measure(seen, fixed.split, options.seed, wanted if known else None)
  copies = measure.copies(seen.points, fixed.train, fixed.heldout and fixed.heldout.points)
  panel(images, data.train.images, copies, folder)
  real = {}
  if fixed.heldout and options.split == 'train':
    labels = data.heldout.labels
    real = measure.measure(fixed.heldout, fixed.split, options.seed)
  return found | dict(copies=copies.copies, authenticity=copies.authenticity), real


def panel(images, train, copies, folder):
  """memorisation.png: the samples nearest to a training picture, each above it."""
  order = np.argsort(copies.distance, kind='stable')[:PANEL]
  pixels = [np.sqrt(np.mean((images[i].astype(float) - train[copies.index[i]]) ** 2)) for i in order]
  told = [f'{d:.2g}  {p:.0f}' if p else 'the same' for d, p in zip(copies.distance[order], pixels)]
  page = pictures.rows([images[order], train[copies.index[order]]], ['sample', 'nearest in training'], told,
                       'the samples nearest to a training picture: distance of features, and of pixels (of 255)')
  pictures.save_png(page, folder / 'memorisation.png')


def plot_bits(curve, estimate, folder):
  """bits.png: bits per dimension and unit of log-SNR, whose area is the diffusion's share of the bound."""
  from matplotlib.figure import Figure
  edges = np.quantile(curve['logsnr'], np.linspace(0, 1, 41))
  place = np.clip(np.searchsorted(edges, curve['logsnr'], side='right') - 1, 0, 39)
  mean = [curve['rate'][place == k].mean() if (place == k).any() else np.nan for k in range(40)]
  figure = Figure(figsize=(6, 3.6), layout='constrained')
  axes = figure.subplots()
  axes.stairs(mean, edges, fill=True, alpha=.5)
  axes.set(xlabel='log-SNR (noisy on the left)', ylabel='bits per dimension and unit of log-SNR',
           title=f'variational bound {estimate.value:.3f} ± {estimate.error:.3f} bits per dimension')
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=130)
  write_atomic(folder / 'bits.png', buffer.getvalue())


# ---- all of it
def evaluate(run, config, params, step, data, workdir, versions, say):
  """Measures what config.evaluate asks for and writes it into a folder of its own.

  Args:
    run: the Experiment.   config: its config.   params: its weights.   step: of the weights.
    data: the Source.
    workdir: of the model.   versions: of the software; both for the record.
    say: (label, text) -> None, tells the user what is done.
  Returns:
    The folder.
  """
  what = parts(config.evaluate.what) if run.denoise else ['loss']
  helped_run, both = helped(run, config, params, config.sample.classes) if run.denoise else (run, params)
  folder = samples.new_folder(workdir / 'evaluations', step) if not config.evaluate.folder else type(workdir)(config.evaluate.folder)
  folder.mkdir(parents=True, exist_ok=True)
  metrics, real, how, notes = {}, {}, {}, []
  if 'loss' in what:
    result = heldout.heldout_by_logsnr(run, params, data.heldout)
    heldout.save(result, folder)
    say('', heldout.table(result))
    metrics['heldout_loss'] = record.normal(result['loss'], result['loss_error'], result['number'])
  if 'samples' in what:
    say('features', config.evaluate.features)
    fixed = gauge(run, config, data)
    how = protocol(config, fixed)
    say('samples', f'{config.evaluate.number}, {config.sampler}, {config.grid}')
    found, real = of_samples(helped_run, config, both, data, fixed, folder)
    metrics |= found
  likelihood = {}
  if 'bound' in what:
    say('likelihood', f'variational bound of {config.evaluate.likelihood_number} held-out pictures')
    metrics['bits_bound'], likelihood['bound'], curve = bits.by_bound(helped_run, config, params, data)
    plot_bits(curve, metrics['bits_bound'], folder)
  if 'ode' in what:
    say('likelihood', f'probability-flow ODE, {config.evaluate.likelihood_number} held-out pictures')
    metrics['bits_ode'], likelihood['ode'] = bits.by_ode(helped_run, config, params, data)
  made = record.make(how, subject(helped_run, config, step, workdir, versions), metrics)
  made |= record.plain(dict(heldout={name: estimate._asdict() for name, estimate in real.items()}, likelihood=likelihood))
  text = table(made)
  write_atomic(folder / 'evaluation.md', text.encode())
  write_atomic(folder / 'evaluation.json', json.dumps(made, indent=2).encode())  # last: where it is, the evaluation is complete
  say('', text)
  return folder


def table(made):
  """A record as text: every metric with its interval, and what pictures held out from training have."""
  lines = ['| metric | better | value | 95 % interval | of | held-out pictures |', '|---|---|---|---|---|---|']
  for name in (*record.LOWER, *record.HIGHER):
    if name in made['metrics']:
      m, real = made['metrics'][name], made['heldout'].get(name)
      show = lambda x: 'unknown' if x is None else f'{x:.4g}'
      lines.append(f'| {name} | {"lower" if name in record.LOWER else "higher"} | {show(m["value"])} | {show(m["low"])} to {show(m["high"])} | '
                   f'{m["n"]} | {show(real["value"]) if real else ""} |')
  return '\n'.join(lines) + '\n'
