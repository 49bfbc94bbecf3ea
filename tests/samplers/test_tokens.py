"""Samplers of tokens: against exact distributions, and the numbers of a mixed one against the solver alone."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import samplers
from diffusion.core import categorical, grids, schedules
from diffusion.core.categorical import Guess, Mixed
from diffusion.core.gaussian import Noise
from diffusion.errors import InputError
from diffusion.samplers import tokens
from tests.exact import gaussian_denoiser

CURVE = schedules.log_linear(None)
KERNELS = dict(masked=categorical.masked, uniform=categorical.uniform)


def start(kernel, number, places):
  keys = samplers.sample_keys(0, np.arange(number))
  draw = lambda key: categorical.stationary_draw(jax.random.fold_in(key, 9), (places,), kernel)
  return keys, jax.vmap(draw)(keys)


def run(sampler, predict, kernel, steps, number, places, trace=None):
  keys, x = start(kernel, number, places)
  sample = jax.jit(lambda keys, x: samplers.sample(keys, predict, sampler, grids.trailing(steps)(CURVE), x, trace))
  return jax.device_get(sample(keys, x))


@pytest.mark.parametrize('name', KERNELS)
def test_independent_tokens_follow_their_distribution_in_any_number_of_steps(name):
  """With independent tokens parallel draws are exact: frequencies of 20,000 draws are within 4.5 standard errors."""
  p, kernel, number = np.array([.55, .3, .14, .01]), KERNELS[name](4), 20_000
  def predict(x, noise):
    if kernel.absorbing:
      return Guess(jnp.broadcast_to(jnp.log(p), (*x.shape, 4)).astype(jnp.float32), kernel)
    keep, lost = jax.nn.sigmoid(noise.logsnr), jax.nn.sigmoid(-noise.logsnr)
    seen = keep * jax.nn.one_hot(x, 4) + lost / 4  # q(x_t | x0)
    return Guess(jnp.log(p * seen / jnp.sum(p * seen, -1, keepdims=True)), kernel)
  for steps in (1, 7) if kernel.absorbing else (5, 40):
    x = run(tokens.ancestral(), predict, kernel, steps, number, 2)
    for column in x.T:
      counts = np.bincount(column, minlength=4) / number
      assert np.all(np.abs(counts - p) < 4.5 * np.sqrt(p * (1 - p) / number)), (steps, counts)
    same = np.mean(x[:, 0] == x[:, 1])
    assert abs(same - p @ p) < 4.5 * np.sqrt(p @ p * (1 - p @ p) / number)  # and they are independent


def test_tokens_that_follow_from_each_other_agree_more_with_more_steps():
  """Both tokens are equal. They differ if both are filled in one step, of which the chance is 1 / steps, and then
  in half of the cases."""
  kernel, number = categorical.masked(2), 20_000
  def predict(x, noise):
    other = jnp.flip(x, 1)
    return Guess(jnp.where((other == 2)[..., None], jnp.log(.5), jnp.log(jax.nn.one_hot(other, 2) + 1e-30)), kernel)
  for steps in (1, 4, 16):
    x = run(tokens.ancestral(), predict, kernel, steps, number, 2)
    expected = .5 / steps
    assert abs(np.mean(x[:, 0] != x[:, 1]) - expected) < 4.5 * np.sqrt(expected / number)


def test_the_most_certain_masks_are_filled_first_and_as_many_as_the_level_says():
  kernel, places, steps = categorical.masked(3), 8, 5
  certainty = np.linspace(.4, .95, places)[[3, 0, 7, 1, 5, 2, 6, 4]]
  p = np.stack([certainty, (1 - certainty) / 2, (1 - certainty) / 2], 1)
  def predict(x, noise):
    return Guess(jnp.broadcast_to(jnp.log(p), (*x.shape, 3)).astype(jnp.float32), kernel)
  sampler = tokens.confident(temperature=1e-3, randomness=0.)  # draws the most likely value
  x, path = run(sampler, predict, kernel, steps, 2, places, trace=lambda state: state.x)
  assert np.all(x == 0)
  masks = path == 3
  np.testing.assert_array_equal(masks.sum(-1), np.floor(places * np.linspace(.8, 0, steps) + 1e-6)[:, None] * [1, 1])
  for step in masks[:, 0]:
    assert not step.any() or certainty[step].max() < certainty[~step].min()


def test_confident_refuses_a_kernel_without_masks():
  predict = lambda x, noise: categorical.guess(jnp.zeros((*x.shape, 3)), categorical.uniform(3))
  with pytest.raises(InputError, match='use ancestral'):
    run(tokens.confident(), predict, categorical.uniform(3), 2, 2, 4)


@pytest.mark.parametrize('solver', [samplers.ddpm(), samplers.dpmpp_2m(), samplers.heun()])
def test_numbers_and_categories_that_do_not_depend_on_each_other_are_drawn_as_if_alone(solver):
  denoise, kernel, levels = gaussian_denoiser(1., .5), categorical.masked(4), grids.trailing(6)(schedules.cosine(None))
  guess = lambda x: categorical.guess(jnp.broadcast_to(jnp.arange(4.), (*x.shape, 4)), kernel)
  keys, x = start(kernel, 5, 3)
  z = samplers.prior(keys, levels, (2,))
  both = lambda x, noise: Mixed(denoise(x['numbers'], noise), guess(x['categories']))
  made = samplers.sample(keys, both, tokens.mixed(solver), levels, dict(numbers=z, categories=x))
  np.testing.assert_allclose(made['numbers'], samplers.sample(keys, denoise, solver, levels, z), rtol=1e-6, atol=1e-6)
  if len(solver.plan(levels).h) == 6:
    alone = samplers.sample(keys, lambda x, noise: guess(x), tokens.ancestral(), levels, x)
    np.testing.assert_array_equal(made['categories'], alone)


def test_temperature_and_nucleus():
  p = np.array([.5, .3, .15, .05])
  guess = Guess(jnp.log(p)[None, None], categorical.masked(4))
  cold = np.exp(tokens.sharpened('x', .5, 1.)(guess).log_p)[0, 0]
  np.testing.assert_allclose(cold, p ** 2 / np.sum(p ** 2), rtol=1e-6)
  for top_p, kept in ((.4, 1), (.6, 2), (.85, 3), (1., 4)):
    nucleus = np.exp(tokens.sharpened('x', 1., top_p)(guess).log_p)[0, 0]
    np.testing.assert_allclose(nucleus, np.where(np.arange(4) < kept, p, 0) / p[:kept].sum(), rtol=1e-6)


@pytest.mark.parametrize('make, message', [
  (lambda: tokens.ancestral(temperature=0.), 'temperature'), (lambda: tokens.ancestral(top_p=1.5), 'top_p'),
  (lambda: tokens.confident(randomness=-1.), 'randomness'), (lambda: tokens.mixed(tokens.ancestral()), 'solver')])
def test_values_out_of_range_are_refused(make, message):
  with pytest.raises(InputError, match=message):
    make()
