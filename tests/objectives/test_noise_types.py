"""Noise variants: their covariances, and the pairing against every other."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.objectives import denoising

KEY = jax.random.key(0)


def covariance(samples):
  flat = np.asarray(samples, np.float64).reshape(len(samples), -1)
  return flat.T @ flat / len(flat)


def test_plain_noise_is_white_and_the_same_in_input_and_target():
  noise_in, target = denoising.gaussian_noise()(KEY, jnp.zeros((50_000, 2, 2, 1)))
  assert noise_in is target
  np.testing.assert_allclose(covariance(noise_in), np.eye(4), atol=.03)


def test_offset_noise_moves_the_pixels_of_a_channel_together():
  noise_in, target = denoising.offset_noise(.7)(KEY, jnp.zeros((100_000, 2, 1, 2)))
  assert noise_in is target
  channel = np.array([0, 1, 0, 1])  # of the four numbers of an image
  expected = np.eye(4) + .49 * (channel[:, None] == channel)
  np.testing.assert_allclose(covariance(noise_in), expected, atol=.03)


def test_perturbed_noise_is_wider_in_the_input_and_unchanged_in_the_target():
  noise_in, target = denoising.perturbed_noise(.5)(KEY, jnp.zeros((100_000, 2, 1, 1)))
  both = np.concatenate([np.asarray(target).reshape(-1, 2), np.asarray(noise_in).reshape(-1, 2)], 1)
  expected = np.kron([[1, 1], [1, 1.25]], np.eye(2))
  np.testing.assert_allclose(covariance(both), expected, atol=.03)


def test_pairing_costs_no_more_than_any_other_permutation():
  pair = jax.jit(denoising.minibatch_ot_noise())
  for seed in range(10):
    x0 = jax.random.normal(jax.random.key(seed), (5, 2, 2, 1))
    paired, target = pair(jax.random.key(seed + 100), x0)
    np.testing.assert_array_equal(paired, target)
    eps = np.asarray(denoising.gaussian_noise()(jax.random.key(seed + 100), x0)[0])
    cost = lambda noise: float(np.sum((np.asarray(x0) - noise) ** 2))
    least = min(cost(eps[list(order)]) for order in itertools.permutations(range(5)))
    assert cost(np.asarray(paired)) == pytest.approx(least, rel=1e-5)
    rows = lambda a: sorted(map(tuple, np.asarray(a).reshape(5, -1)))
    # the same noises, to the last digit of two compiled programs
    np.testing.assert_allclose(rows(paired), rows(eps), rtol=1e-6)


def test_pairing_leaves_the_distribution_of_the_noise():
  """Over many batches of skewed data, each noise is still standard normal, though correlated with its x0."""
  x0 = 2 + jax.random.exponential(jax.random.key(1), (2000, 8, 2))
  eps = jax.jit(jax.vmap(denoising.minibatch_ot_noise()))(jax.random.split(KEY, 2000), x0)[0]
  flat, data = np.asarray(eps).reshape(-1, 2), np.asarray(x0).reshape(-1, 2)
  np.testing.assert_allclose(flat.mean(0), 0, atol=.03)
  np.testing.assert_allclose(covariance(flat), np.eye(2), atol=.04)
  np.testing.assert_allclose((flat ** 4).mean(0), 3, atol=.25)
  assert np.corrcoef(flat[:, 0], data[:, 0])[0, 1] > .5


def test_bad_input_is_named():
  for make in (lambda: denoising.offset_noise(-1), lambda: denoising.perturbed_noise('a')):
    with pytest.raises(InputError, match='above 0'):
      make()
