"""The objective of autoencoders: likelihood of the image given its latents, bottleneck, and adversarial term, if any.

The loss is in nats for each value of an image: (negative log-likelihood, summed, plus the bottleneck's cost) over the
number of values.
"""
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.likelihood import gaussian_log_density, logistic_log_likelihood
from diffusion.errors import check_positive, InputError
from diffusion.objectives import adversarial as adversary_of
from diffusion.objectives.base import Model, Objective
from diffusion.objectives.denoising import micro_batch

START = -1.  # of the log of a learned scale


# ---- the likelihood of an image: elementwise log p(x | z) around the decoder's image
class Likelihood(NamedTuple):
  log_prob: Callable   # (x, mean, log_scale) -> elementwise
  fixed: float | None  # the log of the scale, or None: it is learned
  discrete: bool       # whether x is quantised, so that the loss is in bits of the data


def _scale(name, scale):
  if scale is None:
    return None
  check_positive(name, scale=scale)
  return float(np.log(scale))


def laplace(scale=None):
  """|x - x'| / scale + log(2 scale): absolute error. scale: None is learned, one for all values; 1 is LDM's."""
  log_prob = lambda x, mean, log_scale: -jnp.abs(x - mean) * jnp.exp(-log_scale) - log_scale - np.log(2).item()
  return Likelihood(log_prob, _scale('laplace', scale), False)


def normal(scale=None):
  """Squared error: a density with this standard deviation. scale: None is learned."""
  return Likelihood(gaussian_log_density, _scale('normal', scale), False)


def logistic(scale=None):
  """The probability of the 8-bit value, of a discretised logistic distribution. scale: None is learned."""
  return Likelihood(logistic_log_likelihood, _scale('logistic', scale), True)


# ---- the objective
def autoencoder(bottleneck, likelihood=None, adversarial=None, *, net, example, task):
  """Images to latents and back.

  Args:
    bottleneck: a Bottleneck, such as kl(1e-6), vq(512), fsq((8, 5, 5, 5)), gaussian.
    likelihood: a Likelihood: laplace (default), normal, logistic.
    adversarial: an Adversary, such as hinge(.5), or None.
  """
  x0 = example[0]
  likelihood, critic = likelihood or laplace(), adversarial is not None
  _check(x0, task, likelihood)
  network = net(moments=bottleneck.moments, critic=critic, out_channels=x0.shape[-1])
  shape = _latent_shape(network, bottleneck, x0)

  def init(key):
    params = network.init(key, shape=x0.shape)
    params |= {} if likelihood.fixed is not None else dict(log_scale=jnp.asarray(START, jnp.float32))
    return params, bottleneck.start(jax.random.fold_in(key, 1), shape[-1])

  def loss(key, params, x0, cond, *, memory=(), step=0, train=True, part=None, **unused):
    noise = bottleneck.noise(key, (len(x0), *shape))
    x0, noise = micro_batch((x0, noise), *part) if part else (x0, noise)
    values = int(np.prod(x0.shape[1:]))
    passed = bottleneck.through(network.call(params, 'encode', x0), noise, memory, values)
    made, h = network.call(params, 'decode', passed.z)
    minus_log_prob = _minus_log_prob(likelihood, params, x0, made)
    each = minus_log_prob + passed.cost
    square = jnp.mean(jnp.square(made - x0), (1, 2, 3))
    metrics = dict(minus_log_prob=minus_log_prob, error=square, psnr=psnr(square)) | passed.metrics
    if not (critic and train):
      return jnp.mean(each), metrics | dict(each=each)
    more = _adversarial(adversarial, step, network, likelihood, params, x0, made, h)
    return jnp.mean(each) + more.value, metrics | more.metrics | dict(each=each)

  made = Objective('autoencoder', init, loss, _model(network, bottleneck, likelihood, critic, shape),
                   ('error', 'squared error of the image'), remember=bottleneck.remember,
                   evaluators=('reconstruction',))
  groups = dict(group=lambda path: 'disc' if path.startswith('disc/') else '', gradient=None)
  return made._replace(**groups) if critic else made


