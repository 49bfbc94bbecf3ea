"""The bound on held-out tokens with networks that know the truth, and tokens drawn one by one against counting."""
from fractions import Fraction
import itertools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import categorical, schedules
from diffusion.data.dataset import Dataset
from diffusion.evaluation import tokens
from diffusion.setup.build import Weights
from diffusion.system import sharding

K, L, REPEATS, DRAWS = 3, 2, 96, 64
KERNELS = dict(masked=categorical.masked, uniform=categorical.uniform)
CURVES = dict(log_linear=schedules.log_linear(None), cosine=schedules.cosine(None))
# These do not begin at x0, or keep 26 % of the tokens to the end: what is lost there is counted, too.
OTHERS = dict(curve=schedules.offset_cosine(None, min_signal=.5, max_signal=.8),
              table=schedules.from_betas(np.full(6, .2)))
WORDS = np.array(list(itertools.product(range(K), repeat=L)))
rng = np.random.default_rng(0)
JOINT = rng.dirichlet(np.ones(len(WORDS)), 2)  # p(word | class), the tokens of a word depend on each other
ONES = rng.dirichlet(np.ones(K), (2, L))       # the frequencies of tokens that do not
ALONE = np.prod(ONES[:, np.arange(L), WORDS], -1)


def pi_of(kernel):
  return np.eye(K + 1)[K] if kernel.absorbing else np.full(K, 1 / K)


def exact_network(kernel, p):
  """(weights, cond) -> (x, noise) -> Guess: p(x0 | x_t, class) by Bayes' rule over all words; p [classes, words]."""
  pi = jnp.asarray(pi_of(kernel), jnp.float32)

  def plain(weights, cond):
    def predict(x, noise):
      x, logsnr = x[..., 0], jnp.reshape(jnp.asarray(noise.logsnr), (-1, 1, 1))
      q = jax.nn.sigmoid(logsnr) * (x[:, None] == WORDS) + jax.nn.sigmoid(-logsnr) * pi[x][:, None]
      weight = (cond @ jnp.asarray(p, jnp.float32)) * jnp.prod(q, -1)
      found = jnp.einsum('bw,wlk->blk', weight, np.eye(K)[WORDS])
      return categorical.guess(categorical.safe_log(found)[:, :, None], kernel)
    return predict
  return plain


def run_of(schedule, plain):
  """What `bounds` takes of an Experiment."""
  batch = lambda data, index: {name: column[index] for name, column in data.arrays.items()}
  return SimpleNamespace(schedule=schedule, plain=plain, mesh=sharding.make_mesh(), task=SimpleNamespace(batch=batch),
                         encode=lambda frozen, key, batch: (batch['tokens'], batch['cond']))


def examples(repeats=REPEATS):
  """Every word of both classes, `repeats` times: (Dataset, class [N], number of the word [N])."""
  label, word = (a.ravel() for a in np.mgrid[:2, :len(WORDS) * repeats])
  word %= len(WORDS)
  data = dict(tokens=WORDS[word][..., None].astype(np.int32), cond=np.eye(2, dtype=np.float32)[label])
  return Dataset(data, {}), label, word


def assert_mean(values, truth, word):
  """The mean over draws is `truth` up to its error, over all examples and over those of one word."""
  gap = values.mean(1) - truth
  for chosen in (np.full(len(gap), True), *(word == w for w in range(len(WORDS)))):
    error = gap[chosen].std(ddof=1) / math.sqrt(chosen.sum())
    assert abs(gap[chosen].mean()) < 4.5 * error + 1e-4, (gap[chosen].mean(), error)
  assert gap.std(ddof=1) / math.sqrt(len(gap)) < .035 * truth.mean()  # so that a term too few is found


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('curve', CURVES)
def test_on_a_curve_the_bound_of_the_exact_network_is_the_likelihood(curve, kernel):
  made, (data, label, word) = KERNELS[kernel](K), examples()
  run = run_of(CURVES[curve], exact_network(made, JOINT))
  values = tokens.bounds(run, Weights(()), data, len(word), 0, DRAWS, len(word))
  assert values.shape == (len(word), DRAWS) and values.dtype == np.float64
  assert_mean(values, -np.log(JOINT[label, word]), word)


