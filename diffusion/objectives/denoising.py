"""The training loss: draw a noise level and a noise for each example, ask the network, weigh the error.

`loss` is the whole idea. Its options are wrappers, functions from a loss to a loss; then come other kinds of noise and
error, and the bound that trains a learned variance. How noise levels are drawn is in timesteps.py, how errors are
weighted in weighting.py.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion.core import likelihood
from diffusion.core.gaussian import denoiser, determinant, expand_to, q_sample, split_output, with_estimate
from diffusion.core.lookup import nearest_row
from diffusion.errors import check_positive, InputError


# ---- the loss
def gaussian_noise():
  """Independent standard Gaussian noise, seen and asked for (DDPM, arXiv:2006.11239)."""
  def noise(key, x0):
    eps = jax.random.normal(key, x0.shape)
    return eps, eps
  return noise


def mse():
  return lambda out, target: jnp.square(out - target)


class Streams(NamedTuple):
  """The random streams of one loss: a wrapper takes its own, and none takes another's."""
  level: jax.Array      # noise levels
  noise: jax.Array      # eps
  condition: jax.Array  # condition dropout
  network: jax.Array    # the network's dropout
  estimate: jax.Array   # whether a self-conditioned network gets an estimate


def streams(key):
  return Streams(*jax.random.split(key, 5))


def example_mean(a):
  """[B, ...] -> [B]: the mean over the dimensions of each example."""
  return jnp.mean(a, tuple(range(1, a.ndim)))


def loss(key, net, params, x0, cond, *, draw, predict, weight, error=mse(), corrupt=gaussian_noise(), variance=None, train=True):
  """The denoising loss of a batch: noise it, ask the network, weigh the error (DDPM, arXiv:2006.11239, equation 14).

  Every other option is one of the wrappers below, functions from a loss to a loss with the same arguments.

  Args:
    key: determines noise levels, noise and the network's dropout.
    net: net(params, x, time, cond, train, rngs) -> out [B, ...].
    params: its parameters.
    x0: data [B, ...], images in [-1, 1].
    cond: condition, [B, ...] leaves or None.
    draw: (key, B) -> Noise[B].
    predict: noise -> Target, what the network is trained to output.
    weight: (noise, to_x0) -> [B] (see weighting.py).
    error: (out, target value) -> elementwise error.
    corrupt: (key, x0) -> (eps in the network's input, eps in the target), each [B, ...].
    variance: the bound to add for a network that learns its variance (see learned_variance, gaussian.with_variance).
    train: whether the network's dropout is on.
  Returns:
    (scalar loss, {'mse': [B] unweighted squared error of the output, 'logsnr': [B], 'each': [B], whose mean is the loss}).
  """
  keys = streams(key)
  noise, (input_eps, eps) = draw(keys.level, len(x0)), corrupt(keys.noise, x0)
  level, x = expand_to(noise, x0), q_sample(x0, noise, input_eps)
  target = predict(level)
  out = net(params, target.scale * x, noise.time, cond, train, {'dropout': keys.network})
  out, share = split_output(target, x0, out)
  value, to_x0 = target.a * x0 + target.b * eps, level.sigma / determinant(target, level)
  each = weight(noise, jnp.reshape(jnp.square(to_x0), (-1,))) * example_mean(error(out, value))
  if variance:
    each += variance(noise, x0, jax.lax.stop_gradient(to_x0 * (value - out)), share)
  return jnp.mean(each), {'mse': example_mean(jnp.square(out - value)), 'logsnr': noise.logsnr, 'each': each}


# ---- wrappers: loss -> loss
def with_condition_dropout(loss, null, probability):
  """Trains the unconditional network along with the conditional one (classifier-free guidance, arXiv:2207.12598, algorithm 1).

  Args:
    loss: the loss to wrap. Outermost: conditions are dropped in the whole batch.
    null: cond -> the unconditional cond.
    probability: of dropping the condition of an example.
  """
  def dropped(key, net, params, x0, cond, **options):
    if cond is not None:
      cond = drop_condition(streams(key).condition, cond, null, probability)
    return loss(key, net, params, x0, cond, **options)
  return dropped if probability else loss