def _adversarial(adversary, step, network, likelihood, params, x0, made, h):
  """The adversarial.Terms of a batch."""
  judge = lambda disc, x: network.call(params | dict(disc=disc), 'judge', x)
  last = lambda final, h: network.call(with_last(params, final), 'last', h)
  fixed = jax.lax.stop_gradient(params)
  return adversary_of.terms(adversary, step, judge, last, (params['disc'], params['decoder']['conv_out']), x0, made, h,
                            lambda x: jnp.mean(_minus_log_prob(likelihood, fixed, x0, x)))


def psnr(square):
  """Peak signal-to-noise ratio in decibels of a mean square error of values in [-1, 1]."""
  return 10 * jnp.log10(4 / jnp.maximum(square, 1e-10))


def with_last(params, final):
  """The parameters with others for the last convolution."""
  return params | dict(decoder=params['decoder'] | dict(conv_out=final))


def _minus_log_prob(likelihood, params, x0, made):
  """-log p(x0 | z) in nats for each value, [B]."""
  log_scale = params['log_scale'] if likelihood.fixed is None else likelihood.fixed
  return -jnp.mean(likelihood.log_prob(x0, made, log_scale), (1, 2, 3))


def _model(network, bottleneck, likelihood, critic, shape):
  """(params, memory, frozen) -> Model.

  Its `inspect` also has what an image costs, in nats or bits for each value: the likelihood given a sampled latent, and
  the KL of the latents or their codes, all equally likely.
  """
  def model(params, memory, frozen):
    encode = lambda x0: network.call(params, 'encode', x0)
    decode = lambda z: network.call(params, 'decode', bottleneck.decoded(z, memory))[0]

    def reconstruct(key, x0, cond):
      return decode(bottleneck.latent(key, encode(x0)))

    def draw(keys, cond, unused):
      return decode(jax.vmap(lambda key: jax.random.normal(key, shape))(keys))

    def inspect(key, x0):
      moments, values = encode(x0), int(np.prod(x0.shape[1:]))
      z, found = bottleneck.latent(None, moments), bottleneck.inspect(moments, memory)
      passed = bottleneck.through(moments, bottleneck.noise(key, (len(x0), *shape)), memory, values)
      made = network.call(params, 'decode', passed.z)[0]
      rate = jnp.sum(found['kl'], (1, 2, 3)) if 'kl' in found else np.prod(shape[:2]) * np.log(bottleneck.codes)
      nelbo = _minus_log_prob(likelihood, params, x0, made) + rate / values
      bound = dict(bits_bound=nelbo / np.log(2)) if likelihood.discrete else dict(elbo_nll=nelbo)
      judged = lambda x: jnp.mean(network.call(params, 'judge', x), (1, 2))
      return found | bound | dict(latent=z) | (dict(real=judged(x0), made=judged(decode(z))) if critic else {})
    return Model(reconstruct=reconstruct, inspect=inspect, encode=encode, latent=bottleneck.latent, decode=decode,
                 draw=draw if bottleneck.prior else None, codes=bottleneck.codes)
  return model


def _latent_shape(network, bottleneck, x0):
  """(h, w, c) of the latents of one image."""
  params = jax.eval_shape(lambda key: network.init(key, shape=x0.shape), jax.random.key(0))
  *place, features = jax.eval_shape(lambda params: network.call(params, 'encode', x0), params).shape[1:]
  channels = features // bottleneck.moments
  if bottleneck.channels not in (None, channels):
    raise InputError(f'fsq has {bottleneck.channels} levels and the network {channels} channels of latents; set '
                     f'latent={bottleneck.channels} in config.net')
  return (*place, channels)


def _check(x0, task, likelihood):
  if getattr(x0, 'ndim', 0) != 4:
    raise InputError("config.objective='autoencoder' takes images [B, H, W, C]; use data and a task of images")
  if likelihood.discrete and task.levels != 256:
    raise InputError('likelihood=logistic takes images of 256 levels; use normal or laplace')
