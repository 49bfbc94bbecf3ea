"""Bits per dimension by the probability-flow ODE: the exact density of a deterministic sampler.

In y = x / alpha and l = log(sigma / alpha) the ODE of arXiv:2011.13456, section 4.3, is dy/dl = f(y), where
f = (sigma / alpha) * eps for every scaling, as in the samplers. A small volume around y grows by the divergence of f,
and y is in the units of the data, so that no volume of alpha enters:

  log p(data) = log N(y_T; 0, (sigma_T / alpha_T)^2) + integral of div f dl, from the cleanest level to the noisiest

The divergence is the trace of a Jacobian: `exact()`, or Hutchinson's estimate `hutchinson(probes)` (FFJORD,
arXiv:1810.01367), with new probes at every level: the sum stays unbiased, and its error is far smaller than with one
probe for the whole path. The solver is the classical Runge-Kutta method of order 4 with fixed steps in l: halve them
to see its error.

The ends: the model starts from N(0, sigma_T^2), as in samplers.prior. It stops at the cleanest level of the grid, and
p is the density of y there, with the noise of that level; the data takes the place of y unchanged. Quantised data has
uniform noise of one of its steps added, which makes the result a bound on the bits of the discrete data
(arXiv:1511.01844, section 3.1). `protocol` describes this for a record.
"""
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.gaussian import take
from diffusion.core.likelihood import gaussian_log_density
from diffusion.errors import InputError


def rademacher(keys, index, x):
  """Random signs shaped as x [B, ...]: of all probes of unit variance usually those of the smallest error."""
  signs = lambda key: jax.random.rademacher(jax.random.fold_in(key, index), x.shape[1:], x.dtype)
  return jax.vmap(signs)(keys)


def hutchinson(probes=2, draw=rademacher):
  """The trace as the mean of v^T J v over random probes v.

  Args:
    probes: number at each evaluation; a single one gives no estimate of the error.
    draw: (keys, index, x) -> v, `rademacher`, or samplers.gaussian, which has a larger error, even for the identity.
  """
  if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
    raise InputError(f'hutchinson({probes!r}): expected a number of probes, at least 1')
  def trace(keys, index, x, push):
    v = jax.vmap(lambda i: draw(keys, index * probes + i, x))(jnp.arange(probes))
    return jnp.sum(v * jax.vmap(push)(v), tuple(range(2, v.ndim)))
  return trace


def exact():
  """The exact trace, by one product per dimension: for few dimensions."""
  def trace(keys, index, x, push):
    D = int(np.prod(x.shape[1:]))
    basis = jnp.broadcast_to(jnp.eye(D, dtype=x.dtype).reshape(D, 1, *x.shape[1:]), (D, *x.shape))
    value = jnp.sum(basis * jax.vmap(push)(basis), (0, *range(2, x.ndim + 1)))
    return jnp.stack([value, value])  # estimates without error
  return trace


def _path(levels):
  """Rows of the grid from clean to noisy, and the step in l: two rows per step.

  Raises:
    InputError: an even number of levels, or levels that are not even in log-SNR.
  """
  path = take(levels, slice(-2, None, -1))  # without the clean end
  l = -.5 * path.logsnr
  even = len(l) > 1 and np.allclose(np.diff(l), (l[-1] - l[0]) / (len(l) - 1), rtol=1e-4, atol=0)
  if len(l) < 3 or len(l) % 2 == 0 or not even:
    raise InputError(f'a grid of {len(l)} steps: expected an odd number of at least 3, even in log-SNR, '
                     'such as exponential(101)')
  return path, 2 * (l[-1] - l[0]) / (len(l) - 1)


def protocol(levels, steps=256):
  """The solver and the treatment of the ends, for a record."""
  path, _ = _path(levels)
  low, high = (float(f'{path.sigma[i] / path.alpha[i]:.6g}') for i in (0, -1))
  return dict(method=f'probability-flow ODE, Runge-Kutta 4, {len(path.logsnr) // 2} steps in log-SNR',
              sigma_min=low, sigma_max=high,
              dequantisation='none' if steps is None else f'uniform noise of one of {steps} steps')


def bits(keys, denoise, levels, x0, *, trace=hutchinson(), steps=256):
  """Bits per dimension of each image; a lax.scan over the grid, to be wrapped in jit.

  Args:
    keys: one per image, [B] (samplers.sample_keys), for the dequantisation and the probes.
    denoise: (x, noise) -> Pred, without guidance, and best without clipping, whose kinks spoil the solver's order.
    levels: a grid of 2n + 1 steps even in log-SNR, from noise to clean, such as grids.exponential(101): n steps of
      the solver, 4 n evaluations.
    x0: data [B, ...], in [-1, 1].
    trace: hutchinson(probes, draw) or exact().
    steps: levels of the data between -1 and 1: it is dequantised, and the result is in bits of the discrete data.
      None: x0 is continuous, and the result is minus its log density.
  Returns:
    {'total': [B], 'error': [B], the standard error due to the probes: NaN for a single one, 0 for the exact trace.}
  Raises:
    InputError: a grid of another kind.
  """
  path, h = _path(levels)
  dtype, pixels = jnp.promote_types(x0.dtype, jnp.float32), tuple(range(1, x0.ndim))
  probe_keys, data_keys = (jax.vmap(lambda key: jax.random.fold_in(key, i))(keys) for i in (0, 1))
  y = x0.astype(dtype)
  if steps is not None:
    y += jax.vmap(lambda key: jax.random.uniform(key, x0.shape[1:], dtype, -1., 1.))(data_keys) / (steps - 1)

  def slope(y, level, index):
    value, push = jax.linearize(lambda y: level.sigma / level.alpha * denoise(level.alpha * y, level).eps, y)
    return value, trace(probe_keys, index, y, push)

  thirds = slice(0, -2, 2), slice(1, -1, 2), slice(2, None, 2)
  rows = [jax.tree.map(lambda a: jnp.asarray(a, dtype), take(path, third)) for third in thirds]
  volume = jax.eval_shape(lambda y: slope(y, take(rows[0], 0), 0)[1], y)
  start, moves = (y, jnp.zeros(volume.shape, dtype)), (*rows, jnp.arange(len(path.logsnr) // 2))
  (y, volume), _ = jax.lax.scan(_runge_kutta(slope, h), start, moves)
  log_p = jnp.sum(gaussian_log_density(y, 0., -.5 * path.logsnr[-1].item()), pixels) + volume  # [probes, B]
  each = -log_p / (np.prod(x0.shape[1:]).item() * np.log(2).item())
  error = jnp.std(each, 0, ddof=1) / np.sqrt(len(each)) if len(each) > 1 else jnp.full(each.shape[1:], jnp.nan)
  quantised = 0. if steps is None else np.log2((steps - 1) / 2)
  return dict(total=jnp.mean(each, 0) + quantised, error=error)


def _runge_kutta(slope, h):
  """The classical fourth-order step of (y, volume), for lax.scan. slope: (y, level, evaluation) -> both rates."""
  def body(state, step):
    (y, volume), (a, middle, b, index) = state, step
    k1, v1 = slope(y, a, 4 * index)
    k2, v2 = slope(y + h / 2 * k1, middle, 4 * index + 1)
    k3, v3 = slope(y + h / 2 * k2, middle, 4 * index + 2)
    k4, v4 = slope(y + h * k3, b, 4 * index + 3)
    return (y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), volume + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4)), None
  return body
