"""The autoregressive prior on toy codes: its likelihood is exact, causal, and what is drawn from it follows it."""
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import nets, samplers
from diffusion.errors import InputError
from diffusion.objectives.autoregressive import autoregressive, draw_codes, guided
from diffusion.setup import guide
from diffusion.setup.choices import make

K, VALUES, L, D = 3, 4, 5, 6
RNG = np.random.default_rng(0)
ALL = np.array(list(itertools.product(range(VALUES), repeat=K)), np.int32)  # 64 sequences
COND = dict(tokens=np.arange(L, dtype=np.int32)[None], weights=np.ones((1, L), np.float32),
            text_embedding=RNG.normal(size=(1, D)).astype(np.float32), dot=np.ones(1, np.int32))


def null(cond):
  return cond | dict(tokens=0 * cond['tokens'], text_embedding=0 * cond['text_embedding'], dot=0 * cond['dot'] + 2)


TASK = SimpleNamespace(categories=VALUES, facts=dict(dots=2), null=null)


def objective(text=''):
  net = lambda **needs: nets.make(make('net', 'prior_ar(width=8, blocks=1, heads=2)', vocabulary=7, length=L, **needs))
  example = np.zeros((1, K), np.int32), COND
  return autoregressive(net=net, task=TASK, example=example, guide=guide.parse(text), condition_dropout=.1)


def randomised(params):
  """Every parameter random, so that codes depend on each other strongly."""
  return jax.tree.map(lambda a: jnp.asarray(RNG.normal(size=a.shape) * .5, jnp.float32), params)


PARAMS = randomised(objective().init(jax.random.key(0))[0])
NET = nets.make(make('net', 'prior_ar(width=8, blocks=1, heads=2)', vocabulary=7, length=L, values=VALUES, codes=K,
                     dots=3))
WHOLE = jax.jit(lambda x, cond: NET.apply(PARAMS, x, jnp.zeros(len(x)), cond))
REPEATED = jax.tree.map(lambda a: np.repeat(a, len(ALL), 0), COND)


def probabilities(text=''):
  model = objective(text).model(PARAMS, (), ())
  return np.exp(np.asarray(jax.jit(model.log_likelihood)(ALL, REPEATED), np.float64))


@pytest.mark.parametrize('text', ('', 'cfg(3)', 'cfg(0)'))
def test_the_likelihoods_of_all_sequences_sum_to_one(text):
  p = probabilities(text)
  np.testing.assert_allclose(p.sum(), 1, atol=1e-6)
  assert p.max() > 2 / len(ALL)  # not the uniform distribution, for which this says nothing


def test_guidance_0_is_the_unconditional_distribution_and_more_of_it_goes_away_from_it():
  without = jax.jit(objective().model(PARAMS, (), ()).log_likelihood)(ALL, null(REPEATED))
  np.testing.assert_allclose(probabilities('cfg(0)'), np.exp(without), rtol=1e-5)
  a, b = RNG.normal(size=(2, 5))
  p, q = (np.exp(x) / np.exp(x).sum() for x in (a, b))
  np.testing.assert_allclose(np.exp(guided(a, b, 3.)), p ** 3 / q ** 2 / np.sum(p ** 3 / q ** 2), rtol=1e-5)


def test_the_logits_of_a_code_do_not_depend_on_it_or_those_after_it():
  base = np.array([[1, 2, 3]], np.int32)
  logits = lambda x: np.asarray(WHOLE(x, COND))[0]
  for j in range(K):
    changed = base.copy()
    changed[0, j] = 0
    gap = np.abs(logits(changed) - logits(base)).max(1)
    np.testing.assert_array_equal(gap[:j + 1], 0)
    assert np.all(gap[j + 1:] > 1e-4)


def test_kept_keys_and_values_give_the_logits_of_the_whole_sequence():
  whole, following = np.asarray(WHOLE(ALL, REPEATED)), jax.jit(lambda *rest: NET.call(PARAMS, 'following', *rest))
  found, cache = jax.jit(lambda cond: NET.call(PARAMS, 'first', cond))(REPEATED)
  for i in range(K):
    np.testing.assert_allclose(found, whole[:, i], atol=1e-5)
    if i < K - 1:
      found, cache = following(cache, REPEATED, ALL[:, i], i)


@pytest.mark.parametrize('text, scale', (('', 1.), ('cfg(2)', 2.)))
def test_samples_have_the_frequencies_of_the_likelihood(text, scale):
  n, p = 8000, probabilities(text)
  cond = jax.tree.map(lambda a: np.repeat(a, n, 0), COND)
  draw = jax.jit(lambda keys, cond: draw_codes(NET, PARAMS, keys, cond, null(cond) if text else None, scale, K))
  drawn = np.asarray(draw(samplers.sample_keys(0, np.arange(n)), cond))
  count = np.bincount(drawn @ [16, 4, 1], minlength=len(ALL))
  often = n * p > 5
  chi2 = np.sum((count - n * p)[often] ** 2 / (n * p)[often])
  assert chi2 < often.sum() + 5 * np.sqrt(2 * often.sum())
  again = np.asarray(draw(samplers.sample_keys(0, np.arange(n)[::-1]), cond))
  np.testing.assert_array_equal(again[::-1], drawn)  # a sample depends on its own key alone


def test_the_loss_is_the_bits_of_the_codes_and_parts_of_a_batch_have_its_mean():
  made, x0 = objective(), ALL[::8]
  cond = jax.tree.map(lambda a: a[:8], REPEATED)
  loss = jax.jit(lambda i, train, parts=1: made.loss(
    jax.random.key(0), PARAMS, jnp.asarray(x0), jax.tree.map(jnp.asarray, cond), train=train,
    part=(i, parts) if parts > 1 else None), static_argnums=(1, 2))
  value, metrics = loss(0, False)
  np.testing.assert_allclose(metrics['bits'], -np.log2(probabilities()[::8]) / K, rtol=1e-5)
  np.testing.assert_allclose(value, np.mean(metrics['each']), rtol=1e-6)
  np.testing.assert_allclose(np.mean([loss(i, True, 2)[0] for i in (0, 1)]), loss(0, True)[0], rtol=1e-5)


def test_other_guidance_is_refused():
  with pytest.raises(InputError, match=r"config.guide='cfg\(2\) | rescale\(.5\)': codes are guided by 'cfg\(scale\)'"):
    objective('cfg(2) | rescale(.5)')
