"""Layers against float64 references that share no code with them; the fast forms against the plain ones."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.nets import layers

group_norm = jax.jit(layers.group_norm, static_argnums=3, static_argnames='fast')
conv = jax.jit(layers.conv, static_argnums=(2, 3))
up_conv = jax.jit(layers.up_conv, static_argnums=2)


def draws(*shapes, seed=0, dtype=np.float64):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def correlate(x, kernel, stride=1):
  """Cross-correlation by four loops; zeros outside."""
  B, H, W, _ = x.shape
  k = len(kernel)
  padded = np.zeros((B, H + k - 1, W + k - 1, x.shape[3]))
  padded[:, k // 2:k // 2 + H, k // 2:k // 2 + W] = x
  out = np.zeros((B, -(-H // stride), -(-W // stride), kernel.shape[3]))
  for i in range(out.shape[1]):
    for j in range(out.shape[2]):
      window = padded[:, stride * i:stride * i + k, stride * j:stride * j + k]
      out[:, i, j] = np.tensordot(window, kernel, 3)
  return out


def normalise(x, scale, shift, groups, eps=1e-5):
  out = np.empty_like(x)
  size = x.shape[-1] // groups
  for b in range(len(x)):
    for g in range(groups):
      part = x[b, ..., g * size:(g + 1) * size]
      out[b, ..., g * size:(g + 1) * size] = (part - part.mean()) / np.sqrt(part.var() + eps)
  return out * scale + shift


@pytest.mark.parametrize('fast', [True, False])
def test_group_norm_matches_loops_over_groups(fast):
  x, scale, shift = draws((2, 6, 4, 12), (12,), (12,))
  with jax.enable_x64(True):
    got = group_norm(3 * x + 5, scale, shift, 3, fast=fast)
  np.testing.assert_allclose(got, normalise(3 * x + 5, scale, shift, 3), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('fast', [True, False])
def test_group_norm_takes_a_scale_and_shift_per_example(fast):
  x, scale, shift = draws((3, 4, 4, 8), (3, 8), (3, 8))
  with jax.enable_x64(True):
    got = group_norm(x, scale, shift, 2, fast=fast)
  want = normalise(x, scale[:, None, None], shift[:, None, None], 2)
  np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('fast', [True, False])
def test_group_norm_of_a_constant_is_the_shift(fast):
  got = group_norm(np.full((1, 4, 4, 8), 3.7, np.float32), np.ones(8), np.arange(8.), 2, fast=fast)
  np.testing.assert_allclose(got, np.broadcast_to(np.arange(8.), got.shape), atol=1e-3)


@pytest.mark.parametrize('fast', [True, False])
@pytest.mark.parametrize('size, stride', [(1, 1), (3, 1), (3, 2)])
def test_convolution_matches_four_loops(fast, size, stride):
  x, kernel = draws((2, 6, 4, 3), (size, size, 3, 5))
  with jax.enable_x64(True):
    got = conv(x, kernel, stride, fast)
  np.testing.assert_allclose(got, correlate(x, kernel, stride), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('fast', [True, False])
def test_up_convolution_is_repetition_then_convolution(fast):
  x, kernel = draws((2, 3, 4, 5), (3, 3, 5, 2))
  with jax.enable_x64(True):
    got = up_conv(x, kernel, fast)
  np.testing.assert_allclose(got, correlate(x.repeat(2, 1).repeat(2, 2), kernel), rtol=1e-10, atol=1e-10)


def pair(name):
  """(function of (fast, *arrays), arrays) of a layer that has two forms."""
  if name == 'group_norm':
    return lambda fast, x, a, b: layers.group_norm(x, a, b, 4, fast=fast), draws((2, 4, 6, 8), (2, 8), (2, 8))
  if name == 'conv':
    return lambda fast, x, k: layers.conv(x, k, fast=fast), draws((2, 4, 6, 8), (1, 1, 8, 3))
  return lambda fast, x, k: layers.up_conv(x, k, fast), draws((2, 4, 6, 3), (3, 3, 3, 5))


@pytest.mark.parametrize('name', ['group_norm', 'conv', 'up_conv'])
@pytest.mark.parametrize('dtype, tolerance', [(np.float64, 1e-11), (np.float32, 2e-5)])
def test_fast_and_plain_forms_have_equal_gradients(name, dtype, tolerance):
  function, arrays = pair(name)
  with jax.enable_x64(dtype is np.float64):
    arrays = [a.astype(dtype) for a in arrays]
    weigh = lambda out: jnp.vdot(np.cos(np.arange(out.size)).astype(dtype), out.ravel())  # different for every output
    slope = jax.jit(jax.grad(lambda fast, *a: weigh(function(fast, *a)), range(1, len(arrays) + 1)), static_argnums=0)
    grads = [jax.device_get(slope(fast, *arrays)) for fast in (True, False)]
  for fast, plain in zip(*grads):
    np.testing.assert_allclose(fast, plain, rtol=tolerance, atol=tolerance * np.abs(plain).max())


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_dropout_and_its_gradient_are_those_of_flax(dtype):
  x, key = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 16)), dtype), jax.random.key(3)
  flax = nn.Dropout(.3, deterministic=False)
  both = lambda f: jax.jit(jax.value_and_grad(lambda x: jnp.sum(f(x) ** 3)))(x)
  ours, theirs = both(lambda x: layers.dropout(key, x, .3)), both(lambda x: flax.apply({}, x, rng=key))
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  assert ours[1].dtype == x.dtype and .6 < np.mean(np.asarray(ours[1], np.float32) != 0) < .8


def test_space_to_depth_puts_the_pixels_of_a_square_together_and_back():
  x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
  folded, back = jax.device_get(jax.jit(lambda x: (y := layers.space_to_depth(x, 2), layers.depth_to_space(y, 2)))(x))
  np.testing.assert_array_equal(folded[1, 1, 2], x[1, 2:4, 4:6].ravel())
  np.testing.assert_array_equal(back, x)


def test_average_undoes_nearest_and_halves_by_the_mean():
  x = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
  back, halved = jax.device_get(jax.jit(lambda x: (layers.average(layers.nearest(x)), layers.average(x)))(x))
  np.testing.assert_array_equal(back, x)
  np.testing.assert_allclose(halved[1, 1, 2], x[1, 2:4, 4:6].mean((0, 1)))


def test_bfloat16_norm_takes_its_statistics_in_float32():
  x = (np.random.default_rng(0).normal(size=(1, 16, 16, 8)) + 8).astype(np.float32)
  x = jnp.asarray(x, jnp.bfloat16)  # the same rounded numbers for both
  got = group_norm(x, np.ones(8, np.float32), np.zeros(8, np.float32), 2)
  want = normalise(np.asarray(x, np.float64), 1, 0, 2)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=.02)
