"""Flax networks, and `make`, which hides flax from everything else."""
import jax
import jax.numpy as jnp
import numpy as np


def make(module):
  """Turns a Flax module with `__call__(x, time, cond, train)` into two pure functions.

  Returns:
    init: (key, shape, cond=None) -> params. shape: of x, with the batch, [B, ...]; cond: an example of the
      condition, with any B, or None. Inside jit the same key gives other numbers of the same distribution.
    net: (params, x, time, cond=None, train=False, rngs=None) -> out. rngs: {'dropout': key} where the network
      has dropout and trains.
  """
  def init(key, shape, cond=None):
    def create(key):
      return module.init(key, jnp.zeros(shape), jnp.zeros(shape[0]), cond, False)['params']

    if isinstance(key, jax.core.Tracer):  # inside jit or eval_shape: the modules' own initialisers
      return create(key)
    return draw(np.asarray(jax.random.key_data(key)), jax.eval_shape(create, key))

  def net(params, x, time, cond=None, train=False, rngs=None):
    return module.apply({'params': params}, x, time, cond, train, rngs=rngs)

  return init, net


def draw(seed, shapes):
  """Initial parameters for a tree of shapes, by the names of its leaves.

  The distributions are those of the modules' own initialisers. Drawn on the host, because XLA takes 0.2 s to
  compile a random draw and a U-Net has a hundred of them.

  Args:
    seed: array of unsigned integers.
    shapes: tree of ShapeDtypeStruct.
  Returns:
    The same tree of float32 NumPy arrays.
  """
  rng = np.random.default_rng(seed)

  def leaf(path, like):
    return initial(rng, path[-1].key, like.shape)

  return jax.tree_util.tree_map_with_path(leaf, shapes)


def initial(rng, name, shape):
  """A leaf, float32. kernel [..., C, F]: uniform, variance 2 / (fan in + fan out) (Glorot & Bengio 2010)."""
  if name == 'kernel':
    bound = np.sqrt(6 / (np.prod(shape[:-2]) * (shape[-2] + shape[-1])))
    return rng.uniform(-bound, bound, shape).astype(np.float32)
  if name == 'scale':
    return np.ones(shape, np.float32)
  if name in ('bias', 'zero_kernel'):
    return np.zeros(shape, np.float32)
  raise ValueError(f'No initial value is defined for a parameter called {name!r}')
