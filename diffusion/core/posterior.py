"""Sampling x0 given a measurement y = A x0 + noise * z with any model: functions from denoisers to denoisers.

By Bayes' rule E[x0 | x_t, y] = x0 + (sigma^2 / alpha) grad log p(y | x_t), with x0 = E[x0 | x_t]. With
J = d x0 / d x_t, and V = (sigma^2 / alpha) J, which for the exact denoiser is the covariance of x0 given x_t, these are

           x0 +                                                       exact for Gaussian data
  ddnm     A^+ (y - A x0)                                             no        in operators.py; noise = 0
  dps      V A^T (y - A x0) / noise^2                                 no        too large by 1 + A V A^T / noise^2
  pigdm    V A^T (r^2 A A^T + noise^2)^-1 (y - A x0)                  no        where V = r^2
  tmpd     V A^T (A V A^T + noise^2)^-1 (y - A x0)                    yes

None is exact for other data; samplers/twisted.py is, in the limit of many particles. ddrm and ddnm_plus change how much
noise a step adds, and so are samplers (samplers/spectral.py). Any solver takes the denoisers here. Apply them to a
denoiser that is not clipped, whose J would vanish at the bounds, and clip the result.

`noise` of dps, pigdm and tmpd may depend on what is measured: a function A x0 -> standard deviation, taken at A E[x0 |
x_t]. Mean and variance of y given x_t are then right for Poisson noise, too, whose variance is linear in x0 (the law of
total variance); its shape is taken as Gaussian.

An example depends on its own measurement alone, whatever else is in the batch.
"""
import jax
import jax.numpy as jnp

from diffusion.core.gaussian import expand_to, from_x0
from diffusion.core.operators import ddnm, solve, transposed
from diffusion.errors import InputError

__all__ = ['ddnm', 'dps', 'pigdm', 'tmpd', 'likelihood']


def check_noise(name, noise, least_exclusive=False):
  """Raises InputError for a standard deviation of the noise of y that is none."""
  number = not isinstance(noise, bool) and isinstance(noise, (int, float))
  if not number or not 0 <= noise < float('inf') or least_exclusive and not noise:
    raise InputError(f'{name}(noise={noise!r}): expected the standard deviation of the noise of the measurement, '
                     f'{"above" if least_exclusive else "at least"} 0, in the units of y')


def _check_either(name, noise, least_exclusive=False):
  """check_noise of a number; a function says a standard deviation for each A x0."""
  if not callable(noise):
    check_noise(name, noise, least_exclusive)


def _variance(noise, clean):
  """Of y around A x0 = clean."""
  return jnp.square(noise(clean) if callable(noise) else noise)


def linearised(denoise, x, noise):
  """(Pred, V^T as a function): V = (sigma^2 / alpha) J is 0 where alpha is, as x_t says nothing there."""
  def estimate(x):
    pred = denoise(x, noise)
    return pred.x0, pred
  _, back, pred = jax.vjp(estimate, x, has_aux=True)
  level = expand_to(noise, x)
  signal = jnp.asarray(level.alpha) > 0
  rate = jnp.where(signal, level.sigma ** 2 / jnp.where(signal, level.alpha, 1.), 0.)
  return pred, lambda v: rate * back(v)[0]


def _moved(noise, x, pred, change):
  return from_x0(expand_to(noise, x), x, pred.x0 + change, pred.variance)


def dps(denoise, operator, y, noise, scale=1.):
  """log p(y | x_t) taken as that of y given E[x0 | x_t] (DPS, arXiv:2209.14687, equation 16, before its rescaling).

  The published algorithm divides by the norm of the residual in place of noise^2; here the step follows from the noise.
  Where noise^2 is below the variance of A x0 given x_t the change overshoots, and solvers diverge: lower `scale`.

  Args:
    denoise: (x, noise) -> Pred, not clipped.
    operator: a Linear.
    y: the measurement [B, ...]; broadcasts against operator.forward(x0).
    noise: its standard deviation, above 0; or A x0 -> that.
    scale: of the change.
  Raises:
    InputError: a noise or scale that is not above 0.
  """
  _check_either('dps', noise, True)
  if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not scale > 0:
    raise InputError(f'dps(scale={scale!r}): expected a number above 0')
  def conditioned(x, level):
    pred, spread = linearised(denoise, x, level)
    back = transposed(operator.forward, x.shape)
    clean = operator.forward(pred.x0)
    return _moved(level, x, pred, scale * spread(back((y - clean) / _variance(noise, clean))))
  return conditioned


