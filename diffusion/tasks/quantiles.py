"""Numbers of any distribution as N(0, 1), and back: the randomised probability integral transform.

A number of a column lies on a grid of steps (its last decimal) and stands for the interval of half a step on each
side. The distribution function F of the training values is kept as at most 200 knots (x, z = Phi^-1(F(x))) that lie in
the middle between two grid points, and z is linear between them. A value's interval has a probability, F(x + step/2) -
F(x - step/2), which is large for a value that many rows share; drawing uniformly within it makes z exactly normal, and
rounding to the grid brings the value back (Rueschendorf 2009, "On the distributional transform"; Dunn & Smyth 1996).

No knot tells the number of a row. Knots are rounded to 1/500 of the spread (twice the width of the shortest interval
that holds a quarter of the rows: two distant clusters do not widen it), and more coarsely where rows are further apart,
and have 5 rows between them, except around a value that 1 % of the rows share, and at wide gaps. The ends, and the
edges of gaps, are rounded outwards, to 1/10 of the spread. Beyond the outermost 5 rows the knots are those of an
exponential distribution with the mean of these rows, up to the ends: samples neither pile up there nor lie beyond.
"""
import jax
import jax.numpy as jnp
import numpy as np
import scipy
from scipy.special import ndtr, ndtri

MOST = 200    # knots
FEW = 5       # rows that a knot must have on each side
SHARED = .01  # of the rows have a value that gets knots of its own
TAIL = 7      # knots in a tail, each half as probable to be passed as the one before
BEYOND = .5   # in z, from the last of them to the end
GAPS = 8      # at most, each wider than WIDE times the spread
WIDE = 10


def fit(numbers, decimals):
  """The knots of columns, fitted to training values: {'x': float64 [D, 200], 'z': float64 [D, 200], 'step': [D]}.

  Both rise; where there are fewer than 200 knots the last one is repeated.

  Args:
    numbers: float64 [N, D], NaN where missing.   decimals: D ints.
  """
  found = [_knots(column[~np.isnan(column)], 10. ** -places) for column, places in zip(numbers.T, decimals)]
  filled = [np.stack([np.pad(a, (0, MOST - len(a)), mode='edge') for a in (x, z)]) for x, z, _ in found]
  x, z = np.array(filled, np.float64).reshape(-1, 2, MOST).swapaxes(0, 1)
  return dict(x=x.copy(), z=z.copy(), step=np.array([step for *_, step in found], np.float64))


def _knots(values, step):
  """(x, z, step) of one column; a step is coarser than a decimal where the range has more than 2^30 of them."""
  if not len(values):
    return np.array([-.5, .5]) * step, np.array([-1., 1.]), step
  while np.ptp(values) / step > 2 ** 30:
    step *= 10
  grid, counts = np.unique(np.rint(values / step), return_counts=True)
  below = np.concatenate([[0], np.cumsum(counts)])  # rows below each grid point
  n, spread = len(values), _spread(np.repeat(grid, counts))
  few = [grid[min(np.searchsorted(below[1:], k), len(grid) - 1)] for k in (min(FEW, n), max(n - FEW, 0))]
  units = [_nice(max(spread, length) / 10) for length in (few[0] - grid[0], grid[-1] - few[1])]
  low = (grid[0] if counts[0] >= FEW else np.floor(grid[0] / units[0]) * units[0]) - .5
  high = (grid[-1] if counts[-1] >= FEW else np.ceil(grid[-1] / units[1]) * units[1]) + .5
  gaps = _gaps(grid, below, WIDE * spread, _nice(spread / 10))
  knots = _inner(grid, counts, below, max(np.ceil(spread / 500), 1), gaps)
  passed = below[np.searchsorted(grid, knots)]
  inside = (knots > low) & (knots < high) & (passed > 0) & (passed < n)
  knots, passed = knots[inside], passed[inside]
  if not len(knots):  # one value alone
    return np.array([low, high]) * step, ndtri([1e-6, 1 - 1e-6]), step
  weigh = lambda mask: np.average(grid[mask], weights=counts[mask])
  lower = _tail(knots[0] - low, knots[0] - weigh(grid < knots[0]), passed[0] / n)
  upper = _tail(high - knots[-1], weigh(grid > knots[-1]) - knots[-1], 1 - passed[-1] / n)
  x = np.concatenate([knots[0] - lower[0][::-1], knots, knots[-1] + upper[0]])
  return x * step, np.concatenate([lower[1][::-1], ndtri(passed / n), -upper[1]]), step


