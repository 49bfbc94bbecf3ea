"""How near drawn series are to those held out: their spectra, and the distribution of their values."""
import io

import numpy as np
import scipy

from diffusion.data.dataset import size
from diffusion.evaluation.base import columns, Evaluator, first, Measured
from diffusion.evaluation.metrics.gaussian_stats import jackknife
from diffusion.evaluation.metrics.trained_features import digest
from diffusion.generation import requests, sampling
from diffusion.system.files import write_atomic

GROUPS = 10  # of series, whose spread gives the error of a distance
ENOUGH = 2 * GROUPS


def log_spectra(series):
  """log10 of the power at each frequency but 0, [N, length // 2], of series [N, length, C] with a Hann window.

  A floor at 1e-4 of the mean power keeps frequencies that hold nothing from deciding.
  """
  values = np.asarray(series, np.float64)
  power = np.mean(np.abs(np.fft.rfft(values * np.hanning(values.shape[1])[:, None], axis=1)) ** 2, -1)[:, 1:]
  return np.log10(power + 1e-4 * power.mean(1, keepdims=True))


def spectrum_distance(a, b):
  """The root mean square difference, over frequencies, of two mean log spectra, in decades."""
  return np.sqrt(np.mean((log_spectra(a).mean(0) - log_spectra(b).mean(0)) ** 2))


def value_distance(a, b):
  """The Wasserstein-1 distance of all values, in the units of the data, as a mean over channels."""
  return np.mean([scipy.stats.wasserstein_distance(a[..., c].ravel(), b[..., c].ravel())
                  for c in range(a.shape[-1])])


def measured(distance, series, reference, seed):
  """The Estimate of a distance, with the jackknife's error over random groups left out on both sides at once.

  A distance is never below 0, so that equal distributions have a small one, which falls with the number of series:
  compare with that of training series.
  """
  rng = np.random.default_rng(seed)
  parts = [np.array_split(rng.permutation(len(values)), GROUPS) for values in (series, reference)]
  without = [distance(np.delete(series, a, 0), np.delete(reference, b, 0)) for a, b in zip(*parts)]
  return jackknife(distance(series, reference), without, len(series))


def _measure(run, weights, data, folder, report):
  options, length = run.config.evaluate, run.shape[0]
  report('spectrum', f'{options.num_samples} samples, {run.config.sampler}, {run.config.grid}')
  asked = requests.ask(run, requests.of_config(run) | dict(length=length), np.arange(options.num_samples), options.seed)
  draw = sampling.make_draw(run, options.seed, min(run.config.sample.batch, options.num_samples))
  samples = draw(weights, np.arange(options.num_samples), asked.cond)[0]['series']
  reference, train = data.heldout.arrays['series'], data.train.arrays['series'][:len(samples)]
  kinds = dict(spectrum_distance=spectrum_distance, value_distance=value_distance)
  write_atomic(folder / 'spectrum.png', plot(samples, reference))
  protocol = dict(data_hash=digest(*columns(data.heldout)), number=len(samples))
  measure = lambda series: {name: measured(kind, series, reference, options.seed) for name, kind in kinds.items()}
  return Measured(measure(samples), {name: protocol for name in kinds}, heldout=measure(train))


def plot(samples, reference):
  """spectrum.png: the mean log spectrum of samples and held-out series, with the range of 80 % of them."""
  from matplotlib.figure import Figure  # a second to import, and only needed here
  figure = Figure(figsize=(6, 3.8), layout='constrained')
  axes = figure.subplots()
  for series, name, colour in ((reference, 'held out', 'black'), (samples, 'samples', 'tab:orange')):
    spectra = log_spectra(series)
    frequency = np.arange(1, spectra.shape[1] + 1) / series.shape[1]
    axes.plot(frequency, spectra.mean(0), color=colour, label=name)
    axes.fill_between(frequency, *np.quantile(spectra, (.1, .9), 0), color=colour, alpha=.15, linewidth=0)
  axes.set(xlabel='frequency, periods per sample', ylabel='log10 of the power')
  axes.legend()
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=130)
  return buffer.getvalue()


def _needs(run, data):
  return first('' if run.draws else f'the objective {run.objective.name} draws nothing',
               '' if run.task.gives == 'series' else f'the samples are {run.task.gives}, not series',
               '' if size(data.heldout) >= ENOUGH else f'it needs at least {ENOUGH} held-out series')


EVALUATOR = Evaluator(_needs, _measure)
