"""What is trained, and the model that comes of it."""
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp


def mean_of_parts(loss, params, parts):
  """The gradient of a loss that is a mean over examples: of the whole batch, or accumulated over micro-batches.

  Args:
    loss: (params, part=None) -> (mean over the examples of `part`, {name: [] or [examples, ...]}); part: None for the
      whole batch, or (i, parts) for its i-th micro-batch.
    params: tree of arrays.
    parts: number of micro-batches. The activations of only one of them are held at a time.
  Returns:
    ((value, metrics of the whole batch), gradient).
  """
  value_and_slope = jax.value_and_grad(loss, has_aux=True)
  if parts == 1:
    return value_and_slope(params)

  def add(total, i):
    (value, metrics), grads = value_and_slope(params, part=(i, parts))
    return jax.tree.map(jnp.add, total, (value, grads)), metrics
  zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
  total, metrics = jax.lax.scan(add, zeros, jnp.arange(parts))
  value, grads = jax.tree.map(lambda a: a / parts, total)
  whole = lambda a: a.reshape(-1, *a.shape[2:]) if a.ndim > 1 else jnp.mean(a)
  return (value, jax.tree.map(whole, metrics)), grads


class Objective(NamedTuple):
  """What is trained.

  It is made by a function f(.., *, net, schedule, task, example, ..), which takes what it needs by name:
  net(**sizes) -> nets.Net with fields that the network must have; schedule; task; example, the (x0, cond) of one
  example, arrays [1, ...]; open_model; and any part that a config names (setup/build.py).
  """
  name: str
  init: Callable   # key -> (params, memory); memory: what changes in training and is no parameter, () if nothing does
  loss: Callable   # (key, params, x0, cond, *, memory, frozen, ema, step, train, part)
                   # -> (scalar, {name: [] or [B, ...]}); names with _ before them are for `remember`, not logged
  model: Callable  # (params, memory, frozen) -> Model: only makes closures, and may be called without values
  error: tuple = ('', '')  # the metric [B] that is reported by log-SNR (metrics['logsnr']), and what it is in words
  schedule: Callable = lambda params: None  # params, or None before training -> schedule; None: not Gaussian
  remember: Callable = lambda memory, metrics: memory  # once a step, with the metrics of the whole batch
  gradient: Callable = mean_of_parts  # (loss, params, parts) -> ((value, metrics), gradient); it chooses what `part` of
                                      # the loss is; None: never in parts
  after: Callable = lambda params, step: params  # after each update, before the averages
  group: Callable = lambda path: ''  # path of a parameter -> its group in config.optimizer
  frozen: Any = ()  # given weights, such as a teacher: an argument of compiled functions
  guided: bool = False    # whether its model is guided by config.guide where it draws by itself
  evaluators: tuple = ()  # names of what measures it (evaluation.EVALUATORS), beside those of the task


class Model(NamedTuple):
  """What one can do with what was trained. A field is None where the objective has no such thing."""
  denoise: Callable = None      # cond -> (x, noise, previous=None) -> Pred, unguided and unclipped
  jump: Callable = None         # cond -> (x, t, s) -> x_s
  logits: Callable = None       # cond -> (tokens, noise) -> categorical.Guess
  mixed: Callable = None        # cond -> (dict of numbers and categories, noise) -> categorical.Mixed
  draw: Callable = None         # (keys [B], cond, shape) -> x0 [B, ...], where no shared loop draws
  log_likelihood: Callable = None  # (x0, cond) -> log p(x0 | cond) in nats, [B], where it is exact
  log_prob: Callable = None     # cond -> (x, noise) -> log p(cond | x_t), [B]
  embed: Callable = None        # (x0, cond) -> features [B, ...]
  embed_image: Callable = None  # (x, noise, or None for clean x) -> unit vectors [B, D], in one space with
  embed_text: Callable = None   # cond -> unit vectors [B, D]
  read_text: Callable = None    # (tokens [B, L], mask) -> (vectors of the tokens [B, L, W], unit vectors [B, D])
  reconstruct: Callable = None  # (key or None, x0, cond) -> x0 [B, ...]
  encode: Callable = None       # x0 -> moments [B, ...]: all that an autoencoder keeps of it
  latent: Callable = None       # (key or None, moments) -> z [B, h, w, c]; None: the mean
  decode: Callable = None       # z -> x0
  inspect: Callable = None      # (key, x0) -> {name: [B, ...]} for an evaluation
  attention: Callable = None    # cond -> (x, noise) -> [[B, heads, pixels, tokens] of each layer that reads the text]
  codes: int = 0                # number of values of a position, of an autoencoder with codes
  prior: Callable = None        # (keys [B], levels, shape) -> x at the noisiest level; None: Gaussian noise