def _spread_of(level, x, variance):
  """r^2: the variance of x0 given x_t, of data that are independent pixels of this variance."""
  level = expand_to(level, x)
  return level.sigma ** 2 * variance / (level.alpha ** 2 * variance + level.sigma ** 2)


def _by_variance(operator, y, noise, variance, iterations, level, pred):
  """(residual y - A x0, (r^2 A A^T + noise^2)^-1 of it, its A^T)."""
  back = transposed(operator.forward, pred.x0.shape)
  clean = operator.forward(pred.x0)
  residual, variance_y = y - clean, _variance(noise, clean)
  r2 = _spread_of(level, pred.x0, variance)
  # r^2 [B, 1, 1, 1] is in the units of x, and y may have another rank: it goes in before A.
  matrix = lambda u: operator.forward(r2 * back(u)) + variance_y * u
  return residual, solve(matrix, residual, iterations), back


def pigdm(denoise, operator, y, noise=0., variance=1., iterations=20):
  """log p(y | x_t) with a covariance r^2 of x0 given x_t (PiGDM, Song et al., ICLR 2023, equation 7).

  Args:
    denoise, operator, y: as for dps.
    noise: the standard deviation of the noise of y; 0: none; or A x0 -> that.
    variance: of the data, in r^2 = variance sigma^2 / (variance alpha^2 + sigma^2); the paper has 1.
    iterations: of conjugate gradients; 1 is enough where A A^T is a multiple of 1, as for pixels, blocks and luma.
  Raises:
    InputError: a noise below 0, a variance that is not above 0.
  """
  _check(noise, variance, 'pigdm')
  def conditioned(x, level):
    pred, spread = linearised(denoise, x, level)
    _, solved, back = _by_variance(operator, y, noise, variance, iterations, level, pred)
    return _moved(level, x, pred, spread(back(solved)))
  return conditioned


def _check(noise, variance, name):
  _check_either(name, noise)
  if isinstance(variance, bool) or not isinstance(variance, (int, float)) or not 0 < variance < float('inf'):
    raise InputError(f'{name}(variance={variance!r}): expected the variance of the data, above 0')


def tmpd(denoise, operator, y, noise=0., iterations=8):
  """log p(y | x_t) with the covariance V of x0 given x_t (TMPD, arXiv:2310.06721; solved as MMPS, arXiv:2405.13712).

  With enough iterations it is exact for Gaussian data. Each takes one backward pass of the network, and all share one
  forward pass.

  Args:
    denoise, operator, y, noise: as for pigdm.
    iterations: of conjugate gradients.
  Raises:
    InputError: a noise below 0.
  """
  _check_either('tmpd', noise)
  def conditioned(x, level):
    pred, spread = linearised(denoise, x, level)
    back = transposed(operator.forward, x.shape)
    clean = operator.forward(pred.x0)
    variance = _variance(noise, clean)
    matrix = lambda u: operator.forward(spread(back(u))) + variance * u
    solved = solve(matrix, y - clean, iterations)
    return _moved(level, x, pred, spread(back(solved)))
  return conditioned


def likelihood(denoise, operator, y, noise, variance=1., iterations=20):
  """(x, level) -> (Pred, the Pred of pigdm, its log p(y | x_t) [B] up to a constant of the level): for particles."""
  check_noise('smc', noise, True)
  _check(noise, variance, 'smc')
  def twist(x, level):
    pred, spread = linearised(denoise, x, level)
    residual, solved, back = _by_variance(operator, y, noise, variance, iterations, level, pred)
    log_p = -.5 * jnp.sum(residual * solved, tuple(range(1, residual.ndim)))
    return pred, _moved(level, x, pred, spread(back(solved))), log_p
  return twist
