"""Guidance: functions from denoisers to denoisers. They are applied in the order of the calls, innermost first:

  dynamic_threshold(rescale(cfg(cond, null, 5.), cond, .7))

`cond` appears twice, so the network would be evaluated twice for it. `shared_predictions` evaluates each prediction
once, with the network called separately for the two conditions or once for a doubled batch:

  pair = batched_pair(net, params, c, n, predict)
  shared_predictions(pair, lambda cond, null: rescale(cfg(cond, null, 5.), cond, .7))

Every transform takes scalar or [B] levels, preserves x = alpha * x0 + sigma * eps, and passes on the learned
variance of the conditional prediction. Invalid values raise InputError when a transform is built; a scale may be
traced.
"""
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.gaussian import column, denoiser, expand_to, from_x0, Noise, Pred
from diffusion.errors import InputError


def _check(name, scale, lo=-np.inf, hi=np.inf):
  if not isinstance(scale, jax.Array):  # which may be traced
    try:
      finite = np.all(np.isfinite(np.asarray(scale, np.float64)))
    except (TypeError, ValueError):
      finite = False
    if not finite:
      raise InputError(f'{name}(scale={scale!r}): expected a finite number, or one per sample')
  if not lo <= hi:
    raise InputError(f'{name}(lo={lo!r}, hi={hi!r}): expected two log-SNRs, the lower one first')


def _scale_at(scale, noise, lo=-np.inf, hi=np.inf):
  """scale where lo <= logsnr <= hi and 1 elsewhere, [] or [B]."""
  return jnp.where((noise.logsnr >= lo) & (noise.logsnr <= hi), jnp.asarray(scale, jnp.float32), 1.)


def _strength(scale, x, noise, lo=-np.inf, hi=np.inf):
  """scale where lo <= logsnr <= hi and 1 elsewhere, broadcastable against x."""
  return column(_scale_at(scale, noise, lo, hi), x.ndim)


def _total(x):
  """The sum over each sample, [B, 1, ..., 1]."""
  return jnp.sum(x, tuple(range(1, x.ndim)), keepdims=True)


# ---- from two predictions
def cfg(cond, null, scale, lo=-np.inf, hi=np.inf):
  """Classifier-free guidance u + scale * (c - u) (arXiv:2207.12598), inside a log-SNR interval (arXiv:2404.07724).

  With another denoiser in place of `null` this is another method:
    with a condition to avoid: a negative condition;
    with a worse model, such as earlier parameters, and the same condition: autoguidance (arXiv:2406.02507, eq. 3).

  Args:
    cond, null: the conditional and the unconditional denoiser; of tokens, it is log p that is extrapolated
      (categorical.Guess.towards).
    scale: 1 is conditional, 0 unconditional, above 1 amplifies the condition. Scalar or [B].
    lo, hi: guidance is active where lo <= logsnr <= hi; elsewhere the result is conditional.
  Raises:
    InputError: a scale that is not finite; lo above hi.
  """
  _check('cfg', scale, lo, hi)
  def guided(x, noise):
    return null(x, noise).towards(cond(x, noise), _scale_at(scale, noise, lo, hi))
  return guided


def apg(cond, null, scale, eta=0., norm=np.inf, lo=-np.inf, hi=np.inf):
  """Adaptive projected guidance, c + (scale - 1) * update on x0 (arXiv:2410.02416, algorithm 1).

  The update is c - u with its norm limited and its component parallel to c, which oversaturates, scaled by eta.
  Without the paper's momentum: a denoiser has no memory.

  Args:
    cond, null, scale, lo, hi: as for cfg, which is the case eta = 1 without a limit.
    eta: scale of the parallel component, in [0, 1].
    norm: limit of the Euclidean norm of c - u over a whole sample, which grows with the square root of the sample's
      size. The paper uses 2.5 (EDM2) and 15 (Stable Diffusion XL) on latents.
  Raises:
    InputError: a scale that is not finite; eta outside [0, 1]; norm not above 0; lo above hi.
  """
  _check('apg', scale, lo, hi)
  if not 0 <= eta <= 1:
    raise InputError(f'apg(eta={eta!r}): expected a number from 0 to 1')
  if not norm > 0:
    raise InputError(f'apg(norm={norm!r}): expected a number above 0')
  def guided(x, noise):
    c, u = cond(x, noise), null(x, noise)
    gap = c.x0 - u.x0
    gap *= jnp.minimum(1., norm / jnp.maximum(jnp.sqrt(_total(gap ** 2)), 1e-30))
    parallel = _total(gap * c.x0) / jnp.maximum(_total(c.x0 ** 2), 1e-30) * c.x0
    update = gap - parallel + eta * parallel
    return from_x0(expand_to(noise, x), x, c.x0 + (_strength(scale, x, noise, lo, hi) - 1) * update, c.variance)
  return guided


def rescale(guided, cond, phi=.7):
  """Rescales guided x0 towards the standard deviation of the conditional x0 (arXiv:2305.08891, equations 15, 16).

  The paper rescales the output of its network, which predicts v. Here it is x0, whose standard deviation is the
  contrast that guidance exaggerates: the result is the same for every parameterization, and no noise enters the
  measurement.

  Args:
    guided, cond: the guided and the conditional denoiser.
    phi: 0 changes nothing, 1 restores the whole standard deviation.
  Raises:
    InputError: phi outside [0, 1].
  """
  if not 0 <= phi <= 1:
    raise InputError(f'rescale(phi={phi!r}): expected a number from 0 to 1')
  def rescaled(x, noise):
    g, c = guided(x, noise), cond(x, noise)
    axes = tuple(range(1, x.ndim))
    before, after = jnp.std(g.x0, axes, keepdims=True), jnp.std(c.x0, axes, keepdims=True)
    ratio = jnp.where(before > 1e-6, after / jnp.maximum(before, 1e-6), 1.)  # in a constant image it is rounding error
    return from_x0(expand_to(noise, x), x, (phi * ratio + 1 - phi) * g.x0, g.variance)
  return rescaled


