"""The training loss: draw a noise level and a noise for each example, ask the network, weight the error.

`loss` is the whole idea. Its options are wrappers, functions from a loss to a loss; then come other kinds of noise and
error. How noise levels are drawn is in timesteps.py, how errors are weighted in weighting.py, the bound that trains a
learned variance in variance.py.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffusion.core.gaussian import denoiser, determinant, expand_to, q_sample, split_output, with_estimate
from diffusion.errors import check_positive


# ---- the loss
def gaussian_noise():
  """Independent standard Gaussian noise, the same in input and target (DDPM, arXiv:2006.11239)."""
  def noise(key, x0):
    eps = jax.random.normal(key, x0.shape)
    return eps, eps
  return noise


def mse():
  return lambda out, truth: jnp.square(out - truth)


class Streams(NamedTuple):
  """The random streams of one loss: a wrapper takes its own, and none takes another's."""
  level: jax.Array      # noise levels
  noise: jax.Array      # eps
  condition: jax.Array  # condition dropout
  network: jax.Array    # the network's dropout
  estimate: jax.Array   # whether a self-conditioned network gets an estimate


def streams(key):
  return Streams(*jax.random.split(key, 5))


def example_mean(a, mask=None):
  """[B, ...] -> [B]: the mean over the dimensions of each example, or those that `mask` (broadcasts) marks with 1."""
  dimensions = tuple(range(1, a.ndim))
  if mask is None:
    return jnp.mean(a, dimensions)
  mask = jnp.broadcast_to(mask, a.shape).astype(a.dtype)
  return jnp.sum(a * mask, dimensions) / jnp.maximum(jnp.sum(mask, dimensions), 1)


def mask_of(cond):
  """Which entries of x0 count: cond['x_mask'], 1 or 0, broadcastable against x0; None: all."""
  return cond.get('x_mask') if isinstance(cond, dict) else None


def loss(key, net, params, x0, cond, *, draw, predict, weight, error=mse(), corrupt=gaussian_noise(), variance=None,
         mask=None, train=True):
  """The denoising loss of a batch: noise it, ask the network, weight the error (DDPM, arXiv:2006.11239, equation 14).

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
    error: (out, truth) -> elementwise error.
    corrupt: (key, x0) -> (eps in the network's input, eps in the target), each [B, ...].
    variance: the bound of a Variance to add (see variance.py), where the network learns one (gaussian.with_variance).
    mask: 1 for the entries of x0 over which the mean of an example is taken, 0 for others; None: all.
    train: whether the network's dropout is on.
  Returns:
    (scalar loss, {'mse': [B] unweighted squared error of the output, 'logsnr': [B], 'each': [B], whose mean is the
    loss}).
  """
  keys = streams(key)
  noise = draw(keys.level, len(x0))
  input_eps, eps = corrupt(keys.noise, x0)
  x, level = q_sample(x0, noise, input_eps), expand_to(noise, x0)
  target = predict(level)
  out = net(params, target.scale * x, noise.time, cond, train, {'dropout': keys.network})
  out, share = split_output(target, x0, out)
  truth, to_x0 = target.a * x0 + target.b * eps, level.sigma / determinant(target, level)
  each = weight(noise, jnp.reshape(jnp.square(to_x0), (-1,))) * example_mean(error(out, truth), mask)
  if variance:
    each += variance(noise, x0, jax.lax.stop_gradient(to_x0 * (truth - out)), share)
  return jnp.mean(each), {'mse': example_mean(jnp.square(out - truth), mask), 'logsnr': noise.logsnr, 'each': each}


