"""Samples of a model beside the data: how far they are from it, how varied, whether they are copies."""
import sys
import time
from typing import Any, Callable, NamedTuple

import numpy as np

from diffusion.data.dataset import condition_vectors
from diffusion.errors import InputError
from diffusion.evaluation.metrics import frechet, gaussian_stats, kid, make_features, measure
from diffusion.evaluation.metrics.extractor import Extractor
from diffusion.evaluation.metrics.features import (extract_all, FeatureSet, make_extract, MANIFOLD, Reference,
                                                   reference)
from diffusion.evaluation.metrics.trained_features import digest
from diffusion.generation import pages, sample_report, sampling
from diffusion.system import sharding
from diffusion.system.log import duration

SHOWN = 64   # samples on the page
PANEL = 12   # samples beside their nearest training pictures


class Protocol(NamedTuple):
  """The extractor and the data: what samples are measured with."""
  extractor: Extractor
  see: Callable     # pictures -> Features
  split: Reference  # what the samples are compared with
  train: Reference  # what they may be copies of
  heldout: Any      # (Seen, labels) of held-out pictures in random order, or None where they are too few


def make_protocol(run, config, data):
  """The Gauge of a config: trains or loads the features, and looks at the data, unless the cache has them."""
  options = config.evaluate
  extractor = make_features(config)(data.train, sharding.local_mesh(run.mesh))
  see = make_extract(extractor, sharding.local_mesh(run.mesh))
  split = train = reference(extractor, see, data.train.images, sharding.local_mesh(run.mesh))
  if options.split == 'heldout':
    split = reference(extractor, see, data.heldout.images, sharding.local_mesh(run.mesh))
  if options.statistics:
    given = gaussian_stats.read(options.statistics)
    if given.mean.shape[1] != extractor.size:
      raise InputError(f'config.evaluate.statistics={options.statistics!r} has {given.mean.shape[1]} features, {options.features} has {extractor.size}')
    split = split._replace(moments=given)
  if len(data.heldout.images) < measure.ENOUGH:
    return Protocol(extractor, see, split, train, None)
  order = np.random.default_rng(0).permutation(len(data.heldout.images))[:MANIFOLD]
  return Protocol(extractor, see, split, train, (extract_all(see, [data.heldout.images[order]], sharding.local_mesh(run.mesh))[0], data.heldout.labels[order]))


def protocol(config, gauge):
  """How samples are measured, for the record."""
  return dict(reference=config.data, reference_hash=gauge.split.digest, split=config.evaluate.split, extractor=config.evaluate.features,
              extractor_hash=gauge.extractor.digest, resize=gauge.extractor.resize, classes=config.sample.classes,
              statistics_hash=digest(gauge.split.moments.mean) if config.evaluate.statistics else '', training_searched=len(gauge.train.points))


