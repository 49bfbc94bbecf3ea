"""--mode=evaluate: everything that can be measured of a model, each number with its error, in one folder."""
import io
import json
from typing import Any, Callable, NamedTuple

import jax
import numpy as np

from diffusion import bits, generate, heldout, pictures, samples
from diffusion.build import make
from diffusion.checks import learns_schedule, name
from diffusion.data.dataset import context
from diffusion.errors import InputError
from diffusion.files import write_atomic
from diffusion.metrics import frechet, kernel, measure, moments, record
from diffusion.metrics.extractor import Extractor
from diffusion.metrics.own import digest
from diffusion.metrics.reference import MANIFOLD, Reference, look, reference, viewer
from diffusion.second import helped
from diffusion.specs import unknown

WHAT = ('loss', 'samples', 'bound', 'ode')
SHOWN = 64   # samples on the page
PANEL = 12   # samples beside their nearest training pictures


def check(options):
  """Raises InputError where config.evaluate does not hold together: before anything is computed."""
  parts(options.what)
  for field, least in (('number', measure.ENOUGH), ('likelihood_number', 1), ('curve_number', measure.ENOUGH), ('every', 0), ('seed', 0)):
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


def prepare(run, config, data):
  """What is asked for, less what the model cannot have; raises InputError for what the data cannot give, before anything is drawn.

  Returns:
    (what, notes): the parts, and a line for each that was left out.
  """
  options, what, notes = config.evaluate, parts(config.evaluate.what), []
  def without(some, why):
    nonlocal what
    gone = [part for part in what if part in some]
    what = [part for part in what if part not in some]
    notes.extend([f'{", ".join(gone)} left out: {why}'] * bool(gone))
  if run.denoise is None:
    without(('samples', 'bound', 'ode'), 'a classifier draws nothing')
  if run.self_condition:
    without(('bound', 'ode'), 'a self-conditioned model has no likelihood by one evaluation a level')
  if not len(data.heldout.images):
    without(('loss', 'bound', 'ode'), 'this data set has no held-out pictures')
  if not what:
    raise InputError(f'config.evaluate.what={options.what!r}: nothing is left to measure ({"; ".join(notes)})')
  if options.split == 'heldout' and len(data.heldout.images) < measure.ENOUGH:
    raise InputError(f"config.evaluate.split='heldout' needs at least {measure.ENOUGH} held-out pictures, there are {len(data.heldout.images)}; use 'train'")
  if config.sample.mix:
    raise InputError(f'config.sample.mix={config.sample.mix!r} is not in the data, so that it cannot be compared with it; leave it empty')
  if options.every and learns_schedule(config):
    raise InputError("config.evaluate.every: with config.schedule='learned' the samples on the way are drawn on the initial schedule; set it to 0")
  if options.statistics:
    moments.read(options.statistics)
  if 'samples' in what or options.every:
    make('evaluate.features', options.features)(data.train, run.mesh)  # weights that cannot be read stop here; features are trained here
  return what, notes


# ---- how it is measured
class Gauge(NamedTuple):
  """The extractor and the data: what samples are measured with."""
  extractor: Extractor
  see: Callable     # pictures -> Features
  split: Reference  # what the samples are compared with
  train: Reference  # what they may be copies of
  heldout: Any      # (Seen, labels) of held-out pictures in random order, or None where they are too few


def gauge(run, config, data):
  """The Gauge of a config: trains or loads the features, and looks at the data, unless the cache has them."""
  options = config.evaluate
  extractor = make('evaluate.features', options.features)(data.train, run.mesh)
  see = viewer(extractor, run.mesh)
  split = train = reference(extractor, see, data.train.images, run.mesh)
  if options.split == 'heldout':
    split = reference(extractor, see, data.heldout.images, run.mesh)
  if options.statistics:
    given = moments.read(options.statistics)
    if given.mean.shape[1] != extractor.size:
      raise InputError(f'config.evaluate.statistics={options.statistics!r} has {given.mean.shape[1]} features, {options.features} has {extractor.size}')
    split = split._replace(moments=given)
  if len(data.heldout.images) < measure.ENOUGH:
    return Gauge(extractor, see, split, train, None)
  order = np.random.default_rng(0).permutation(len(data.heldout.images))[:MANIFOLD]
  return Gauge(extractor, see, split, train, (look(see, [data.heldout.images[order]], run.mesh)[0], data.heldout.labels[order]))


