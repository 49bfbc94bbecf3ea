"""The training loss: draw a level and a noise for each example, ask the network, measure the error and weigh it.

How levels are drawn is in timesteps.py, what an error counts in weighting.py. Here: noise, functions (key, x0) -> (seen, target), the
eps in the network's input and the one in its target; errors, functions (out, target) -> elementwise error; the learned variance; and `loss`.
"""
import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion.core import likelihood
from diffusion.core.gaussian import denoiser, determinant, expand_to, q_sample, split_variance, with_estimate
from diffusion.core.lookup import nearest_row
from diffusion.errors import check_positive, InputError


# ---- noise: (key, x0) -> the eps in the input and the one in the target
def gaussian_noise():
  """Independent standard Gaussian noise, seen and asked for (DDPM, arXiv:2006.11239)."""
  def noise(key, x0):
    eps = jax.random.normal(key, x0.shape)
    return eps, eps
  return noise


def offset_noise(strength=.1):
  """Adds one draw a channel to all its pixels, so that the model learns to move the mean brightness ("Diffusion with offset noise",
  Guttenberg 2023). The covariance over the pixels of a channel is I + strength^2 * 11^T; samplers start from plain noise all the same.
  x0 [B, ..., C] with at least one axis of pixels."""
  check_positive('offset', strength=strength)
  def noise(key, x0):
    shared = (x0.shape[0],) + (1,) * (x0.ndim - 2) + x0.shape[-1:]
    own_key, shared_key = jax.random.split(key)
    eps = jax.random.normal(own_key, x0.shape) + strength * jax.random.normal(shared_key, shared)
    return eps, eps
  return noise


def perturbed_noise(gamma=.1):
  """The network sees eps + gamma * another draw, and is asked for eps: it meets in training the errors that its own samples will hold
  (input perturbation, arXiv:2301.11706, algorithm 1)."""
  check_positive('perturbed', gamma=gamma)
  def noise(key, x0):
    eps_key, more_key = jax.random.split(key)
    eps = jax.random.normal(eps_key, x0.shape)
    return eps + gamma * jax.random.normal(more_key, x0.shape), eps
  return noise


def paired_noise():
  """Plain noise, dealt out within the batch so that the sum of |x0 - eps|^2 is least: straighter flows (arXiv:2302.00482, section 3.2;
  arXiv:2304.14772).

  Only the noises change places, so each x0 keeps its condition; with conditions that say much about x0 the pairing is biased, since it
  joins noise to the condition as well. Exact assignment costs O(B^3), partly in sequence: hundredths of a second on a CPU at B = 256.
  Under jit the batch is the whole batch, whatever the devices: all of x0 and eps is gathered on every one of them. Under pmap or
  shard_map each device pairs its own share.
  """
  def noise(key, x0):
    eps = jax.random.normal(key, x0.shape)
    flat = lambda a: jnp.reshape(a, (len(a), -1))
    i, j = optax.assignment.hungarian_algorithm(-flat(x0) @ flat(eps).T)  # |x0|^2 and |eps|^2 are the same in every pairing
    eps = jnp.zeros_like(eps).at[i].set(eps[j])
    return eps, eps
  return noise


# ---- errors
def mse():
  return lambda out, target: jnp.square(out - target)


def mae():
  return lambda out, target: jnp.abs(out - target)


def huber(delta=1.):
  """Quadratic up to delta, linear beyond; equals half the squared error near zero."""
  check_positive('huber', delta=delta)
  def error(out, target):
    gap = jnp.abs(out - target)
    return jnp.where(gap <= delta, .5 * gap ** 2, delta * (gap - .5 * delta))
  return error


# ---- variance
def fixed_variance():
  """The sampler chooses the variance of a step; the network says nothing about it."""
  return None


def learned_variance(strength=.001, levels=256, *, schedule):
  """The variational bound that trains the variance of the steps, to be added to the loss (improved DDPM, arXiv:2102.09672, equation 16).

  A step's term is the KL of the true step from the model's; of row 0, from which a sampler goes to clean data, the likelihood of
  x0 under the Gaussian around the model's x0, whose variance lies between those of row 1 (small) and row 0 (large) as in the
  paper's code. Terms are means over dimensions, in bits, times T: with uniform times their mean is the bound in bits a dimension.

  Args:
    strength: lambda of the paper.
    levels: of the data between -1 and 1 (DDPM, equation 13); None: x0 is continuous, and its density is used.
    schedule: a table; the range of the variance depends on the step, so a curve will not do.
  Returns:
    (noise [B], x0, gap, variance) -> [B]. gap: the model's x0 less the true one, without gradient.
  """
  check_positive('learned', strength=strength)
  if callable(schedule) or len(schedule.logsnr) < 2:
    raise InputError('learned: a learned variance belongs to steps of a fixed size; give the schedule a number of levels, as in flow(1000)')
  T, snr, log_sigma2 = len(schedule.logsnr), np.exp(schedule.logsnr), 2 * np.log(schedule.sigma)
  log_k1 = np.log(-np.expm1(schedule.logsnr[1] - schedule.logsnr[0]))  # row 0 as the cleaner end of row 1: small variance sigma_0^2 k_1
  ratios = jnp.asarray(np.append(-log_k1, np.diff(log_sigma2)), jnp.float32)
  gains = jnp.asarray(np.append(0., -np.diff(snr)), jnp.float32)
  smallest, index = log_sigma2[0] + log_k1, nearest_row(schedule)

  def log_likelihood(x0, mean, log_std):
    return (likelihood.gaussian_log_density(x0, mean, log_std) if levels is None else
            likelihood.discretised_log_likelihood(x0, mean, log_std, levels))

  def bound(noise, x0, gap, variance):
    i = index(noise.logsnr)
    ratio, gain, first = (jnp.reshape(a, (-1,) + (1,) * (x0.ndim - 1)) for a in (ratios[i], gains[i], i == 0))
    step = likelihood.step_kl(variance, ratio, gain, gap)
    decoder = -log_likelihood(x0, x0 + gap, .5 * (smallest + variance * ratio))
    return strength * T / np.log(2).item() * jnp.mean(jnp.where(first, decoder, step), tuple(range(1, x0.ndim)))
  return bound


