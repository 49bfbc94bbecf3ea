"""Guidance: functions from denoisers to denoisers. The order of a stack is the order of the calls, innermost first:

  dynamic_threshold(rescale(cfg(cond, null, 5.), cond, .7))

`cond` stands there twice and would be called twice at every level. `once` calls everything exactly once, and takes the
conditional and the null prediction from two calls of the network or from one:

  once(one_call(net, params, c, n, predict), lambda cond, null: rescale(cfg(cond, null, 5.), cond, .7))

Every transform takes levels that are scalar or [B], keeps x = alpha * x0 + sigma * eps, and hands on the learned
variance of the conditional prediction. Bad values raise InputError when a transform is built; a scale may be traced.
"""
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.gaussian import denoiser, expand_to, from_x0, Noise, Pred
from diffusion.errors import InputError


def _check(name, scale, lo=-np.inf, hi=np.inf):
  if not isinstance(scale, jax.Array):  # those may be traced, and cannot be looked at
    try:
      finite = np.all(np.isfinite(np.asarray(scale, np.float64)))
    except (TypeError, ValueError):
      finite = False
    if not finite:
      raise InputError(f'{name}(scale={scale!r}): expected a finite number, or one for each sample')
  if not lo <= hi:
    raise InputError(f'{name}(lo={lo!r}, hi={hi!r}): expected two log-SNRs, the lower one first')


def _strength(scale, x, noise, lo=-np.inf, hi=np.inf):
  """scale where lo <= logsnr <= hi and 1 elsewhere, as something that broadcasts against x."""
  k = jnp.where((noise.logsnr >= lo) & (noise.logsnr <= hi), jnp.asarray(scale, jnp.float32), 1.)
  return expand_to(noise._replace(logsnr=k), x).logsnr


def _total(x):
  """The sum over each sample, [B, 1, ...]."""
  return jnp.sum(x, tuple(range(1, x.ndim)), keepdims=True)


# ---- from two predictions
def cfg(cond, null, scale, lo=-np.inf, hi=np.inf):
  """Classifier-free guidance u + scale * (c - u) (arXiv:2207.12598), inside a log-SNR interval (arXiv:2404.07724).

  What stands in place of `null` makes other methods of it:
    the denoiser of a condition to keep away from: negative conditions;
    a worse model with the same condition, such as earlier weights: autoguidance (arXiv:2406.02507, equation 3).

  Args:
    cond, null: the denoiser with the condition and with the null condition.
    scale: 1 is conditional, 0 unconditional, above 1 exaggerates the condition. Scalar or [B].
    lo, hi: guidance acts where lo <= logsnr <= hi; elsewhere the result is conditional.
  Raises:
    InputError: a scale that is not finite; lo above hi.
  """
  _check('cfg', scale, lo, hi)
  def guided(x, noise):
    c, u = cond(x, noise), null(x, noise)
    k = _strength(scale, x, noise, lo, hi)
    return Pred(u.x0 + k * (c.x0 - u.x0), u.eps + k * (c.eps - u.eps), c.variance)
  return guided


def apg(cond, null, scale, eta=0., norm=np.inf, lo=-np.inf, hi=np.inf):
  """Adaptive projected guidance, c + (scale - 1) * update on x0 (arXiv:2410.02416, algorithm 1).

  The update is c - u, no longer than `norm`, with the part along c, which oversaturates, times eta. Without the paper's
  momentum: a denoiser has no memory.

  Args:
    cond, null, scale, lo, hi: as for cfg, which this is for eta = 1 and no limit.
    eta: share of the parallel part that is kept, in [0, 1].
    norm: limit for the Euclidean norm of c - u over a whole sample, which grows with the root of the sample's size. The
      paper uses 2.5 (EDM2) and 15 (Stable Diffusion XL) on latents.
  Raises:
    InputError: a scale that is not finite; eta outside [0, 1]; a norm that is not above 0; lo above hi.
  """
  _check('apg', scale, lo, hi)
  if not 0 <= eta <= 1:
    raise InputError(f'apg(eta={eta!r}): expected a number from 0 to 1')
  if not norm > 0:
    raise InputError(f'apg(norm={norm!r}): expected a length above 0')
  def guided(x, noise):
    c, u = cond(x, noise), null(x, noise)
    gap = c.x0 - u.x0
    gap *= jnp.minimum(1., norm / jnp.maximum(jnp.sqrt(_total(gap ** 2)), 1e-30))
    along = _total(gap * c.x0) / jnp.maximum(_total(c.x0 ** 2), 1e-30) * c.x0
    update = gap - along + eta * along
    return from_x0(expand_to(noise, x), x, c.x0 + (_strength(scale, x, noise, lo, hi) - 1) * update, c.variance)
  return guided


