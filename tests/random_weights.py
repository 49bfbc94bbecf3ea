"""Reproducible weights of large networks, and a few numbers that distinguish their outputs."""
import jax
import jax.numpy as jnp
import numpy as np


def draw(module, pixels, seed=0):
  """{name: float32 array} for a Flax module that takes images; scaled so that activations keep their size."""
  image = jax.ShapeDtypeStruct((1, pixels, pixels, 3), jnp.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), image)['params']
  rng, drawn = np.random.default_rng(seed), {}
  for name in sorted(shapes):
    shape = shapes[name].shape
    noise = rng.standard_normal(shape)
    if name.endswith('running_var'):
      noise = np.exp(.3 * noise)
    elif len(shape) > 1:
      noise = noise * np.sqrt(2 / np.prod(shape[1:]))
    else:
      noise = .1 * noise + (1 if name.endswith(('weight', 'lambda1')) else 0)
    drawn[name] = noise.astype(np.float32)
  return drawn


def pictures(*shape, seed=0):
  """Smooth images, uint8 [B, H, W, C]: noise of a quarter of the size, enlarged."""
  B, H, W, C = shape
  small = np.random.default_rng(seed).integers(0, 256, (B, -(-H // 4), -(-W // 4), C))
  return small.repeat(4, 1).repeat(4, 2)[:, :H, :W].astype(np.uint8)


def summary(points):
  """Four numbers from features [B, D]: sums with cosines of different frequencies, which detect any permutation."""
  values = np.asarray(points, np.float64).ravel()
  return np.array([values @ np.cos((1 + .7 * k) * np.arange(values.size)) for k in range(4)])