def protocol(config, gauge):
  """How samples are measured, for the record."""
  return dict(reference=config.data, reference_hash=gauge.split.digest, split=config.evaluate.split, extractor=config.evaluate.features,
              extractor_hash=gauge.extractor.digest, resize=gauge.extractor.resize, classes=config.sample.classes,
              statistics_hash=digest(gauge.split.moments.mean) if config.evaluate.statistics else '', training_searched=len(gauge.train.points))


def subject(run, config, params, step, workdir, versions):
  """What is measured, for the record."""
  told = ('sampler', 'grid', 'guidance', 'guide', 'negative', 'clip')
  evaluations = len(run.sampler.plan(run.levels).h) if run.denoise and name(config, 'sampler') != 'adaptive' else None
  helpers = config.sample.bad or config.sample.classifier  # which take calls of other networks
  calls = None if helpers or evaluations is None else evaluations * (1 if config.guidance == 1 or not run.classes else 2)
  return dict(checkpoint=str(workdir), step=step, weights=config.sample.weights, weights_hash=digest(*jax.tree.leaves(jax.device_get(params))),
              **{key: config[key] for key in told}, evaluations=evaluations, network_calls=calls, seed=config.evaluate.seed,
              config=json.loads(config.to_json()), versions=versions)


# ---- the samples
def conditions(run, config, data, number):
  """(conditions [number, K] or None, what they ask for or None: classes [number] or attributes [number, K]).

  Those that config.sample.classes names, as often each, or else those of training pictures; in random order, and those of sample k
  do not depend on `number`.
  """
  rng = np.random.default_rng(config.evaluate.seed)
  if not run.classes or config.sample.classes == 'none':
    return generate.class_conditions(run.classes, config.sample.classes, number)[0], None
  if config.sample.classes:
    names = [part.strip() for part in config.sample.classes.split(',') if part.strip()]
    cond, labels = generate.class_conditions(run.classes, config.sample.classes, len(names))
    order = np.concatenate([rng.permutation(len(names)) for _ in range(-(-number // len(names)))])[:number]
    return cond[order], np.array([run.classes.index(label) for label in labels])[order]
  labels = data.train.labels[np.resize(rng.permutation(len(data.train.labels)), number)]
  return context(labels, run.classes), labels


def make_curve(run, config, data):
  """params -> {'fd_infinity', 'fd_infinity_error'} of a few samples: a point of the curve that follows a training."""
  options, fixed = config.evaluate, gauge(run, config, data)
  number = options.curve_number
  cond, _ = conditions(run, config, data, number)
  stream = generate.make_stream(run, options.seed, min(config.sample.batch, number))

  def point(params):
    seen, _ = look(fixed.see, (images for images, _ in stream(params, np.arange(number), cond)), run.mesh)
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
  """Draws config.evaluate.number samples and writes samples.png, samples.npz and memorisation.png: of_pictures of them."""
  options = config.evaluate
  cond, wanted = conditions(run, config, data, options.number)
  stream = generate.make_stream(run, options.seed, min(config.sample.batch, options.number))
  seen, images = look(fixed.see, (images for images, _ in stream(params, np.arange(options.number), cond)), run.mesh)
  cond, wanted = (None if a is None else a[:len(images)] for a in (cond, wanted))
  names = None if wanted is None or wanted.ndim == 2 else [run.classes[i] for i in wanted]
  shown = slice(0, SHOWN)
  title = f'{config.sampler}, {config.grid}, guidance {config.guidance:g}'
  pictures.save_png(samples.page(images[shown], names and names[shown], title), folder / 'samples.png')
  samples.save_arrays(folder, images, cond, run.classes)
  return of_pictures(run, config, data, fixed, seen, images, wanted, folder)


def of_pictures(run, config, data, fixed, seen, images, wanted, folder):
  """Measures pictures: ({name: Estimate}, the same of as many held-out pictures, details for the record); writes memorisation.png."""
  seed, known = config.evaluate.seed, fixed.extractor.classes == run.classes
  found = measure.measure(seen, fixed.split, seed, wanted if known else None, run.mesh)
  copies = measure.copies(seen.points, fixed.train, fixed.heldout and fixed.heldout[0].points, run.mesh)
  panel(images, data.train.images, copies, folder)
  details = dict(usual_distance=dict(zip(('1 %', '50 %', '99 %'), np.quantile(copies.usual, (.01, .5, .99)).tolist())))
  size = min(1000, len(seen.points), len(fixed.split.points))
  details['kid_subsets'] = dict(zip(('mean', 'deviation'), kernel.spread(seen.points, fixed.split.points[:MANIFOLD], seed, 20, size, run.mesh)), size=size)
  real = {}
  if fixed.heldout and config.evaluate.split == 'train':
    whole, labels = fixed.heldout
    n = min(len(whole.points), len(seen.points))
    few = whole._replace(points=whole.points[:n], logits=None if whole.logits is None else whole.logits[:n])
    real = measure.measure(few, fixed.split, seed, labels[:n] if known else None, run.mesh)
  return found | dict(copies=copies.copies, authenticity=copies.authenticity), real, details


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
  logsnr = np.clip(curve['logsnr'], -20, 20)  # a level without signal has none
  edges = np.quantile(logsnr, np.linspace(0, 1, 41))
  place = np.clip(np.searchsorted(edges, logsnr, side='right') - 1, 0, 39)
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
  Raises:
    InputError: before anything is drawn, what does not fit the model or the data.
  """
  what, notes = prepare(run, config, data)
  plain, (run, both) = params, helped(run, config, params, config.sample.classes) if run.denoise else (run, params)
  folder = type(workdir)(config.evaluate.folder) if config.evaluate.folder else samples.new_folder(workdir / 'evaluations', step)
  folder.mkdir(parents=True, exist_ok=True)
  metrics, how, details, real = {}, {}, {}, {}
  if 'loss' in what:
    result = heldout.heldout_by_logsnr(run, plain, data.heldout)
    heldout.save(result, folder)
    say('', heldout.table(result))
    metrics['heldout_error'] = record.normal(result['loss'], result['loss_error'], result['number'])
    how['heldout_error'] = dict(what=result['what'], predict=config.predict, schedule=config.schedule, data_hash=digest(data.heldout.images))
  if 'samples' in what:
    say('features', config.evaluate.features)
    fixed = gauge(run, config, data)
    how['samples'] = protocol(config, fixed)
    notes += [note for note in [frechet.warning(config.evaluate.number, fixed.extractor.size)] if note]
    say('samples', f'{config.evaluate.number}, {config.sampler}, {config.grid}')
    found, real, details['samples'] = of_samples(run, config, both, data, fixed, folder)
    metrics |= found
  if {'bound', 'ode'} & set(what):
    likelihood(run, config, plain, data, what, folder, metrics, how, details, say)
  for note in notes:
    say('note', note)
  made = record.make(how, subject(run, config, plain, step, workdir, versions), metrics)
  made |= record.plain(dict(heldout={key: estimate._asdict() for key, estimate in real.items()}, details=details, notes=notes))
  text = table(made)
  write_atomic(folder / 'evaluation.md', text.encode())
  write_atomic(folder / 'evaluation.json', json.dumps(made, indent=2).encode())  # last: where it is, the evaluation is complete
  say('', text)
  return folder


def likelihood(run, config, params, data, what, folder, metrics, how, details, say):
  """Adds bits_bound and bits_ode to metrics, how and details; writes bits.png."""
  say('likelihood', f'{" and ".join(part for part in what if part in ("bound", "ode"))} of {config.evaluate.likelihood_number} held-out pictures')
  cut = bits.cut(run, config, params, data.train)
  same = dict(data_hash=digest(data.heldout.images), levels=256, conditional=bool(run.classes))
  if 'bound' in what:
    metrics['bits_bound'], details['bits_bound'], curve = bits.by_bound(run, config, params, data, cut)
    how['bits_bound'] = same
    plot_bits(curve, metrics['bits_bound'], folder)
  if 'ode' in what:
    metrics['bits_ode'], details['bits_ode'] = bits.by_ode(run, config, params, data, cut)
    how['bits_ode'] = same | dict(dequantisation=details['bits_ode']['dequantisation'])


def table(made):
  """A record as text: every metric with its interval, and what pictures held out from training have."""
  lines = ['| metric | better | value | 95 % interval | of | held-out pictures |', '|---|---|---|---|---|---|']
  show = lambda x: 'unknown' if x is None else f'{x:.4g}'
  for key in (*record.LOWER, *record.HIGHER):
    if key in made['metrics']:
      m, real = made['metrics'][key], made['heldout'].get(key)
      lines.append(f'| {key} | {"lower" if key in record.LOWER else "higher"} | {show(m["value"])} | {show(m["low"])} to {show(m["high"])} | '
                   f'{m["n"]} | {show(real["value"]) if real else ""} |')
  return '\n'.join([*lines, '', *made['notes']]).rstrip() + '\n'
