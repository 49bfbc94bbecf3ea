"""Samples of a model against the data: how far they are from it, how varied, and whether they are copies."""
import sys
import time
from typing import Any, Callable, NamedTuple

import jax
import numpy as np

from diffusion.data.dataset import size
from diffusion.errors import InputError
from diffusion.evaluation.base import Evaluator, first, Measured
from diffusion.evaluation.metrics import frechet, gaussian_stats, kid, make_features, measure
from diffusion.evaluation.metrics.extractor import Extractor
from diffusion.evaluation.metrics.features import (extract_all, FeatureSet, make_extract, MANIFOLD, Reference,
                                                   reference)
from diffusion.evaluation.metrics.trained_features import digest
from diffusion.generation import requests, sample_report, sampling
from diffusion.system import sharding
from diffusion.system.log import duration
from diffusion.tasks import pages
from diffusion.tasks.classes import split_names

SHOWN = 64   # samples in samples.png
PANEL = 12   # samples in memorisation.png, beside their nearest training images


class Protocol(NamedTuple):
  """What samples are measured with: the extractor, and the data by it."""
  extractor: Extractor
  extract: Callable  # images -> Features
  split: Reference   # what the samples are compared with
  train: Reference   # what they may be copies of
  heldout: Any       # (FeatureSet, labels) of held-out images in random order, or None if there are too few


def make_protocol(run, data):
  """The Protocol of config.evaluate; what it takes of the data comes from the cache where possible."""
  options, mesh = run.config.evaluate, sharding.local_mesh(run.mesh)
  extractor = make_features(run.config)(data.train, mesh)
  extract = make_extract(extractor, mesh)
  split = train = reference(extractor, extract, data.train.arrays['images'], mesh)
  if options.split == 'heldout':
    split = reference(extractor, extract, data.heldout.arrays['images'], mesh)
  if options.statistics:
    moments = gaussian_stats.read(options.statistics)
    if moments.mean.shape[1] != extractor.size:
      raise InputError(f'config.evaluate.statistics={options.statistics!r} has {moments.mean.shape[1]} features; '
                       f'config.evaluate.features={options.features!r} has {extractor.size}')
    split = split._replace(moments=moments)
  if size(data.heldout) < measure.ENOUGH:
    return Protocol(extractor, extract, split, train, None)
  order = np.random.default_rng(0).permutation(size(data.heldout))[:MANIFOLD]
  heldout, _ = extract_all(extract, [data.heldout.arrays['images'][order]], mesh)
  return Protocol(extractor, extract, split, train, (heldout, labels_of(data.heldout, order)))


def describe(run, protocol):
  """How samples are measured, for the record."""
  config, split = run.config, protocol.split
  return dict(reference=config.data, reference_hash=split.digest, split=config.evaluate.split,
              extractor=config.evaluate.features, extractor_hash=protocol.extractor.digest,
              resize=protocol.extractor.resize, classes=config.sample.classes,
              statistics_hash=digest(split.moments.mean) if config.evaluate.statistics else '',
              training_searched=len(protocol.train.points))


# ---- the samples
def labels_of(data, index):
  """What the conditions of some examples ask for, [n] or [n, K]; zeros without labels."""
  return data.arrays['labels'][index] if 'labels' in data.arrays else np.zeros(len(index), np.int32)


