"""Samplers given a noisy measurement whose singular values are known: each coordinate of V^T x is treated by itself.

Where a step would add less noise than y brings into a coordinate, y is trusted less; else the noise of y takes the
place of a part of the step's. With z = V^T x and z_y = U^T y / s, whose noise has the standard deviation noise / s:

  ddrm       a new sample around x0, x_t and z_y (arXiv:2201.11793)
  ddnm_plus  the ancestral step with z_y in x0 (arXiv:2212.00490)

Without noise they are samplers.consistency (ddrm with eta = eta_b = 1) and samplers.ddpm of operators.ddnm.
"""
import jax.numpy as jnp
import numpy as np

from diffusion.core.posterior import check_noise
from diffusion.errors import InputError
from diffusion.samplers.base import gaussian, Sample, Sampler


def _coordinates(operator, y, noise, shape):
  """(Svd, bool s > 0, z_y, noise / s or 0 where nothing is measured) of x0 of this shape [H, W, C]."""
  svd = operator.svd(shape)
  s, seen = np.asarray(svd.s, np.float32), svd.s > 0
  inverse = np.divide(1., s, out=np.zeros_like(s), where=seen)
  return svd, seen, inverse * svd.measured(jnp.asarray(y)), noise * inverse


def ddrm(operator, y, noise=0., eta=.85, eta_b=1.):
  """DDRM (arXiv:2201.11793, equations 7 and 8), in the units of x / alpha.

  Args:
    operator: a Linear with an svd.
    y: the measurement, [1, ...] or [B, ...].
    noise: its standard deviation; 0: none.
    eta: share of fresh noise, in units of the level that is reached (not DDIM's eta), in [0, 1].
    eta_b: weight of y where its noise is below that of the level, in [0, 1].
  Raises:
    InputError: an operator whose singular values are not known; a value outside its range.
  """
  _check('ddrm', operator, noise, eta=eta, eta_b=eta_b)
  def step(keys, denoise, state, step):
    x, t, s = state.x, step.t, step.s
    svd, seen, known, spread = _coordinates(operator, y, noise, x.shape[1:])
    pred, level = denoise(x, t), s.sigma / s.alpha
    x0, eps = svd.coordinates(pred.x0), svd.coordinates(pred.eps)
    kept = jnp.sqrt(1 - eta ** 2) * level
    apart = jnp.where(spread > 0, (known - x0) / jnp.where(spread > 0, spread, 1.), 0.)
    noisier = spread > level
    mean = jnp.where(~seen, x0 + kept * eps,
                     jnp.where(noisier, x0 + kept * apart, (1 - eta_b) * x0 + eta_b * known))
    rest = jnp.sqrt(jnp.maximum(level ** 2 - (eta_b * spread) ** 2, 0.))
    std = jnp.where(~seen | noisier, eta * level, rest)
    z = svd.coordinates(gaussian(keys, step.index, x))
    return Sample(s.alpha * svd.image(mean + std * z))
  return Sampler(Sample, step)


def ddnm_plus(operator, y, noise=0.):
  """DDNM+ with the ancestral step (arXiv:2212.00490, equations 17 to 19, one lambda and gamma for each coordinate).

  Args and Raises: as for ddrm.
  """
  _check('ddnm_plus', operator, noise)
  def step(keys, denoise, state, step):
    x, t, s = state.x, step.t, step.s
    svd, seen, known, spread = _coordinates(operator, y, noise, x.shape[1:])
    pred, k = denoise(x, t), -jnp.expm1(-2 * step.h)
    x0 = svd.coordinates(pred.x0)
    share, std = s.alpha * k, s.sigma * jnp.sqrt(k)  # of x0 in the mean of the step; its noise
    brought = share * spread
    trust = jnp.where(brought > std, std / jnp.where(brought > 0, brought, 1.), 1.)
    move = jnp.where(seen, trust * (known - x0), 0.)
    mean = s.alpha * pred.x0 + s.sigma * jnp.exp(-step.h) * pred.eps + svd.image(share * move)
    left = jnp.sqrt(jnp.maximum(std ** 2 - (trust * brought) ** 2, 0.))
    return Sample(mean + svd.image(left * svd.coordinates(gaussian(keys, step.index, x))))
  return Sampler(Sample, step)


def _check(name, operator, noise, **shares):
  check_noise(name, noise)
  for argument, share in shares.items():
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
      raise InputError(f'{name}({argument}={share!r}): expected a number from 0 to 1')
  if operator.svd is None:
    raise InputError(f'{name} needs the singular values of the measurement, which are not known of this one; use '
                     'tmpd, pigdm, dps or ddnm')
