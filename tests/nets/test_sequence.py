"""The transformer over sequences: who sees whom, padding, the cache; and networks that are told a text."""
import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import nets
from diffusion.errors import InputError
from diffusion.nets.sequence import empty_cache, Sequence, TextEncoder
from diffusion.setup.choices import make

RNG = np.random.default_rng(0)
NET = 'with_text(unet(channels=8, multipliers=(1,), blocks=1, attention=(8,), {}), width=16, blocks=2, heads=2)'


def randomised(params):
  """Every parameter random, also those that start at zero."""
  return jax.tree.map(lambda a: RNG.normal(size=a.shape).astype(np.float32) * .3, params)


def shapes(init, *args):
  """What init(key, *args) returns, without its numbers."""
  return jax.eval_shape(lambda key: init(key, *args), jax.random.key(0))


def encoder(causal=False):
  module = TextEncoder(vocabulary=11, length=12, width=16, blocks=2, heads=2, causal=causal)
  params = randomised(shapes(module.init, np.zeros((1, 12), int), np.ones((1, 12), bool))['params'])
  apply = jax.jit(lambda params, tokens, mask: module.apply({'params': params}, tokens, mask)[0])
  return lambda tokens, mask: np.asarray(apply(params, tokens, mask))


@pytest.mark.parametrize('causal', (False, True))
def test_padding_has_no_effect_whatever_it_is_and_however_long(causal):
  encode = encoder(causal)
  tokens = RNG.integers(1, 11, (3, 12))
  mask = np.arange(12) < np.array([6, 4, 1])[:, None]
  whole = encode(tokens, mask)
  for other in (encode(np.where(mask, tokens, 0), mask), encode(tokens[:, :6], mask[:, :6])):
    for row, (a, b) in enumerate(zip(whole, other)):
      n = mask[row].sum()
      np.testing.assert_allclose(a[:n], b[:n], atol=1e-6)
  alone = np.concatenate([encode(tokens[i:i + 1], mask[i:i + 1]) for i in range(3)])
  np.testing.assert_allclose(whole, alone, atol=1e-6)  # captions in a batch are each alone


def test_a_causal_place_sees_none_after_it_and_others_do():
  tokens, mask = RNG.integers(0, 11, (2, 12)), np.ones((2, 12), bool)
  changed = tokens.copy()
  changed[:, 7] = (changed[:, 7] + 1) % 11
  encode = encoder(True)
  a, b = encode(tokens, mask), encode(changed, mask)
  np.testing.assert_array_equal(a[:, :7], b[:, :7])
  assert np.all(np.abs(a - b).max((0, 2))[7:] > 1e-4)
  encode = encoder(False)
  assert np.all(np.abs(encode(tokens, mask) - encode(changed, mask)).max((0, 2)) > 1e-4)


@pytest.mark.parametrize('parts', ([1] * 6, [3, 1, 2]))
def test_a_cache_gives_what_the_whole_sequence_gives(parts):
  module = Sequence(blocks=2, heads=2, causal=True)
  x = RNG.normal(size=(3, 6, 8)).astype(np.float32)
  params = randomised(shapes(module.init, x)['params'])
  apply = jax.jit(lambda x, cache=None: module.apply({'params': params}, x, None, cache))
  whole = apply(x)
  cache, out, start = empty_cache(2, 3, 9, 2, 8), [], 0
  for n in parts:
    y, cache = apply(x[:, start:start + n], cache)
    out.append(y)
    start += n
  assert int(cache.filled) == 6
  np.testing.assert_allclose(np.concatenate(out, 1), whole, atol=1e-5)


def test_only_a_causal_sequence_has_a_cache():
  x = np.zeros((1, 2, 8), np.float32)
  with pytest.raises(InputError, match='only a causal sequence'):
    Sequence(1, 2).init(jax.random.key(0), x, None, empty_cache(1, 1, 4, 2, 8))


def test_a_sequence_without_places_is_a_set():
  """Without a causal mask, a permutation of the places is a permutation of the result."""
  module, x = Sequence(blocks=2, heads=2), RNG.normal(size=(2, 5, 8)).astype(np.float32)
  params = randomised(shapes(module.init, x)['params'])
  order = RNG.permutation(5)
  apply = jax.jit(lambda x: module.apply({'params': params}, x))
  np.testing.assert_allclose(apply(x[:, order]), np.asarray(apply(x))[:, order], atol=1e-5)


# ---- networks that are told a text
@functools.cache
def told(form, length=12):
  """(tokens, weights) -> what the network gives for the same x and times."""
  net = nets.make(make('net', NET.format(f'text={form}'), vocabulary=11, length=12))
  cond = dict(tokens=np.zeros((1, length), int), weights=np.ones((1, length), np.float32))
  params = randomised(shapes(net.init, (1, 8, 8, 3), cond))
  x, time = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32), np.array([10., 500.])
  apply = jax.jit(lambda params, cond: net.apply(params, x, time, net.prepare(params, cond)))
  return lambda **cond: np.asarray(apply(params, cond))