# ---- the samples
def conditions(run, config, data, number):
  """(conditions [number, K] or None, what they ask for or None: classes [number] or attributes [number, K]).

  Those that config.sample.classes names, as often each, or else those of training pictures; in random order, and those of sample k
  do not depend on `number`.
  """
  rng = np.random.default_rng(config.evaluate.seed)
  if not run.classes or config.sample.classes == 'none':
    return sampling.class_conditions(run.classes, config.sample.classes, number)[0], None
  if config.sample.classes:
    names = [part.strip() for part in config.sample.classes.split(',') if part.strip()]
    cond, labels = sampling.class_conditions(run.classes, config.sample.classes, len(names))
    order = np.concatenate([rng.permutation(len(names)) for _ in range(-(-number // len(names)))])[:number]
    return cond[order], np.array([run.classes.index(label) for label in labels])[order]
  labels = data.train.labels[np.resize(rng.permutation(len(data.train.labels)), number)]
  return condition_vectors(labels, run.classes), labels


def make_curve(run, config, data):
  """params -> {'fd_infinity', 'fd_infinity_error'} of a few samples: a point of the curve that follows a training."""
  options, fixed = config.evaluate, make_protocol(run, config, data)
  number = options.curve_samples
  cond, _ = conditions(run, config, data, number)
  stream = sampling.make_stream(run, options.seed, min(config.sample.batch, number))

  def point(params):
    seen, _ = extract_all(fixed.see, (images for images, _ in stream(params, np.arange(number), cond)), sharding.local_mesh(run.mesh))
    found = frechet.fd_infinity(seen.moments, fixed.split.moments)
    return dict(fd_infinity=found.value, fd_infinity_error=found.error)
  return point


def plateau(points, last=3):
  """Whether the `last` points of a curve, [(step, value, error)], are no better than the best before them, by two standard errors."""
  if len(points) < last + 1:
    return False
  before, after = (min(part, key=lambda point: point[1]) for part in (points[:-last], points[-last:]))
  return before[1] - after[1] < 2 * np.hypot(before[2], after[2])


def with_progress(batches, number, every=60.):
  """The pictures of a stream; where there is no terminal for its bar, with a line every so many seconds that says when it ends."""
  start = last = time.monotonic()
  done = 0
  for images, _ in batches:
    yield images
    done, now = done + len(images), time.monotonic()
    if not sys.stderr.isatty() and now - last > every:
      print(f'{done}/{number} samples, {duration((now - start) * (number / done - 1))} left', file=sys.stderr, flush=True)
      last = now


def of_samples(run, config, params, data, fixed, folder):
  """Draws config.evaluate.num_samples samples and writes samples.png, samples.npz and memorisation.png: of_pictures of them."""
  options = config.evaluate
  cond, wanted = conditions(run, config, data, options.num_samples)
  stream = sampling.make_stream(run, options.seed, min(config.sample.batch, options.num_samples))
  seen, images = extract_all(fixed.see, with_progress(stream(params, np.arange(options.num_samples), cond), options.num_samples), sharding.local_mesh(run.mesh))
  cond, wanted = (None if a is None else a[:len(images)] for a in (cond, wanted))
  names = None if wanted is None or wanted.ndim == 2 else [run.classes[i] for i in wanted]
  shown = slice(0, SHOWN)
  title = f'{config.sampler}, {config.grid}' + (f', {config.guide}' if config.guide else '')
  pages.save_png(sample_report.page(images[shown], names and names[shown], title), folder / 'samples.png')
  sample_report.save_arrays(folder, images, cond, run.classes)
  return of_pictures(run, config, data, fixed, seen, images, wanted, folder)


def of_pictures(run, config, data, fixed, seen, images, wanted, folder):
  """Measures pictures: ({name: Estimate}, the same of as many held-out pictures, details for the record); writes memorisation.png."""
  seed, known = config.evaluate.seed, fixed.extractor.classes == run.classes
  found = measure.measure(seen, fixed.split, seed, wanted if known else None, sharding.local_mesh(run.mesh))
  copies = measure.copies(seen.points, fixed.train, fixed.heldout and fixed.heldout[0].points, sharding.local_mesh(run.mesh))
  panel(images, data.train.images, copies, folder)
  details = dict(usual_distance=dict(zip(('1 %', '50 %', '99 %'), np.quantile(copies.usual, (.01, .5, .99)).tolist())))
  size = min(1000, len(seen.points), len(fixed.split.points))
  details['kid_subsets'] = dict(zip(('mean', 'deviation'), kid.spread(seen.points, fixed.split.points[:MANIFOLD], seed, 20, size, sharding.local_mesh(run.mesh))), size=size)
  real = {}
  if fixed.heldout and config.evaluate.split == 'train':
    whole, labels = fixed.heldout
    n = min(len(whole.points), len(seen.points))
    few = FeatureSet(gaussian_stats.moments([whole.points[:n]], mesh=sharding.local_mesh(run.mesh)), whole.points[:n], None if whole.logits is None else whole.logits[:n])
    real = measure.measure(few, fixed.split, seed, labels[:n] if known else None, sharding.local_mesh(run.mesh))
  return found | dict(copies=copies.copies, authenticity=copies.authenticity), real, details


def panel(images, train, copies, folder):
  """memorisation.png: the samples nearest to a training picture, each above it."""
  order = np.argsort(copies.distance, kind='stable')[:PANEL]
  pixels = [np.sqrt(np.mean((images[i].astype(float) - train[copies.index[i]]) ** 2)) for i in order]
  told = [f'{d:.2g}  {p:.0f}' if p else 'the same' for d, p in zip(copies.distance[order], pixels)]
  page = pages.rows([images[order], train[copies.index[order]]], ['sample', 'nearest in training'], told,
                       'the samples nearest to a training picture: distance of features, and of pixels (of 255)')
  pages.save_png(page, folder / 'memorisation.png')
