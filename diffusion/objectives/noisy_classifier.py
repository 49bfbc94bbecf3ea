"""The noisy classifier of classifier guidance: its loss and its log p(y | x_t) (arXiv:2105.05233, section 4)."""
import jax
import jax.numpy as jnp

from diffusion.core.gaussian import expand_to, q_sample
from diffusion.errors import InputError
from diffusion.objectives import timesteps as times
from diffusion.objectives.base import Model, Objective
from diffusion.objectives.denoising import micro_batch


def _log_probs(net, params, x, noise, predict, train, rngs):
  """log p(k | x_t) of every class, [B, K]."""
  level = expand_to(noise, x)
  time = jnp.broadcast_to(jnp.asarray(noise.time, jnp.float32), x.shape[:1])
  logits = net(params, predict(level).scale * x, time, None, train, rngs)
  return jax.nn.log_softmax(logits.astype(jnp.float32))


def loss(key, net, params, x0, cond, *, draw, predict, smoothing=0., train=True, part=None):
  """The cross-entropy of the class given noisy data.

  Its minimiser is the posterior p(y | x_t), and its minimum the posterior's entropy, which at the noisiest level is
  the entropy of the labels.

  Args:
    key: determines noise levels, noise and the network's dropout.
    net: net(params, x, time, None, train, rngs) -> logits [B, K].
    params: its parameters.
    x0: data [B, ...].
    cond: the class, [B, K]: one-hot, or any probabilities.
    draw: (key, B) -> Noise[B].
    predict: noise -> Target, of which only the factor of the input is used, as for the network to be guided.
    smoothing: label smoothing, the share of the label spread over all classes, in [0, 1).
    train: whether the network's dropout is on.
    part: None, or (i, n) for the i-th of n micro-batches, as in denoising.with_micro_batch.
  Returns:
    (scalar loss, {'cross_entropy': [B], 'logsnr': [B], 'accuracy': [B], 0 or 1}).
  Raises:
    InputError: no labels; smoothing outside [0, 1).
  """
  if not 0 <= smoothing < 1:
    raise InputError(f'smoothing={smoothing!r}: expected a number from 0 to below 1')
  if getattr(cond, 'ndim', 0) != 2:
    raise InputError('a classifier needs class labels, one row of K probabilities per example: use data with labels')
  draw_key, eps_key, net_key = jax.random.split(key, 3)
  noise, eps = draw(draw_key, len(x0)), jax.random.normal(eps_key, x0.shape)
  if part:
    noise, eps, x0, cond = micro_batch((noise, eps, x0, cond), *part)
    net_key = jax.random.fold_in(net_key, part[0])
  x = q_sample(x0, noise, eps)
  log_probs = _log_probs(net, params, x, noise, predict, train, {'dropout': net_key})
  labels = (1 - smoothing) * cond + smoothing / cond.shape[1]
  cross_entropy = -jnp.sum(labels * log_probs, 1)
  accuracy = (jnp.argmax(log_probs, 1) == jnp.argmax(cond, 1)).astype(jnp.float32)
  return jnp.mean(cross_entropy), {'cross_entropy': cross_entropy, 'logsnr': noise.logsnr, 'accuracy': accuracy}


def log_prob(net, params, label, predict):
  """The log_prob of guidance.classifier: (x, noise) -> log p(label | x_t), [B].

  Args:
    net, params, predict: as for loss.
    label: the class to guide to, [B, K] one-hot; a mixture gives the weighted sum of the log-probabilities.
  """
  return lambda x, noise: jnp.sum(label * _log_probs(net, params, x, noise, predict, False, {}), 1)


def classifier(*, net, schedule, example, predict, timesteps):
  """The objective: the class of noisy data. Its model guides another one, and draws nothing."""
  x0, cond = example
  if getattr(cond, 'ndim', 0) != 2:
    raise InputError('config.objective=\'classifier\' needs class labels; use data with labels')
  network = net(classes=cond.shape[1])
  draw = times.draw_levels(timesteps, schedule)

  def measure(key, params, x0, cond, *, train=True, part=None, **unused):
    return loss(key, network.apply, params, x0, cond, draw=draw, predict=predict, train=train, part=part)

  def model(params, memory, frozen):
    return Model(log_prob=lambda label: log_prob(network.apply, params, label, predict))
  init = lambda key: (network.init(key, shape=x0.shape, cond=cond), ())
  return Objective('classifier', init, measure, model, ('cross_entropy', 'cross-entropy of the class'),
                   lambda params: schedule)