# ---- wrappers: loss -> loss
def with_condition_dropout(loss, null, probability):
  """Also trains the unconditional model, for classifier-free guidance (arXiv:2207.12598, algorithm 1).

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


def of_batch(loss, null, probability, train, part):
  """The loss of a whole batch, or of `part`, (i, n), of it; in training, conditions are dropped."""
  made = with_micro_batch(loss, *part) if part else loss
  return with_condition_dropout(made, null, probability) if train else made


def with_micro_batch(loss, i, n):
  """The loss of the i-th of n micro-batches.

  Everything is drawn for the whole batch, so that the mean over i is its loss (except for the network's dropout).
  """
  def part(tree):
    return micro_batch(tree, i, n)
  def of_part(key, net, params, x0, cond, *, draw, corrupt=gaussian_noise(), mask=None, **options):
    def part_net(params, x, time, cond, train, rngs):
      return net(params, x, time, cond, train, {name: jax.random.fold_in(rng, i) for name, rng in rngs.items()})
    size = len(jax.tree.leaves(x0)[0])
    return loss(key, part_net, params, part(x0), part(cond), draw=lambda key, _: part(draw(key, size)),
                corrupt=lambda key, _: part(corrupt(key, x0)), mask=part(mask), **options)
  return of_part


def with_prepared_condition(loss, prepare):
  """Computes the condition as the network takes it once per loss. prepare: (params, cond) -> cond, as in nets.Net."""
  def prepared(key, net, params, x0, cond, **options):
    return loss(key, net, params, x0, prepare(params, cond), **options)
  return prepared


def with_self_conditioning(loss):
  """For a network that takes x and its own estimate of x0 side by side on the last axis.

  The estimate has no gradient, and is zeros for half of the batches, as at the first step of sampling (Analog Bits,
  arXiv:2208.04202, algorithm 1).
  """
  def self_conditioned(key, net, params, x0, cond, *, draw, predict, corrupt=gaussian_noise(), **options):
    keys = streams(key)
    noise, (input_eps, eps) = draw(keys.level, len(x0)), corrupt(keys.noise, x0)
    def estimate():
      denoise = denoiser(with_estimate(net), *jax.lax.stop_gradient((params, cond)), predict)
      return denoise(q_sample(x0, noise, input_eps), noise).x0
    estimated = jax.lax.cond(jax.random.bernoulli(keys.estimate), estimate, lambda: jnp.zeros(x0.shape, jnp.float32))
    return loss(key, with_estimate(net, estimated), params, x0, cond, draw=lambda *_: noise, predict=predict,
                corrupt=lambda *_: (input_eps, eps), **options)
  return self_conditioned


def with_uncertainty(loss, u):
  """Weights the error by e^-u and adds u, learned with params['uncertainty'] (EDM2, arXiv:2312.02696, equation 14).

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


def micro_batch(batch, i, n):
  """The i-th of n equal parts of a batch, [B, ...] -> [B/n, ...]: every n-th row, so each device keeps its own."""
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
  """Adds one value per channel to all its pixels, so that the model learns to change the mean brightness.

  "Diffusion with offset noise", Guttenberg 2023. The covariance over the pixels of a channel is I + strength^2 * 11^T;
  samplers still start from plain noise. x0 [B, ..., C] with at least one axis of pixels.
  """
  check_positive('offset', strength=strength)
  def noise(key, x0):
    shared = (x0.shape[0],) + (1,) * (x0.ndim - 2) + x0.shape[-1:]
    pixel_key, shared_key = jax.random.split(key)
    eps = jax.random.normal(pixel_key, x0.shape) + strength * jax.random.normal(shared_key, shared)
    return eps, eps
  return noise


def perturbed_noise(gamma=.1):
  """Input perturbation: eps + gamma * another draw in the input, eps in the target (arXiv:2301.11706, algorithm 1).

  In training the network meets errors like those of its own samples.
  """
  check_positive('perturbed', gamma=gamma)
  def noise(key, x0):
    eps_key, perturbation_key = jax.random.split(key)
    eps = jax.random.normal(eps_key, x0.shape)
    return eps + gamma * jax.random.normal(perturbation_key, x0.shape), eps
  return noise


def projected_noise(noise, project):
  """Noise in the subspace that `project` [B, ...] -> [B, ...] leaves as it is, where x0 lives."""
  return lambda key, x0: tuple(map(project, noise(key, x0)))


def minibatch_ot_noise():
  """Minibatch optimal transport: plain noise, permuted within the batch to minimise the sum of |x0 - eps|^2.

  It makes flows straighter (arXiv:2302.00482, section 3.2; arXiv:2304.14772).
  Only the noises are permuted, so that each x0 keeps its condition; with conditions that determine much of x0 the
  coupling is biased, since it correlates noise and condition as well. Exact assignment costs O(B^3), partly
  sequential: about 10 ms on a CPU at B = 256. Under jit it spans the whole batch, whatever the devices: all of x0
  and eps is gathered on each of them. Under pmap or shard_map each device pairs its own part.
  """
  def noise(key, x0):
    eps = jax.random.normal(key, x0.shape)
    flat = lambda a: jnp.reshape(a, (len(a), -1))
    i, j = optax.assignment.hungarian_algorithm(-flat(x0) @ flat(eps).T)  # |x0|^2 and |eps|^2 do not depend on it
    eps = jnp.zeros_like(eps).at[i].set(eps[j])
    return eps, eps
  return noise


# ---- other errors: (out, truth) -> elementwise error
def mae():
  return lambda out, truth: jnp.abs(out - truth)


def huber(delta=1.):
  """Quadratic up to delta, linear beyond; equals half the squared error near zero."""
  check_positive('huber', delta=delta)
  def error(out, truth):
    gap = jnp.abs(out - truth)
    return jnp.where(gap <= delta, .5 * gap ** 2, delta * (gap - .5 * delta))
  return error
