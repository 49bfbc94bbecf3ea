"""Best of two, interpolation on the sphere, and a prior whose denoiser is known exactly."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from types import SimpleNamespace

from diffusion import samplers
from diffusion.core import grids, schedules
from diffusion.core.gaussian import expand_to, from_x0
from diffusion.errors import InputError
from diffusion.generation import chain
from diffusion.generation.sampling import best_of, candidate_seed
from diffusion.generation.strips import slerp
from diffusion.setup.build import Weights

RNG = np.random.default_rng(0)


def test_the_better_of_two_gaussians_has_the_mean_and_variance_of_their_maximum():
  n = 40_000
  pair = RNG.normal(size=(2, n, 2)).astype(np.float32)
  drawn = [(dict(embedding=jnp.asarray(x)), None, jnp.ones(n, bool)) for x in pair]
  outputs, _, _ = best_of(drawn, lambda outputs, cond: outputs['embedding'][:, 0], None)
  kept = np.asarray(outputs['embedding'])
  np.testing.assert_allclose(kept[:, 0].mean(), np.pi ** -.5, atol=.02)  # E max of two N(0, 1)
  np.testing.assert_allclose(kept[:, 0].var(), 1 - 1 / np.pi, atol=.02)
  np.testing.assert_allclose([kept[:, 1].mean(), kept[:, 1].var()], [0, 1], atol=.02)  # what is not scored stays
  np.testing.assert_array_equal(kept[:, 0], pair[:, :, 0].max(0))


def test_of_equal_candidates_the_first_is_kept_and_seeds_differ():
  drawn = [(jnp.full(3, i), i, jnp.ones(3, bool)) for i in range(3)]
  x, frames, _ = best_of(drawn, lambda outputs, cond: jnp.zeros(3), None)
  assert np.all(np.asarray(x) == 0) and frames == 0
  seeds = {candidate_seed(7, j) for j in range(5)} | {chain.part_seed(7, i) for i in range(1, 5)}
  assert len(seeds) == 9 and candidate_seed(7, 0) == 7


def test_a_great_circle_ends_bit_for_bit_in_equal_steps_of_unit_length():
  a, b = (x / np.linalg.norm(x) for x in RNG.normal(size=(2, 64)).astype(np.float32))
  path = slerp(a, b, np.linspace(0, 1, 9))
  np.testing.assert_array_equal(path[0], a)
  np.testing.assert_array_equal(path[-1], b)
  np.testing.assert_allclose(np.linalg.norm(path, axis=1), 1, atol=1e-6)
  np.testing.assert_allclose(np.arccos(np.sum(path[1:] * path[:-1], 1)), np.arccos(a @ b) / 8, rtol=1e-4)
  with pytest.raises(InputError, match='between opposite directions'):
    slerp(a, -a, np.linspace(0, 1, 3))


def test_a_linear_gaussian_prior_draws_the_conditional_mean_and_covariance():
  """z | y ~ N(A y, S): with the exact denoiser of that, samples for one y have them."""
  D, n = 3, 6000
  A, root = RNG.normal(size=(D, 2)), np.tril(RNG.normal(size=(D, D))) * .5 + np.eye(D)
  mean, S, schedule = A @ [.5, -1.], root @ root.T, schedules.cosine(None)

  def denoise(x, noise):  # E[x0 | x] of a Gaussian, by Bayes' rule
    level = expand_to(noise, x)
    total = level.alpha[..., None] ** 2 * S + level.sigma[..., None] ** 2 * np.eye(D)
    gain = level.alpha[..., None] * jnp.swapaxes(jnp.linalg.solve(total, jnp.broadcast_to(S, total.shape)), -1, -2)
    x0 = mean + jnp.einsum('...ij,...j->...i', gain, x - level.alpha * mean)
    return from_x0(level, x, x0, None)
  levels, keys = grids.trailing(120)(schedule), samplers.sample_keys(0, np.arange(n))
  x = samplers.prior(keys, levels, (D,))
  drawn = np.asarray(jax.jit(lambda x: samplers.sample(keys, denoise, samplers.ddim(eta=1), levels, x))(x), np.float64)
  np.testing.assert_allclose(drawn.mean(0), mean, atol=5 * np.sqrt(np.diag(S).max() / n) + .02)
  np.testing.assert_allclose(np.cov(drawn.T), S, atol=.06 * np.trace(S))


@pytest.mark.parametrize('change, message', [
  (dict(clip='b' * 32), 'model 1 of the chain has embeddings of the CLIP aaaaaaaa, and model 2 that of bbbbbbbb'),
  (dict(tokens=dict(kind='bytes')), 'model 1 of the chain has the tokenizer')])
def test_a_decoder_of_another_clip_is_refused(change, message):
  facts = dict(clip='a' * 32, tokens=dict(kind='words'))
  def model(facts, takes, gives):
    task = SimpleNamespace(facts=facts, takes=takes, gives=gives, given=lambda z: z, ask=lambda *request: None)
    run = SimpleNamespace(task=task, can={'denoise'}, draws=True, config=None, example=(np.zeros((1, 3)), None),
                          decode=lambda frozen, z, cond: z)
    return SimpleNamespace(run=run, weights=Weights({}))
  prior = model(facts, ('prompt',), 'embedding')
  chain.check([prior, model(facts, ('prompt', 'embedding'), 'images')])
  with pytest.raises(InputError, match=message):
    chain.check([prior, model(facts | change, ('prompt', 'embedding'), 'images')])
