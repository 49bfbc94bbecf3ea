"""The noisy classifier of classifier guidance: its loss, and its log p(y | x_t) (arXiv:2105.05233, section 4)."""
import jax
import jax.numpy as jnp

from diffusion.core.gaussian import expand_to, q_sample
from diffusion.errors import InputError
from diffusion.objectives.denoising import micro_batch


def _log_probs(net, params, x, noise, predict, train, rngs):
  """log p(k | x_t) of every class, [B, K]."""
  level = expand_to(noise, x)
  time = jnp.broadcast_to(jnp.asarray(noise.time, jnp.float32), x.shape[:1])
  logits = net(params, predict(level).scale * x, time, None, train, rngs)
  return jax.nn.log_softmax(logits.astype(jnp.float32))


def loss(key, net, params, x0, cond, *, draw, predict, smoothing=0., train=True, part=None):
  """The cross-entropy of the class of noised data.

  Its minimiser is the posterior p(y | x_t); it cannot go below the entropy of that, which at the noisiest level is the
  entropy of the labels.

  Args:
    key: decides times, noise and the network's dropout.
    net: net(params, x, time, None, train, rngs) -> logits [B, K].
    params: its parameters.
    x0: data [B, ...].
    cond: the class, [B, K]: one-hot, or any probabilities.
    draw: (key, B) -> Noise[B].
    predict: noise -> Row; only what the input is multiplied by is used, as with the network that is to be guided.
    smoothing: share of the label that is spread over all classes, in [0, 1).
    train: whether the network's dropout is on.
    part: None, or (i, n): of the i-th of n micro-batches, as in losses.loss.
  Returns:
    (scalar loss, {'mse': [B] cross-entropy, so named that it is logged as any loss is, 'logsnr': [B],
    'accuracy': [B] 0 or 1}).
  Raises:
    InputError: no labels; smoothing outside [0, 1).
  """
  if not 0 <= smoothing < 1:
    raise InputError(f'smoothing={smoothing!r}: expected a number from 0 to below 1')
  if getattr(cond, 'ndim', 0) != 2:
    raise InputError('a classifier learns from classes, one row of K probabilities an example: use data with labels')
  draw_key, eps_key, net_key = jax.random.split(key, 3)
  noise, eps = draw(draw_key, len(x0)), jax.random.normal(eps_key, x0.shape)
  if part:
    noise, eps, x0, cond = micro_batch((noise, eps, x0, cond), *part)
    net_key = jax.random.fold_in(net_key, part[0])
  x = q_sample(x0, noise, eps)
  scores = _log_probs(net, params, x, noise, predict, train, {'dropout': net_key})
  wanted = (1 - smoothing) * cond + smoothing / cond.shape[1]
  cross_entropy = -jnp.sum(wanted * scores, 1)
  right = jnp.argmax(scores, 1) == jnp.argmax(cond, 1)
  return jnp.mean(cross_entropy), {'mse': cross_entropy, 'logsnr': noise.logsnr, 'accuracy': right.astype(jnp.float32)}


def log_prob(net, params, label, predict):
  """What guidance.classifier needs: (x, noise) -> log p(label | x_t), [B].

  Args:
    net, params, predict: as for loss.
    label: the wanted class, [B, K] one-hot; a mixture gives the weighted sum of the log-probabilities.
  """
  return lambda x, noise: jnp.sum(label * _log_probs(net, params, x, noise, predict, False, {}), 1)
