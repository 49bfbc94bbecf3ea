"""Kernels, posteriors and the bound against brute force over all states, in float64."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import categorical, schedules
from diffusion.core.categorical import Guess
from diffusion.core.gaussian import Noise, take

KERNELS = dict(masked=categorical.masked, uniform=categorical.uniform)
CURVES = dict(log_linear=schedules.log_linear(None), cosine=schedules.cosine(None), linear=schedules.linear(None))
posterior = jax.jit(categorical.posterior)
guess = jax.jit(categorical.guess, static_argnums=1)


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def level(keep):
  return Noise(None, None, None, np.log(keep) - np.log1p(-keep))


def pi_of(kernel):
  """pi over all values of x_t, the mask last."""
  return np.eye(kernel.K + 1)[-1] if kernel.absorbing else np.asarray(kernel.stationary)


def log(p):
  with np.errstate(divide='ignore'):
    return np.log(p)


@pytest.mark.parametrize('name', KERNELS)
def test_posteriors_are_bayes_rule_on_products_of_one_step_matrices(name):
  K, steps = 5, np.array([.9, .7, .5, .8])  # the share that each step keeps
  kernel = KERNELS[name](K)
  pi = pi_of(kernel)
  states = len(pi)
  one = [r * np.eye(states) + (1 - r) * np.tile(pi, (states, 1)) for r in steps]
  guesses = np.random.default_rng(0).dirichlet(np.ones(K), states)
  for i in range(1, 4):
    before, both = np.linalg.multi_dot([np.eye(states), *one[:i]]), np.linalg.multi_dot([np.eye(states), *one[:i + 1]])
    t, s = level(np.prod(steps[:i + 1])), level(np.prod(steps[:i]))
    share = -np.expm1(t.logsnr - s.logsnr)
    for x in range(states):
      p = guesses[x] if not kernel.absorbing or x == K else np.eye(K)[x]
      truth = sum(p[k] * before[k] * one[i][:, x] / both[k, x] for k in range(K) if p[k])
      made = Guess(log(guesses[x])[None], kernel)
      ours = np.exp(posterior(np.array([x]), made, t, s, share))[0]
      np.testing.assert_allclose(ours, truth, atol=1e-12)


@pytest.mark.parametrize('name', KERNELS)
def test_tokens_are_kept_with_the_probability_of_the_level(name):
  kernel, u = KERNELS[name](4), (np.arange(1000) + .5) / 1000
  x0, noise = np.full((3, 1000), 2), Noise(None, None, None, np.array([np.inf, .8, -np.inf]))
  x = np.asarray(jax.jit(categorical.noised)(x0, noise, u, np.full((3, 1000), kernel.inputs - 1)))
  np.testing.assert_allclose((x == 2).mean(1), [1, 1 / (1 + np.exp(-.8)), 0], atol=1e-3)


def test_columns_of_different_sizes_share_an_array():
  sizes = (2, 5, 3)
  for name, make in KERNELS.items():
    kernel = make(sizes)
    draw = jax.jit(lambda key, kernel=kernel: categorical.noise_draws(key, np.zeros((4000, 3), int), kernel)[1])
    draws = np.asarray(draw(jax.random.key(0)))
    if name == 'masked':
      assert np.all(draws == 5)
      continue
    for column, size in enumerate(sizes):
      np.testing.assert_allclose(np.bincount(draws[:, column], minlength=5) / 4000,
                                 (np.arange(5) < size) / size, atol=.03)
  made = guess(np.zeros((1, 3, 5)), categorical.uniform(sizes))
  alone = [guess(np.zeros((1, size)), categorical.uniform(size)) for size in sizes]
  x, t, s = np.array([[1, 4, 0]]), level(.3), level(.6)
  share = -np.expm1(t.logsnr - s.logsnr)
  together = np.exp(posterior(x, made, t, s, share))[0]
  for column, size in enumerate(sizes):
    expected = np.exp(posterior(x[:, column], alone[column], t, s, share))[0]
    np.testing.assert_allclose(together[column], np.append(expected, np.zeros(5 - size)), atol=1e-6)


# ---- a distribution of three tokens, known exactly
class Joint:
  """A random distribution of L tokens of K values, and its exact conditionals at a level."""

  def __init__(self, kernel, L=3, seed=0):
    self.kernel, self.L, self.pi = kernel, L, pi_of(kernel)
    self.words = np.array(list(itertools.product(range(kernel.K), repeat=L)))
    self.p = np.random.default_rng(seed).dirichlet(np.full(len(self.words), 2.))
    self.states = np.array(list(itertools.product(range(kernel.inputs), repeat=L)))

  def reached(self, keep):
    """q(x_t | x0), [words, states]."""
    same = self.words[:, None] == self.states
    return np.prod(keep * same + (1 - keep) * self.pi[self.states], -1)

  def guess(self, keep):
    """(Guess at every state, whether it can be reached)."""
    joint = self.p[:, None] * self.reached(keep)
    total = joint.sum(0)
    onehot = np.eye(self.kernel.K)[self.words]
    p = np.einsum('ws,wlk->slk', joint, onehot) / np.where(total, total, 1)[:, None, None]
    return Guess(log(np.where(total[:, None, None] > 0, p, 1 / self.kernel.K)), self.kernel)

  def of_every_word(self, term):
    """term(x_t, x0, ..) -> [states, L] with each word as x0 at each state, in one program: (..) -> [words, states]."""
    each = lambda word, *rest: term(self.states, jnp.broadcast_to(word, self.states.shape), *rest).sum(-1)
    every = jax.jit(lambda *rest: jax.vmap(lambda word: each(word, *rest))(self.words))
    return lambda *rest: np.asarray(every(*rest))


@pytest.mark.parametrize('curve', CURVES)
@pytest.mark.parametrize('name', KERNELS)
def test_the_bound_with_exact_conditionals_is_the_likelihood_of_every_word(name, curve):
  joint = Joint(KERNELS[name](3))
  slope, rates = jax.jit(jax.vmap(jax.grad(lambda t: CURVES[curve](t).logsnr))), joint.of_every_word(categorical.rate)
  nodes, weights = np.polynomial.legendre.leggauss(64)
  u = (nodes + 1) / 2
  times, weights = u ** 3 * (10 - 15 * u + 6 * u ** 2), weights / 2 * 30 * (u * (1 - u)) ** 2  # the ends are singular
  falls = -np.asarray(slope(jnp.asarray(times)))
  total = np.zeros(len(joint.words))
  for t, weight, fall in zip(times, weights, falls):
    noise = schedules.evaluate(CURVES[curve], t)
    keep = 1 / (1 + np.exp(-noise.logsnr))
    made, reached = joint.guess(keep), joint.reached(keep)
    total += weight * fall * np.sum(reached * np.where(reached > 0, rates(made, noise), 0), 1)
  noisiest = schedules.evaluate(CURVES[curve], 1.)
  keep = 1 / (1 + np.exp(-noisiest.logsnr))
  made = joint.guess(keep)
  prior = made.log_p[-1:]  # with the mask the last state is all masks
  lacks = jax.jit(lambda word: categorical.prior_divergence(word[None], Guess(prior, made.kernel), noisiest).sum())
  total += np.array([float(lacks(word)) for word in joint.words])
  np.testing.assert_allclose(total, -np.log(joint.p), atol=1e-10 if curve == 'log_linear' else 3e-5)


@pytest.mark.parametrize('name', KERNELS)
def test_the_bound_of_a_table_approaches_the_likelihood_from_above(name):
  joint, gaps = Joint(KERNELS[name](2)), []
  for T in (8, 16, 32, 64):
    table, total = schedules.log_linear(T), np.zeros(len(joint.words))
    term = joint.of_every_word(categorical.bound(table))
    for row in range(T):
      noise = take(table, row)
      keep = 1 / (1 + np.exp(-noise.logsnr))
      made, reached = joint.guess(keep), joint.reached(keep)
      each = term(made, jax.tree.map(lambda a: np.full(len(joint.states), a), noise))
      total += np.where(reached > 0, reached * each, 0).sum(1) / T
    gaps.append(float(joint.p @ (total + np.log(joint.p))))  # the mean over words: a divergence
  ratios = np.array(gaps[:-1]) / gaps[1:]
  assert np.all(np.array(gaps) > 0) and np.all((ratios > 1.6) & (ratios < 2.4)), gaps  # order 1


def test_the_rate_of_masks_is_the_cross_entropy_of_md4():
  t = np.array([.1, .5, .9])
  noise = CURVES['log_linear'](t)
  x0, x = np.array([[0, 1], [1, 2], [2, 0]]), np.array([[3, 1], [3, 3], [2, 3]])
  p = np.random.default_rng(1).dirichlet(np.ones(3), (3, 2))
  terms = jax.jit(categorical.bound(CURVES['log_linear']))(x, x0, Guess(log(p), categorical.masked(3)), noise)
  crossed = -np.log(np.take_along_axis(p, x0[..., None], -1)[..., 0])
  np.testing.assert_allclose(terms, (x == 3) * crossed / t[:, None], rtol=1e-4)  # -alpha' / (1 - alpha)


# ---- the step back
P0 = np.array([.60, .25, .10, .04, .01])


def descend(table, step):
  """The distribution of x_0 from pi, by steps (p(x0 | x_t) [x_t, x0], keep_t, keep_s) -> p(x_s | x_t) [x_t, x_s]."""
  K, keeps = len(P0), np.append(1., 1 / (1 + np.exp(-table.logsnr)))
  p = np.full(K, 1 / K)
  for keep_t, keep_s in zip(keeps[:0:-1], keeps[-2::-1]):
    q = keep_t * np.eye(K) + (1 - keep_t) / K  # q(x_t | x0)
    p = p @ step((P0 * q.T) / (q.T @ P0)[:, None], keep_t, keep_s)
  return .5 * np.abs(p - P0).sum()


def test_the_summed_posterior_is_exact_and_the_plugged_in_one_is_not():
  def summed(back, keep_t, keep_s):
    t, s = (Noise(None, None, None, log(keep) - log(1 - keep)) for keep in (keep_t, keep_s))
    made = Guess(log(back), categorical.uniform(len(P0)))
    return np.exp(posterior(np.arange(len(P0)), made, t, s, -np.expm1(t.logsnr - s.logsnr)))

  def plugged_in(back, keep_t, keep_s):  # multinomial diffusion, arXiv:2102.05379, equation 13
    r, K = keep_t / keep_s, len(P0)
    theta = (r * np.eye(K) + (1 - r) / K) * (keep_s * back + (1 - keep_s) / K)
    return theta / theta.sum(1, keepdims=True)
  assert descend(schedules.log_linear(1000), summed) < 1e-6
  assert descend(schedules.cosine(1000), summed) < 1e-6
  assert abs(descend(schedules.cosine(1000), plugged_in) - .19) < .02


@pytest.mark.parametrize('name', KERNELS)
def test_parallel_steps_approach_the_distribution_as_one_over_their_number(name):
  joint, errors = Joint(KERNELS[name](2), seed=3), []
  for S in (4, 8, 16, 32):
    p = np.prod(joint.pi[joint.states], -1)
    keeps = np.append(np.arange(S) / S, 1.)
    for keep_t, keep_s in zip(keeps, keeps[1:]):
      t, s = (Noise(None, None, None, log(k) - log(1 - k)) for k in (keep_t, keep_s))
      q = np.exp(posterior(joint.states, joint.guess(keep_t), t, s, -np.expm1(t.logsnr - s.logsnr)))
      q = np.pad(q, [(0, 0), (0, 0), (0, len(joint.pi) - q.shape[-1])])
      moves = np.prod([q[:, i][:, joint.states[:, i]] for i in range(joint.L)], 0)
      p = p @ moves
    clean = [np.flatnonzero((joint.states == word).all(1))[0] for word in joint.words]
    np.testing.assert_allclose(p[clean].sum(), 1, atol=1e-12)
    errors.append(.5 * np.abs(p[clean] - joint.p).sum())
  ratios = np.array(errors[:-1]) / errors[1:]
  assert np.all((ratios > 1.6) & (ratios < 2.6)), errors


# ---- guidance, known tokens
def test_guidance_is_bayes_rule_with_a_power_of_the_likelihood():
  p, likelihood = np.array([.5, .3, .2, 0.]), np.array([.1, .7, .2, .5])
  conditional = p * likelihood / (p @ likelihood)
  of = lambda p: Guess(log(p)[None], categorical.masked(4))
  made = jax.jit(Guess.towards)(of(p), of(conditional), np.array([3.]))
  expected = p * likelihood ** 3
  np.testing.assert_allclose(np.exp(made.log_p)[0], expected / expected.sum(), atol=1e-12)


def test_known_tokens_are_seen_and_come_back():
  seen = []
  def predict(x, noise):
    seen.append(np.asarray(x))
    return categorical.guess(jnp.zeros((*x.shape, 4)), categorical.masked(4))
  given, tokens = np.array([True, False, True]), np.array([3, 0, 1])
  made = categorical.with_known(predict, tokens, given)(jnp.full((2, 3), 4), level(.5))
  np.testing.assert_array_equal(seen[-1], [[3, 4, 1]] * 2)
  np.testing.assert_array_equal(np.exp(made.log_p)[0][given], np.eye(4)[[3, 1]])
  np.testing.assert_allclose(np.exp(made.log_p)[0, 1], .25)