# ---- the loss
def micro_batch(batch, i, n):
  """The i-th of n equal parts of a batch, leaves [B, ...] -> [B/n, ...]: every n-th row, so that each device keeps to its own rows."""
  return jax.tree.map(lambda a: jnp.reshape(a, (a.shape[0] // n, n, *a.shape[1:]))[:, i], batch)


def drop_condition(key, cond, null, probability):
  """Replaces the condition of a random share of the batch by the null condition (arXiv:2207.12598, algorithm 1)."""
  batch = len(jax.tree.leaves(cond)[0])
  dropped = jax.random.bernoulli(key, probability, (batch,))
  def pick(c, n):
    return jnp.where(dropped.reshape(-1, *[1] * (c.ndim - 1)), n, c)
  return jax.tree.map(pick, cond, null(cond))


def own_estimate(key, net, params, x, noise, cond, predict):
  """The network's own x0 to set beside its input, without gradient; for half of the batches zeros, as at the first step of sampling
  (Analog Bits, arXiv:2208.04202, algorithm 1)."""
  def guess():
    return denoiser(with_estimate(net), *jax.lax.stop_gradient((params, cond)), predict)(x, noise).x0
  return jax.lax.cond(jax.random.bernoulli(key), guess, lambda: jnp.zeros(x.shape, jnp.float32))


def loss(key, net, params, x0, cond, *, draw, predict, weight, error=mse(), corrupt=gaussian_noise(), variance=None, uncertainty=None,
         self_condition=False, null=None, dropout=0., prepare=None, train=True, part=None):
  """The denoising loss of a batch, or of a part of it.

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
    corrupt: (key, x0) -> the noise that the network sees and the one it is asked for.
    variance: of a network with twice the channels as output, which learns the variance: the bound to add (see `learned`).
    uncertainty: (params, logsnr) -> u, learned with params['uncertainty'] (see weighting.py); None: off.
    self_condition: the network takes x and an estimate of x0 side by side on the last axis.
    null: cond -> the unconditional cond, for condition dropout.
    dropout: probability of dropping the condition of an example.
    prepare: (params, cond) -> the condition as the network takes it, called once; None: the condition as it is.
    train: whether the network's dropout is on.
    part: None, or (i, n): the i-th of n micro-batches. Everything is drawn for the whole batch, so that their mean is the loss of
      that (but for the network's dropout).
  Returns:
    (scalar loss, {'mse': [B] unweighted squared error of the output, 'logsnr': [B], 'each': [B], whose mean is the loss}).
  """
  draw_key, eps_key, cond_key, net_key, self_key = jax.random.split(key, 5)
  noise = draw(draw_key, len(x0))
  seen, eps = corrupt(eps_key, x0)
  if dropout and cond is not None:
    cond = drop_condition(cond_key, cond, null, dropout)
  if part:
    noise, seen, eps, x0, cond = micro_batch((noise, seen, eps, x0, cond), *part)
    net_key = jax.random.fold_in(net_key, part[0])
  if prepare:
    cond = prepare(params, cond)
  level, x = expand_to(noise, x0), q_sample(x0, noise, seen)
  if self_condition:
    net = with_estimate(net, own_estimate(self_key, net, params, x, noise, cond, predict))
  row = predict(level)
  out = net(params, row.scale * x, noise.time, cond, train, {'dropout': net_key})
  out, learned_variance = split_variance(out, x0.shape[-1])
  target = row.a * x0 + row.b * eps
  to_x0 = level.sigma / determinant(row, level)
  pixels = tuple(range(1, x0.ndim))
  each = weight(noise, jnp.reshape(jnp.square(to_x0), (-1,))) * jnp.mean(error(out, target), pixels)
  if uncertainty:
    u = uncertainty(params['uncertainty'], noise.logsnr)
    each = each * jnp.exp(-u) + u
  if variance:
    each += variance(noise, x0, jax.lax.stop_gradient(to_x0 * (target - out)), learned_variance)
  squared = jnp.mean(jnp.square(out - target), pixels)
  return jnp.mean(each), {'mse': squared, 'logsnr': noise.logsnr, 'each': each}


def loss_aware_loss(call, key, batch, aware, level, memory):
  """The loss at times that follow it, and divided by their density.

  Args:
    call: draw -> (scalar, parts), as partial(loss, ...) is.
    key: of the times.
    batch: B.
    aware: a times.LossAware.
    level: u [B] -> Noise[B] (times.levels).
    memory: what `aware` remembers.
  Returns:
    (scalar loss, parts with the new 'memory').
  """
  u, share = aware.times(key, batch, memory)
  noise = level(u)
  _, parts = call(draw=lambda key, batch: noise)
  return jnp.mean(share * parts['each']), parts | {'memory': aware.remember(memory, u, parts['each'])}