@pytest.mark.parametrize('form', ('joint', 'block'))
def test_padding_of_a_text_has_no_effect_and_words_have(form):
  out = told(form)
  tokens = RNG.integers(1, 11, (2, 12))
  weights = (np.arange(12) < np.array([6, 3])[:, None]).astype(np.float32)
  plain = out(tokens=tokens, weights=weights)
  np.testing.assert_allclose(out(tokens=tokens[:, :6], weights=weights[:, :6]), plain, atol=1e-5)
  np.testing.assert_allclose(out(tokens=np.where(weights > 0, tokens, 7), weights=weights), plain, atol=1e-5)
  assert np.abs(out(tokens=np.where(np.arange(12) == 1, 10 - tokens % 9, tokens), weights=weights) - plain).max() > 1e-3


@pytest.mark.parametrize('form', ('joint', 'block'))
def test_a_mix_of_texts_is_each_at_its_ends_and_one_twice_is_itself(form):
  out = told(form)
  tokens, weights = RNG.integers(1, 11, (2, 2, 6)), np.ones((2, 2, 6), np.float32)
  each = [out(tokens=tokens[:, i], weights=weights[:, i]) for i in (0, 1)]
  for i, share in enumerate(([1, 0], [0, 1])):
    mixed = out(tokens=tokens, weights=weights * np.array(share, np.float32)[:, None])
    np.testing.assert_allclose(mixed, each[i], atol=1e-5)
  twice = np.stack([tokens[:, 0]] * 2, 1)
  np.testing.assert_allclose(out(tokens=twice, weights=weights / 2), each[0], atol=1e-5)


def test_a_network_with_text_refuses_a_task_without():
  with pytest.raises(InputError, match="with_text needs a task that gives tokens"):
    net = nets.make(make('net', NET.format('text=joint')))
    net.init(jax.random.key(0), (1, 8, 8, 3), dict(tokens=jnp.zeros((1, 4), int), weights=jnp.ones((1, 4))))


def test_a_text_is_prepared_for_any_batch_in_one_exported_program():
  net = nets.make(make('net', NET.format('text=joint'), vocabulary=11, length=6))
  cond = dict(tokens=RNG.integers(1, 11, (3, 6)), weights=np.ones((3, 6), np.float32),
              embedding=RNG.normal(size=(3, 5)).astype(np.float32))
  frozen = cond | dict(states=np.ones((3, 6, 7), np.float32), pooled=np.ones((3, 4), np.float32))
  batch, = jax.export.symbolic_shape('batch')
  for cond in (cond, frozen):
    params = jax.eval_shape(lambda key: net.init(key, (3, 8, 8, 3), cond), jax.random.key(0))
    any_batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype), cond)
    made = jax.export.export(jax.jit(net.prepare))(params, any_batch)
    found, expected = made.call(randomised(params), cond), jax.eval_shape(net.prepare, params, cond)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(lambda a: a.shape, expected)


def test_vectors_of_a_frozen_encoder_take_the_place_of_tokens_by_the_formula():
  """Without blocks, in float64: a normalisation, a dense layer, a normalisation; padding counts nothing."""
  net = nets.make(make('net', 'with_text(unet(channels=8, multipliers=(1,), blocks=1, attention=(4,)), width=6, '
                       'blocks=0, heads=1)', vocabulary=11, length=5))
  states, pooled = RNG.normal(size=(2, 2, 5, 7)).astype(np.float32), RNG.normal(size=(2, 2, 3)).astype(np.float32)
  weights = np.array([[1, 2, 1, 0, 0], [1, 1, 1, 1, 0]], np.float32) * np.array([.25, .75], np.float32)[:, None, None]
  weights = weights.swapaxes(0, 1)  # [B, P, L]
  cond = dict(tokens=np.zeros((2, 2, 5), int), weights=weights, states=states, pooled=pooled)
  params = randomised(jax.eval_shape(lambda key: net.init(key, (2, 4, 4, 3), cond), jax.random.key(0)))
  found = net.prepare(params, cond)
  p = jax.tree.map(lambda a: a.astype(float), params['above'])

  def norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p['scale'] + p['bias']
  words = norm(states.astype(float), p['norm']) @ p['project']['kernel'] + p['project']['bias']
  h = norm(words, p['sequence']['norm'])
  words /= np.sqrt((words ** 2).mean(-1, keepdims=True))
  both, flat = np.concatenate([h, words], -1).reshape(2, 10, 12), weights.reshape(2, 10)
  summed = (both * flat[..., None]).sum(1) / np.sqrt(flat.sum(1, keepdims=True))
  mixed = .25 * pooled[:, 0] + .75 * pooled[:, 1]
  np.testing.assert_allclose(found['context'], h.reshape(2, 10, 6), atol=1e-5)
  np.testing.assert_allclose(found['text'], np.concatenate([summed, mixed], -1), atol=1e-5)
  np.testing.assert_array_equal(found['context_weights'], flat)
  assert found.keys() == {'context', 'context_weights', 'text'} and params.keys() == {'above', 'net'}
