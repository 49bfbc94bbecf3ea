"""--mode=edit --config.edit.task='restore(super_resolution(4), tmpd)': the posterior of images given a measurement.

An unconditional model, or one of classes, is told what was measured and how; a model of config.task='restore(..)' has
learned it, and takes 'restore' alone.
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import samplers
from diffusion.core import operators, posterior
from diffusion.core.gaussian import clip
from diffusion.errors import InputError, unknown
from diffusion.generation import sampling
from diffusion.samplers import spectral, twisted
from diffusion.setup import specs
from diffusion.setup.choices import CHOICES
from diffusion.system import sharding

GAUSSIAN = ('ddnm_plus', 'ddrm', 'smc')  # take Gaussian noise of one strength alone
METHODS = ('ddnm', 'ddnm_plus', 'ddrm', 'dps', 'pigdm', 'tmpd', 'smc')


class Restore(NamedTuple):
  """What config.edit.task='restore(..)' says."""
  degradation: Any = None
  method: str = 'tmpd'
  variance: float = .3
  iterations: int = 8
  particles: int = 64


def restore(degradation=None, method='tmpd', variance=.3, iterations=8, particles=64):
  """The posterior given a measurement.

  Args:
    degradation: of tasks/degradations.py, with the noise of the measurement, such as deblur(1, noise=.05).
    method: ddnm (no noise), ddnm_plus or ddrm (known singular values), dps, pigdm or tmpd (see core/posterior.py), or
      smc (particles, see samplers/twisted.py).
    variance: of the data in [-1, 1], for pigdm and smc.
    iterations: of conjugate gradients, for tmpd; each is a backward pass of the network.
    particles: of smc.
  """
  if method not in METHODS:
    raise InputError(f'method={method!r}: {unknown(str(method), METHODS)}')
  for name, value in dict(iterations=iterations, particles=particles).items():
    if type(value) is not int or not 1 <= value <= 100_000:
      raise InputError(f'{name}={value!r}: expected a whole number of at least 1')
  if degradation is not None and not hasattr(degradation, 'operator'):
    raise InputError(f'degradation={degradation!r}: expected one such as super_resolution(4)')
  return Restore(degradation, method, variance, iterations, particles)


def is_restore(task):
  return task.split('(')[0].strip() == 'restore'


def parse(task):
  """The Restore of config.edit.task."""
  return specs.resolve(dict(CHOICES, **{'edit.task': dict(restore=restore)}), 'edit.task', task)


def conditioned(how, shape, y):
  """(denoiser -> denoiser, whether it takes one that is not clipped, sampler or None) for the measurement y [1, ...].

  Raises:
    InputError: a method that does not go with the measurement or its noise.
  """
  operator, noise, same = how.degradation.operator(shape), how.degradation.noise, lambda denoise: denoise
  if how.method == 'ddnm' and noise:
    raise InputError(f"ddnm takes a measurement without noise, and {how.degradation.name} has some: use tmpd or "
                     'pigdm, or noise=0')
  if how.method == 'ddnm':
    return lambda denoise: operators.ddnm(denoise, operator, y), False, None
  if how.method in GAUSSIAN and callable(noise):
    raise InputError(f'{how.method} takes Gaussian noise of one strength, and that of {how.degradation.name} depends '
                     'on the image: use tmpd, pigdm or dps')
  if how.method in ('ddnm_plus', 'ddrm'):
    return same, False, getattr(spectral, how.method)(operator, y, noise)
  if how.method == 'smc':
    return same, False, twisted.twisted(operator, y, noise, how.variance)
  options = dict(pigdm=dict(variance=how.variance), tmpd=dict(iterations=how.iterations), dps={})[how.method]
  make = lambda denoise: getattr(posterior, how.method)(denoise, operator, y, noise, **options)
  make(None)  # refuses bad values now
  return make, True, None


def posterior_run(run, how, y):
  """The Experiment whose samples are of the posterior; run: without clip (build.without_clip)."""
  wrap, bare, sampler = conditioned(how, run.shape, jnp.asarray(y)[None])
  limit = (lambda denoise: clip(denoise, *run.task.bounds)) if run.config.clip_x0 and run.task.bounds else lambda d: d
  def denoise(weights, cond):
    plain = run.denoise(weights, cond)
    def given(x, noise, *previous):  # previous: the estimate that a self-conditioned network takes
      own = lambda x, noise: plain(x, noise, *previous)
      return (limit(wrap(own)) if bare else wrap(limit(own)))(x, noise)
    return given
  return run._replace(denoise=denoise, sampler=sampler or run.sampler)


def draw(run, weights, how, y, cond, number):
  """(images [number, H, W, C], facts for the record) given the measurement y [...]."""
  config, run = run.config, posterior_run(run, how, y)
  if how.method == 'smc':
    return _particles(run, weights, how, cond, number)
  drawn = sampling.make_draw(run, config.edit.seed, min(config.sample.batch, number))
  return drawn(weights, np.arange(number), cond)[0]['images'], {}


def _particles(run, weights, how, cond, number):
  """`number` of the particles, evenly spread, and their effective sample sizes; all are drawn at once."""
  solver = samplers.self_conditioned(run.sampler) if run.self_condition else run.sampler
  share = (lambda state: state.inner.ess) if run.self_condition else lambda state: state.ess
  def sample(weights, keys, cond):
    x = run.prior(weights, keys, run.levels, run.shape)
    x, ess = samplers.sample(keys, run.denoise(weights, cond), solver, run.levels, x, share)
    return run.decode(weights.frozen, x, cond)['images'], ess
  keys = samplers.sample_keys(run.config.edit.seed, np.arange(how.particles))
  images, ess = jax.device_get(jax.jit(sample, out_shardings=sharding.replicated(run.mesh))(weights, keys, cond))
  index = np.linspace(0, how.particles - 1, number).round().astype(int)
  facts = dict(particles=how.particles, effective=[round(float(value), 4) for value in ess],
               different=len(np.unique(images.reshape(len(images), -1), axis=0)))
  return images[index], facts
