"""Sampling grids: which noise levels a sampler visits, from noise to clean.

A grid is a `Noise[S+1]` of float64 NumPy arrays that starts at the noisiest level visited and always ends with CLEAN. Every
function here is called with a schedule (a table or a continuous curve) and is made by the number of steps S, so that
`trailing(50)(schedule)` is a grid. On a table of T rows any S from 1 to T works, divisor or not; a continuous schedule is
visited at the same times as a table of 1000 rows, without rounding where the formula needs none.
The three classic spacings are compared in arXiv:2305.08891, table 2.
"""
import numpy as np

from diffusion.errors import InputError
from diffusion.noise import CLEAN, Noise
from diffusion.schedules import at


def _grid(name, steps, times):
  """Makes a grid function of times(S, T) -> [S] in (0, 1], noisiest first."""
  if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
    raise InputError(f'{name}({steps!r}): expected a number of steps of at least 1')
  def grid(schedule):
    T = 1000 if callable(schedule) else len(schedule.logsnr)
    if steps > T and (name != 'trailing' or not callable(schedule)):
      raise InputError(f'{name}({steps}): the schedule has {T} levels; ask for at most {T} steps')
    levels = at(schedule, times(steps, T))
    if np.any(np.diff(levels.logsnr) <= 0):
      raise InputError(f'{name}({steps}): two steps fall on the same noise level of this schedule; ask for fewer steps')
    return Noise(*(np.append(a, c) for a, c in zip(levels, CLEAN)))
  return grid


def trailing(steps=50):
  """t = 1, 1 - 1/S, .. 1/S: visits the noisiest trained level. The default."""
  return _grid('trailing', steps, lambda S, T: 1 - np.arange(S) / S)


def leading(steps=50):
  """Every (T/S)-th row from row 0, as in DDIM's code; never visits the noisiest rows. For parity with other work."""
  return _grid('leading', steps, lambda S, T: (np.arange(S)[::-1] * T // S + 1) / T)


def linspace(steps=50):
  """S rows evenly spread with both ends, as in improved DDPM's code. For parity with other work."""
  return _grid('linspace', steps, lambda S, T: np.round(np.linspace(T, 1, S)) / T)
