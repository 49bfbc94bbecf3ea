"""A noise schedule that is trained with the network (VDM, arXiv:2107.00630), here as a piecewise linear curve.

The log-SNR is piecewise linear in time: `ends` parameterise how far above 0 it starts and below 0 it ends, `inner`
how its fall is distributed over equal intervals of time. The variational bound depends on the ends alone: the curve
in between only changes the variance of an estimate at random times. So the ends minimise the bound, and `inner` the
mean square of the estimates, whose mean it cannot change.

With config.schedule='learned' and config.objective='vdm' the parameters contain a 'curve' = init_curve() beside the
network's, and `bound` is the loss, with a `call` such as
  lambda params, draw, weight: loss(key, net, params, x0, cond, draw=draw, weight=weight, predict=predict_eps())
To sample, `curve_schedule(params['curve'])` is a curve like any other, for a grid such as grids.trailing(50).
"""
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core import likelihood
from diffusion.core.gaussian import array_module, vp
from diffusion.errors import InputError
from diffusion.objectives.base import Objective
from diffusion.objectives.denoising import gaussian_noise, micro_batch, mse
from diffusion.objectives.gaussian_diffusion import denoising_loss, denoising_model, denoising_net, MSE
from diffusion.objectives.timesteps import stratified

FLOOR = .01  # share of the fall that is distributed evenly, so that no piece is flat


def init_curve(pieces=64, start=13.3, end=-5.):
  """The parameters of a curve that falls linearly from `start` (t = 0) to `end` (t = 1); defaults as in VDM's code.

  Raises:
    InputError: no piece, or not start > 0 > end.
  """
  if isinstance(pieces, bool) or not isinstance(pieces, int) or pieces < 1 or not start > 0 > end:
    raise InputError(f'learned(pieces={pieces!r}, start={start}, end={end}): '
                     'expected at least 1 piece and start > 0 > end')
  distance = np.array([start, -end])
  return dict(ends=np.asarray(distance + np.log(-np.expm1(-distance)), np.float32),  # inverse softplus
              inner=np.zeros(pieces, np.float32))


def logsnr(curve, t):
  """(logsnr, dlogsnr/dt) at t in [0, 1]: float64 for NumPy times, else traced. Decreasing for any parameters."""
  xp = array_module(t)
  ends, inner = (xp.asarray(curve[name], None if xp is jnp else np.float64) for name in ('ends', 'inner'))
  above, below = xp.logaddexp(0., ends)
  n, shares = len(inner), xp.exp(inner - xp.max(inner))
  shares = (1 - FLOOR) * shares / xp.sum(shares) + FLOOR / n
  piece = xp.minimum(xp.floor(t * n), n - 1).astype(int)
  fallen = (xp.cumsum(shares) - shares)[piece] + shares[piece] * (t * n - piece)
  return above - (above + below) * fallen, -(above + below) * n * shares[piece]


def conditioning(value):
  """The network's time input at a log-SNR: 0 at 20 and 1000 at -20, however the curve changes."""
  return 25. * (20. - value)


def curve_schedule(curve):
  """The continuous VP schedule of a curve's parameters, such as those of a checkpoint."""
  def continuous(t):
    value, _ = logsnr(curve, t)
    return vp(conditioning(value), value)
  return continuous


def learned(pieces=64, start=13.3, end=-5.):
  """The schedule before training; arguments as for `init_curve`. The time input follows from log-SNR, on any curve.

  Its attribute `curve` holds the parameters.
  """
  curve = init_curve(pieces, start, end)
  continuous = curve_schedule(curve)
  continuous.curve = curve
  return continuous


def bound(key, params, x0, call, levels=256, rows=lambda tree: tree):
  """The variational bound in nats per dimension, at one random time per example.

  Its value is an unbiased estimate of the bound. Its gradient is that of the bound for the network and for the ends
  of the curve; for `inner` it is that of the mean square of the examples' estimates, and so of their variance.

  Args:
    key: for the times and the noise of the reconstruction; not the key in `call`.
    params: those of the network, and a 'curve' from `init_curve`.
    x0: data [B, ...].
    call: (params, draw, weight) -> (scalar, parts), such as denoising.loss, without learned uncertainty.
    levels: number of values of the data in [-1, 1], for the likelihood of x0 at t = 0 (DDPM, equation 13); None: x0 is
      continuous.
    rows: tree of arrays [B, ...] -> its rows for which the bound is computed, such as a micro-batch; `call` takes the
      same.
  Returns:
    (scalar, parts with 'each' [B], 'prior' and 'reconstruction', scalars).
  """
  stop, curve = jax.lax.stop_gradient, params['curve']
  time_key, eps_key = jax.random.split(key)
  t = stratified()(time_key, len(x0))

  def diffusion(params, value, slope):
    def weight(noise, to_x0):
      return -.5 * rows(slope) * jnp.exp(noise.logsnr) * to_x0
    return call(params, draw=lambda key, batch: vp(conditioning(value), value), weight=weight)[1]

  ends, inner = dict(curve, inner=stop(curve['inner'])), dict(curve, ends=stop(curve['ends']))
  parts = diffusion(params, *logsnr(ends, t))
  pull = jax.grad(lambda point: jnp.sum(diffusion(stop(params), *point)['each']))(stop(logsnr(curve, t)))
  towards = jax.tree.map(lambda g, point: 2 * stop(parts['each'] * g) * point, rows(pull), rows(logsnr(inner, t)))
  square = jnp.mean(sum(towards))  # its gradient is that of mean(each^2)
  prior, reconstruction = _ends(ends, *rows((x0, jax.random.normal(eps_key, x0.shape))), levels)
  total = jnp.mean(parts['each']) + prior + reconstruction + square - stop(square)
  return total, parts | dict(prior=prior, reconstruction=reconstruction)


def _ends(curve, x0, eps, levels):
  """The terms at t = 1, KL(q(x_1 | x0) || N(0, 1)), and at t = 0, -log p(x0 | x_0): means over dimensions."""
  first, last = (curve_schedule(curve)(jnp.asarray(t)) for t in (0., 1.))
  prior = jnp.mean(likelihood.gaussian_kl(last.alpha * x0, 2 * jnp.log(last.sigma), 0., 0.))
  log_std = -.5 * first.logsnr  # of x_0 / alpha_0 around x0
  mean = x0 + jnp.exp(log_std) * eps
  return prior, -jnp.mean(likelihood.data_log_likelihood(x0, mean, log_std, levels))


def vdm(*, net, schedule, task, example, predict, self_condition, condition_dropout):
  """The objective: the variational bound, which trains the noise schedule with the network."""
  network = denoising_net(net, example, None, self_condition)
  measure = denoising_loss(network, task, self_condition, condition_dropout, gaussian_noise(), predict=predict,
                           error=mse())

  def loss(key, params, x0, cond, *, train=True, part=None, **unused):
    rows = (lambda tree: micro_batch(tree, *part)) if part else (lambda tree: tree)
    call = lambda params, **options: measure(key, params, x0, cond, train, part, **options)
    return bound(jax.random.fold_in(key, 5), params, x0, call, task.levels, rows)

  def trained(params):
    return schedule if params is None else curve_schedule(jax.device_get(params['curve']))
  return Objective('vdm', lambda key: (network.init(key) | dict(curve=schedule.curve), ()), loss,
                   denoising_model(network, predict, self_condition), MSE, trained)
