"""Bits per dimension by the variational bound, for a chain of levels (a table) or in continuous time (a curve).

  -log p(x0) <= KL(q(x_T | x0) || prior)
                + sum or integral over the levels of the error of the estimated x0
                - E log p(x0 | cleanest level)

  table   steps  KL(q(x_s | x_t, x0) || p(x_s | x_t)), rows 1 .. T-1 (DDPM, arXiv:2006.11239, equation 5), with the
                 small variance (SNR_s - SNR_t) |x0 - estimate|^2 / 2 in every scaling
  curve   integral of -dSNR/dt |x0 - estimate|^2 / 2 over t (VDM, arXiv:2107.00630, equation 15)

The prior is that of sampling (samplers.prior), N(0, sigma_T^2): with the variance-preserving scaling it is N(0, 1) up
to alpha_T^4 / 4 nats. The last term, `decoder`, is a Gaussian around the model's x0 at the cleanest level, on the
steps of the data (DDPM, equation 13). For a table its variance is that of row 0 as in likelihood.reverse; for a curve
(sigma / alpha)^2 at the smallest t, the uncertainty of x0 without a model. The best variance depends on the network,
and any value gives a bound: `fit_variances` finds it for every row of a table (Analytic-DPM, arXiv:2201.06503), and
`std` sets it for a curve.

A chain is a table: to measure the levels of a sampling grid, reverse it and drop its clean end with `chain`.
"""
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core import likelihood
from diffusion.core.gaussian import Noise, q_sample, take
from diffusion.core.schedules import evaluate
from diffusion.errors import InputError
from diffusion.samplers import gaussian

VARIANCES = ('small', 'large', 'learned')


class Plan(NamedTuple):
  """The terms of the sum over levels."""
  count: int         # network evaluations
  point: Callable    # (keys, k) -> (noise [B], weight [B], nats: (pred, x0) -> elementwise, width [B] in log-SNR)
  first: Noise       # the cleanest level
  last: Noise        # the noisiest
  decoder: Callable  # pred -> log std of x0 around pred.x0


def chain(levels):
  """The table of a sampling grid, cleanest row first: chain(grids.exponential(50)(schedule))."""
  return take(levels, slice(-2, None, -1))


def variance_shares(variance, T):
  """(float64 [T], whether the network predicts it instead): log variances from the small (0) to the large (1).

  Raises:
    InputError: neither a known name nor T numbers.
  """
  if isinstance(variance, str) and variance in VARIANCES:
    return np.full(T, float(variance == 'large')), variance == 'learned'
  if isinstance(variance, str) or np.shape(variance) != (T,) or not np.all(np.isfinite(variance)):
    raise InputError(f'variance={variance!r}: expected {", ".join(VARIANCES)}, or a number for each of the {T} levels '
                     '(see fit_variances)')
  return np.asarray(variance, np.float64), False


def learned_variance(pred):
  """The variance that the network predicts.

  Raises:
    InputError: it predicts none.
  """
  if pred.variance is None:
    raise InputError("variance='learned' needs a network that predicts its variance; use 'small' or 'large'")
  return pred.variance


def errors(keys, denoise, table, x0):
  """The mean square error of the model's x0 at each row of a table, float64 [T]; not inside jit. See `bound`."""
  @jax.jit
  def error(keys, x0, noise, index):
    return jnp.mean(jnp.square(denoise(q_sample(x0, noise, gaussian(keys, index, x0)), noise).x0 - x0))
  rows = [Noise(*(np.asarray(a, x0.dtype) for a in take(table, i))) for i in range(len(table.logsnr))]
  return np.array([float(error(keys, x0, row, i)) for i, row in enumerate(rows)])


def fit_variances(table, error):
  """The variance of every row that minimises the bound: shares float64 [T], for `bound` and the codec.

  The best variance of a step is the posterior's times 1 + (SNR_s - SNR_t) e, where e is the mean square error of the
  model's x0; the best of x0 itself at row 0 is e (arXiv:2201.06503, theorem 1; with the error of an imperfect model,
  arXiv:2206.07309).

  Args:
    table: the chain.
    error: [T], as from `errors`, on training images; a few dozen are enough.
  """
  steps = likelihood.reverse(table)
  return np.append(np.log(error[0]) - steps.log_small[0], np.log1p(steps.gain * error)[1:]) / steps.log_ratio


def _even(logsnr, count, most=20.):
  """Positions in 0 .. n-1 (float [count + 1]) that divide the fall of logsnr [n], clipped to +-most, evenly."""
  fall = -np.clip(logsnr, -most, most)
  positions = np.interp(np.linspace(fall[0], fall[-1], count + 1), fall, np.arange(len(fall)))
  return np.concatenate([[0.], positions[1:-1], [len(fall) - 1.]])


def _of_table(table, count, variance, dtype):
  """The Plan of a table: every row, or a random one from each of at most `count` runs of rows."""
  steps, T = likelihood.reverse(table), len(table.logsnr)
  fixed, learned = variance_shares(variance, T)
  every = count is None or count >= T - 1
  edges = np.arange(1, T + 1) if every else np.unique(np.round(_even(table.logsnr, count))).astype(int) + 1
  low, high = jnp.asarray(edges[:-1]), jnp.asarray(edges[1:])
  widths = np.append(0., -np.diff(table.logsnr))
  rows = jax.tree.map(lambda a: jnp.asarray(a, dtype), (table, steps, widths, fixed))

  def point(keys, k):
    index = jax.vmap(lambda key: jax.random.randint(key, (), low[k], high[k]))(keys)
    noise, reverse, width, share = jax.tree.map(lambda a: a[index], rows)
    def nats(pred, x0):
      shape = (-1,) + (1,) * (x0.ndim - 1)
      gain, log_ratio, v = (jnp.reshape(a, shape) for a in (reverse.gain, reverse.log_ratio, share))
      return likelihood.step_kl(learned_variance(pred) if learned else v, log_ratio, gain, pred.x0 - x0)
    return noise, high[k] - low[k], nats, width

  def decoder(pred):
    share = learned_variance(pred) if learned else float(fixed[0])
    return .5 * (float(steps.log_small[0]) + share * float(steps.log_ratio[0]))
  return Plan(len(low), point, take(table, 0), take(table, -1), decoder)


