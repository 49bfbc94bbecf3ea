"""InceptionV3 as the Frechet inception distance uses it (Szegedy et al. 2015, arXiv:1512.00567; Heusel et al. 2017,
arXiv:1706.08500).

The network of TensorFlow's inception-2015-12-05 differs from the paper's and from torchvision's: its average pools
exclude the padding, the last block uses max pooling, and it has 1008 logits. Distances of different networks do not
compare.

Parameters are flat, with the names and layouts of the usual PyTorch port of the weights: they are its state dict.
"""
import flax.linen as nn
import jax
import jax.numpy as jnp

ZEROS = lambda key, shape: jnp.zeros(shape, jnp.float32)  # only shape and type matter: the weights come from a file


def max_pool(x):
  return nn.max_pool(x, (3, 3), (2, 2))


def average(x):
  """3x3 average pooling with stride 1 that excludes the padding."""
  return nn.avg_pool(x, (3, 3), padding='SAME', count_include_pad=False).astype(x.dtype)  # flax counts in x64's floats


def chain(unit, x, *steps):
  """Applies units (name, features, size, ...) one after another."""
  for step in steps:
    x = unit(x, *step)
  return x


def join(*branches):
  return jnp.concatenate(branches, -1)


def block_a(unit, x, pooled):
  return join(unit(x, 'branch1x1', 64), chain(unit, x, ('branch5x5_1', 48), ('branch5x5_2', 64, (5, 5))),
              chain(unit, x, ('branch3x3dbl_1', 64), ('branch3x3dbl_2', 96, (3, 3)), ('branch3x3dbl_3', 96, (3, 3))),
              unit(average(x), 'branch_pool', pooled))


def block_b(unit, x):
  return join(unit(x, 'branch3x3', 384, (3, 3), 2),
              chain(unit, x, ('branch3x3dbl_1', 64), ('branch3x3dbl_2', 96, (3, 3)),
                    ('branch3x3dbl_3', 96, (3, 3), 2)), max_pool(x))


def block_c(unit, x, width):
  return join(unit(x, 'branch1x1', 192),
              chain(unit, x, ('branch7x7_1', width), ('branch7x7_2', width, (1, 7)), ('branch7x7_3', 192, (7, 1))),
              chain(unit, x, ('branch7x7dbl_1', width), ('branch7x7dbl_2', width, (7, 1)),
                    ('branch7x7dbl_3', width, (1, 7)), ('branch7x7dbl_4', width, (7, 1)),
                    ('branch7x7dbl_5', 192, (1, 7))),
              unit(average(x), 'branch_pool', 192))


def block_d(unit, x):
  return join(chain(unit, x, ('branch3x3_1', 192), ('branch3x3_2', 320, (3, 3), 2)),
              chain(unit, x, ('branch7x7x3_1', 192), ('branch7x7x3_2', 192, (1, 7)), ('branch7x7x3_3', 192, (7, 1)),
                    ('branch7x7x3_4', 192, (3, 3), 2)), max_pool(x))


def block_e(unit, x, pool):
  def fork(h, name, one, other):
    return [unit(h, name + one, 384, (1, 3)), unit(h, name + other, 384, (3, 1))]
  deep = chain(unit, x, ('branch3x3dbl_1', 448), ('branch3x3dbl_2', 384, (3, 3)))
  return join(unit(x, 'branch1x1', 320), *fork(unit(x, 'branch3x3_1', 384), 'branch3x3_', '2a', '2b'),
              *fork(deep, 'branch3x3dbl_', '3a', '3b'), unit(pool(x), 'branch_pool', 192))


def max_around(x):
  return nn.max_pool(x, (3, 3), padding='SAME')


class InceptionV3(nn.Module):
  """Network `x -> (points [B, 2048], logits [B, 1008])`.

  x: float32 [B, H, W, 3] in [-1, 1]; 299 x 299 for the distance, at least 75 x 75.
  points: the mean over pixels before the last layer.
  logits: without that layer's bias, as in the inception score (Salimans et al. 2016, arXiv:1606.03498, whose code uses
    only the matrix of the last layer).
  """

  @nn.compact
  def __call__(self, x):
    def at(block):
      """unit(x, name, features, size, stride, padding): convolution, batch normalisation (inference), ReLU."""
      def unit(x, name, features, size=(1, 1), stride=1, padding=None):
        def param(kind, *shape):
          return self.param('.'.join(filter(None, (block, name, kind))), ZEROS, shape)
        kernel = param('conv.weight', features, x.shape[-1], *size)
        kinds = ('weight', 'bias', 'running_mean', 'running_var')
        scale, shift, mean, variance = (param(f'bn.{kind}', features) for kind in kinds)
        scale = scale * jax.lax.rsqrt(variance + 1e-3)
        padding = padding or ('SAME' if stride == 1 else 'VALID')
        axes = ('NHWC', 'OIHW', 'NHWC')
        x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=axes)
        return nn.relu(x * scale + (shift - mean * scale))
      return unit

    x = jnp.asarray(x, jnp.float32)  # with jax.enable_x64 too
    x = chain(at(''), x, ('Conv2d_1a_3x3', 32, (3, 3), 2), ('Conv2d_2a_3x3', 32, (3, 3), 1, 'VALID'),
              ('Conv2d_2b_3x3', 64, (3, 3)))
    x = chain(at(''), max_pool(x), ('Conv2d_3b_1x1', 80), ('Conv2d_4a_3x3', 192, (3, 3), 1, 'VALID'))
    x = max_pool(x)
    for name, pooled in (('Mixed_5b', 32), ('Mixed_5c', 64), ('Mixed_5d', 64)):
      x = block_a(at(name), x, pooled)
    x = block_b(at('Mixed_6a'), x)
    for name, width in (('Mixed_6b', 128), ('Mixed_6c', 160), ('Mixed_6d', 160), ('Mixed_6e', 192)):
      x = block_c(at(name), x, width)
    x = block_d(at('Mixed_7a'), x)
    x = block_e(at('Mixed_7b'), x, average)
    x = block_e(at('Mixed_7c'), x, max_around)
    points = jnp.mean(x, (1, 2))
    return points, jnp.dot(points, self.param('fc.weight', ZEROS, (1008, points.shape[-1])).T)