def interval(guided, plain, lo=-np.inf, hi=np.inf):
  """`guided` where lo <= logsnr <= hi, `plain` elsewhere (arXiv:2404.07724).

  At a scalar level, as in samplers, only one of the two is computed; inside `shared_predictions` both exist anyway.

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
def classifier(denoise, log_prob, scale=1., name='classifier'):
  """Classifier guidance: eps - scale * sigma * grad_x log p(y | x_t) (arXiv:2105.05233, algorithm 2, any scaling).

  With the exact classifier of noisy data and scale 1 this is Bayes' rule: the denoiser of p(x0 | y). Where alpha = 0,
  x_t says nothing about y, the change of x0 would be 0 / 0, and the result is not guided.

  Args:
    denoise: the denoiser to guide.
    log_prob: (x, noise) -> log p(y | x_t) of the requested y, [B] (see noisy_classifier.log_prob).
    scale: above 1 sharpens p(y | x_t). Scalar or [B].
    name: of the part, for messages.
  Raises:
    InputError: a scale that is not finite.
  """
  _check(name, scale)
  def guided(x, noise):
    pred, level = denoise(x, noise), expand_to(noise, x)
    slope = jax.grad(lambda x: jnp.sum(log_prob(x, noise)))(x)
    signal = jnp.asarray(level.alpha) > 0
    slope = jnp.where(signal, _strength(scale, x, noise) * slope, 0.)
    x0 = pred.x0 + level.sigma ** 2 / jnp.where(signal, level.alpha, 1.) * slope
    return Pred(x0, pred.eps - level.sigma * slope, pred.variance)
  return guided


def cosine(embed, texts, estimate=None):
  """The log_prob of `classifier` for a CLIP: (x, noise) -> cosine of the image's vector and the text's, [B].

  Without the temperature, which the log-probability has as a factor: GLIDE's gradient includes exp(logit_scale) = 100,
  so that its scale 3 is 300 here.

  Args:
    embed: (x, noise) -> unit vectors [B, D] of noised images (GLIDE, arXiv:2112.10741, section 2.4), or of clean ones.
    texts: unit vectors [B, D].
    estimate: of a CLIP of clean images, (x, noise) -> x0, the estimate of the denoiser, through which the gradient
      goes; None: the CLIP sees x_t itself.
  """
  def of_clean(x, noise):
    return jnp.sum(embed(estimate(x, noise), None) * texts, -1)
  return of_clean if estimate else lambda x, noise: jnp.sum(embed(x, noise) * texts, -1)


# ---- calling the network
def separate_pair(cond, null):
  """The pair (x, noise) -> (conditional Pred, null Pred) of two denoisers."""
  return lambda x, noise: (cond(x, noise), null(x, noise))


def batched_pair(net, params, cond, null, predict):
  """The pair (x, noise) -> (conditional Pred, null Pred) of one network, called once with a doubled batch.

  Args:
    net, params, predict: as for gaussian.denoiser.
    cond, null: the two conditions: [B, ...] leaves, the same tree and shapes.
  Raises:
    InputError: no conditions, or conditions of different trees or shapes.
  """
  return doubled(lambda conds: denoiser(net, params, conds, predict), cond, null)


def doubled(denoise, cond, null):
  """The pair (x, noise, *previous) -> (conditional Pred, null Pred) of a denoiser, called once with a doubled batch.

  Args:
    denoise: conditions [2B, ...] -> (x [2B, ...], noise, *previous) -> Pred.
    cond, null: as for batched_pair.
  """
  def shapes(tree):
    return jax.tree.map(jnp.shape, tree)
  if not jax.tree.leaves(cond) or jax.tree.structure(cond) != jax.tree.structure(null) or shapes(cond) != shapes(null):
    raise InputError('batched_pair: expected two conditions of the same shapes, got '
                     f'{shapes(cond)} and {shapes(null)}; use separate_pair')
  # The two copies of a sample are neighbours, not in two halves: a batch sharded over devices stays where it is.
  both = denoise(jax.tree.map(lambda c, n: jnp.stack([c, n], 1).reshape(-1, *c.shape[1:]), cond, null))
  def twice(a):
    return jnp.repeat(a, 2, 0) if jnp.ndim(a) else a
  def pair(x, noise, *previous):
    preds = both(jax.tree.map(twice, x), Noise(*map(twice, noise)), *map(twice, previous))
    preds = jax.tree.map(lambda a: a.reshape(-1, 2, *a.shape[1:]), preds)
    return tuple(jax.tree.map(lambda a: a[:, i], preds) for i in (0, 1))
  return pair


def shared_predictions(pair, stack):
  """The denoiser of a stack of transforms that evaluates each prediction once, however often the stack uses it.

  This cannot be left to the compiler: whether it merges two equal calls depends on how the network is written.

  Args:
    pair: (x, noise) -> (conditional Pred, null Pred), from separate_pair or batched_pair.
    stack: (cond, null) -> Denoise, such as lambda cond, null: rescale(cfg(cond, null, 3.), cond). It may call the two
      only at its own (x, noise), as every transform here does.
  """
  stack(None, None)  # refuses invalid values now, not in the first step
  def guided(x, noise):
    c, u = pair(x, noise)
    return stack(lambda x, noise: c, lambda x, noise: u)(x, noise)
  return guided