def conditions(run, data, number):
  """Conditions of samples, in random order; those of sample k do not depend on `number`.

  The classes of config.sample.classes equally often, or the conditions of training examples.

  Returns:
    (cond [number, ...] or None, what they ask for: classes [number], attributes [number, K], or None).
  """
  options, rng, ask = run.config.sample, np.random.default_rng(run.config.evaluate.seed), requests.of_config(run)
  names = split_names(ask.get('classes', ''))
  if run.example[1] is None or names == ['none'] and ask['classes'].strip() == 'none':
    return requests.ask(run, ask, np.arange(number), options.seed).cond, None
  if names:
    asked = requests.ask(run, ask, np.arange(len(names)), options.seed)
    order = np.concatenate([rng.permutation(len(names)) for _ in range(-(-number // len(names)))])[:number]
    return asked.cond[order], np.array([run.classes.index(label) for label in asked.labels])[order]
  index = np.resize(rng.permutation(size(data.train)), number)
  conditions_of = jax.jit(lambda frozen, batch: run.encode(frozen, None, batch)[1])  # without the work for x0
  cond = conditions_of(run.frozen, run.task.batch(data.train, index))
  return jax.device_get(cond), labels_of(data.train, index)


def make_curve(run, data):
  """weights -> {'fd_infinity', 'fd_infinity_error'} of a few samples: a point of the curve that follows a training.

  {} where samples are not finite, as they may be at first.
  """
  options, protocol = run.config.evaluate, make_protocol(run, data)
  number = options.curve_samples
  cond, _ = conditions(run, data, number)
  sample, batch = sampling.make_sample(run, options.seed), min(run.config.sample.batch, number)

  def point(weights):
    lost = []
    batches = sampling.stream(run, sample, batch, weights, np.arange(number), cond, lost=lost)
    images = (outputs['images'] for outputs, _ in batches)
    features, _ = extract_all(protocol.extract, images, sharding.local_mesh(run.mesh))
    if lost:
      return {}
    distance = frechet.fd_infinity(features.moments, protocol.split.moments)
    return dict(fd_infinity=distance.value, fd_infinity_error=distance.error)
  return point


def plateau(points, last=3):
  """Whether the `last` points of a curve, [(step, value, error)], are within two errors of the best before them."""
  if len(points) < last + 1:
    return False
  before, after = (min(part, key=lambda point: point[1]) for part in (points[:-last], points[-last:]))
  return before[1] - after[1] < 2 * np.hypot(before[2], after[2])


def with_progress(batches, number, every=60.):
  """The images of sampling.stream; if stderr is no terminal, which shows no bar, prints the time left now and then."""
  start = last = time.monotonic()
  done = 0
  for outputs, _ in batches:
    yield outputs['images']
    done, now = done + len(outputs['images']), time.monotonic()
    if not sys.stderr.isatty() and now - last > every:
      left = duration((now - start) * (number / done - 1))
      print(f'{done}/{number} samples, {left} left', file=sys.stderr, flush=True)
      last = now


def measure_samples(run, weights, data, protocol, folder):
  """measure_images of config.evaluate.num_samples samples; writes samples.png, samples.npz and memorisation.png."""
  config = run.config
  seed, number = config.evaluate.seed, config.evaluate.num_samples
  cond, labels = conditions(run, data, number)
  sample, batch = sampling.make_sample(run, seed), min(config.sample.batch, number)
  batches = sampling.stream(run, sample, batch, weights, np.arange(number), cond)
  features, images = extract_all(protocol.extract, with_progress(batches, number), sharding.local_mesh(run.mesh))
  cond, labels = (jax.tree.map(lambda a: a[:len(images)], tree) for tree in (cond, labels))
  names = None if labels is None or labels.ndim == 2 else [run.classes[i] for i in labels]
  title = f'{config.sampler}, {config.grid}' + (f', {config.guide}' if config.guide else '')
  page = sample_report.page(run.task, dict(images=images[:SHOWN]), names and names[:SHOWN], title)
  pages.save_png(page, folder / 'samples.png')
  run.task.save(folder, dict(images=images), cond, names)
  return measure_images(run, data, protocol, features, images, labels, folder)


def measure_images(run, data, protocol, features, images, labels, folder):
  """Measures images and writes memorisation.png.

  Args:
    features: the FeatureSet of all images.
    images: uint8 [n, H, W, C], the first of them.
    labels: what the conditions ask for, as in `conditions`.
  Returns:
    ({name: Estimate}, the same of as many held-out images, details for the record).
  """
  seed, mesh = run.config.evaluate.seed, sharding.local_mesh(run.mesh)
  split, heldout, known = protocol.split, protocol.heldout, protocol.extractor.classes == run.classes
  metrics = measure.measure(features, split, seed, labels if known else None, mesh)
  copies = measure.copies(features.points, protocol.train, heldout and heldout[0].points, mesh)
  panel(images, data.train.arrays['images'], copies, folder)
  quantiles = np.quantile(copies.usual, (.01, .5, .99)).tolist()
  details = dict(usual_distance=dict(zip(('1 %', '50 %', '99 %'), quantiles)))
  size = min(1000, len(features.points), len(split.points))
  spread = kid.spread(features.points, split.points[:MANIFOLD], seed, 20, size, mesh)
  details['kid_subsets'] = dict(zip(('mean', 'deviation'), spread), size=size)
  expected = {}
  if heldout and run.config.evaluate.split == 'train':
    n = min(len(heldout[0].points), len(features.points))
    expected = measure.measure(_first(heldout[0], n, mesh), split, seed, heldout[1][:n] if known else None, mesh)
  return metrics | dict(copies=copies.copies, authenticity=copies.authenticity), expected, details


def _first(features, n, mesh):
  """The FeatureSet of the first n images of one."""
  points, logits = features.points[:n], features.logits
  return FeatureSet(gaussian_stats.moments([points], mesh=mesh), points, None if logits is None else logits[:n])


def panel(images, train, copies, folder):
  """memorisation.png: the samples nearest to a training image, each above it."""
  order = np.argsort(copies.distance, kind='stable')[:PANEL]
  nearest = train[copies.index[order]]
  pixels = [np.sqrt(np.mean((image.astype(float) - other) ** 2)) for image, other in zip(images[order], nearest)]
  captions = [f'{d:.2g}  {p:.0f}' if p else 'identical' for d, p in zip(copies.distance[order], pixels)]
  page = pages.rows([images[order], nearest], ['sample', 'nearest in training'], captions,
                    'samples nearest to a training image: distance of features, and of pixels (of 255)')
  pages.save_png(page, folder / 'memorisation.png')


# ---- the evaluator
def _needs(run, data):
  return first('' if run.draws else f'the objective {run.objective.name} draws nothing',
               '' if run.task.gives == 'images' else f'the samples are {run.task.gives}, not images',
               '' if size(data.train) >= measure.ENOUGH else
               f'it needs at least {measure.ENOUGH} training images, and there are {size(data.train)}')


def _prepare(run, data):
  """Raises InputError for options that fit neither the model nor the data; reads or trains the features."""
  options, mix = run.config.evaluate, requests.of_config(run).get('class_mix')
  if options.split == 'heldout' and size(data.heldout) < measure.ENOUGH:
    raise InputError(f"config.evaluate.split='heldout' needs at least {measure.ENOUGH} held-out images, and "
                     f"config.data has {size(data.heldout)}; use 'train'")
  if mix:
    raise InputError(f'config.sample.class_mix={mix!r}: the data has no mixes to compare samples with; leave it empty')
  if options.every and run.objective.name == 'vdm':
    raise InputError(f"config.evaluate.every={options.every}: with config.schedule='learned', samples during training "
                     'are drawn on the initial schedule; set it to 0')
  if options.statistics:
    gaussian_stats.read(options.statistics)
  make_features(run.config)(data.train, sharding.local_mesh(run.mesh))


def _measure(run, weights, data, folder, report):
  """The distances of samples to the data; writes what measure_samples writes."""
  options = run.config.evaluate
  report('features', options.features)
  protocol = make_protocol(run, data)
  report('samples', f'{options.num_samples}, {run.config.sampler}, {run.config.grid}')
  metrics, heldout, details = measure_samples(run, weights, data, protocol, folder)
  warning = frechet.warning(options.num_samples, protocol.extractor.size)
  return Measured(metrics, dict(samples=describe(run, protocol)), dict(samples=details), heldout,
                  (warning,) if warning else ())


EVALUATOR = Evaluator(_needs, _measure, _prepare)
