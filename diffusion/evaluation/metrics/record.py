"""What was measured, how, and of what: the record of an evaluation, and whether two may be compared.

A record is JSON:
  protocol  how it was measured: {'samples': reference, its hash, split, extractor, its hash, resize, .., and one such entry for each metric
            that has another}. Records compare only where the entry of the metric is equal (names apart: the hashes tell).
  subject   what was measured: checkpoint, weights, sampler, grid, evaluations of the network a sample, guidance, seed, the config, versions.
  metrics   {name: {value, error, low, high, n}}
"""
import json
import math
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from diffusion.errors import InputError

FORMAT = 1
LOWER = ('fd_infinity', 'fd', 'kid', 'sliced_wasserstein', 'copies', 'heldout_error', 'bits_bound', 'bits_ode')  # better when lower
HIGHER = ('precision', 'recall', 'density', 'coverage', 'inception_score', 'class_accuracy', 'attribute_accuracy', 'diversity', 'authenticity')  # when higher
SIZED = ('fd', 'copies', 'inception_score', 'precision', 'recall', 'density', 'coverage', 'diversity', 'sliced_wasserstein')  # their value depends on n
NAMES = ('reference', 'extractor')  # say what a hash is of


class Estimate(NamedTuple):
  """A number that can be trusted."""
  value: float
  error: float  # one standard error
  low: float    # of a 95 % confidence interval
  high: float
  n: int        # samples that it rests on


def normal(value, error, n):
  """An Estimate whose interval is the value +- 1.96 standard errors."""
  return Estimate(float(value), float(error), float(value - 1.96 * error), float(value + 1.96 * error), int(n))


def mean(each):
  """The Estimate of the mean of independent values [n]; the interval is Student's. Of one value the error is unknown, NaN."""
  n = len(each)
  error = float(np.std(each, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
  half = float(stdtrit(n - 1, .975)) * error if n > 1 else math.nan
  value = float(np.mean(each))
  return Estimate(value, error, value - half, value + half, n)


def share(count, n):
  """The Estimate of a share, `count` of n; the interval is Wilson's (1927), which is right also near 0 and 1."""
  p, z = count / n, 1.96
  middle, half = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
  low, high = (0. if count == 0 else middle - half), (1. if count == n else middle + half)  # where rounding would leave 1e-18
  return Estimate(float(p), math.sqrt(p * (1 - p) / n), max(0., float(low)), min(1., float(high)), int(n))


def plain(record):
  """The record with numbers that JSON does not have (NaN, infinities) as None."""
  if isinstance(record, dict):
    return {key: plain(value) for key, value in record.items()}
  if isinstance(record, (list, tuple)):
    return [plain(value) for value in record]
  return None if isinstance(record, float) and not math.isfinite(record) else record


def make(protocol, subject, metrics):
  """The record of an evaluation. metrics: {name: Estimate}."""
  return plain(dict(format=FORMAT, protocol=protocol, subject=subject, metrics={name: m._asdict() for name, m in metrics.items()}))


def read(path):
  """The record in a file.

  Raises:
    InputError: it is not there, not JSON, or of another format.
  """
  try:
    record = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise InputError(f'{path} is no record of an evaluation ({error}); make one with --mode=evaluate') from error
  if not isinstance(record, dict) or record.get('format') != FORMAT:
    raise InputError(f'{path} has no format {FORMAT}; evaluate again with this version')
  return record


def differences(first, second, metric):
  """By what the protocols of two records differ as far as it matters to a metric: lines such as 'split: train, heldout'."""
  one, two = (record['protocol'].get(metric, record['protocol'].get('samples', {})) for record in (first, second))
  pairs = [(key, one.get(key), two.get(key)) for key in sorted({**one, **two}) if key not in NAMES]
  if metric in SIZED:
    pairs.append(('n', *(record['metrics'].get(metric, {}).get('n') for record in (first, second))))
  return [f'{key}: {a}, {b}' for key, a, b in pairs if a != b]


def ranked(records, metric):
  """[(name, Estimate, tied)] of {name: record}, best first; tied: the interval overlaps that of the best, so they cannot be told apart.

  Raises:
    InputError: an unknown metric; records that lack it, or that were measured in different ways, with the difference.
  """
  if metric not in LOWER + HIGHER:
    raise InputError(f'unknown metric {metric!r}; valid: {", ".join(LOWER + HIGHER)}')
  missing = [name for name, record in records.items() if record['metrics'].get(metric, {}).get('value') is None]
  if missing:
    raise InputError(f'{metric} was not measured for {", ".join(missing)}')
  first, *others = records
  for name in others:
    gaps = differences(records[first], records[name], metric)
    if gaps:
      raise InputError(f'{metric} of {first} and of {name} were measured in different ways ({"; ".join(gaps)}) and cannot be compared: '
                       'evaluate both in the same way')
  sign = 1 if metric in LOWER else -1
  estimates = {name: Estimate(**record['metrics'][metric]) for name, record in records.items()}
  order = sorted(estimates, key=lambda name: sign * estimates[name].value)
  best = estimates[order[0]]
  known = lambda e: e.low is not None and e.high is not None
  overlap = lambda e: not (known(e) and known(best)) or (e.low <= best.high and best.low <= e.high)
  return [(name, estimates[name], name != order[0] and overlap(estimates[name])) for name in order]
