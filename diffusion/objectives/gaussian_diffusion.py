"""The objective `denoising`: a network learns to denoise, and the model is its denoiser."""
import jax
import jax.numpy as jnp

from diffusion.core import gaussian
from diffusion.core.gaussian import with_estimate
from diffusion.errors import InputError
from diffusion.objectives import denoising as losses, timesteps as times, weighting
from diffusion.objectives.base import Model, Objective

MSE = ('mse', 'squared error of the output')


def denoising(*, net, schedule, task, example, predict, timesteps, loss_weight, loss_type, noise_type, variance,
              logvar_channels, self_condition, condition_dropout):
  """Denoising score matching (DDPM, arXiv:2006.11239), with everything that config names of it.

  Of x0, one array [B, ...], it takes the entries that cond['x_mask'] marks, where cond has one.
  """
  predict = gaussian.with_variance(predict, variance.share) if variance else predict
  network = denoising_net(net, example, variance, self_condition)
  uncertainty, u = weighting.uncertainty(logvar_channels) if logvar_channels else (None, None)
  of_text = isinstance(example[1], dict) and 'tokens' in example[1] and example[0].ndim == 4 and not self_condition
  aware = hasattr(timesteps, 'remember')
  _check(example, task, variance)
  draw = times.draw_levels(times.stratified() if aware else timesteps, schedule)
  level = times.levels_at(schedule)
  measure = denoising_loss(network, task, self_condition, condition_dropout, noise_type, u, predict=predict,
                           weight=loss_weight, error=loss_type, variance=variance and variance.bound)

  def init(key):
    params = network.init(key)
    memory = (timesteps.start(),) if aware else ()
    return (params | dict(uncertainty=uncertainty) if logvar_channels else params), memory

  def loss(key, params, x0, cond, *, memory=(), train=True, part=None, **unused):
    if not (aware and train):
      return measure(key, params, x0, cond, train, part, draw=draw)
    drawn, share = timesteps.times(jax.random.fold_in(key, 5), len(x0), memory[0])  # the loss splits its key in 5
    noise = level(drawn)
    _, metrics = measure(key, params, x0, cond, train, part, draw=lambda *_: noise)
    drawn, share = losses.micro_batch((drawn, share), *part) if part else (drawn, share)
    return jnp.mean(share * metrics['each']), metrics | dict(time=drawn)

  def remember(memory, metrics):
    return (timesteps.remember(memory[0], metrics['time'], metrics['each']),) if aware else memory

  model = denoising_model(network, predict, self_condition, of_text)
  return Objective('denoising', init, loss, model, MSE, lambda _: schedule, remember)


def denoising_net(net, example, variance, self_condition):
  """The Net of a denoiser, with channels for a learned variance and for self-conditioning; init takes the key alone."""
  x0, cond = example
  if not hasattr(x0, 'shape'):
    raise InputError('config.objective: denoising takes an x0 that is one array; this task gives a tree of them')
  needs = dict(out_channels=x0.shape[-1] * (1 + bool(variance))) if variance or self_condition else {}
  network = net(**needs)
  shape = (*x0.shape[:-1], x0.shape[-1] * 2) if self_condition else x0.shape
  return network._replace(init=lambda key: network.init(key, shape=shape, cond=cond))


def denoising_loss(network, task, self_condition, condition_dropout, noise_type, u=None, **options):
  """The loss (key, params, x0, cond, train, part, draw) -> (scalar, metrics) with its wrappers, as options ask for.

  Validation, train=False, is with Gaussian noise and every condition.
  """
  base = losses.loss
  if u:
    base = losses.with_uncertainty(base, u)
  if self_condition:
    base = losses.with_self_conditioning(base)
  base = losses.with_prepared_condition(base, network.prepare)

  def measure(key, params, x0, cond, train, part, **more):
    loss = losses.of_batch(base, task.null, condition_dropout, train, part)
    corrupt = noise_type if train else losses.gaussian_noise()
    if task.project:
      corrupt = losses.projected_noise(corrupt, lambda eps: task.project(eps, cond))
    return loss(key, network.apply, params, x0, cond, corrupt=corrupt, mask=losses.mask_of(cond), train=train,
                **(options | more))
  return measure


def denoising_model(network, predict, self_condition, of_text=False):
  """(params, memory, frozen) -> the Model of a denoiser; of_text: whether its condition is a text."""
  def model(params, memory, frozen):
    def denoise(cond):
      prepared = network.prepare(params, cond)
      def predicted(x, noise, previous=None):
        apply = with_estimate(network.apply, previous) if self_condition else network.apply
        return gaussian.denoiser(apply, params, prepared, predict)(x, noise)
      return predicted

    def attention(cond):
      prepared = network.prepare(params, cond)
      def weights(x, noise):
        time = jnp.broadcast_to(noise.time, len(x))
        return network.look(params, predict(gaussian.expand_to(noise, x)).scale * x, time, prepared)
      return weights
    return Model(denoise=denoise, attention=attention if of_text else None)
  return model


def _check(example, task, variance):
  _, cond = example
  if variance and losses.mask_of(cond) is not None:
    raise InputError("config.variance: a learned one takes no x_mask, its bound is a mean over all; set 'fixed'")
  if variance and task.project:
    raise InputError("config.variance: a learned one takes no projected x0; set 'fixed'")
