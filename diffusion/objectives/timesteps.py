"""Sampling the times of a training batch: functions (key, B) -> u [B] in [0, 1), 0 the cleanest.

`draw_levels` turns such a function and a schedule into the `draw`, (key, B) -> Noise[B], of the loss. Only
`loss_aware` divides the loss by the density of its times; with all others, drawing a level more often gives it more
weight.
"""
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from diffusion.core.gaussian import Noise, take
from diffusion.core.lookup import finite_ends, time_of_logsnr
from diffusion.errors import check_positive, InputError

LAST = 1 - 2 ** -24  # the largest float32 below 1


# ---- times
def uniform():
  """Independent uniform times."""
  return lambda key, batch: jax.random.uniform(key, (batch,))


def stratified():
  """Evenly spaced times with one uniform offset, in random order (VDM, arXiv:2107.00630, appendix I.1).

  Each time is uniform, and a batch covers [0, 1) evenly, which lowers the variance of the loss.
  """
  def times(key, batch):
    offset_key, order_key = jax.random.split(key)
    return jnp.minimum((jax.random.uniform(offset_key) + jax.random.permutation(order_key, batch)) / batch, LAST)
  return times


def histogram(weights):
  """Times with the density of a histogram: weights[i] for the i-th equal bin of [0, 1), cleanest first."""
  density = np.asarray(weights, np.float64)
  if density.ndim != 1 or not len(density) or not np.all(density >= 0) or not density.sum() > 0:
    raise InputError(f'table({weights!r:.80}): expected a list of weights, none negative and not all zero')
  shares = density / density.sum()
  return lambda key, batch: _from_histogram(jax.random.uniform(key, (batch,)), jnp.asarray(shares, jnp.float32))


def _from_histogram(u, shares):
  """Uniform u -> times whose i-th equal bin has probability shares[i]."""
  cumulative = jnp.append(0., jnp.cumsum(shares))
  return jnp.minimum(jnp.interp(u, cumulative / cumulative[-1], jnp.linspace(0, 1, len(shares) + 1)), LAST)


def logit_normal(mean=0., std=1.):
  """log(t / (1 - t)) is normal: more of the middle; a mean above 0 favours noise (arXiv:2403.03206, section 3.1)."""
  check_positive('logit_normal', std=std)
  return lambda key, batch: jnp.minimum(jax.nn.sigmoid(mean + std * jax.random.normal(key, (batch,))), LAST)


def edm_lognormal(mean=-1.2, std=1.2, *, schedule):
  """log(sigma / alpha) is normal (EDM, arXiv:2206.00364, table 1), on any schedule.

  The defaults are the paper's, for data of standard deviation 0.5. Values outside the schedule's range are moved to
  its ends.

  Args:
    mean, std: of log(sigma / alpha).
    schedule: a curve, inverted to about 1e-4 in log-SNR, or a table, of which the nearest row is taken.
  """
  check_positive('edm_lognormal', std=std)
  time = time_of_logsnr(schedule)
  return lambda key, batch: jnp.minimum(time(-2 * (mean + std * jax.random.normal(key, (batch,)))), LAST)


# ---- sigma = noise / signal by its quantiles, on any schedule, as k-diffusion draws it (the code of arXiv:2401.11605)
def _at_quantile(log_sigma, schedule):
  """The times of log_sigma(u), the quantile function; beyond the schedule's range, its ends."""
  time = time_of_logsnr(schedule)
  return lambda key, batch: jnp.minimum(time(-2 * log_sigma(jax.random.uniform(key, (batch,)))), LAST)


def _cut(name, cdf, inverse, sigma_min, sigma_max, schedule):
  """The quantile function u -> log sigma of a distribution function of log sigma, cut at both ends."""
  noisiest, cleanest = finite_ends(schedule)
  low = -cleanest / 2 if sigma_min is None else np.log(sigma_min)
  high = -noisiest / 2 if sigma_max is None else np.log(sigma_max)
  if not low < high:
    raise InputError(f'{name}(sigma_min={sigma_min}, sigma_max={sigma_max}): expected the lower one first; this '
                     f'schedule has {np.exp(-cleanest / 2):.4g} to {np.exp(-noisiest / 2):.4g}')
  first, last = cdf(low).item(), cdf(high).item()
  return lambda u: inverse(first + u * (last - first))


def _check_ends(name, sigma_min, sigma_max, **positive):
  ends = dict(sigma_min=sigma_min, sigma_max=sigma_max)
  check_positive(name, **positive, **{key: value for key, value in ends.items() if value is not None})


def loguniform(sigma_min=None, sigma_max=None, *, schedule):
  """log sigma is uniform between two ends.

  Args:
    sigma_min, sigma_max: ends at which this and the next distributions are cut; None: those of the schedule, as in
      grids.karras.
  """
  _check_ends('loguniform', sigma_min, sigma_max)
  same = lambda l: l
  return _at_quantile(_cut('loguniform', same, same, sigma_min, sigma_max, schedule), schedule)


def log_logistic(median=.5, scale=.5, sigma_min=None, sigma_max=None, *, schedule):
  """log sigma is logistic around log(median), which is the standard deviation of the data there."""
  _check_ends('log_logistic', sigma_min, sigma_max, median=median, scale=scale)
  location = np.log(median).item()
  quantile = _cut('log_logistic', lambda l: 1 / (1 + np.exp((location - l) / scale)),
                  lambda p: location + scale * (jnp.log(p) - jnp.log1p(-p)), sigma_min, sigma_max, schedule)
  return _at_quantile(quantile, schedule)


