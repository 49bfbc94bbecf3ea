"""How near samples of the plane are to their distribution; the density and the learned field, drawn."""
import io

import jax
import numpy as np
import scipy

from diffusion import samplers
from diffusion.core import grids
from diffusion.core.gaussian import Noise, q_sample, take
from diffusion.core.schedules import evaluate
from diffusion.data import points
from diffusion.data.dataset import size
from diffusion.evaluation import ode_likelihood
from diffusion.evaluation.base import columns, Evaluator, first, Measured
from diffusion.evaluation.metrics import record
from diffusion.evaluation.metrics.gaussian_stats import jackknife
from diffusion.evaluation.metrics.trained_features import digest
from diffusion.generation import requests, sampling
from diffusion.system.files import write_atomic

GROUPS = 10  # of points, for the error of a distance
SHOWN = (4., 1., .3, .1)  # noise levels of field.png, sigma / alpha
PIXELS, ARROWS = 120, 22  # of a picture, on each side


def energy_distance(a, b, seed):
  """2 E|a - b| - E|a - a'| - E|b - b'| (Szekely & Rizzo 2013), without pairs of a point with itself: an Estimate.

  It is unbiased, so it may be below 0. The error is the jackknife's over groups left out on both sides at once: the
  variation over samples of both. Both are taken to be independent points, in any order.

  Args:
    a, b: points [n, 2] and [m, 2], at least 2 of each.
    seed: of the groups.
  """
  rng, K = np.random.default_rng(seed), min(GROUPS, len(a) // 2, len(b) // 2)
  a, b = (np.array_split(rng.permutation(np.asarray(x, np.float64)), K) for x in (a, b))
  table = lambda groups, others: np.array([[scipy.spatial.distance.cdist(x, y).sum() for y in others] for x in groups])
  tables = table(a, b), table(a, a), table(b, b)
  sizes = [np.array([len(x) for x in groups]) for groups in (a, b)]

  def value(keep):
    ab, aa, bb = (sums[np.ix_(keep, keep)].sum() for sums in tables)
    n, m = (size[keep].sum() for size in sizes)
    return 2 * ab / (n * m) - aa / (n * (n - 1)) - bb / (m * (m - 1))
  every = np.arange(K)
  return jackknife(value(every), [value(np.delete(every, i)) for i in every], sizes[0].sum())


def log_densities(run, weights, data, number):
  """log p(x) of points by the probability-flow ODE with the exact trace, in nats and in the units of the points.

  p is the distribution of the model without a class.

  Returns:
    float64 [number], or fewer if there are fewer points.
  """
  xy = data.arrays['points'][:number]
  levels = grids.exponential(65, **(dict(sigma_min=.01, sigma_max=80.) if callable(run.schedule) else {}))(run.schedule)
  batch = run.task.batch(data, np.arange(len(xy)))

  @jax.jit
  def bits(weights, batch):
    x0, cond = run.encode(weights.frozen, None, batch)
    keys = samplers.sample_keys(0, np.arange(len(xy)))
    denoise = run.plain(weights, run.task.null(cond))
    return ode_likelihood.bits(keys, denoise, levels, x0, trace=ode_likelihood.exact(), steps=None)['total']
  nats = -np.asarray(bits(weights, batch), np.float64) * 2 * np.log(2)
  return nats - np.log(run.task.fitted['scale'].astype(np.float64)).sum()


def _measure(run, weights, data, folder, report):
  options, kind = run.config.evaluate, run.task.facts.get('kind')
  report('density', f'{options.num_samples} samples, {run.config.sampler}, {run.config.grid}')
  # Classes in turn would be more even than those of independent points, and the distance too small.
  turns = np.random.default_rng(options.seed).integers(0, 2 ** 31, options.num_samples)
  asked = requests.ask(run, requests.of_config(run), turns, options.seed)
  draw = sampling.make_draw(run, options.seed, min(run.config.sample.batch, options.num_samples))
  samples = draw(weights, np.arange(options.num_samples), asked.cond)[0]['points']
  reference, train = data.heldout.arrays['points'], data.train.arrays['points']
  write_atomic(folder / 'field.png', field(run, weights, samples, train))
  common = dict(data_hash=digest(*columns(data.heldout)), number=len(samples))
  metrics = dict(energy_distance=energy_distance(samples, reference, options.seed))
  log_p = log_densities(run, weights, data.heldout, options.likelihood_samples)
  metrics['points_nll'] = record.mean(-log_p)
  notes = ()
  if kind:  # the excess is measured point by point, so that it is far more exact than the difference of the means
    truth = np.log(points.density(kind, reference[:len(log_p)]))
    metrics['excess_nll'] = record.mean(truth - log_p)
    notes = (f'points_nll of the true density is {-truth.mean():.4f} nats; excess_nll, what the model has above it, is '
             'the KL divergence of the model from the truth',)
  floor = energy_distance(train[:len(samples)], reference, options.seed)
  return Measured(metrics, {name: common for name in metrics}, heldout=dict(energy_distance=floor), notes=notes)


def field(run, weights, samples, train):
  """field.png: for a few noise levels the density of x_t with samples, and the learned field from x_t towards x0.

  Args:
    samples: points [n, 2].
    train: points [N, 2], for the density of a distribution that is not known.
  """
  from matplotlib.figure import Figure  # a second to import, and only needed here
  mean, scale = run.task.fitted['mean'], run.task.fitted['scale']
  figure = Figure(figsize=(3 * len(SHOWN), 6.2), layout='constrained')
  for ratio, (above, below) in zip(SHOWN, figure.subplots(2, len(SHOWN)).T):
    noise, rng = level_at(run.schedule, ratio), np.random.default_rng(0)
    noised = lambda xy: q_sample((xy - mean) / scale, noise, rng.normal(size=xy.shape))
    reach = 2.5 * np.sqrt(noise.alpha ** 2 + noise.sigma ** 2)  # of x_t, which is standardised
    image = density_image(run.task.facts.get('kind'), noise, mean, scale, reach, noised(train))
    start, towards = learned_field(run, weights, noise, reach)
    above.scatter(*noised(samples[:600]).T, s=2, color='black', alpha=.4, linewidths=0)
    below.quiver(*start.T, *towards.T, angles='xy', scale_units='xy', scale=1, width=.004, color='firebrick')
    for axes in (above, below):
      axes.imshow(image, origin='lower', extent=(-reach, reach, -reach, reach), cmap='Blues')
      axes.set(xticks=[], yticks=[], xlim=(-reach, reach), ylim=(-reach, reach), aspect='equal')
    above.set_title(f'sigma / alpha = {ratio:g}\ndensity of x_t, and samples', fontsize=9)
    below.set_title('learned: from x_t towards x0', fontsize=9)
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=110)
  return buffer.getvalue()


