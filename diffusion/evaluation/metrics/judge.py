"""The judge of text-to-image: a small classifier that is trained on the data set itself and cached.

It has a head for the class and one for each attribute that captions name, such as kind, colour or hat, and it is asked
only about what a caption says: what is drawn but never named counts neither in its training nor in its scores. It reads
the pixels alone, so that it cannot favour a text encoder that a model was trained or guided with.
"""
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.data import sprites
from diffusion.evaluation.metrics import record
from diffusion.evaluation.metrics.extractor import Extractor, Features
from diffusion.evaluation.metrics.features import make_extract
from diffusion.evaluation.metrics.trained_features import digest, minimise, see, small
from diffusion.nets.cnn import PlaceCnn
from diffusion.system.cache import cached

FIRST = ('class', 'kind', 'colour')  # heads with a score of their own
STEPS = 1400                         # of training, with 128 images each
VERSION = 1                          # of the recipe; part of the cache key


class Judge(NamedTuple):
  """A classifier of what captions say."""
  values: dict       # {head: names of what it tells apart}
  accuracy: dict     # {head: Estimate}, of held-out examples
  digest: str        # hash of the weights
  predict: Callable  # uint8 images [n, H, W, C] -> int [n, heads], numbers of the values, in the order of `values`


def said(data):
  """What each caption says, N dicts {head: value} with the class among them; () where that is not known."""
  if 'attributes' not in data.arrays or tuple(data.facts.get('classes', ())) != sprites.CLASSES:
    return ()
  pairs = zip(data.arrays['labels'], data.arrays['attributes'])
  return tuple({'class': sprites.CLASSES[label]} | sprites.spoken(label, attributes) for label, attributes in pairs)


def values_of(texts):
  """{head: the values that texts (dicts, see `said`) give it}, without heads of a single value."""
  heads = sorted({head for text in texts for head in text}, key=lambda head: (head not in FIRST, head))
  found = {head: tuple(sorted({text[head] for text in texts if head in text})) for head in heads}
  return {head: values for head, values in found.items() if len(values) > 1}


def wanted(texts, values):
  """int [N, heads]: the number of the value that each text gives each head; -1 where it gives none."""
  numbers = {head: {name: i for i, name in enumerate(names)} for head, names in values.items()}
  rows = [[known.get(text.get(head), -1) for head, known in numbers.items()] for text in texts]
  return np.array(rows, np.int32).reshape(len(texts), len(values))


def judge(data, mesh, steps=None):
  """The Judge that is trained on the training examples of a Source, cached.

  Args:
    data: a Source whose captions are known (see `said`), with held-out examples.
    mesh: the devices.
    steps: of training, with 128 images each; None: a quarter of the examples, at most STEPS.
  """
  images, texts = data.train.arrays['images'], said(data.train)
  values, steps = values_of(texts), steps or min(STEPS, -(-len(images) // 4))
  labels = wanted(texts, values)
  ends = np.cumsum([len(names) for names in values.values()])
  model, size = PlaceCnn(int(ends[-1])), small(images.shape[1:3])
  init = lambda key: model.init(key, jnp.zeros((1, *size, images.shape[-1])))['params']
  leaves, tree = jax.tree.flatten(jax.eval_shape(init, jax.random.key(0)))
  net = lambda params, x: model.apply({'params': params}, x)
  def make():
    params = jax.device_get(_train(net, init, images, labels, ends, mesh, steps))
    return {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(params))}
  stored = cached('judge', [VERSION, steps, list(size), digest(images, labels), values], make)
  params = jax.tree.unflatten(tree, [stored[str(i)] for i in range(len(leaves))])
  apply = lambda params, images: Features(jnp.zeros((len(images), 0)), net(params, see(images)))
  view = make_extract(Extractor('judge', '', '', 0, (), params, apply), mesh)
  def predict(images):
    parts = np.split(view(images).logits, ends[:-1], 1)
    return np.stack([part.argmax(1) for part in parts], 1)
  right, asked = accuracies(predict(data.heldout.arrays['images']), wanted(said(data.heldout), values))
  accuracy = {head: record.share(*counts) for head, *counts in zip(values, right, asked)}
  return Judge(values, accuracy, digest(*jax.tree.leaves(params)), predict)


def accuracies(seen, asked):
  """(how often the judge saw what was asked for, how often it was asked for), int [heads] each."""
  return np.sum(seen == asked, 0), np.sum(asked >= 0, 0)


def _train(net, init, images, labels, ends, mesh, steps):
  """The parameters of heads that were asked only about what captions say, of images a little beside their places."""
  starts = np.concatenate([[0], ends[:-1]])
  place = np.arange(ends[-1])
  own = (place >= starts[:, None]) & (place < ends[:, None])  # which logits are those of each head

  def loss(params, images, labels):
    logits = net(params, see(images))
    total = jax.nn.logsumexp(jnp.where(own, logits[:, None], -jnp.inf), -1)
    asked = jnp.take_along_axis(logits, starts + jnp.maximum(labels, 0), 1)
    return jnp.mean(jnp.sum(jnp.where(labels >= 0, total - asked, 0.), 1))

  rng = np.random.default_rng(0)
  batch = lambda index: (moved(images[index], rng), labels[index])
  return minimise(loss, init, batch, len(images), steps, mesh, 'training the judge (once per data set)')


def moved(images, rng):
  """Images [B, H, W, C] as they might have been: mirrored or not, and moved by up to a sixteenth of the side."""
  count, height, width = images.shape[:3]
  far = max(height, width) // 16
  rows = (np.arange(height) + rng.integers(-far, far + 1, (count, 1))) % height
  columns = (np.arange(width) + rng.integers(-far, far + 1, (count, 1))) % width
  columns = np.where(rng.integers(0, 2, (count, 1)), columns, width - 1 - columns)
  return images[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None]]
