"""Features of a small classifier that is trained on the data set itself and cached: no pretrained weights are needed.

It predicts the class of an image and the reflection applied to it, so data without classes work, too. Its features are
good enough to detect noise, blur and missing kinds of images; its distances compare only with those of the same
classifier (its hash is in every record), and not with the FID of papers, for which there is `inception`.
"""
import hashlib
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from diffusion.data.arrays import to_unit
from diffusion.data.dataset import batch_indices, condition_vectors, size as count
from diffusion.errors import InputError
from diffusion.evaluation.metrics.extractor import Extractor, Features
from diffusion.nets.cnn import Cnn
from diffusion.system import sharding
from diffusion.system.cache import cached

SIDE = 32       # larger images are downsampled
REFLECTIONS = 4
BATCH = 128
VERSION = 3     # of the recipe; part of the cache key


def digest(*arrays):
  """Hash of arrays with their shapes and types: 16 hexadecimal digits."""
  state = hashlib.blake2b(digest_size=8)
  for a in arrays:
    array = np.ascontiguousarray(getattr(a, 'identity', a))  # a stream has an identity that needs no reading
    state.update(f'{array.dtype} {array.shape}'.encode())
    state.update(array.tobytes())
  return state.hexdigest()


def small(shape):
  """(H, W) of the classifier's input images: the longer side at most SIDE."""
  factor = max(1, max(shape) / SIDE)
  return tuple(max(4, round(side / factor)) for side in shape)


def see(images):
  """uint8 [B, H, W, C] -> float32 in [-1, 1], at most SIDE on the longer side."""
  x = to_unit(images)
  size = small(x.shape[1:3])
  if size == x.shape[1:3]:
    return x
  return jax.image.resize(x, (len(x), *size, x.shape[-1]), 'linear')  # with antialiasing


def _reflect(x, how):
  """Reflects each image [B, H, W, C] by how [B]: 0 not at all, 1 horizontally, 2 vertically, 3 both."""
  how = how[:, None, None, None]
  x = jnp.where(how % 2 == 1, x[:, :, ::-1], x)
  return jnp.where(how >= 2, x[:, ::-1], x)


def _net(classes, shape):
  model = Cnn(len(classes) + REFLECTIONS)
  init = lambda key: model.init(key, jnp.zeros((1, *small(shape[:2]), shape[2])))['params']
  return init, lambda params, x: model.apply({'params': params}, x)


def own(steps=800):
  """(data, mesh) -> the Extractor trained on a Dataset, cached.

  The logits are those of the Dataset's classes, or of independent attributes if its labels are vectors.

  Args:
    steps: of training, with 128 images each.
  Raises:
    InputError: steps is not a whole number of at least 1.
  """
  if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
    raise InputError(f'own(steps={steps!r}): expected at least 1 training step')
  return lambda data, mesh: _own(data, mesh, steps)


def _own(data, mesh, steps):
  images, classes = data.arrays['images'], tuple(data.facts.get('classes', ()))
  shape, labels = images.shape[1:], data.arrays.get('labels', np.zeros(count(data), np.int32))
  init, net = _net(classes, shape)
  like = jax.eval_shape(init, jax.random.key(0))
  leaves, tree = jax.tree.flatten(like)
  key = [VERSION, steps, list(small(shape[:2])), digest(images, labels), list(classes)]
  def make():
    params = jax.device_get(_train(images, labels, classes, mesh, init, net, steps))
    return {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(params))}
  stored = cached('features-own', key, make)
  params = jax.tree.unflatten(tree, [stored[str(i)] for i in range(len(leaves))])

  def apply(params, images):
    points, logits = net(params, see(images))
    return Features(points, logits[:, :len(classes)] if classes else None)
  resize = 'none' if small(shape[:2]) == shape[:2] else 'linear {}x{}'.format(*small(shape[:2]))
  return Extractor('own', digest(*jax.tree.leaves(params)), resize, Cnn.features, classes, params, apply)


def _train(images, labels, classes, mesh, init, net, steps):
  """The parameters that tell the classes and the reflections apart."""
  def loss(params, images, label, how):
    _, logits = net(params, _reflect(see(images), how))
    turned = optax.softmax_cross_entropy_with_integer_labels(logits[:, len(classes):], how)
    each = optax.sigmoid_binary_cross_entropy(logits[:, :len(classes)], label).sum(1)
    one = optax.softmax_cross_entropy(logits[:, :len(classes)], label)
    named = 0. if not classes else each if labels.ndim == 2 else one
    return jnp.mean(turned + named)

  rng = np.random.default_rng(0)
  def batch(index):
    label = condition_vectors(labels[index], classes) if classes else np.zeros((len(index), 0), np.float32)
    return images[index], label, rng.integers(0, REFLECTIONS, len(index)).astype(np.int32)
  return minimise(loss, init, batch, len(images), steps, mesh, 'training the feature extractor (once per data set)')


def minimise(loss, init, batch, number, steps, mesh, title):
  """The parameters after `steps` of Adam with a one-cycle learning rate, which peaks at 4e-3.

  Args:
    loss: (params, *arrays [B, ...]) -> [].   init: key -> params.
    batch: indices [B] -> the arrays on the host; called once a step, in order.
    number: of examples.   mesh: the devices.   title: of the progress bar.
  """
  optimizer = optax.adam(optax.cosine_onecycle_schedule(steps, 4e-3, .1))

  @jax.jit
  def step(params, state, *arrays):
    value, grads = jax.value_and_grad(loss)(params, *arrays)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, value

  params = jax.device_put(jax.jit(init)(jax.random.key(0)), sharding.replicated(mesh))
  state, size = jax.device_put(optimizer.init(params), sharding.replicated(mesh)), -(-BATCH // mesh.size) * mesh.size
  for i in tqdm(range(steps), title, unit='step', delay=2, file=sys.stderr, disable=None):
    arrays = sharding.put_batch(batch(batch_indices(number, size, 0, i)), mesh)
    params, state, value = step(params, state, *arrays)
    if i % 8 == 7:  # limits the steps in flight
      jax.block_until_ready(value)
  if not np.isfinite(float(value)):
    warnings.warn(f'{title}: it diverged, the loss is not finite')
  return params