def learned_field(run, weights, noise, reach):
  """(x_t, alpha * x0 - x_t) on a square grid, each [ARROWS^2, 2]; drawn lengths are square roots, or near the data
  there would be nothing to see."""
  line = (np.arange(ARROWS) + .5) * 2 * reach / ARROWS - reach
  start = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2).astype(np.float32)
  cond = jax.tree.map(lambda a: np.repeat(a[:1], len(start), 0), run.example[1])
  pred = run.plain(weights, run.task.null(cond))(start, Noise(*map(np.float32, noise)))
  towards = noise.alpha * np.asarray(pred.x0) - start
  length = np.hypot(*towards.T)
  longest = np.quantile(length, .95) * (ARROWS / (2 * reach)) ** 2  # as long as the arrows are apart
  return start, towards / np.sqrt(np.maximum(length, 1e-9) * longest)[:, None]


def density_image(kind, noise, mean, scale, reach, noised):
  """The density of x_t in the square from -reach to reach, up to a factor: the true one, or counts of points."""
  if not kind:
    edges = np.linspace(-reach, reach, PIXELS // 3 + 1)
    return np.histogram2d(*noised.T, bins=(edges, edges))[0].T
  line = (np.arange(PIXELS) + .5) * 2 * reach / PIXELS - reach
  xy = np.stack(np.meshgrid(line, line), -1) * scale + noise.alpha * mean
  return points.density(kind, xy, noise.alpha, noise.sigma * scale)


def level_at(schedule, ratio):
  """The Noise of a schedule whose sigma / alpha is nearest to `ratio`."""
  levels = schedule if not callable(schedule) else evaluate(schedule, np.linspace(1e-4, 1 - 1e-4, 2000))
  return take(levels, int(np.argmin(np.abs(levels.logsnr + 2 * np.log(ratio)))))


def _needs(run, data):
  return first('' if 'denoise' in run.can else f'the objective {run.objective.name} has no denoiser',
               '' if run.task.gives == 'points' else f'the samples are {run.task.gives}, not points',
               'the likelihood takes a model without self-conditioning' if run.self_condition else '',
               '' if run.example[1] is None or run.config.condition_dropout else
               'it takes a model that also draws without a class, config.condition_dropout above 0',
               '' if size(data.heldout) > 1 else 'it needs at least 2 held-out points')


EVALUATOR = Evaluator(_needs, _measure)
