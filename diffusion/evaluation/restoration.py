"""How well a model restores held-out images, and whether the spread of its samples tells how wrong they are.

PSNR asks whether a sample is the image; the Frechet distance, whether samples are like images, as blurred ones are not.
"""
import io

import jax
import numpy as np

from diffusion.data.dataset import size, Source, take
from diffusion.evaluation.base import columns, Evaluator, first, Measured, needs_heldout
from diffusion.evaluation import sample_metrics
from diffusion.evaluation.metrics import frechet, gaussian_stats, record
from diffusion.evaluation.metrics.features import extract_all
from diffusion.evaluation.metrics.measure import ENOUGH
from diffusion.evaluation.metrics.restoration import inside, one_each, psnr, rank_test, ranks, ssim
from diffusion.evaluation.metrics.trained_features import digest
from diffusion.generation import sampling
from diffusion.system import sharding
from diffusion.system.files import write_atomic
from diffusion.tasks import pages
from diffusion.tasks.restore import eight_bits, high

EACH = 19    # samples of an image: the smallest and the largest are then a 90 % interval
AVERAGED = 8  # samples in a mean
SHOWN = 8    # images in restoration.png
LEAST = 4    # images that have a Frechet distance


def _needs(run, data):
  return first('' if run.draws else f'the objective {run.objective.name} draws nothing',
               '' if 'image' in run.task.takes else f'config.task={run.config.task!r} restores no images',
               needs_heldout(data))


def draw(run, weights, cond, seed, each):
  """Restored images [n, each, H, W, C]: `each` samples of every condition [n, ..]."""
  n = len(cond['image'])
  drawn = sampling.make_draw(run, seed, min(run.config.sample.batch, n * each))
  many = jax.tree.map(lambda a: np.repeat(a, each, 0), cond)
  images = drawn(weights, np.arange(n * each), many)[0]['images']
  return images.reshape(n, each, *images.shape[1:])


