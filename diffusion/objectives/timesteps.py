"""Sampling the times of a training batch: functions (key, B) -> u [B] in [0, 1), 0 the cleanest.

`draw_levels` turns such a function and a schedule into the `draw`, (key, B) -> Noise[B], of the loss. Only
`loss_aware` divides the loss by the density of its times; with all others, drawing a level more often gives it more
weight.
"""
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.lookup import levels_at, time_of_logsnr
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


def draw_levels(times, schedule):
  """The draw (key, B) -> Noise[B] of times on a schedule."""
  level = levels_at(schedule)
  return lambda key, batch: level(times(key, batch))