def _spread(rows):
  """Twice the width of the shortest interval that holds a quarter of sorted numbers; of their range, if that is 0."""
  k = max(len(rows) // 4, 1)
  return 2 * np.min(rows[k:] - rows[:-k], initial=np.inf if len(rows) > k else 0.) or np.ptp(rows)


def _nice(least):
  """The smallest of 1, 2, 5, 10, 20, .. that is at least so much."""
  scale = 10. ** np.floor(np.log10(max(least, 1)))
  return next(k * scale for k in (1, 2, 5, 10) if k * scale >= least * (1 - 1e-9))


def _gaps(grid, below, wide, nice):
  """Knots at both sides of the widest gaps with at least FEW rows between them, rounded into the gap."""
  widths, found, knots = np.diff(grid), [0, below[-1]], set()
  for i in np.argsort(-widths, kind='stable')[:GAPS]:
    start, end = np.ceil(grid[i] / nice) * nice + .5, np.floor(grid[i + 1] / nice) * nice - .5
    if widths[i] > wide and start < end and np.abs(np.array(found) - below[i + 1]).min() >= FEW:
      found.append(below[i + 1])
      knots |= {start, end}
  return knots


def _inner(grid, counts, below, unit, gaps):
  """Knots between the ends, rising, at most MOST - 2 * (TAIL + 1): those of gaps and of shared values, and quantiles,
  half of them evenly spaced in probability and half in z, on multiples of `unit` or of what is more."""
  n, shared, most = below[-1], set(gaps), MOST - 2 * (TAIL + 1)
  for i in np.argsort(-counts, kind='stable'):
    if counts[i] < max(FEW, SHARED * n) or len(shared) + 2 > 2 * most // 3:
      break
    shared |= {grid[i] - .5, grid[i] + .5}
  levels, reach = (most - len(shared)) // 2, ndtri(min(FEW / n, .25))
  levels = np.concatenate([np.arange(1, levels) / levels, ndtr(np.linspace(reach, -reach, levels))])
  rows, at = np.repeat(grid, counts), np.minimum((np.sort(levels) * n).astype(int), n - 1)
  width = rows[np.minimum(at + 2, n - 1)] - rows[np.maximum(at - 2, 0)]  # of five rows: none of them is to be told
  local = np.maximum(np.vectorize(_nice, [float])(width), unit)
  knots, last, every = [], 0, sorted(shared | set(np.rint(rows[at] / local) * local + .5))
  passed = below[np.searchsorted(grid, every)]
  for knot, number in zip(every, passed):
    if knot in shared or (number - last >= FEW and n - number >= FEW):
      knots, last = knots + [knot], number
  return np.array(knots or [every[int(np.argmin(np.abs(passed - n / 2)))]])


def _tail(length, mean, mass):
  """(distance from the outermost inner knot, z of it in the lower tail) of the knots of a tail, the end last.

  Distances are those of the distribution on [0, length] with this mean that has the largest entropy, a truncated
  exponential; knots that would fall on the same place are one.

  Args:
    length, mean: in steps.   mass: the probability of the tail.
  """
  share = np.clip(mean / length, .02, .98)
  excess = lambda a: (1 / a - 1 / np.expm1(a) if abs(a) > 1e-3 else .5 - a / 12) - share
  a = scipy.optimize.brentq(excess, -60., 60.)
  beyond = 2. ** -np.arange(1, TAIL + 1)
  distance = -np.log1p(-(1 - beyond) * -np.expm1(-a)) / a if abs(a) > 1e-6 else 1 - beyond
  distance = np.rint(distance * length)
  new = (np.diff(distance, prepend=0) > 0) & (distance < length)
  z = ndtri(mass * beyond)
  end = z[-1] - BEYOND if new.any() else ndtri(mass * 1e-6)  # one shared value: z is drawn within its interval
  return np.append(distance[new], length), np.append(z[new], end)


def intervals(fitted, numbers):
  """The z of both ends of each number's interval, float64 [N, D] twice, NaN where missing; on the host.

  Beyond the outermost knots z goes on by 1 for each range of the column, at most by 1.
  """
  low, high = np.empty((2, *numbers.shape))
  for d, (x, z, step) in enumerate(zip(fitted['x'], fitted['z'], fitted['step'])):
    last = np.searchsorted(x, x[-1])
    number = np.rint(numbers[:, d] / step)
    outside = np.clip((number * step - np.clip(number * step, x[0], x[-1])) / (x[-1] - x[0]), -1, 1)
    for ends, way in ((low, -.5), (high, .5)):
      ends[:, d] = np.interp((number + way) * step, x[:last + 1], z[:last + 1]) + outside
  return low, high


def normal(low, high, u):
  """z in [low, high] with the fraction u of the interval's probability below it: float32, any shape; jax.

  Intervals so narrow that floats hardly divide them become their middle.
  """
  flip = low + high > 0  # where both are large, Phi is 1 to all digits: the other tail is not
  a, b, w = jnp.where(flip, -high, low), jnp.where(flip, -low, high), jnp.where(flip, 1 - u, u)
  below, above = jax.scipy.special.ndtr(a), jax.scipy.special.ndtr(b)
  z = jax.scipy.special.ndtri(jnp.maximum(below + w * (above - below), 1e-37))
  margin = 4 * jnp.finfo(jnp.float32).eps * jnp.maximum(jnp.maximum(jnp.abs(a), jnp.abs(b)), 1)
  z = jnp.where(b - a > 8 * margin, jnp.clip(z, a + margin, b - margin), (a + b) / 2)
  return jnp.where(flip, -z, z)


def inverse(fitted):
  """z float32 [..., D] -> numbers float32 [..., D], on the grid of their steps and within the range; jax.

  The returned function takes `outside`, True where z may lie beyond the outermost knots and is continued there.
  """
  x, z, step = (fitted[name] for name in ('x', 'z', 'step'))
  columns = np.arange(len(step))
  base = np.rint(x / step[:, None] - .5) if len(step) else x  # the last grid point before a knot
  span = base[:, -1] - base[:, 0]
  width, rise = np.diff(base, axis=1), np.diff(z, axis=1)
  slope = np.divide(width, rise, out=np.zeros_like(width), where=rise > 0)
  knots, slopes = np.float32(z), np.float32(slope)
  starts, ends = np.int32(base[:, :-1]), np.int32(base[:, 1:])
  bins = np.maximum((x < x[:, -1:]).sum(1), 1) - 1  # the last one of each column
  per_unit = np.int32(np.clip(np.rint(1 / step), 1, 2 ** 31 - 1))

  def numbers(values, outside=False):
    inside = jnp.clip(values, knots[:, 0], knots[:, -1])
    inside = jnp.where(jnp.isnan(inside), 0., inside)
    rank = jax.vmap(lambda z, v: jnp.searchsorted(z, v, side='right'), (0, -1), -1)(knots, inside)
    j = jnp.clip(rank - 1, 0, bins)
    of_bin = lambda table: jnp.asarray(table)[columns, j]
    passed = jnp.minimum(jnp.floor((inside - of_bin(knots)) * of_bin(slopes)), 2. ** 30).astype(jnp.int32)
    grid = jnp.minimum(of_bin(starts) + 1 + passed, of_bin(ends))
    beyond = (values - inside) * np.float32(span)
    beyond = jnp.where(jnp.logical_and(outside, beyond != 0), jnp.rint(beyond + jnp.sign(beyond) / 2), 0.)
    grid = grid + beyond.astype(jnp.int32)
    units = jax.lax.div(grid, jnp.broadcast_to(per_unit, grid.shape))  # 0.001 is no float: few of it are to be added
    return units * np.float32(np.maximum(step, 1)) + (grid - units * per_unit) * np.float32(step)
  return numbers


def ends(fitted, d):
  """(lowest, highest) number of a column that the table holds."""
  x, step = fitted['x'][d], fitted['step'][d]
  return x[0] + step / 2, x[-1] - step / 2