def _measure(run, weights, data, folder, report):
  options = run.config.evaluate
  n = min(size(data.heldout), max(2, options.num_samples // EACH))
  report('restoration', f'{EACH} samples of each of {n} held-out images, {run.config.sampler}, {run.config.grid}')
  index = np.random.default_rng(options.seed).permutation(size(data.heldout))[:n]
  batch = run.task.batch(data.heldout, index)
  x0, cond = jax.device_get(run.encode(run.frozen, None, batch))
  truth, peak = high(take(data.heldout, index)), 2. ** run.task.facts['bits'] - 1
  inputs = jax.device_get(run.decode(run.frozen, x0, cond))['inputs']
  samples = draw(run, weights, cond, options.seed, EACH)
  average = samples[:, :AVERAGED].mean(1)
  of_mean = psnr(average, truth, peak)
  metrics = dict(psnr=record.mean(psnr(samples[:, 0], truth, peak)), psnr_mean=record.mean(of_mean),
                 ssim_mean=record.mean(ssim(average, truth, peak)))
  comparable = inputs.shape[-1] in (1, truth.shape[-1])
  of_input = psnr(inputs, truth, peak) if comparable else None
  if comparable:
    metrics['psnr_gain'] = record.mean(of_mean - of_input)
  if 'low' not in batch and 'noise' not in run.task.facts:
    metrics['input_distance'] = record.mean(view_distance(run, samples[:, 0], cond, peak))
  pages.save_png(page(inputs, truth, samples, average, peak, run.config), folder / 'restoration.png')
  alike, ranked = distances(run, data, samples[:, 0], inputs), _ranked(samples, truth, options.seed, folder)
  note = (f'psnr_mean and ssim_mean are of the mean of {AVERAGED} samples; psnr_gain is its PSNR above that of the '
          'degraded image as the network sees it')
  distance = '; input_distance is how far a sample, degraded, is from that image, in steps of 255'
  protocol = dict(data_hash=digest(*columns(data.heldout)), number=n, each=EACH)
  details = ranked.details | dict(psnr_input=float(np.mean(of_input)) if comparable else None)
  return Measured(metrics | alike.metrics, {name: protocol for name in metrics} | alike.protocol,
                  dict(restoration=details), alike.heldout,
                  (note + distance * ('input_distance' in metrics), *alike.notes, *ranked.notes))


def _ranked(samples, truth, seed, folder):
  """A Measured of the ranks of the truth, without metrics; writes ranks.png."""
  found = ranks(samples, truth, seed)
  p = rank_test(one_each(samples, truth, found, seed), EACH)
  covered = record.mean(inside(found, EACH).mean((1, 2, 3)))
  write_atomic(folder / 'ranks.png', histogram(found, p, covered))
  details = dict(coverage=covered._asdict(), rank_p=p, ranks=np.bincount(found.ravel(), minlength=EACH + 1).tolist())
  return Measured({}, {}, details, notes=(
    f'90 % intervals cover {100 * covered.value:.1f} % of the true values ({100 * covered.low:.1f} to '
    f'{100 * covered.high:.1f} %); ranks of the truth among samples are '
    + ('too few to test' if np.isnan(p) else f'uniform with p = {p:.2g}'),))


def _pictures(data):
  """The Source with images of 8 bits, which features are of."""
  one = lambda side: side if 'images' in side.arrays else side._replace(arrays=dict(images=eight_bits(high(side))))
  return Source(one(data.train), one(data.heldout), data.notes)


def distances(run, data, restored, inputs):
  """Frechet distances to the data, as sample_metrics has them: of restored images, of the degraded ones that the
  network saw, and of held-out ones.

  Args:
    data: the Source.
    restored, inputs: uint8 or uint16 [n, H, W, C], in random order.
  Returns:
    A Measured; without metrics where there are too few images.
  """
  n, C, mesh = len(restored), restored.shape[-1], sharding.local_mesh(run.mesh)
  if n < LEAST or size(data.train) < ENOUGH:
    return Measured({}, {}, notes=(f'no Frechet distance: it needs {LEAST} restored and {ENOUGH} training images',))
  protocol = sample_metrics.make_protocol(run, _pictures(data))
  def far(prefix, moments):
    return dict(zip((f'{prefix}fd', f'{prefix}fd_infinity'), frechet.both(moments, protocol.split.moments)))
  of = lambda images: extract_all(protocol.extract, [eight_bits(images)], mesh)[0].moments
  metrics = far('', of(restored))
  if inputs.shape[-1] in (1, C):
    metrics |= far('input_', of(np.broadcast_to(inputs, restored.shape)))
  heldout = {}
  if protocol.heldout and run.config.evaluate.split == 'train':
    heldout = far('', gaussian_stats.moments([protocol.heldout[0].points[:n]], mesh=mesh))
  how = sample_metrics.describe(run, protocol) | dict(images='one sample of each of some held-out images')
  note = (f'fd and fd_infinity compare the first sample of each of {n} held-out images (config.evaluate.num_samples / '
          f'{EACH}) with ' + ('the training images' if run.config.evaluate.split == 'train' else 'all held-out images')
          + '; input_fd and input_fd_infinity the degraded images that the network saw')
  warning = frechet.warning(n, protocol.extractor.size)
  return Measured(metrics, {name: how for name in metrics}, {}, heldout, (note, *[warning] * bool(warning)))


def view_distance(run, images, cond, peak):
  """Mean absolute difference, in steps of 255, of the degraded images of samples from those they were drawn for [n].

  The noise of the degradation is the same for both.
  """
  _, again = jax.device_get(run.encode(run.frozen, None, dict(images=images)))
  return 127.5 * np.abs(again['image'] - cond['image']).mean((1, 2, 3))


def page(inputs, truth, samples, average, peak, config):
  """restoration.png: a row for each image. Spread and error are in grey, on one scale."""
  k = min(SHOWN, len(truth))
  spread, error = (np.abs(a[:k]).mean(-1, keepdims=True) for a in (samples.std(1), average - truth))
  scale = max(np.quantile(np.concatenate([spread, error]), .995), peak / 255)
  heat = lambda a: np.round(255 * np.clip(a / scale, 0, 1)).astype(np.uint8)
  shown = [_shown(a[:k]) for a in (inputs, truth, np.round(average).astype(truth.dtype), samples[:, 0], samples[:, 1])]
  parts = [*shown, _shown(heat(spread)), _shown(heat(error))]
  return pages.rows([np.stack(row) for row in zip(*parts)], [''] * k,
                    ['input', 'truth', f'mean of {AVERAGED}', 'sample', 'sample', 'spread', 'error'],
                    f'{config.task}, {config.sampler}, {config.grid}; white in spread and error: '
                    f'{255 * scale / peak:.1f} of 255')


def _shown(images):
  images = eight_bits(images)
  return np.repeat(images[..., :1], 3, -1) if images.shape[-1] < 3 else images[..., :3]


def histogram(found, p, covered):
  """ranks.png: how often the truth has each rank among the samples; flat where the spread is right."""
  from matplotlib.figure import Figure  # a second to import, and only needed here
  figure = Figure(figsize=(6, 3.4), layout='constrained')
  axes = figure.subplots()
  share = np.bincount(found.ravel(), minlength=EACH + 1) / found.size
  axes.bar(np.arange(EACH + 1), share, color='tab:orange')
  axes.axhline(1 / (EACH + 1), color='black', linewidth=1)
  axes.set(xticks=range(EACH + 1), xlabel=f'rank of the true value among {EACH} samples', ylabel='share of pixels',
           title=f'p = {p:.2g} (one pixel per image), 90 % intervals cover {100 * covered.value:.1f} %')
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=130)
  return buffer.getvalue()


def _prepare(run, data):
  """Reads or trains the features."""
  if size(data.train) >= ENOUGH:
    sample_metrics.EVALUATOR.prepare(run, _pictures(data))


EVALUATOR = Evaluator(_needs, _measure, _prepare)
