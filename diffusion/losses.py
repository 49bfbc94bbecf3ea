"""The training loss: how times are drawn, how errors are measured and weighed, and `loss` itself.

Times: functions (key, B) -> u [B] in [0, 1). Errors: functions (out, target) -> elementwise error. Weights: functions
(noise, to_x0) -> w [B], where to_x0 = (sigma / determinant)^2 turns a squared error in the network's output into one in x0,
so that a weight defined in x0-space means the same for every parameterisation.
"""
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError
from diffusion.noise import Noise, like, q_sample, take
from diffusion.predict import determinant


def _positive(name, **arguments):
  for argument, value in arguments.items():
    if not isinstance(value, (int, float)) or not value > 0:
      raise InputError(f'{name}({argument}={value!r}): expected a number above 0')


# ---- times
def uniform():
  """Independent uniform times."""
  return lambda key, batch: jax.random.uniform(key, (batch,))


def stratified():
  """One uniform offset and an even spread over the batch, in order: each time is uniform, and a batch covers [0, 1) evenly,
  which lowers the variance of the loss (VDM, arXiv:2107.00630, appendix I.1). Batches must come shuffled, as ours do."""
  def times(key, batch):
    return jnp.minimum((jax.random.uniform(key) + jnp.arange(batch)) / batch, 1 - 2 ** -24)
  return times


def table(weights):
  """Times with the density of a histogram: weights[i] for the i-th of equal bins of [0, 1), cleanest first.

  The loss is not divided by the density: drawing a bin more often weighs it more.
  """
  density = np.asarray(weights, np.float64)
  if density.ndim != 1 or not len(density) or not np.all(density >= 0) or not density.sum() > 0:
    raise InputError(f'table({weights!r:.80}): expected a list of weights, none negative and not all zero')
  edges = np.arange(len(density) + 1) / len(density)
  cumulative = np.append(0., np.cumsum(density / density.sum()))
  def times(key, batch):
    return jnp.minimum(jnp.interp(jax.random.uniform(key, (batch,)), cumulative, edges), 1 - 2 ** -24)
  return times


def drawn_from(times, schedule):
  """The Draw (key, B) -> Noise[B] of times on a schedule: rows of a table, or points of a curve."""
  if callable(schedule):
    return lambda key, batch: schedule(jnp.clip(times(key, batch), 1e-5, 1 - 1e-5))  # logsnr stays finite
  T = len(schedule.logsnr)
  rows = Noise(*(np.asarray(a, np.float32) for a in schedule))
  def draw(key, batch):
    index = (times(key, batch) * T).astype(jnp.int32)
    return take(Noise(*map(jnp.asarray, rows)), jnp.minimum(index, T - 1))
  return draw


# ---- errors
def mse():
  return lambda out, target: jnp.square(out - target)


def mae():
  return lambda out, target: jnp.abs(out - target)


def huber(delta=1.):
  """Quadratic up to delta, linear beyond; equals half the squared error near zero."""
  _positive('huber', delta=delta)
  def error(out, target):
    gap = jnp.abs(out - target)
    return jnp.where(gap <= delta, .5 * gap ** 2, delta * (gap - .5 * delta))
  return error


# ---- weights
def one():
  """The error in the network's output as it is (L_simple of DDPM, when it predicts eps)."""
  return lambda noise, to_x0: jnp.ones_like(noise.logsnr)


def snr():
  """SNR times the x0 error, which is the eps error (arXiv:2202.00512, section 4)."""
  return lambda noise, to_x0: jnp.exp(noise.logsnr) * to_x0


def min_snr(gamma=5.):
  """min(SNR, gamma) times the x0 error (arXiv:2303.09556, section 3.4)."""
  _positive('min_snr', gamma=gamma)
  return lambda noise, to_x0: jnp.minimum(jnp.exp(noise.logsnr), gamma) * to_x0


def p2(gamma=1., k=1.):
  """The eps error over (k + SNR)^gamma (perception prioritised, arXiv:2204.00227, equation 8)."""
  _positive('p2', gamma=gamma, k=k)
  return lambda noise, to_x0: jnp.exp(noise.logsnr) * to_x0 / (k + jnp.exp(noise.logsnr)) ** gamma


def edm(sd=.5):
  """(s^2 + sd^2) / (s * sd)^2 times the x0 error, s = sigma / alpha (EDM, arXiv:2206.00364, table 1)."""
  _positive('edm', sd=sd)
  def weight(noise, to_x0):
    return (jnp.exp(noise.logsnr) + sd ** -2) * to_x0
  return weight


# ---- the loss
def drop_condition(key, cond, null, probability):
  """Replaces the condition of a random share of the batch by the null condition (arXiv:2207.12598, algorithm 1)."""
  batch = len(jax.tree.leaves(cond)[0])
  dropped = jax.random.bernoulli(key, probability, (batch,))
  def pick(c, n):
    return jnp.where(dropped.reshape(-1, *[1] * (c.ndim - 1)), n, c)
  return jax.tree.map(pick, cond, null(cond))


def loss(key, net, params, x0, cond, *, draw, predict, weight, error=mse(), null=None, dropout=0., train=True):
  """The denoising loss of a batch.

  Args:
    key: decides times, noise, condition dropout and the network's dropout.
    net: net(params, x, time, cond, train, rngs) -> out [B, ...].
    params: its parameters.
    x0: data [B, ...], in [-1, 1] for images.
    cond: condition, [B, ...] leaves or None.
    draw: (key, B) -> Noise[B].
    predict: noise -> Row, the target.
    weight: (noise, to_x0) -> [B].
    error: (out, target) -> elementwise error.
    null: cond -> the unconditional cond, for condition dropout.
    dropout: probability of dropping the condition of an example.
    train: whether the network's dropout is on.
  Returns:
    (scalar loss, {'mse': [B] unweighted squared error of the output, 'logsnr': [B]}).
  """
  draw_key, eps_key, cond_key, net_key = jax.random.split(key, 4)
  noise = draw(draw_key, len(x0))
  eps = jax.random.normal(eps_key, x0.shape)
  if dropout and cond is not None:
    cond = drop_condition(cond_key, cond, null, dropout)
  level = like(noise, x0)
  row = predict(level)
  out = net(params, row.scale * q_sample(x0, noise, eps), noise.time, cond, train, {'dropout': net_key})
  target = row.a * x0 + row.b * eps
  to_x0 = jnp.reshape(jnp.square(level.sigma / determinant(row, level)), (-1,))
  pixels = tuple(range(1, x0.ndim))
  weighted = weight(noise, to_x0) * jnp.mean(error(out, target), pixels)
  squared = jnp.mean(jnp.square(out - target), pixels)
  return jnp.mean(weighted), {'mse': squared, 'logsnr': noise.logsnr}