def rescale(guided, cond, phi=.7):
  """Gives a sample's guided x0, in part, the standard deviation of the conditional x0 (arXiv:2305.08891, eqs. 15, 16).

  The paper does so to the output of its network, which predicts v. Here it is x0, whose spread is the contrast that
  guidance overdoes: the result is then the same for every parameterisation, and no noise enters the measured spread.

  Args:
    guided, cond: the guided and the conditional denoiser.
    phi: 0 leaves guidance as it is, 1 restores the whole standard deviation.
  Raises:
    InputError: phi outside [0, 1].
  """
  if not 0 <= phi <= 1:
    raise InputError(f'rescale(phi={phi!r}): expected a number from 0 to 1')
  def rescaled(x, noise):
    g, c = guided(x, noise), cond(x, noise)
    inside = tuple(range(1, x.ndim))
    before, after = jnp.std(g.x0, inside, keepdims=True), jnp.std(c.x0, inside, keepdims=True)
    ratio = jnp.where(before > 1e-6, after / jnp.maximum(before, 1e-6), 1.)  # of one colour: its spread is rounding
    return from_x0(expand_to(noise, x), x, (phi * ratio + 1 - phi) * g.x0, g.variance)
  return rescaled


def interval(guided, plain, lo=-np.inf, hi=np.inf):
  """`guided` where lo <= logsnr <= hi, `plain` elsewhere (arXiv:2404.07724).

  At a scalar level, as samplers have it, only one of the two is computed; inside `once` the predictions are there
  anyway.

  Raises:
    InputError: lo above hi.
  """
  _check('interval', 1., lo, hi)
  def limited(x, noise):
    inside = (noise.logsnr >= lo) & (noise.logsnr <= hi)
    if not jnp.ndim(inside):
      return jax.lax.cond(inside, guided, plain, x, noise)
    g, p = guided(x, noise), plain(x, noise)
    inside = expand_to(noise._replace(logsnr=inside), x).logsnr
    return jax.tree.map(lambda g, p: jnp.where(inside, g, p), g, p)
  return limited


# ---- from a classifier
def classifier(denoise, log_prob, scale=1.):
  """Classifier guidance: eps - scale * sigma * grad_x log p(y | x_t) (arXiv:2105.05233, algorithm 2, any scaling).

  With the exact classifier of noisy data and scale 1 this is Bayes' rule: the denoiser of p(x0 | y). Where alpha = 0,
  x_t says nothing about y, the step in x0 would be zero over zero, and the result is not guided.

  Args:
    denoise: the denoiser to guide.
    log_prob: (x, noise) -> log p(y | x_t) of the wanted y, [B] (see classify.log_prob).
    scale: above 1 sharpens p(y | x_t). Scalar or [B].
  Raises:
    InputError: a scale that is not finite.
  """
  _check('classifier', scale)
  def guided(x, noise):
    pred, level = denoise(x, noise), expand_to(noise, x)
    slope = jax.grad(lambda x: jnp.sum(log_prob(x, noise)))(x)
    signal = jnp.asarray(level.alpha) > 0
    slope = jnp.where(signal, _strength(scale, x, noise) * slope, 0.)
    x0 = pred.x0 + level.sigma ** 2 / jnp.where(signal, level.alpha, 1.) * slope
    return Pred(x0, pred.eps - level.sigma * slope, pred.variance)
  return guided


# ---- calling the network
def separate_pair(cond, null):
  """The pair (x, noise) -> (conditional Pred, null Pred) of two denoisers."""
  return lambda x, noise: (cond(x, noise), null(x, noise))


def batched_pair(net, params, cond, null, predict):
  """The pair (x, noise) -> (conditional Pred, null Pred) of one network, called once with a doubled batch.

  Args:
    net, params, predict: as for denoise.denoiser.
    cond, null: the two conditions: [B, ...] leaves, the same tree and shapes.
  Raises:
    InputError: no conditions, or conditions that do not fit each other.
  """
  def shapes(tree):
    return jax.tree.map(jnp.shape, tree)
  if not jax.tree.leaves(cond) or jax.tree.structure(cond) != jax.tree.structure(null) or shapes(cond) != shapes(null):
    raise InputError(f'one_call: expected two conditions of the same shapes, got {shapes(cond)} and {shapes(null)}; '
                     'use two_calls')
  # A sample and its double lie side by side, not in two halves: a batch split over devices stays where it is.
  conds = jax.tree.map(lambda c, n: jnp.stack([c, n], 1).reshape(-1, *c.shape[1:]), cond, null)
  def twice(a):
    return jnp.repeat(a, 2, 0) if jnp.ndim(a) else a
  def pair(x, noise):
    preds = denoiser(net, params, conds, predict)(twice(x), Noise(*map(twice, noise)))
    preds = jax.tree.map(lambda a: a.reshape(-1, 2, *a.shape[1:]), preds)
    return tuple(jax.tree.map(lambda a: a[:, i], preds) for i in (0, 1))
  return pair


def shared_predictions(pair, stack):
  """The denoiser of a stack of transforms in which each prediction is computed once, however often the stack uses it.

  Compilers are no help here: whether two equal calls of a network are merged depends on how it is written.

  Args:
    pair: (x, noise) -> (conditional Pred, null Pred), from two_calls or one_call.
    stack: (cond, null) -> Denoise, such as lambda cond, null: rescale(cfg(cond, null, 3.), cond). It may call the two
      at the given (x, noise) only, as every transform here does.
  """
  stack(None, None)  # bad values are refused now, not in the first step
  def guided(x, noise):
    c, u = pair(x, noise)
    return stack(lambda x, noise: c, lambda x, noise: u)(x, noise)
  return guided
