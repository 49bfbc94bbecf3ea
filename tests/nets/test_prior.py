"""The diffusion prior's network: what is computed once is the whole sequence, and who sees whom."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import nets
from diffusion.errors import InputError
from diffusion.nets.embeddings import sinusoidal
from diffusion.nets.sequence import Sequence
from diffusion.setup.choices import make

RNG = np.random.default_rng(0)
L, D, W, SPEC = 5, 6, 8, 'prior(width=8, blocks=2, heads=2)'
COND = dict(tokens=RNG.integers(0, 7, (3, L)).astype(np.int32),
            text_embedding=RNG.normal(size=(3, D)).astype(np.float32),
            weights=(np.arange(L) < np.array([5, 3, 1])[:, None]).astype(np.float32))
X, TIME = RNG.normal(size=(3, D)).astype(np.float32), np.array([3., 400., 900.], np.float32)


def random_net(spec=SPEC, shape=(1, D), cond=COND, **more):
  net = nets.make(make('net', spec, vocabulary=7, length=L, **more))
  params = net.init(jax.random.key(0), shape, jax.tree.map(lambda a: a[:1], cond))
  return net, jax.tree.map(lambda a: jnp.asarray(RNG.normal(size=a.shape) * .4, jnp.float32), params)


@partial(jax.jit, static_argnums=0)
def computed(net, params, x, time, cond):
  return net.apply(params, x, time, net.prepare(params, cond))


def out(net, params, x=X, time=TIME, cond=COND):
  return np.asarray(computed(net, params, x, time, cond))


def test_the_places_are_text_its_embedding_time_noised_embedding_and_query():
  """Against the whole sequence at once, put together here from the parameters."""
  net, p = random_net()
  dense = lambda layer, x: x @ layer['kernel'] + layer['bias']
  prefix = p['prefix']
  words = np.where(COND['weights'][..., None] > 0, prefix['tokens'][COND['tokens']], prefix['padding'])
  text = dense(prefix['text'], COND['text_embedding'])
  told = dense(p['times_1'], jax.nn.silu(dense(p['times_0'], sinusoidal(TIME, W))))
  rows = [text, told, dense(p['noised'], X), np.broadcast_to(p['query'], (3, W))]
  whole = np.concatenate([words, np.stack(rows, 1)], 1) + p['places']
  h = jax.jit(Sequence(2, 2, True).apply)({'params': p['sequence']}, whole)
  share = jax.nn.sigmoid(dense(p['share'], told))
  expected = share * X + (1 - share) * dense(p['out']['dense'], h[:, -1])
  np.testing.assert_allclose(out(net, p), expected, atol=2e-5)


def test_a_batch_is_each_example_alone_and_padding_may_be_any_token():
  net, params = random_net()
  whole = out(net, params)
  order = np.array([2, 0, 1])
  mixed = out(net, params, X[order], TIME[order], jax.tree.map(lambda a: a[order], COND))
  np.testing.assert_allclose(mixed, whole[order], atol=1e-5)
  other = COND | dict(tokens=np.where(COND['weights'] > 0, COND['tokens'], 6 - COND['tokens']).astype(np.int32))
  np.testing.assert_array_equal(out(net, params, cond=other), whole)
  for changed in (dict(x=X + 1), dict(time=TIME + 50), dict(cond=COND | dict(text_embedding=-COND['text_embedding']))):
    assert np.abs(out(net, params, **changed) - whole).max(1).min() > 1e-4


def test_a_prior_refuses_a_task_without_tokens():
  with pytest.raises(InputError, match="a prior needs a task that gives tokens and embeddings"):
    nets.make(make('net', SPEC)).init(jax.random.key(0), (1, D), COND)


# ---- the decoder
SMALL = 'with_text(unet(channels=8, multipliers=(1,), blocks=1, attention=(4,)), width=8, blocks=1, heads=2)'


def test_an_embedding_is_four_entries_of_the_context_and_is_added_to_the_time_both_linear_in_it():
  cond = {name: COND[name] for name in ('tokens', 'weights')} | dict(embedding=X)
  net, params = random_net(SMALL, (1, 4, 4, 1), cond)
  prepared = jax.jit(lambda z: net.prepare(params, cond | dict(embedding=z)))
  a, b, zero = RNG.normal(size=(3, D)), RNG.normal(size=(3, D)), np.zeros((3, D))
  entries = lambda z: np.asarray(prepared(z)['context'])[:, L:]
  assert entries(a).shape == (3, 4, 8) and np.asarray(prepared(a)['context_weights'])[:, L:].min() == 1
  np.testing.assert_allclose(entries(2 * a - b), 2 * entries(a) - entries(b), atol=1e-5)
  np.testing.assert_array_equal(entries(zero), 0)
  np.testing.assert_array_equal(np.asarray(prepared(a)['context'])[:, :L], np.asarray(prepared(b)['context'])[:, :L])
  layer = params['net']['embedding']['cond_embedding']
  assert set(layer) == {'kernel'} and layer['kernel'].shape == (D, 32)  # linear, and nothing for the embedding 0
