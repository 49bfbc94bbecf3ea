"""The multilayer perceptron: any shape of x, no neighbourhoods, and sizes that are checked."""
import jax
import numpy as np
import pytest

from diffusion import nets
from diffusion.errors import InputError
from diffusion.nets.mlp import Mlp


def awake(net, key, shape, cond=None):
  """Parameters that let everything through: the last layer starts at zero."""
  params, rng = net.init(key, shape, cond), np.random.default_rng(1)
  return jax.tree.map(lambda a: np.asarray(a) + .1 * rng.normal(size=a.shape).astype(np.float32), params)


@pytest.mark.parametrize('shape', [(2,), (5, 3), (4, 4, 1), ()])
def test_every_entry_of_the_output_depends_on_every_entry_of_x_and_on_nothing_of_other_examples(shape):
  net = nets.make(Mlp(width=16, blocks=1))
  x = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
  params = awake(net, jax.random.key(0), (1, *shape))
  slope = jax.jit(jax.jacobian(lambda x: net.apply(params, x, np.full(3, 100.))))(x)
  slope = np.reshape(slope, (3, x[0].size, 3, x[0].size))
  for i in range(3):
    for j in range(3):
      assert (np.abs(slope[i, :, j]).min() > 0) if i == j else not slope[i, :, j].any()


def test_time_and_condition_change_the_output():
  net = nets.make(Mlp(width=16, blocks=2))
  x, cond = np.random.default_rng(0).normal(size=(2, 2)).astype(np.float32), np.eye(2, dtype=np.float32)
  params = awake(net, jax.random.key(0), (1, 2), cond[:1])
  apply = jax.jit(lambda time, cond: net.apply(params, x, time, cond))
  out = lambda time, cond: np.asarray(apply(np.full(2, time), cond))
  assert np.abs(out(100., cond) - out(500., cond)).max() > 1e-3
  assert np.abs(out(100., cond) - out(100., cond[::-1])).max() > 1e-3


@pytest.mark.parametrize('sizes, message', [
  (dict(width=10), 'width=10: expected a multiple of 4'), (dict(blocks=0), 'blocks=0')])
def test_sizes_are_checked(sizes, message):
  with pytest.raises(InputError, match=message):
    nets.make(Mlp(**sizes)).init(jax.random.key(0), (1, 2))