def _of_curve(schedule, count, smallest, dtype):
  """The Plan of a curve: a random time from each of `count` pieces of [smallest, 1]."""
  first, last = (Noise(*map(float, evaluate(schedule, t))) for t in (smallest, 1.))
  if not (0 <= smallest < 1 and np.isfinite(first.logsnr)):
    raise InputError(f'smallest={smallest!r}: expected a time in [0, 1) with noise in the schedule, such as 0.001')
  count, fine = count or 1000, np.linspace(smallest, 1., 20_001)
  edges = np.interp(_even(evaluate(schedule, fine).logsnr, count), np.arange(len(fine)), fine)
  starts, lengths = jnp.asarray(edges[:-1], dtype), jnp.asarray(np.diff(edges), dtype)

  def point(keys, k):
    u = jax.vmap(lambda key: jax.random.uniform(key, (), dtype))(keys)
    t = jnp.minimum(starts[k] + lengths[k] * u, 1 - 1e-6)  # at 1 itself the log-SNR may be infinite
    noise, slope = jax.jvp(lambda t: Noise(*(a * jnp.ones_like(t) for a in schedule(t))), (t,), (jnp.ones_like(t),))
    width = -lengths[k] * slope.logsnr
    def nats(pred, x0):
      scale = jnp.reshape(width * jnp.exp(noise.logsnr), (-1,) + (1,) * (x0.ndim - 1))
      return .5 * scale * jnp.square(pred.x0 - x0)
    return noise, jnp.ones_like(t), nats, width
  return Plan(count, point, first, last, lambda pred: -.5 * first.logsnr)


def bound(keys, denoise, schedule, x0, *, steps=None, variance='small', std=None, levels=256, smallest=0.):
  """The variational bound of each image, in bits per dimension; a lax.scan over the levels, to be wrapped in jit.

  The mean over keys is the bound for any `steps`: the value of an image is an unbiased estimate that depends on its
  key and x0 alone, not on the batch.

  Args:
    keys: one per image, [B] (samplers.sample_keys).
    denoise: (x, noise [B] or scalar) -> Pred, without guidance: a guided model has no likelihood.
    schedule: a table of at least 2 rows, or a curve.
    x0: data [B, ...], in [-1, 1].
    steps: network evaluations, besides one for the decoder. A table is divided into this many runs of rows (or
      fewer), even in log-SNR, with a random row from each; None: every row. A curve: this many times; None is 1000.
    variance: of the steps of a table: 'small', 'large', 'learned' (see samplers.ddpm), or as from `fit_variances`.
    std: standard deviation of x0 around the model's at the cleanest level; None: see the module docstring.
    levels: of the data between -1 and 1; None: x0 is continuous, and the result bounds minus its log density.
    smallest: for a curve, the time from which x0 is decoded; the log-SNR must be finite there.
  Returns:
    ({'prior', 'diffusion', 'decoder', 'total'}: [B],
     {'logsnr', 'rate'}: [steps, B], to plot: bits per dimension and unit of log-SNR at the noisier end of a step).
  Raises:
    InputError: a table that is too short, a time without noise, an unknown variance.
  """
  dtype = jnp.promote_types(x0.dtype, jnp.float32)
  plan = _plan(schedule, steps, variance, smallest, dtype)
  eps_keys, level_keys = (jax.vmap(lambda key: jax.random.fold_in(key, i))(keys) for i in (0, 1))

  estimate = lambda noise, index: denoise(q_sample(x0, noise, gaussian(eps_keys, index, x0)), noise)

  def body(total, k):
    noise, weight, nats, width = plan.point(jax.vmap(lambda key: jax.random.fold_in(key, k))(level_keys), k)
    term = _bits(nats(estimate(noise, k), x0))
    return total + weight * term, dict(logsnr=noise.logsnr, rate=term / width)

  diffusion, rates = jax.lax.scan(body, jnp.zeros(len(x0), dtype), jnp.arange(plan.count))
  pred = estimate(Noise(*(jnp.asarray(a, dtype) for a in plan.first)), plan.count)
  log_std = plan.decoder(pred) if std is None else np.log(std)
  decoder = -_bits(likelihood.data_log_likelihood(x0, pred.x0, jnp.asarray(log_std, dtype), levels))
  prior = _bits(.5 * np.exp(plan.last.logsnr) * jnp.square(x0))
  return dict(prior=prior, diffusion=diffusion, decoder=decoder, total=prior + diffusion + decoder), rates


def _plan(schedule, steps, variance, smallest, dtype):
  if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
    raise InputError(f'steps={steps!r}: expected a number of evaluations, at least 1')
  curve = callable(schedule)
  return _of_curve(schedule, steps, smallest, dtype) if curve else _of_table(schedule, steps, variance, dtype)


def _bits(nats):
  """Nats [B, ...] as bits per dimension [B]."""
  # On CPUs, XLA of jaxlib 0.11.2 to 0.12.0 loses a factor where it fuses a sum with its terms: system/xla_flags.py.
  nats = jax.lax.optimization_barrier(nats)
  return jnp.mean(nats, tuple(range(1, nats.ndim))) / np.log(2).item()
