"""The transformer against its formulas in NumPy and float64, and its promises, on tiny networks."""
import functools

import jax
import numpy as np
import pytest
from scipy.special import softmax

from diffusion.errors import InputError
from diffusion.nets import make
from diffusion.nets.transformer import Transformer

SMALL = dict(width=16, blocks=2, heads=4)
SHAPE = (3, 5, 4)


@functools.cache
def network(**options):
  """(init, apply), which the tests share once it is compiled."""
  net = make(Transformer(**SMALL | options))
  return net.init, jax.jit(net.apply, static_argnums=4)


def build(shape=SHAPE, cond=None, **options):
  """(params, apply): all parameters random, so that no path is silent."""
  init, apply = network(**options)
  params, rng = init(jax.random.key(0), shape, cond), np.random.default_rng(0)
  return jax.tree.map(lambda a: np.asarray(a) + .3 * rng.normal(size=a.shape).astype(np.float32), params), apply


def inputs(shape=SHAPE, seed=1):
  x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
  return x, np.linspace(3., 900., shape[0], dtype=np.float32)


def assert_close(got, want, tolerance):
  np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max(), rtol=0)


# ---- the formulas again: DiT, arXiv:2212.09748, section 3.2 (adaLN-Zero), and Vaswani et al. 2017, equation 1
def reference(params, x, time, cond, heads=4):
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  silu = lambda h: h / (1 + np.exp(-h))
  gelu = lambda h: h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + .044715 * h ** 3)))
  dense = lambda name, h, of=p: h @ of[name]['kernel'] + of[name].get('bias', 0)
  norm = lambda h: (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
  width = p['positions'].shape[-1]
  angles = time[:, None].astype(np.float64) * 10000. ** (-np.arange(width // 8) / (width // 8))
  emb = dense('time0', np.concatenate([np.sin(angles), np.cos(angles)], 1), p['embedding'])
  emb = silu(dense('time1', silu(emb), p['embedding']) + cond @ p['embedding']['cond_cond']['kernel'])
  h = dense('in', x.astype(np.float64)) + p['positions']
  for i in range(2):
    vectors = np.split(dense(f'modulation_{i}', emb)[:, None], 6, -1)
    scale_a, shift_a, gate_a, scale_b, shift_b, gate_b = vectors
    qkv = dense(f'qkv_{i}', norm(h) * (1 + scale_a) + shift_a)
    size, together = width // heads, []
    for head in range(heads):
      q, k, v = (qkv[..., part * width + head * size:part * width + (head + 1) * size] for part in range(3))
      together.append(softmax(q @ k.swapaxes(1, 2) / np.sqrt(size), -1) @ v)
    h = h + gate_a * dense(f'attended_{i}', np.concatenate(together, -1))
    h = h + gate_b * dense(f'add_{i}', gelu(dense(f'hidden_{i}', norm(h) * (1 + scale_b) + shift_b)))
  scale, shift = np.split(dense('out_modulation', emb)[:, None], 2, -1)
  return dense('out', norm(h) * (1 + scale) + shift)


def test_the_output_is_that_of_the_formulas():
  cond = np.random.default_rng(2).normal(size=(3, 2)).astype(np.float32)
  params, net = build(cond=cond, out_channels=7)
  x, time = inputs()
  out = np.asarray(net(params, x, time, cond))
  assert out.shape == (3, 5, 7)
  assert_close(out, reference(params, x, time, cond), 3e-5)


def test_bfloat16_is_close_to_float32():
  params, net = build()
  _, half = build(dtype='bfloat16')
  x, time = inputs()
  exact, rounded = (np.asarray(apply(params, x, time)) for apply in (net, half))
  assert exact.dtype == rounded.dtype == np.float32
  assert_close(rounded, exact, .1)
  assert .0001 < np.abs(exact - rounded).mean() / np.abs(exact).mean() < .03


def test_places_that_change_seats_with_their_positions_change_seats_in_the_output():
  params, net = build()
  x, time = inputs()
  order = np.array([3, 0, 4, 1, 2])
  out = np.asarray(net(params, x, time))
  moved = params | dict(positions=params['positions'][order])
  assert_close(net(moved, x[:, order], time), out[:, order], 1e-5)
  assert np.abs(np.asarray(net(params, x[:, order], time)) - out[:, order]).max() > .05 * np.abs(out).max()


def test_every_place_depends_on_every_other():
  params, net = build()
  x, time = inputs((1, 5, 4))
  slopes = jax.jit(jax.jacobian(lambda x: net(params, x, time)))(x)
  slopes = np.asarray(slopes)[0, :, :, 0]  # [place, channel, place, channel]
  assert np.all(np.abs(slopes).max((1, 3)) > 1e-4)


def test_places_of_a_picture_are_those_of_its_rows_one_after_the_other():
  params, net = build((2, 2, 3, 4))
  x, time = inputs((2, 2, 3, 4))
  flat = np.asarray(net(params, x.reshape(2, 6, 4), time))
  np.testing.assert_array_equal(net(params, x, time), flat.reshape(x.shape))


def test_an_example_does_not_depend_on_the_rest_of_its_batch():
  cond = np.eye(3, dtype=np.float32)
  params, net = build(cond=cond)
  x, time = inputs()
  out = np.asarray(net(params, x, time, cond))
  for i in range(3):
    assert_close(np.asarray(net(params, x[i:i + 1], time[i:i + 1], cond[i:i + 1]))[0], out[i], 1e-5)
  other = np.asarray(net(params, x, time, cond[[0, 2, 2]]))
  np.testing.assert_array_equal(other[0], out[0])
  assert np.abs(other[1] - out[1]).max() > 1e-3


def test_the_output_is_zero_at_first():
  init, apply = network()
  x, time = inputs()
  np.testing.assert_array_equal(apply(init(jax.random.key(0), SHAPE), x, time), np.zeros(SHAPE))


def test_dropout_is_on_in_training_alone():
  params, net = build(dropout=.3)
  _, plain = build()
  x, time = inputs()
  one, same, two = (np.asarray(net(params, x, time, None, True, dict(dropout=jax.random.key(k)))) for k in (1, 1, 2))
  out = np.asarray(plain(params, x, time))
  np.testing.assert_array_equal(one, same)
  assert np.abs(one - two).max() > 1e-3 and np.abs(one - out).max() > 1e-3
  np.testing.assert_array_equal(net(params, x, time), out)
  np.testing.assert_array_equal(plain(params, x, time, None, True), out)  # without a rate no key is asked for


@pytest.mark.parametrize('options, message', [
  (dict(width=18, heads=3), r'width=18: .*multiple of 4'), (dict(width=16, heads=3), r'width=16: .*heads=3'),
  (dict(blocks=0), "'blocks': 0"), (dict(heads=0), "'heads': 0"), (dict(width=-4), "'width': -4"),
  (dict(width=16.), "'width': 16.0"), (dict(heads=True, width=True), 'True'),
  (dict(dropout=1.), r'dropout=1\.0'), (dict(dropout=-.1), r'dropout=-0\.1')])
def test_sizes_that_do_not_fit_are_refused(options, message):
  with pytest.raises(InputError, match=message):
    make(Transformer(**SMALL | options)).init(jax.random.key(0), SHAPE)


def test_an_x_without_places_is_refused():
  with pytest.raises(InputError, match='2 dimensions; use mlp'):
    make(Transformer(**SMALL)).init(jax.random.key(0), (3, 4))
