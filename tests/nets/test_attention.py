"""Attention against loops in float64, with masks and with a context."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.nets.attention import attend, Attention
from tests.nets.test_layers import draws, normalise

OPTIONS = dict(groups=2, zero=False, dtype='float32', fast=None)


def test_attention_matches_a_loop_over_queries():
  q, k, v = draws((2, 5, 3, 4), (2, 5, 3, 4), (2, 5, 3, 4))
  want = np.empty_like(v)
  for b, n, h in np.ndindex(2, 5, 3):
    weight = np.exp([q[b, n, h] @ k[b, m, h] / 2 for m in range(5)])  # sqrt(4) = 2
    want[b, n, h] = weight @ v[b, :, h] / weight.sum()
  with jax.enable_x64(True):
    np.testing.assert_allclose(attend(*map(jnp.asarray, (q, k, v))), want, rtol=1e-10)


def test_attention_survives_large_logits():
  q = np.full((1, 2, 1, 4), 1e3, np.float32) * np.array([1, -1], np.float32)[:, None, None]
  v = np.arange(8, dtype=np.float32).reshape(1, 2, 1, 4)
  np.testing.assert_allclose(attend(q, q, v), v)  # each query sees its own key alone


def masked_loops(q, k, v, mask):
  """Attention in float64, mask [B, heads, Q, K]; zeros for a query without keys."""
  out = np.zeros((*q.shape[:3], v.shape[-1]))
  for b, n, h in np.ndindex(out.shape[:3]):
    weight = np.exp([q[b, n, h] @ k[b, m, h] / 2 for m in range(k.shape[1])]) * mask[b, h, n]  # sqrt(4) = 2
    if weight.sum():
      out[b, n, h] = weight @ v[b, :, h] / weight.sum()
  return out


PADDED = np.arange(7) < np.array([7, 3, 0])[:, None]  # a full row, a padded one, an empty one
CAUSAL = np.tril(np.ones((5, 7), bool))
MASKS = dict(padding=PADDED[:, None, None], causal=CAUSAL, both=CAUSAL & PADDED[:, None, None])


@pytest.mark.parametrize('mask', MASKS.values(), ids=MASKS)
def test_masked_attention_matches_loops_and_is_zero_without_keys(mask):
  q, k, v = draws((3, 5, 2, 4), (3, 7, 2, 4), (3, 7, 2, 4))
  expected = masked_loops(q, k, v, np.broadcast_to(mask, (3, 2, 5, 7)))
  with jax.enable_x64(True):
    out = attend(*map(jnp.asarray, (q, k, v)), mask)
  np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-15)
  has_keys = np.broadcast_to(mask, (3, 2, 5, 7)).any(-1).transpose(0, 2, 1)
  assert np.all((np.abs(out).max(-1) > 0) == has_keys)


def test_gradients_are_finite_and_zero_at_masked_keys():
  q, k, v = draws((3, 5, 2, 4), (3, 7, 2, 4), (3, 7, 2, 4), dtype=np.float32)
  mask = PADDED[:, None, None]
  grads = jax.grad(lambda *qkv: jnp.sum(jnp.sin(attend(*qkv, mask))), (0, 1, 2))(q, k, v)
  assert all(np.all(np.isfinite(g)) for g in grads)
  assert not np.any(grads[0][2]) and np.all(grads[0][:2] != 0)
  for g in grads[1:]:
    assert np.array_equal(np.abs(g).max((2, 3)) > 0, PADDED)


def layer(x, *rest, heads=2):
  """(params, apply) of an attention layer, with all parameters random."""
  module = Attention(heads, **OPTIONS)
  params = module.init(jax.random.key(0), x, *rest)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda a: np.asarray(a) + .2 * rng.normal(size=a.shape).astype(np.float32), params)
  return params['params'], lambda params, *args: np.asarray(jax.jit(module.apply)(dict(params=params), *args))


def test_attention_to_a_context_matches_loops():
  x, context = draws((3, 2, 4, 8), (3, 7, 6), dtype=np.float32)
  params, apply = layer(x, context, PADDED)
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), nn.meta.unbox(params))
  h = normalise(x.astype(np.float64), p['norm']['scale'], p['norm']['bias'], 2)
  q = (h @ p['q']['kernel'][0, 0] + p['q']['bias']).reshape(3, 8, 2, 4)
  kv = (context @ p['kv']['kernel'] + p['kv']['bias']).reshape(3, 7, 2, 2, 4)
  mask = np.broadcast_to(PADDED[:, None, None], (3, 2, 8, 7))
  a = masked_loops(q, kv[:, :, 0], kv[:, :, 1], mask).reshape(x.shape)
  expected = x + a @ p['out']['kernel'][0, 0] + p['out']['bias']
  np.testing.assert_allclose(apply(params, x, context, PADDED), expected, atol=1e-4)


def test_padding_changes_nothing():
  x, context = draws((3, 2, 4, 8), (3, 7, 6), dtype=np.float32)
  params, apply = layer(x, context, PADDED)
  out = apply(params, x, context, PADDED)
  np.testing.assert_array_equal(out, apply(params, x, np.where(PADDED[..., None], context, 1e3), PADDED))
  np.testing.assert_allclose(out[1:2], apply(params, x[1:2], context[1:2, :3]), atol=1e-5)
  assert np.any(out[0] != apply(params, x, context + 1, PADDED)[0])


def test_self_attention_has_the_same_parameters_as_ever_and_takes_a_mask_of_pixels():
  x, = draws((2, 2, 4, 8), dtype=np.float32)
  params, apply = layer(x)
  assert {name: set(leaf) for name, leaf in params.items()} == dict(
    norm={'scale', 'bias'}, qkv={'kernel', 'bias'}, out={'kernel', 'bias'})
  half = np.arange(8) < np.array([4, 8])[:, None]
  masked, free = apply(params, x, None, half), apply(params, x)
  np.testing.assert_allclose(masked[1], free[1], atol=1e-6)
  assert np.abs(masked[0] - free[0]).max() > 1e-3
