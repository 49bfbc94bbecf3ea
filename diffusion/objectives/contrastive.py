"""Contrastive training of two towers, on pairs of an image and its caption: CLIP and SigLIP, of clean or noised images.

Both losses see the whole batch at once. Under a mesh the batch is one array, so they are global, and their gradients
right, without any exchange written here. Pairs with equal captions are positives of each other: otherwise the loss
tries to part what is equal.
"""
from functools import partial
import math

import jax
import jax.numpy as jnp

from diffusion.core import gaussian
from diffusion.core.gaussian import expand_to, q_sample
from diffusion.core.schedules import evaluate
from diffusion.errors import InputError, unknown
from diffusion.objectives import timesteps as times
from diffusion.objectives.base import Model, Objective

LARGEST = math.log(100)  # of logit_scale: the temperature is at least .01 (CLIP, arXiv:2103.00020, section 2.5)


# ---- losses of a batch: (images, texts, scale, bias, same, chunks) -> [B], whose mean is the loss
def softmax_loss(images, texts, scale, bias, same, chunks=1):
  """The cross-entropy of the pairing, over texts and over images (CLIP, arXiv:2103.00020, figure 3).

  Args:
    images, texts: unit vectors [B, D], float32; pair i is row i of both.
    scale: the inverse temperature, [].
    bias: not used; a softmax does not change with it.
    same: int [B], equal for equal captions, which share the target evenly.
    chunks: parts of the texts whose logits are held at a time, [B, B / chunks]; they are computed again for the
      gradient. A part has every chunks-th text, so that each device keeps its own.
  Returns:
    [B]: the mean of the cross-entropies of an image's texts and of its text's images.
  """
  def step(found, part):
    rows, pulled, number = found  # of each image, over the texts so far
    logits, alike = scale * images @ part[0].T, (same[:, None] == part[1]).astype(jnp.float32)
    pull = alike * logits
    column = jax.nn.logsumexp(logits, 0) - jnp.sum(pull, 0) / jnp.sum(alike, 0)
    rows = jnp.logaddexp(rows, jax.nn.logsumexp(logits, 1))
    return (rows, pulled + jnp.sum(pull, 1), number + jnp.sum(alike, 1)), column
  start = jnp.full(len(images), -jnp.inf), jnp.zeros(len(images)), jnp.zeros(len(images))
  (rows, pulled, number), columns = over_parts(step, start, (texts, same), chunks)
  return (rows - pulled / number + columns) / 2


def sigmoid_loss(images, texts, scale, bias, same, chunks=1):
  """-sum_j log sigmoid(y_ij (scale I_i.T_j + bias)), y = 1 for positives and -1 (SigLIP, arXiv:2303.15343, eq. 2).

  The sum is over all pairs, and the mean over the B images, not over B^2 pairs. Args and result as in softmax_loss.
  """
  def step(total, part):
    sign = jnp.where(same[:, None] == part[1], 1., -1.)
    return total + jnp.sum(jax.nn.softplus(-sign * (scale * images @ part[0].T + bias)), 1), ()
  return over_parts(step, jnp.zeros(len(images)), (texts, same), chunks)[0]


def over_parts(step, start, arrays, parts):
  """lax.scan of `step` over equal parts of arrays [B, ...], each of every parts-th row: (carry, outs [B, ...]).

  For the gradient each step is computed again, so that the intermediate results of only one are held.

  Args:
    step: (carry, part) -> (carry, out [B / parts, ...]).
  """
  if parts == 1:
    return step(start, arrays)
  split = lambda a: jnp.swapaxes(a.reshape(-1, parts, *a.shape[1:]), 0, 1)
  joined = lambda a: jnp.swapaxes(a, 0, 1).reshape(-1, *a.shape[2:])
  carry, out = jax.lax.scan(jax.checkpoint(step), start, jax.tree.map(split, arrays))
  return carry, jax.tree.map(joined, out)


def unit(x):
  """Rows scaled to length 1, in float32."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-24))


def _start_softmax(batch):
  return dict(logit_scale=jnp.float32(math.log(1 / .07)))


def _start_sigmoid(batch):
  """The bias of as many positives as there are in a batch: -4.8 for 128, and the paper's -10 for its 32,768."""
  return dict(logit_scale=jnp.float32(math.log(10)), logit_bias=jnp.float32(-math.log(batch - 1)))


LOSSES = dict(softmax=(softmax_loss, _start_softmax), sigmoid=(sigmoid_loss, _start_sigmoid))


