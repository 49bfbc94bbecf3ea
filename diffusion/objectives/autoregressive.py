"""The objective `autoregressive`: codes one after the other, each given those before it; the likelihood is exact."""
import math

import jax
import jax.numpy as jnp

from diffusion.errors import InputError
from diffusion.objectives import denoising as losses
from diffusion.objectives.base import Model, Objective
from diffusion.samplers.base import token_draw


def guided(logits, null, scale):
  """log p of the guided distribution, in proportion to p(null)^(1 - scale) p^scale, [.., K]; 1 is conditional."""
  log_p, log_null = jax.nn.log_softmax(logits), jax.nn.log_softmax(null)
  return jax.nn.log_softmax(log_null + scale * (log_p - log_null))


def log_likelihood(logits, x0):
  """log p of codes int [B, K], in nats, [B]; logits [B, K, values], those of a code given the ones before it."""
  found = jnp.take_along_axis(jax.nn.log_softmax(logits), x0[..., None], -1)
  return jnp.sum(found[..., 0], -1)


def autoregressive(*, net, task, example, guide, condition_dropout):
  """Codes x0, int [B, K], of task.categories values each, drawn in turn with kept keys and values.

  config.guide may be 'cfg(scale)': logits are led away from those without a condition.
  """
  x0, cond = example
  _check(x0, task, guide)
  scale = guide.start.scale if guide.start else 1.
  network = net(values=task.categories, codes=x0.shape[-1], dots=task.facts['dots'] + 1)

  def base(key, apply, params, x0, cond, *, train=True, **unused):
    logits = apply(params, x0, jnp.zeros(len(x0)), cond, train, {'dropout': losses.streams(key).network})
    each = -log_likelihood(logits, x0) / x0.shape[-1]
    return jnp.mean(each), dict(bits=each / math.log(2), each=each)

  def loss(key, params, x0, cond, *, train=True, part=None, **unused):
    of_batch = losses.of_batch(base, task.null, condition_dropout, train, part)
    return of_batch(key, network.apply, params, x0, cond, draw=None, train=train)

  def model(params, memory, frozen):
    def whole(x0, cond):
      logits = network.apply(params, x0, jnp.zeros(len(x0)), cond)
      if scale == 1:
        return log_likelihood(logits, x0)
      return log_likelihood(guided(logits, network.apply(params, x0, jnp.zeros(len(x0)), task.null(cond)), scale), x0)

    def draw(keys, cond, shape):
      return draw_codes(network, params, keys, cond, None if scale == 1 else task.null(cond), scale, shape[0])
    return Model(draw=draw, log_likelihood=whole)

  init = lambda key: (network.init(key, shape=x0.shape, cond=cond), ())
  return Objective('autoregressive', init, loss, model, ('bits', 'bits per code'), guided=True)


def draw_codes(network, params, keys, cond, null, scale, K):
  """Codes int32 [B, K], each drawn given those before it. null: the condition to lead away from, or None."""
  B = len(keys)
  pair = lambda a, b: a if null is None else jnp.concatenate([a, b])
  log_p = lambda logits: logits if null is None else guided(logits[:B], logits[B:], scale)
  both = cond if null is None else jax.tree.map(pair, cond, null)

  def step(carry, i):
    logits, cache = carry
    code = token_draw(keys, i, log_p(logits))
    return network.call(params, 'following', cache, both, pair(code, code), i), code
  (logits, _), codes = jax.lax.scan(step, network.call(params, 'first', both), jnp.arange(K - 1))
  last = token_draw(keys, K - 1, log_p(logits))
  return jnp.concatenate([codes.T, last[:, None]], 1)


def _check(x0, task, guide):
  if not hasattr(x0, 'shape') or x0.ndim != 2 or x0.dtype.kind not in 'iu' or 'dots' not in task.facts:
    raise InputError("config.objective: autoregressive takes codes of embeddings; set config.task='codes(runs/clip)'")
  part = guide.parts[0] if guide.parts else None
  if guide.names not in ((), ('cfg',)) or guide.parts and part.negative:
    raise InputError(f"config.guide={guide.text!r}: codes are guided by 'cfg(scale)' alone")
