"""Deterministic 16x16 game sprites: attributes come from a seed, pixels follow from the attributes alone."""
import hashlib
import pathlib
import random
import re

import numpy as np

from diffusion.data.arrays import image_dataset
from diffusion.data.dataset import take
from diffusion.data.holdout import fingerprint
from diffusion.data.sprites import creatures, food, people, spells, weapons
from diffusion.data.sprites.canvas import pick, render, scale2x

CLASSES = ('hero', 'creature', 'food', 'spell', 'weapon', 'side hero')
_CHUNK = 1024


def design(label, rng):
  """Attributes (dict of JSON values) of a sprite of class `label`; `rng` is a `random.Random`."""
  if label in (0, 5):
    return people.design(rng, side=label == 5)
  return (creatures, food, spells, weapons)[label - 1].design(rng)


def draw(label, attributes):
  """Attributes -> Canvas; the same attributes give the same pixels."""
  if label in (0, 5):
    return people.draw(attributes, side=label == 5)
  return (creatures, food, spells, weapons)[label - 1].draw(attributes)


def caption(label, attributes):
  if label in (0, 5):
    text = people.caption(attributes, side=label == 5)
  else:
    text = (creatures, food, spells, weapons)[label - 1].caption(attributes)
  return re.sub(r'\ba(?= [aeiou])', 'an', ' '.join(text.split()))


def spoken(label, attributes):
  """What `caption` says of the attributes: {name: words in it}. What is drawn but not named is left out."""
  return (people, creatures, food, spells, weapons, people)[label].spoken(attributes)


def sprite(index, seed=0):
  """-> (label, attributes, canvas) of one sprite, which depends on (seed, index) only. Labels take turns."""
  label, attributes, framing = _plan(index, seed)
  return label, attributes, _draw_framed(label, attributes, framing)


def _plan(index, seed):
  """-> (label, attributes, (dx, dy, mirrored)). Heroes stand still, things lie a pixel about."""
  rng = random.Random((seed << 40) + index)
  label = index % len(CLASSES)
  attributes = design(label, rng)
  mirrored = pick(rng, (True, False))
  if label in (0, 5):
    return label, attributes, (0, 0, mirrored)
  mirrored = mirrored and attributes['kind'] not in ('heart', 'book', 'mug')
  return label, attributes, (pick(rng, (-1, 0, 1)), pick(rng, (-1, 0, 1)), mirrored)


def _draw_framed(label, attributes, framing):
  canvas = draw(label, attributes)
  canvas.move(*framing)
  return canvas


def generate(n, heldout, seed):
  """-> (train, heldout) Datasets of 16x16 RGB with `n` and `heldout` sprites.

  One combination of attributes in ten is reserved for the held-out side. Different attributes can look alike,
  so held-out pictures that also occur in training, as they are or mirrored, are dropped.
  """
  spare = heldout // 4 + 20 if heldout else 0
  plans, wanted = ([], []), (n, heldout + spare)
  index = 0
  while len(plans[0]) < wanted[0] or len(plans[1]) < wanted[1]:
    plan = _plan(index, seed)
    side = _is_reserved(*plan[:2])
    if len(plans[side]) < wanted[side]:
      plans[side].append(plan)
    index += 1
  train, rest = _draw_all(plans[0]), _draw_all(plans[1])
  seen = {fingerprint(image) for image in train.arrays['images']}
  fresh = [i for i, image in enumerate(rest.arrays['images']) if fingerprint(image) not in seen]
  return train, take(rest, np.array(fresh[:heldout], int))


def _is_reserved(label, attributes):
  text = f'{label} {sorted(attributes.items())}'
  return hashlib.blake2b(text.encode(), digest_size=1).digest()[0] < 26


def _draw_all(plans):
  images = np.zeros((len(plans), 16, 16, 3), np.uint8)
  for start in range(0, len(plans), _CHUNK):
    images[start:start + _CHUNK] = render([_draw_framed(*plan) for plan in plans[start:start + _CHUNK]])
  labels = np.array([label for label, _, _ in plans], np.int32)
  captions = tuple(caption(label, attributes) for label, attributes, _ in plans)
  return image_dataset(images, labels, CLASSES, captions, [attributes for _, attributes, _ in plans])


def enlarge(images, size):
  """16x16 -> size 16, 32 or 64 by Scale2x."""
  out = np.zeros((len(images), size, size, 3), np.uint8)
  for start in range(0, len(images), _CHUNK):
    chunk = images[start:start + _CHUNK]
    while chunk.shape[1] < size:
      chunk = scale2x(chunk)
    out[start:start + _CHUNK] = chunk
  return out


def source_hash():
  """Changes whenever the code that draws sprites does."""
  files = sorted(pathlib.Path(__file__).parent.glob('*.py'))
  return hashlib.blake2b(b''.join(file.read_bytes() for file in files), digest_size=8).hexdigest()
