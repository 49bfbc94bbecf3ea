"""The objective `mixed`: numbers by Gaussian and categories by discrete diffusion, in one network at one level.

As TabDDPM (arXiv:2209.15421) and TabDiff (arXiv:2410.20626) do for tables.
"""
import jax
import jax.numpy as jnp

from diffusion import samplers
from diffusion.core import categorical, gaussian
from diffusion.core.categorical import Mixed
from diffusion.errors import check_positive, InputError
from diffusion.objectives import denoising as losses, timesteps as times
from diffusion.objectives.base import Model, Objective
from diffusion.objectives.denoising import example_mean, mask_of, streams
from diffusion.objectives.discrete import make_kernel, make_term, one_hots, token_prior

ENTRIES = ('entry', 'loss of an entry')


def loss(key, net, params, x0, cond, *, draw, kernel, term, share, corrupt, mask, train=True, **of_numbers):
  """The mean over all entries: of numbers the denoising loss, of categories the bound in nats, at one level.

  Args:
    net: net(params, x, time, cond, train, rngs) -> (outputs of the numbers, logits of the categories).
    x0, mask: dicts of numbers [B, ..., N] and categories [B, ..., C]; the mask is 1 for entries that count.
    share: factor of the categories' terms.
    corrupt: (key, x0) -> ((eps, eps) as for denoising.loss, what categorical.noised takes after the level).
    of_numbers: predict, weight and error, as for denoising.loss; the rest as for discrete.loss.
  Returns:
    (scalar loss, {'mse', 'nats', 'entry', 'logsnr', 'each': [B]}).
  """
  keys = streams(key)
  noise, (eps, lost) = draw(keys.level, len(x0['numbers'])), corrupt(keys.noise, x0)
  tokens, logits = categorical.noised(x0['categories'], noise, *lost), []
  _, found = losses.loss(key, beside(net, tokens, logits), params, x0['numbers'], cond, draw=lambda *_: noise,
                         corrupt=lambda *_: eps, mask=mask['numbers'], train=train, **of_numbers)
  nats = example_mean(term(tokens, x0['categories'], categorical.guess(logits[0], kernel), noise), mask['categories'])
  number, count = (jnp.sum(m, tuple(range(1, m.ndim))) for m in (mask['numbers'], mask['categories']))
  each = (number * found['each'] + share * count * nats) / jnp.maximum(number + count, 1)
  return jnp.mean(each), dict(mse=found['mse'], nats=nats, entry=each, logsnr=noise.logsnr, each=each)


def beside(net, tokens, logits):
  """The network of the numbers alone, for tokens at the same level; it adds what it says of these to `logits`."""
  def of_numbers(params, x, *rest):
    out, made = net(params, dict(numbers=x, categories=tokens), *rest)
    logits.append(made)
    return out
  return of_numbers


def mixed(kernel='masked', weight='bound', share=1., *, net, schedule, task, example, predict, timesteps, loss_weight,
          loss_type, condition_dropout):
  """Diffusion of x0 = dict(numbers=float [B, .., N], categories=int [B, .., C] with task.categories values each).

  Entries that cond['x_mask'] [B, .., N + C] marks with 0 are given: the network does not see them in x, they do not
  count in the loss, and what is drawn for them has no meaning.

  Args:
    kernel, weight: of the categories, as for discrete.
    share: factor of their terms in the loss.
  """
  check_positive('mixed', share=share)
  x0, cond = example
  if not isinstance(x0, dict) or set(x0) != {'numbers', 'categories'} or task.categories is None:
    raise InputError("config.objective: mixed takes numbers and categories, as config.task='table' gives them")
  kernel, term = make_kernel('mixed', kernel, task.categories), make_term('mixed', weight, schedule)
  numbers, categories = x0['numbers'].shape[-1], x0['categories'].shape[-1]
  network = mixed_net(net(out_channels=numbers + categories * kernel.K), kernel, numbers)
  base = losses.with_prepared_condition(loss, network.prepare)
  draw = times.draw_levels(timesteps, schedule)

  def measure(key, params, x0, cond, *, train=True, part=None, **unused):
    made = losses.of_batch(base, task.null, condition_dropout, train, part)
    return made(key, network.apply, params, x0, cond, draw=draw, kernel=kernel, share=share, corrupt=corruption(kernel),
                mask=mask_tree(cond, x0), term=term if train else categorical.bound(schedule), train=train,
                predict=predict, weight=loss_weight, error=loss_type)

  init = lambda key: (network.init(key, cond=cond, shape=x0['numbers'].shape[:-1]), ())
  return Objective('mixed', init, measure, mixed_model(network, kernel, predict), ENTRIES, lambda params: schedule)


def corruption(kernel):
  """The `corrupt` of the loss."""
  def corrupt(key, x0):
    number_key, token_key = jax.random.split(key)
    eps = losses.gaussian_noise()(number_key, x0['numbers'])
    return eps, categorical.noise_draws(token_key, x0['categories'], kernel)
  return corrupt


def mixed_model(network, kernel, predict):
  """(params, memory, frozen) -> the Model."""
  def model(params, memory, frozen):
    def both(cond):
      prepared = network.prepare(params, cond)
      def of_both(x, noise):
        logits = []
        of_numbers = beside(network.apply, x['categories'], logits)
        pred = gaussian.denoiser(of_numbers, params, prepared, predict)(x['numbers'], noise)
        return Mixed(pred, categorical.guess(logits[0], kernel))
      return of_both
    def prior(keys, levels, shape):
      return dict(numbers=samplers.prior(keys, levels, shape['numbers']),
                  categories=token_prior(keys, kernel, shape['categories']))
    return Model(mixed=both, prior=prior)
  return model


def mask_tree(cond, x0):
  """cond['x_mask'], or ones, as a dict of numbers and categories."""
  mask = mask_of(cond)
  if mask is None:
    return jax.tree.map(lambda a: jnp.ones(a.shape, jnp.float32), x0)
  numbers = x0['numbers'].shape[-1]
  return dict(numbers=mask[..., :numbers], categories=mask[..., numbers:])


def mixed_net(network, kernel, numbers):
  """The Net that takes dict(numbers, categories) and gives (outputs [B, .., N], logits [B, .., C, K]).

  Args:
    network: the Net of one array with everything side by side on its last axis.
    numbers: N.
  """
  def given(cond):  # what is given enters beside x, too: the condition alone only modulates the network
    return [] if mask_of(cond) is None else [cond[name] for name in ('cond', 'x_mask') if name in cond]
  def apply(params, x, time, cond, *rest):
    mask = mask_tree(cond, x)
    seen = jnp.repeat(mask['categories'], kernel.inputs, -1)
    flat = jnp.concatenate([x['numbers'] * mask['numbers'], one_hots(x['categories'], kernel) * seen, *given(cond)], -1)
    out = network.apply(params, flat, time, cond, *rest)
    return out[..., :numbers], out[..., numbers:].reshape(*x['categories'].shape, kernel.K)
  def init(key, shape, cond):
    width = numbers + len(kernel.sizes) * kernel.inputs + sum(a.shape[-1] for a in given(cond))
    return network.init(key, shape=(*shape, width), cond=cond)
  return network._replace(init=init, apply=apply)