def with_micro_batch(loss, i, n):
  """The loss of the i-th of n micro-batches. Everything is drawn for the whole batch, so that the mean over i is the loss of the whole
  batch (except for the network's dropout)."""
  def part(tree):
    return micro_batch(tree, i, n)
  def of_part(key, net, params, x0, cond, *, draw, corrupt=gaussian_noise(), **options):
    def part_net(params, x, time, cond, train, rngs):
      return net(params, x, time, cond, train, {name: jax.random.fold_in(rng, i) for name, rng in rngs.items()})
    return loss(key, part_net, params, part(x0), part(cond), draw=lambda key, _: part(draw(key, len(x0))),
                corrupt=lambda key, _: part(corrupt(key, x0)), **options)
  return of_part


def with_self_conditioning(loss):
  """For a network that takes x and its own estimate of x0 side by side on the last axis: without gradient, and for half of the batches
  zeros, as at the first step of sampling (Analog Bits, arXiv:2208.04202, algorithm 1)."""
  def self_conditioned(key, net, params, x0, cond, *, draw, predict, corrupt=gaussian_noise(), **options):
    keys = streams(key)
    noise, (input_eps, eps) = draw(keys.level, len(x0)), corrupt(keys.noise, x0)
    def estimate():
      denoise = denoiser(with_estimate(net), jax.lax.stop_gradient(params), cond, predict)
      return denoise(q_sample(x0, noise, input_eps), noise).x0
    estimated = jax.lax.cond(jax.random.bernoulli(keys.estimate), estimate, lambda: jnp.zeros(x0.shape, jnp.float32))
    return loss(key, with_estimate(net, estimated), params, x0, cond, draw=lambda *_: noise, predict=predict,
                corrupt=lambda *_: (input_eps, eps), **options)
  return self_conditioned


def with_uncertainty(loss, u):
  """Weighs the error by e^-u and adds u, learned with params['uncertainty'] (EDM2, arXiv:2312.02696, equation 14).

  Args:
    loss: the loss to wrap.
    u: (params, logsnr [B]) -> [B] (see weighting.uncertainty).
  """
  def uncertain(key, net, params, x0, cond, *, weight, **options):
    def scaled(noise, to_x0):
      return weight(noise, to_x0) * jnp.exp(-u(params['uncertainty'], noise.logsnr))
    _, parts = loss(key, net, params, x0, cond, weight=scaled, **options)
    each = parts['each'] + u(params['uncertainty'], parts['logsnr'])
    return jnp.mean(each), parts | {'each': each}
  return uncertain


def loss_aware_loss(call, key, batch, aware, level, memory):
  """The loss at times that follow it, divided by their density.

  Args:
    call: draw -> (scalar, parts), such as partial(loss, ...).
    key: of the times.
    batch: B.
    aware: a timesteps.LossAware.
    level: u [B] -> Noise[B] (lookup.levels_at).
    memory: the memory of `aware`.
  Returns:
    (scalar loss, parts with the new 'memory').
  """
  u, share = aware.times(key, batch, memory)
  noise = level(u)
  _, parts = call(draw=lambda key, batch: noise)
  return jnp.mean(share * parts['each']), parts | {'memory': aware.remember(memory, u, parts['each'])}


def micro_batch(batch, i, n):
  """The i-th of n equal parts of a batch, leaves [B, ...] -> [B/n, ...]: every n-th row, so that each device keeps its own rows."""
  return jax.tree.map(lambda a: jnp.reshape(a, (a.shape[0] // n, n, *a.shape[1:]))[:, i], batch)


def drop_condition(key, cond, null, probability):
  """Replaces the condition of a random share of the batch by the null condition."""
  batch = len(jax.tree.leaves(cond)[0])
  dropped = jax.random.bernoulli(key, probability, (batch,))
  def pick(c, n):
    return jnp.where(dropped.reshape(-1, *[1] * (c.ndim - 1)), n, c)
  return jax.tree.map(pick, cond, null(cond))


# ---- other noise: (key, x0) -> (eps in the network's input, eps in the target)
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


def minibatch_ot_noise():
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


# ---- other errors: (out, target value) -> elementwise error
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
