"""Columns that are computed once per example, before training, and kept: latents, embeddings, tokens."""
import jax
import numpy as np
from tqdm import tqdm

from diffusion.data.dataset import padded_batches, size
from diffusion.system import cache


def with_column(data, name, compute, key, batch=256):
  """The Dataset with one more column, from the cache where possible.

  Args:
    data: a Dataset.
    name: of the new column.
    compute: indices int [batch] -> array [batch, ...]; called for all examples in order, in batches of one size.
    key: JSON of everything that the column depends on, such as hashes of the data and of given weights.
    batch: examples at a time.
  Returns:
    The Dataset; what took less than a second to compute is not kept.
  """
  def make():
    title = f'{name} (once per data set, kept in {cache.cache_dir()})'
    batches = tqdm(list(padded_batches(size(data), batch)), title, unit='batch', delay=2, leave=False, disable=None)
    parts = [jax.device_get(compute(index))[:count] for index, count in batches]
    return {name: np.concatenate(parts)}
  column = cache.cached(f'column-{name}', key, make, min_seconds=1)[name]
  return data._replace(arrays=data.arrays | {name: column})