def split_lognormal(mean=-1.2, std_1=1.2, std_2=1.2, *, schedule):
  """log sigma has the halves of two normal densities that meet at their peak `mean`: std_1 below it, std_2 above."""
  check_positive('split_lognormal', std_1=std_1, std_2=std_2)
  share = std_1 / (std_1 + std_2)
  def log_sigma(u):
    below, above = jnp.minimum(u / share, 1) / 2, 1 - jnp.minimum((1 - u) / (1 - share), 1) / 2
    return mean + jnp.where(u < share, std_1 * ndtri(below), std_2 * ndtri(above))
  return _at_quantile(log_sigma, schedule)


def _angle_quantile(name, sd, sigma_min, sigma_max, schedule):
  return _cut(name, lambda l: np.arctan(np.exp(l) / sd), lambda p: jnp.log(sd * jnp.tan(p)), sigma_min, sigma_max,
              schedule)


def v_diffusion(sd=.5, sigma_min=None, sigma_max=None, *, schedule):
  """arctan(sigma / sd) is uniform: the noise levels of the cosine schedule at uniform times, where sd is 1.

  With sd * r for sd they are the levels of that schedule shifted by r (simple diffusion, arXiv:2301.11093, equation 4).

  Args:
    sd: the standard deviation of the data.
  """
  _check_ends('v_diffusion', sigma_min, sigma_max, sd=sd)
  return _at_quantile(_angle_quantile('v_diffusion', sd, sigma_min, sigma_max, schedule), schedule)


def cosine_interpolated(image_size=256, low=32, high=256, sd=.5, sigma_min=None, sigma_max=None, *, schedule):
  """Log-SNR from that of v_diffusion shifted by image_size / high, near clean, to image_size / low (arXiv:2301.11093).

  It is linear in u between the two: simple diffusion's interpolated schedule (section 3.1), k-diffusion's "cosine".
  """
  sizes = dict(image_size=image_size, low=low, high=high)
  _check_ends('cosine_interpolated', sigma_min, sigma_max, sd=sd, **sizes)
  clean, noisy = (_angle_quantile('cosine_interpolated', sd * image_size / size, sigma_min, sigma_max, schedule)
                  for size in (high, low))
  return _at_quantile(lambda u: (1 - u) * clean(u) + u * noisy(u), schedule)


# ---- times adapted to the loss
class LossAware(NamedTuple):
  """Adaptive times. Their memory [2, bins] is a running mean square of the loss and the number of losses in it."""
  start: Callable     # () -> memory
  times: Callable     # (key, B, memory) -> (u [B], w [B]); w * loss has the expectation of the loss at uniform u
  remember: Callable  # (memory, u, loss [B]) -> memory


def loss_aware(bins=100, history=100, least=10, floor=.01):
  """Importance sampling of times by the root mean square of their loss (improved DDPM, arXiv:2102.09672, equation 18).

  The loss is divided by the density of its time: its expectation stays that of uniform times, and its variance
  falls. The paper keeps the last 10 losses of each of 4000 steps; here, bins of time keep a running mean. The
  memory depends only on the losses, so that a resumed run draws what an uninterrupted one would.

  Args:
    bins: number of equal bins of time.
    history: approximate number of losses in the running mean of a bin.
    least: times are uniform until every bin has this many losses.
    floor: share of the times that remains uniform, so that no weight exceeds 1 / floor.
  """
  for name, value in dict(bins=bins, history=history, least=least).items():
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
      raise InputError(f'loss_aware({name}={value!r}): expected a whole number of at least 1')
  if least > history or not 0 < floor <= 1:
    raise InputError(f'loss_aware(history={history}, least={least}, floor={floor}): '
                     'expected least <= history and 0 < floor <= 1')

  def times(key, batch, memory):
    mean_square, count = memory
    root = jnp.sqrt(mean_square)
    share = (1 - floor) * root / jnp.maximum(jnp.sum(root), 1e-30) + floor / bins
    share = jnp.where(jnp.all(count >= least) & (jnp.sum(root) > 0), share, 1 / bins)
    u = _from_histogram(stratified()(key, batch), share)
    return u, 1 / (bins * share[_bin(u)])

  def remember(memory, u, loss):
    mean_square, count = memory
    loss = jax.lax.stop_gradient(loss)
    new = jax.ops.segment_sum(jnp.ones_like(loss), _bin(u), bins)
    gap = jax.ops.segment_sum(loss ** 2 - mean_square[_bin(u)], _bin(u), bins)
    return jnp.stack([mean_square + gap / jnp.maximum(count + new, 1), jnp.minimum(count + new, history)])

  def _bin(u):
    return (u * bins).astype(jnp.int32)

  return LossAware(lambda: np.zeros((2, bins), np.float32), times, remember)


def levels_at(schedule):
  """The function u [B] in [0, 1) -> Noise[B]: rows of a table, or points of a curve."""
  if callable(schedule):
    return lambda u: schedule(jnp.clip(u, 1e-5, 1 - 1e-5))  # keeps logsnr finite
  T = len(schedule.logsnr)
  rows = Noise(*(np.asarray(a, np.float32) for a in schedule))
  return lambda u: take(Noise(*map(jnp.asarray, rows)), jnp.minimum((u * T).astype(jnp.int32), T - 1))


def draw_levels(times, schedule):
  """The draw (key, B) -> Noise[B] of times on a schedule."""
  level = levels_at(schedule)
  return lambda key, batch: level(times(key, batch))