# ---- accumulation
def cached_gradient(loss, params, parts):
  """The gradient of the whole batch, of which `parts` are embedded one after the other (GradCache, arXiv:2101.06983).

  A contrastive loss is no mean over micro-batches: their logits would lack most of the negatives. Embeddings of all
  parts are kept; what led to them is computed again, part by part, for the gradient. The network's dropout is the same
  both times.

  Args, result: as for base.mean_of_parts, but that `part` is the number of parts.
  """
  return jax.value_and_grad(partial(loss, part=parts), has_aux=True)(params)


# ---- the objective
def contrastive(loss='softmax', chunks=1, noised=False, *, net, schedule, example, predict, timesteps, batch):
  """Pairs of an image and its text find each other in a batch.

  Args:
    loss: softmax (CLIP) or sigmoid (SigLIP).
    chunks: parts in which the logits of a batch are computed, for batches of many thousands.
    noised: whether images are noised as for the model to be guided, and the network is told the level (GLIDE,
      arXiv:2112.10741, section 4.4). Otherwise the objective has no noise levels.
  """
  x0, cond = example
  _check(loss, chunks, noised, cond, batch)
  (measure, start), network = LOSSES[loss], net(timed=noised)
  draw, levels = (times.draw_levels(timesteps, schedule), schedule) if noised else (None, None)

  def init(key):
    return network.init(key, shape=x0.shape, cond=cond) | start(batch), ()

  def of_batch(key, params, x0, cond, *, train=True, part=None, **unused):
    level_key, eps_key, net_key = jax.random.split(key, 3)
    noise = draw(level_key, len(x0)) if noised else None
    x = q_sample(x0, noise, jax.random.normal(eps_key, x0.shape)) if noised else x0
    def embed(i, rows):
      (x, time), cond = rows
      found = network.apply(params, x, time, None, train, {'dropout': jax.random.fold_in(net_key, i)})
      return i + 1, (unit(found), unit(network.prepare(params, cond)))
    _, (images, texts) = over_parts(embed, 0, (_inputs(x, noise, predict), cond), part or 1)
    scale = jnp.exp(params['logit_scale'])
    each = measure(images, texts, scale, params.get('logit_bias', 0.), cond['same'], chunks)
    metrics = dict(contrastive=each, each=each, logit_scale=scale)
    return jnp.mean(each), metrics | (dict(logsnr=noise.logsnr) if noised else {})

  return Objective('contrastive', init, of_batch, _towers(network, predict, levels),
                   ('contrastive', 'contrastive loss'), lambda params: levels, gradient=cached_gradient, after=clamped)


def _inputs(x, noise, predict):
  """(x_t as the image tower takes it, its time [B]); noise: None for images without noise."""
  if noise is None:
    return x, jnp.zeros(len(x))
  return predict(expand_to(noise, x)).scale * x, jnp.broadcast_to(jnp.asarray(noise.time, jnp.float32), x.shape[:1])


def _towers(network, predict, schedule):
  """(params, memory, frozen) -> the Model; schedule: None for images without noise."""
  def model(params, memory, frozen):
    def embed_image(x, noise=None):
      noise = evaluate(schedule, 0.) if noise is None and schedule is not None else noise
      return unit(network.apply(params, *_inputs(x, None if schedule is None else noise, predict), None))

    def embed_text(cond):
      L = cond['tokens'].shape[-1]
      found = unit(network.prepare(params, {name: cond[name].reshape(-1, L) for name in ('tokens', 'weights')}))
      if cond['tokens'].ndim == 2:
        return found
      shares = cond['weights'][..., :1]  # of each text in a mix [B, P, L]: the weight of its first token
      return unit(jnp.sum(shares * found.reshape(*shares.shape[:2], -1), 1))

    def read_text(tokens, mask):
      states, vectors = network.call(params, 'read', tokens, mask)
      return states, unit(vectors)
    return Model(embed_image=embed_image, embed_text=embed_text, read_text=read_text)
  return model


def clamped(params, step):
  """logit_scale within [0, ln 100]: after an update and not in the loss, whose gradient would end at the bound."""
  if 'logit_scale' not in params:  # it is not trained
    return params
  return params | dict(logit_scale=jnp.clip(params['logit_scale'], 0., LARGEST))


def _check(loss, chunks, noised, cond, batch):
  if loss not in LOSSES:
    raise InputError(f'loss={loss!r}: {unknown(loss, LOSSES)}')
  if not isinstance(noised, bool):
    raise InputError(f'noised={noised!r}: expected True or False')
  if batch < 2:
    raise InputError(f'config.batch={batch}: a pair finds its own half among others; set it to at least 2, better 128')
  if isinstance(chunks, bool) or not isinstance(chunks, int) or chunks < 1 or batch % chunks:
    raise InputError(f'chunks={chunks!r}: expected a divisor of config.batch={batch}')
  if not isinstance(cond, dict) or 'same' not in cond:
    raise InputError("config.objective='contrastive' needs pairs of images and texts; set config.task='pairs'")