def beyond_prior(kernel, p, keep):
  """What starting from pi instead of the true p(x_T | class) adds to the bound of each word, [classes, words]."""
  if kernel.absorbing:
    return np.zeros_like(p)  # the bound counts the first jump from all masks
  q = np.prod(keep * (WORDS[:, None] == WORDS) + (1 - keep) / K, -1)  # of x_T given x0
  return np.log(p @ q * len(WORDS)) @ q.T


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('schedule', OTHERS)
def test_of_tokens_that_are_independent_the_bound_is_the_likelihood_in_large_steps_too(schedule, kernel):
  made, (data, label, word) = KERNELS[kernel](K), examples()
  run = run_of(OTHERS[schedule], exact_network(made, ALONE))
  values = tokens.bounds(run, Weights(()), data, len(word), 0, DRAWS, len(word))
  keep = 1 / (1 + np.exp(-schedules.evaluate(OTHERS[schedule], 1.).logsnr))
  assert_mean(values, (-np.log(ALONE) + beyond_prior(made, ALONE, keep))[label, word], word)


def test_a_network_that_guesses_the_frequencies_of_training_has_the_likelihood_of_tokens_drawn_one_by_one():
  data, _, word = examples()
  train = np.random.default_rng(1).integers(0, K, (20, L, 1)) ** 2 % K
  frequencies = np.stack([[np.sum(train[:, i] == k) for k in range(K)] for i in range(L)]) + .5
  plain = lambda weights, cond: lambda x, noise: categorical.guess(
    jnp.broadcast_to(jnp.log(frequencies)[:, None], (len(x), L, 1, K)), categorical.masked(K))
  values = tokens.bounds(run_of(CURVES['log_linear'], plain), Weights(()), data, len(word), 0, DRAWS, len(word))
  assert_mean(values, tokens.independent(train, data.arrays['tokens'], K), word)


def test_one_draw_is_unbiased_too():
  data, label, word = examples(1500)
  run = run_of(CURVES['cosine'], exact_network(categorical.masked(K), JOINT))
  values = tokens.bounds(run, Weights(()), data, len(word), 0, 1, len(word))
  assert_mean(values, -np.log(JOINT[label, word]), word)


def test_the_class_matters_and_a_network_of_the_other_one_is_worse_by_the_divergence():
  data, label, word = examples()
  run = run_of(CURVES['log_linear'], exact_network(categorical.masked(K), JOINT[::-1]))
  values = tokens.bounds(run, Weights(()), data, len(word), 0, DRAWS, len(word))
  assert_mean(values, -np.log(JOINT[1 - label, word]), word)


def test_draws_depend_on_the_example_and_the_seed_alone():
  data, *_ = examples(1)
  run = run_of(CURVES['log_linear'], exact_network(categorical.uniform(K), JOINT))
  whole = tokens.bounds(run, Weights(()), data, 99, 5, 6)
  assert whole.shape == (18, 6)  # no more than there are
  np.testing.assert_allclose(tokens.bounds(run, Weights(()), data, 7, 5, 6, batch=4), whole[:7], rtol=1e-5)
  assert np.all(tokens.bounds(run, Weights(()), data, 18, 6, 6) != whole)


def test_tokens_drawn_one_by_one_are_counted_with_half_an_example_more():
  train, heldout = np.array([[0, 2], [0, 1], [1, 2], [0, 2]]), np.array([[0, 2], [2, 0], [1, 1]])
  half = Fraction(1, 2)
  p = [(3 + half) * (3 + half), half * half, (1 + half) * (1 + half)]  # of 4 examples and 3 values each
  expected = [-math.log(share / (4 + 3 * half) ** 2) for share in p]
  np.testing.assert_allclose(tokens.independent(train, heldout, 3), expected, rtol=1e-12)
  np.testing.assert_allclose(tokens.independent(train[..., None], heldout[..., None], 3), expected, rtol=1e-12)
  np.testing.assert_allclose(np.exp(-tokens.independent(train, WORDS, 3)).sum(), 1, rtol=1e-12)
