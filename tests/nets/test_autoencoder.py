"""The autoencoder's network: published sizes and names, padding against SciPy, what is refused."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from diffusion import nets
from diffusion.errors import InputError
from diffusion.nets.autoencoder import Autoencoder, published, Resample
from diffusion.nets.patch_gan import PatchGan
from diffusion.system.checksums import flat

SMALL = dict(channels=8, groups=4, critic_channels=8)
rng = np.random.default_rng(0)


def shapes(module, size=32):
  net = nets.make(module)
  return net, flat(jax.eval_shape(lambda key: net.init(key, (1, size, size, module.out_channels)), jax.random.key(0)))


def test_stable_diffusions_autoencoder_has_its_published_number_of_parameters():
  _, found = shapes(Autoencoder(128, (1, 2, 4, 4), 2, 4, 32), 64)
  assert sum(np.prod(a.shape) for a in found.values()) == 83_653_863


def test_parameters_have_the_names_and_the_layout_of_published_files():
  module = Autoencoder(8, (1, 2), 2, 4, 4, critic=True)
  net, found = shapes(module)
  names = published({path: np.zeros(a.shape, np.float32) for path, a in found.items()})
  res = lambda place, shortcut: [f'{place}.{part}.{leaf}' for part in ('norm1', 'conv1', 'norm2', 'conv2') + (
    ('conv_shortcut',) if shortcut else ()) for leaf in ('weight', 'bias')]
  of = lambda *places: [f'{place}.{leaf}' for place in places for leaf in ('weight', 'bias')]
  middle = lambda side: res(f'{side}.mid_block.resnets.0', False) + res(f'{side}.mid_block.resnets.1', False) + of(
    *(f'{side}.mid_block.attentions.0.{part}' for part in ('group_norm', 'to_q', 'to_k', 'to_v', 'to_out.0')))
  expected = of('quant_conv', 'post_quant_conv')
  for side in ('encoder', 'decoder'):
    expected += of(f'{side}.conv_in', f'{side}.conv_norm_out', f'{side}.conv_out') + middle(side)
  for i in range(2):
    expected += [name for j in range(2) for name in res(f'encoder.down_blocks.{i}.resnets.{j}', i == 1 and j == 0)]
    expected += [name for j in range(3) for name in res(f'decoder.up_blocks.{i}.resnets.{j}', i == 1 and j == 0)]
  expected += of('encoder.down_blocks.0.downsamplers.0.conv', 'decoder.up_blocks.0.upsamplers.0.conv')
  assert sorted(names) == sorted(expected)
  assert names['encoder.conv_in.weight'].shape == (8, 3, 3, 3)
  assert names['encoder.conv_out.weight'].shape == (8, 16, 3, 3)  # mean and log variance of 4 channels
  assert names['decoder.conv_in.weight'].shape == (16, 4, 3, 3)
  layer = np.arange(12.).reshape(3, 4)
  np.testing.assert_array_equal(published({'decoder/mid_block/to_q/kernel': layer})['decoder.mid_block.to_q.weight'],
                                layer.T)


def test_the_way_down_pads_below_and_at_the_right_alone():
  x, kernel = rng.normal(size=(1, 6, 6, 2)), rng.normal(size=(3, 3, 2, 2))
  small = dict(dtype='float64', fast=None)
  with jax.enable_x64(True):
    found = Resample(False, small).apply({'params': dict(conv=dict(kernel=kernel, bias=np.zeros(2)))}, jnp.asarray(x))
  padded = np.pad(x[0], ((0, 1), (0, 1), (0, 0)))
  for f in range(2):
    exact = sum(correlate2d(padded[..., c], kernel[:, :, c, f], 'valid') for c in range(2))[::2, ::2]
    np.testing.assert_allclose(found[0, ..., f], exact, atol=1e-12)


def test_the_last_convolution_alone_gives_the_decoders_image_and_remat_changes_nothing():
  net, again = (nets.make(Autoencoder(**SMALL, remat=remat)) for remat in (False, True))
  params = net.init(jax.random.key(0), (1, 4, 4, 3))
  z = rng.normal(size=(1, 2, 2, 4)).astype(np.float32)
  @jax.jit
  def images(params, z):
    image, h = net.call(params, 'decode', z)
    return image, net.call(params, 'last', h), again.call(params, 'decode', z)[0]
  image, *others = images(params, z)
  for other in others:
    np.testing.assert_allclose(other, image, atol=1e-6)


def test_the_discriminator_judges_each_image_by_itself_in_patches():
  net, x = PatchGan(8, 1), jnp.asarray(rng.normal(size=(3, 12, 12, 1)), jnp.float32)
  params = nn.meta.unbox(net.init(jax.random.key(0), x[:1]))['params']
  apply = jax.jit(lambda x: net.apply({'params': params}, x))
  np.testing.assert_allclose(apply(x)[1:2], apply(x[1:2]), atol=1e-5)
  published = PatchGan(64, 3)  # of 256 x 256 pixels: 30 x 30 patches, 2,763,776 weights in its kernels
  init = lambda: nn.meta.unbox(published.init(jax.random.key(0), jnp.zeros((1, 256, 256, 3))))['params']
  shapes = jax.eval_shape(init)
  assert sum(np.prod(part['kernel'].shape) for name, part in shapes.items() if 'norm' not in name) == 2_763_776
  assert jax.eval_shape(lambda p: published.apply({'params': p}, jnp.zeros((1, 256, 256, 3))), shapes).shape == (
    1, 30, 30)


@pytest.mark.parametrize('options, message', [
  (dict(channels=9), '9 channels'), (dict(multipliers=2), 'multipliers=2'), (dict(blocks=0), 'blocks=0'),
  (dict(dtype='float16'), "dtype='float16'"), (dict(multipliers=(1, 2, 2)), 'image height 6 is not divisible by 4')])
def test_wrong_options_and_sizes_that_do_not_divide_are_refused(options, message):
  net = nets.make(Autoencoder(**SMALL | options))
  with pytest.raises(InputError, match=message):
    jax.eval_shape(lambda: net.init(jax.random.key(0), (1, 6, 6, 3)))
