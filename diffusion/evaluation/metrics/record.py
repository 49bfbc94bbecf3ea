"""The record of an evaluation: what was measured, and how; and the comparison of records.

A record is JSON:
  protocol  how it was measured: {'samples': reference, its hash, split, extractor, its hash, resize, ..}, and an entry
            per metric that differs. Metrics are comparable only if their entries are equal, apart from names.
  subject   what was measured: checkpoint, weights, sampler, grid, network evaluations per sample, guidance, seed, the
            config, versions.
  metrics   {name: {value, error, low, high, n}}
"""
import json
import math
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from diffusion.errors import InputError

FORMAT = 1
# Lower is better.
LOWER = ('fd_infinity', 'input_fd_infinity', 'fd', 'input_fd', 'kid', 'sliced_wasserstein', 'copies',
         'heldout_error', 'bits_bound', 'bits_ode', 'nelbo', 'nelbo_token', 'two_sample_auc', 'nearer_to_train',
         'copied_rows', 'attack_auc', 'attack_tpr', 'caption_gap', 'rfd_infinity', 'rfd', 'code_bits')
# Higher is better.
HIGHER = ('precision', 'recall', 'density', 'coverage', 'inception_score', 'class_accuracy', 'attribute_accuracy',
          'diversity', 'authenticity', 'tstr', 'tstr_ratio', 'rare_categories', 'caption_class', 'caption_kind',
          'caption_colour', 'caption_second', 'clip_score', 'recall_text_1', 'recall_text_5', 'recall_image_1',
          'recall_image_5', 'zero_shot', 'zero_shot_mixture', 'psnr', 'psnr_mean', 'psnr_gain', 'ssim', 'ssim_mean',
          'code_usage', 'prior_recall', 'image_kind', 'image_colour', 'text_kind', 'text_colour', 'inversion_psnr',
          'variety')
# Metrics of families have names that end in one of these; lower is better.
ENDINGS = ('_distance', '_nll', '_error')
# The expected value depends on n.
SIZED = ('fd', 'input_fd', 'copies', 'inception_score', 'precision', 'recall', 'density', 'coverage', 'diversity',
         'sliced_wasserstein', 'column_distance', 'worst_column_distance', 'missing_distance', 'pair_distance',
         'two_sample_auc', 'tstr', 'tstr_ratio', 'rare_categories', 'rfd', 'code_usage')
NAMES = ('reference', 'extractor')  # names of what the hashes identify


def is_metric(name):
  """Whether it may be the name of a metric."""
  return name in LOWER + HIGHER or name.endswith(ENDINGS)


class Estimate(NamedTuple):
  """A measured number with its uncertainty."""
  value: float
  error: float  # one standard error
  low: float    # of a 95 % confidence interval
  high: float
  n: int        # number of samples


def normal(value, error, n):
  """The Estimate with the interval value +- 1.96 standard errors."""
  return Estimate(float(value), float(error), float(value - 1.96 * error), float(value + 1.96 * error), int(n))


def mean(each):
  """The Estimate of the mean of independent values [n], with Student's interval; NaN for a single value."""
  n = len(each)
  error = float(np.std(each, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
  half = float(stdtrit(n - 1, .975)) * error if n > 1 else math.nan
  value = float(np.mean(each))
  return Estimate(value, error, value - half, value + half, n)


def share(count, n):
  """The Estimate of a share, `count` of n, with Wilson's interval (1927), which holds near 0 and 1, too."""
  p, z = count / n, 1.96
  middle = (p + z * z / (2 * n)) / (1 + z * z / n)
  half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
  low, high = (0. if count == 0 else middle - half), (1. if count == n else middle + half)  # exact, without rounding
  return Estimate(float(p), math.sqrt(p * (1 - p) / n), max(0., float(low)), min(1., float(high)), int(n))


def plain(record):
  """The record with None for numbers that JSON lacks (NaN, infinities)."""
  if isinstance(record, dict):
    return {key: plain(value) for key, value in record.items()}
  if isinstance(record, (list, tuple)):
    return [plain(value) for value in record]
  return None if isinstance(record, float) and not math.isfinite(record) else record


def make(protocol, subject, metrics):
  """The record of an evaluation. metrics: {name: Estimate}."""
  metrics = {name: estimate._asdict() for name, estimate in metrics.items()}
  return plain(dict(format=FORMAT, protocol=protocol, subject=subject, metrics=metrics))


def read(path):
  """Reads the record in a file.

  Raises:
    InputError: the file is missing, not JSON, or has another format.
  """
  try:
    record = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise InputError(f'{path} is not an evaluation record ({error}); create one with --mode=evaluate') from error
  if not isinstance(record, dict) or record.get('format') != FORMAT:
    raise InputError(f'{path} is not a record of format {FORMAT}; evaluate again with this version')
  return record


def differences(first, second, metric):
  """Differences between the protocols of two records that affect a metric, such as ['split: train, heldout']."""
  one, two = (record['protocol'].get(metric, record['protocol'].get('samples', {})) for record in (first, second))
  pairs = [(key, one.get(key), two.get(key)) for key in sorted({**one, **two}) if key not in NAMES]
  if metric in SIZED:
    pairs.append(('n', *(record['metrics'].get(metric, {}).get('n') for record in (first, second))))
  return [f'{key}: {a}, {b}' for key, a, b in pairs if a != b]


def ranked(records, metric):
  """[(name, Estimate, tied)] of {name: record}, best first; tied: the interval overlaps that of the best.

  Raises:
    InputError: the metric is unknown, missing in a record, or was measured in different ways; with the difference.
  """
  if not is_metric(metric):
    raise InputError(f'unknown metric {metric!r}; valid: {", ".join(LOWER + HIGHER)}')
  missing = [name for name, record in records.items() if record['metrics'].get(metric, {}).get('value') is None]
  if missing:
    raise InputError(f'{metric} was not measured for {", ".join(missing)}')
  first, *others = records
  for name in others:
    gaps = differences(records[first], records[name], metric)
    if gaps:
      raise InputError(f'{metric} of {first} and {name} was measured in different ways ({"; ".join(gaps)}) '
                       'and cannot be compared; evaluate both in the same way')
  sign = -1 if metric in HIGHER else 1
  estimates = {name: Estimate(**record['metrics'][metric]) for name, record in records.items()}
  order = sorted(estimates, key=lambda name: sign * estimates[name].value)
  best = estimates[order[0]]
  known = lambda e: e.low is not None and e.high is not None
  overlap = lambda e: not (known(e) and known(best)) or (e.low <= best.high and best.low <= e.high)
  return [(name, estimates[name], name != order[0] and overlap(estimates[name])) for name in order]
