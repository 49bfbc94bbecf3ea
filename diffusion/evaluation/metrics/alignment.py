"""How far samples follow their captions, by what a judge sees in them (judge.py).

  S = (a - floor) / (ceiling - floor)

a: how often the judge sees in a sample what its caption says. floor: the same against the captions of other samples, on
average over all of them, so that nothing is drawn. ceiling: the same on real examples with their own captions. S is 1
for samples that follow their captions as real examples do (and may be above it, where samples are easier to read than
real ones), and 0 for samples that ignore them, however many values there are to guess from and however good the judge.
"""
import math

import numpy as np

from diffusion.evaluation.metrics.record import normal


def alignment(seen, asked, real_seen, real_asked):
  """S over all pairs of a sample and a head that its caption speaks of, an Estimate; None where there are none.

  Each head has its own floor and ceiling, and counts as often as the captions of samples speak of it. The error is
  that of the delta method over samples and real examples (the floor is a U-statistic, whose projection is known), with
  one more sample that is wrong, so that a few right ones do not look certain.

  Args:
    seen, asked: int [n, H], the numbers of what the judge sees and of what the captions say; -1: nothing.
    real_seen, real_asked: int [m, H], the same of real examples.
  """
  gain, room, pairs = 0., 0., 0
  above, below, ceiling = np.zeros(len(seen)), np.zeros(len(seen)), np.zeros(len(real_seen))
  for head in range(seen.shape[1]):
    rows, real = asked[:, head] >= 0, real_asked[:, head] >= 0
    n, m = int(rows.sum()), int(real.sum())
    if n < 2 or not m:
      continue
    hit, right = seen[rows, head] == asked[rows, head], real_seen[real, head] == real_asked[real, head]
    others = by_chance(seen[rows, head], asked[rows, head])
    floor, top = others.mean(), right.mean()
    gain, room, pairs = gain + hit.sum() - n * floor, room + n * (top - floor), pairs + n
    above[rows] += hit - 2 * others + floor
    below[rows] += top - 2 * others + floor
    ceiling[real] += n / m * (right - top)
  if room <= 0:
    return None
  S, count = gain / room, int(np.sum((asked >= 0).any(1)))
  variance = np.sum((above - S * below) ** 2) + S ** 2 * np.sum(ceiling ** 2) + (pairs / count) ** 2
  return normal(S, math.sqrt(variance) / room, count)


def by_chance(seen, asked):
  """How often each sample, with the captions of the others, is what is asked for: float [n], the mean is the floor.

  Half of sample i's share is what is seen in it against all other captions, half its caption against all other samples.
  """
  size = max(seen.max(), asked.max()) + 1
  of_seen, of_asked = np.bincount(seen, minlength=size), np.bincount(asked, minlength=size)
  return ((of_asked[seen] + of_seen[asked]) / 2 - (seen == asked)) / (len(seen) - 1)


def gap(first, second):
  """The Estimate of the difference of two scores of different samples; None where one is.

  They share the ceiling, so that the error is rather too large.
  """
  if first is None or second is None:
    return None
  return normal(first.value - second.value, math.hypot(first.error, second.error), min(first.n, second.n))
