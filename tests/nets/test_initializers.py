"""Each parameter is drawn by its own initializer, on the host where that declares a NumPy version."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.nets import initializers, layers, make
from diffusion.nets.classifier import Classifier
from diffusion.nets.unet import UNet

SMALL = dict(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4)


class Transformer(nn.Module):
  """An embedding table, a class token, position embeddings, and layers with initializers of their own."""

  @nn.compact
  def __call__(self, x, time, cond=None, train=False):
    h = layers.Conv(64, name='patches')(x).reshape(len(x), -1, 64)
    h = h + nn.Embed(128, 64, name='words')(jnp.zeros(h.shape[:2], int))
    token = self.param('class_token', nn.initializers.normal(.02), (1, 1, 64))
    h = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, 64)), h], 1)
    h = h + self.param('positions', nn.initializers.truncated_normal(.5), (1, h.shape[1], 64))
    h = nn.Dense(256, name='default')(nn.LayerNorm(name='norm')(h))
    h = nn.Dense(128, kernel_init=nn.initializers.normal(3.), name='wide')(h)
    return nn.Dense(8, kernel_init=nn.initializers.zeros, bias_init=nn.initializers.constant(.25), name='gate')(h)


def flat(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def test_each_parameter_has_the_distribution_of_its_own_initializer():
  params = flat(make(Transformer()).init(jax.random.key(0), (2, 8, 8, 3)))
  deviation = {  # .8796: of a standard normal variable cut off at -2 and 2
    'words/embedding': 1 / 64 ** .5, 'class_token': .02, 'positions': .5 * .8796, 'default/kernel': 1 / 64 ** .5,
    'wide/kernel': 3., 'patches/kernel': (2 / (9 * (3 + 64))) ** .5,
  }
  constant = {
    'default/bias': 0, 'wide/bias': 0, 'gate/kernel': 0, 'gate/bias': .25, 'norm/scale': 1, 'norm/bias': 0,
    'patches/bias': 0,
  }
  assert params.keys() == deviation.keys() | constant.keys()
  for name, std in deviation.items():
    size = params[name].size
    assert abs(params[name].mean()) < 4 * std / size ** .5, name
    assert params[name].std() == pytest.approx(std, rel=4 / (2 * size) ** .5), name
  for name, value in constant.items():
    assert np.all(params[name] == value), name
  largest = np.abs(params['patches/kernel']).max()
  assert largest <= (6 / (9 * (3 + 64))) ** .5 < 1.01 * largest
  assert all(isinstance(leaf, np.ndarray) and leaf.dtype == np.float32 for leaf in params.values())


def test_no_other_parameters_are_replaced():
  key, module = jax.random.key(3), Transformer()
  got = flat(make(module).init(key, (2, 8, 8, 3)))
  own = flat(nn.meta.unbox(jax.jit(module.init)(key, jnp.zeros((2, 8, 8, 3)), jnp.zeros(2))['params']))
  assert {name for name in own if np.any(got[name] != own[name])} == {'patches/kernel'}


def old_numbers(seed, shapes):
  """The parameters of U-Nets and classifiers: kernels in the order of the tree, of one generator."""
  rng = np.random.default_rng(np.asarray(jax.random.key_data(jax.random.key(seed))))
  for name, leaf in flat(shapes).items():
    if name.endswith('/kernel'):
      bound = np.sqrt(6 / (np.prod(leaf.shape[:-2]) * (leaf.shape[-2] + leaf.shape[-1])))
      yield name, rng.uniform(-bound, bound, leaf.shape).astype(np.float32)
    else:
      yield name, np.full(leaf.shape, name.endswith('scale'), np.float32)


@pytest.mark.parametrize('module', [
  UNet(**SMALL), UNet(**SMALL, film=False, resample='block', zero_init=False, patch=2, remat=True),
  Classifier(classes=3, **SMALL),
], ids=['unet', 'options', 'classifier'])
def test_a_seed_gives_the_parameters_that_it_always_gave_without_compiling(module, monkeypatch):
  monkeypatch.setattr(jax, 'jit', None)
  got = make(module).init(jax.random.key(7), (1, 16, 16, 3), np.zeros((1, 5), np.float32))
  monkeypatch.undo()
  want = dict(old_numbers(7, got))
  assert flat(got).keys() == want.keys() and len(want) > 40
  for name, leaf in flat(got).items():
    np.testing.assert_array_equal(leaf, want[name], err_msg=name)


def test_stacked_layers_have_the_distribution_of_a_single_layer():
  class Stacked(nn.Module):
    @nn.compact
    def __call__(self, x, time, cond=None, train=False):
      one = lambda layer, x, _: (layer(x), None)
      scan = nn.scan(one, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)
      return scan(layers.Dense(64, name='layers'), x, None)[0]
  params = flat(make(Stacked()).init(jax.random.key(0), (2, 64)))
  kernel = params['layers/kernel']
  assert kernel.shape == (3, 64, 64) and np.all(params['layers/bias'] == 0)
  for one in kernel:
    assert one.std() == pytest.approx((2 / 128) ** .5, rel=.05)
  assert np.any(kernel[0] != kernel[1])


def test_a_host_initializer_works_in_flax_as_any_other():
  module, x = layers.Dense(4), jnp.ones((2, 3))
  params = module.init(jax.random.key(0), x)
  kernel = nn.meta.unbox(params)['params']['kernel']
  assert isinstance(params['params']['kernel'], initializers.HostDrawn)
  np.testing.assert_allclose(module.apply(params, x), module.apply(nn.meta.unbox(params), x))
  np.testing.assert_allclose(module.apply(params, x), x @ kernel, rtol=1e-6)
