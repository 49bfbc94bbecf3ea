"""Grids exactly as diffusers' schedulers make them: for models of other people, and for parity."""
import numpy as np

from diffusion.core.gaussian import CLEAN, Noise, take, vp
from diffusion.core.grids import check_steps
from diffusion.core.schedule_transforms import expect_vp
from diffusion.errors import InputError

KINDS = ('ddim', 'euler', 'dpmpp', 'unipc')
NEARLY_ZERO = np.sqrt(2. ** 24 - 1)  # sigma / alpha that all but DDIM and DDPM give a level without signal


def shipped(steps=50, kind='ddim', spacing='leading', offset=0, noise='', end='clean'):
  """The levels that diffusers 0.42 visits.

  Args:
    kind: 'ddim' (also DDPM, PNDM): rows of the table. 'euler' (also Euler ancestral, Heun, LMS): 'linspace' falls
      between rows, where sigma / alpha is interpolated. 'dpmpp', 'unipc': 'leading' and 'linspace' are those of
      steps + 1 without the last.
    spacing: 'leading', 'linspace' or 'trailing', in rows.
    offset: of the rows of 'leading'.
    noise: '' or 'karras' or 'exponential': sigma / alpha spaced so instead, between the ends of the spaced rows (euler)
      or of the table; the network is told the row there, rounded (euler: interpolated).
    end: 'clean', or 'first', the first row, where those go that have set_alpha_to_one=False.
  Returns:
    schedule -> Noise[steps + 1]. Where 'first' is also the last row visited, that step does nothing and is left out.
  Raises:
    InputError: another choice; a table is needed, VP; more steps than rows.
  """
  check_steps('shipped', steps)
  for name, value, choices in (('kind', kind, KINDS), ('spacing', spacing, ('leading', 'linspace', 'trailing')),
                               ('noise', noise, ('', 'karras', 'exponential')), ('end', end, ('clean', 'first'))):
    if value not in choices:
      raise InputError(f'shipped({name}={value!r}): expected {", ".join(map(repr, choices))}')
  if noise and kind == 'ddim':
    raise InputError(f"shipped(noise={noise!r}): kind='ddim' visits rows; use 'euler', 'dpmpp' or 'unipc'")

  def grid(schedule):
    if callable(schedule):
      raise InputError('shipped: expected a table; give the schedule a number of levels T')
    expect_vp('shipped', schedule)
    rows = _rows(steps, kind, spacing, offset, len(schedule.time))
    levels = _spaced(schedule, rows, kind, noise) if noise else _at(schedule, rows, kind)
    last = Noise(*map(np.float64, CLEAN)) if end == 'clean' else take(schedule, 0)
    keep = len(rows) - (levels.logsnr[-1] >= last.logsnr)
    levels = Noise(*(np.append(a[:keep], b) for a, b in zip(levels, last)))
    if not np.all(np.diff(levels.logsnr) > 0):
      raise InputError(f'shipped({steps}): two steps have the same noise level on this schedule; use fewer steps')
    return levels
  return grid


def _rows(S, kind, spacing, offset, T):
  """The rows visited, noisiest first, float64 [S]; whole numbers but for 'linspace' of euler."""
  more = kind in ('dpmpp', 'unipc') and spacing != 'trailing'
  if S + more > T:
    raise InputError(f'shipped({S}): the schedule has {T} levels; use at most {T - more} steps')
  if spacing == 'trailing':
    rows = np.round(np.arange(T, 0, -T / S)) - 1
  elif spacing == 'leading':
    rows = np.arange(S + more)[::-1] * (T // (S + more)) + offset
  else:
    rows = np.linspace(0, T - 1, S + more)[::-1]
    rows = rows if kind == 'euler' else np.round(rows)
  rows = rows[:S].astype(np.float64)
  if rows[0] > T - 1:
    raise InputError(f'shipped({S}, offset={offset}): the noisiest row would be {rows[0]:g} of {T}; use fewer steps')
  return rows


def _ratios(schedule):
  with np.errstate(divide='ignore'):
    return np.minimum(schedule.sigma / schedule.alpha, NEARLY_ZERO)


def _at(schedule, rows, kind):
  """The levels at these rows."""
  whole = take(schedule, np.round(rows).astype(int))
  if kind == 'ddim' or np.all(rows == np.round(rows)) and np.all(whole.alpha > 0):
    return whole
  between = np.interp(rows, np.arange(len(schedule.time)), _ratios(schedule))
  return vp(np.interp(rows, np.arange(len(schedule.time)), schedule.time), -2 * np.log(between))


def _spaced(schedule, rows, kind, noise):
  """The levels spaced in sigma / alpha."""
  ratios, count = _ratios(schedule), np.arange(len(schedule.time))
  low, high = np.interp([rows[-1], rows[0]], count, ratios) if kind == 'euler' else ratios[[0, -1]]
  ramp = np.linspace(0, 1, len(rows))
  if noise == 'karras':
    spaced = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
  else:
    spaced = np.exp(np.linspace(np.log(high), np.log(low), len(rows)))
  told = np.interp(np.log(spaced), np.log(ratios), count)
  told = told if kind == 'euler' else np.round(told)
  return vp(np.interp(told, count, schedule.time), -2 * np.log(spaced))
