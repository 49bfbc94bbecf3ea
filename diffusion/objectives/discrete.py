"""The objective `discrete`: a network says what lost tokens were, and learns it by the bound on their likelihood."""
import jax
import jax.numpy as jnp

from diffusion.core import categorical
from diffusion.errors import InputError, unknown
from diffusion.objectives import denoising as losses, timesteps as times
from diffusion.objectives.base import Model, Objective
from diffusion.objectives.denoising import example_mean, mask_of, streams

KERNELS = dict(masked=categorical.masked, uniform=categorical.uniform)
NATS = ('nats', 'bound in nats per token')


def loss(key, net, params, x0, cond, *, draw, kernel, term, corrupt, mask=None, train=True):
  """The bound on -log p(x0) in nats per token, at one level for each example (MD4, arXiv:2406.04329, equation 5).

  Args:
    key: determines levels, lost tokens and the network's dropout.
    net: net(params, x, time, cond, train, rngs) -> logits [B, ..., K], x tokens (see token_net).
    params: its parameters.
    x0: tokens, int [B, ...].
    cond: condition, [B, ...] leaves or None.
    draw: (key, B) -> Noise[B].
    kernel: the categorical.Kernel.
    term: (x, x0, Guess, noise) -> [B, ...] nats per token, such as categorical.bound(schedule).
    corrupt: (key, x0) -> what categorical.noised takes after the level.
    mask: 1 for the tokens over which the mean of an example is taken, 0 for others; None: all.
    train: whether the network's dropout is on.
  Returns:
    (scalar loss, {'nats': [B], 'logsnr': [B], 'each': [B], whose mean is the loss}).
  """
  keys = streams(key)
  noise = draw(keys.level, len(x0))
  x = categorical.noised(x0, noise, *corrupt(keys.noise, x0))
  made = categorical.guess(net(params, x, noise.time, cond, train, {'dropout': keys.network}), kernel)
  each = example_mean(term(x, x0, made, noise), mask)
  return jnp.mean(each), {'nats': each, 'logsnr': noise.logsnr, 'each': each}


def masked_cross_entropy(x, x0, made, noise):
  """The cross-entropy of the tokens that were lost, unweighted (MaskGIT, arXiv:2202.04200, equation 1)."""
  lost = (x == made.kernel.K) if made.kernel.absorbing else True
  return jnp.where(lost, categorical.cross_entropy(x0, made), 0.)


def discrete(kernel='masked', weight='bound', *, net, schedule, task, example, timesteps, condition_dropout):
  """Discrete diffusion of x0, int tokens [B, ..., C] with task.categories values each.

  Args:
    kernel: masked (MD4, arXiv:2406.04329) or uniform (D3PM, arXiv:2107.03006).
    weight: bound, whose mean bounds -log p(x0); or one, the cross-entropy of lost tokens.
  """
  x0, cond = example
  if not hasattr(x0, 'shape') or x0.dtype.kind not in 'iu' or task.categories is None:
    raise InputError('config.objective: discrete takes an x0 of integers, and this task gives '
                     f'{getattr(x0, "dtype", "a tree")}; choose a task of tokens, such as words or grey_levels')
  kernel, term = make_kernel('discrete', kernel, task.categories), make_term('discrete', weight, schedule)
  network = token_net(net(out_channels=x0.shape[-1] * kernel.K), kernel)
  base = losses.with_prepared_condition(loss, network.prepare)
  draw = times.draw_levels(timesteps, schedule)

  def measure(key, params, x0, cond, *, train=True, part=None, **unused):
    made = losses.of_batch(base, task.null, condition_dropout, train, part)
    return made(key, network.apply, params, x0, cond, draw=draw, kernel=kernel, mask=mask_of(cond), train=train,
                term=term if train else categorical.bound(schedule),
                corrupt=lambda key, x0: categorical.noise_draws(key, x0, kernel))

  def model(params, memory, frozen):
    def logits(cond):
      cond, known = without_known(cond)
      prepared = network.prepare(params, cond)
      def predict(x, noise):
        return categorical.guess(network.apply(params, x, level_time(noise, x), prepared, False, {}), kernel)
      return predict if known is None else categorical.with_known(predict, known, known >= 0)
    def prior(keys, levels, shape):
      return token_prior(keys, kernel, shape)
    return Model(logits=logits, prior=prior)

  init = lambda key: (network.init(key, shape=x0.shape, cond=cond), ())
  return Objective('discrete', init, measure, model, NATS, lambda params: schedule)


# ---- parts that `mixed` has too
def make_kernel(name, kernel, sizes):
  if kernel not in KERNELS:
    raise InputError(f'{name}: kernel={unknown(kernel, KERNELS)}')
  return KERNELS[kernel](sizes)


def make_term(name, weight, schedule):
  if weight not in ('bound', 'one'):
    raise InputError(f'{name}: weight={unknown(weight, ("bound", "one"))}')
  return categorical.bound(schedule) if weight == 'bound' else masked_cross_entropy


def without_known(cond):
  """(the condition of the network, cond['known'] int [B, ..., C], below 0 where a token is not known, or None)."""
  if not isinstance(cond, dict) or 'known' not in cond:
    return cond, None
  rest = {name: value for name, value in cond.items() if name != 'known'}
  return rest or None, cond['known']


def token_net(network, kernel):
  """The Net that takes tokens [B, ..., C] and gives logits [B, ..., C, K], of one for channels.

  The network gets their one-hot vectors, those of one place side by side on the last axis.
  """
  def apply(params, x, *rest):
    return network.apply(params, one_hots(x, kernel), *rest).reshape(*x.shape, kernel.K)
  def init(key, shape, cond):
    return network.init(key, shape=(*shape[:-1], shape[-1] * kernel.inputs), cond=cond)
  return network._replace(init=init, apply=apply)


def one_hots(x, kernel):
  """Tokens [B, ..., C] -> float32 [B, ..., C * kernel.inputs]."""
  return jax.nn.one_hot(x, kernel.inputs).reshape(*x.shape[:-1], x.shape[-1] * kernel.inputs)


def level_time(noise, x):
  """The time input of the network for x [B, ...], [B]."""
  return jnp.broadcast_to(jnp.asarray(noise.time, jnp.float32), x.shape[:1])


def token_prior(keys, kernel, shape):
  """Tokens of which nothing is left, [B, *shape]."""
  draw = lambda key: categorical.stationary_draw(jax.random.fold_in(key, 2 ** 31 + 4), shape, kernel)
  return jax.vmap(draw)(keys)
