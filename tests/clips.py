"""A CLIP that is known exactly: linear towers over pixels and over counts of tokens."""
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

from diffusion.data.arrays import image_dataset, to_unit
from diffusion.objectives.base import Model
from diffusion.objectives.contrastive import unit
from diffusion.setup.build import Weights
from diffusion.setup.choices import make

WORDS = ('red', 'blue', 'green', 'grey')


def pictures(n=64, side=4, seed=0):
  """A Dataset of noise with captions of two words."""
  rng = np.random.default_rng(seed)
  captions = [f'a {WORDS[i % 4]} {WORDS[i // 4 % 4]} thing' for i in range(n)]
  return image_dataset(rng.integers(0, 256, (n, side, side, 1)).astype(np.uint8), None, (), captions)


def opened(data, size=6, seed=1, can=('embed_image', 'embed_text'), words=None):
  """open_model for a CLIP of D = size that was trained on data."""
  task = make('task', 'text_to_image', data=words or data)
  shape, rng = task.facts['shape'], np.random.default_rng(seed)
  params = dict(image=rng.normal(size=(int(np.prod(shape)), size)).astype(np.float32),
                text=rng.normal(size=(task.facts['tokens']['size'], size)).astype(np.float32))

  def model(weights):
    def embed_text(cond):
      return unit(jnp.einsum('bl,bld->bd', cond['weights'], jnp.asarray(weights.params['text'])[cond['tokens']]))
    return Model(embed_image=lambda x, noise=None: unit(x.reshape(len(x), -1) @ weights.params['image']),
                 embed_text=embed_text)
  run = SimpleNamespace(can=frozenset(can), model=model, task=task, objective=SimpleNamespace(name='contrastive'),
                        encode=lambda frozen, key, batch: (to_unit(batch['images']), None))
  return lambda where: SimpleNamespace(run=run, weights=Weights(params), step=1)
