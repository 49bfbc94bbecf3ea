"""What each word of a prompt looks at: the attention of the pixels of a sample to its tokens, as pictures."""
import jax
import jax.numpy as jnp
import numpy as np

from diffusion import text
from diffusion.core.gaussian import q_sample, take
from diffusion.data.arrays import to_unit
from diffusion.system import sharding
from diffusion.tasks.captioned_page import captioned_page

LEVELS = 6  # noise levels, evenly spread over the sampling grid, over which the attention is averaged
TINT = np.array([220., 20., 60.])


def word_maps(run, weights, images, cond, seed=0):
  """The attention of each pixel to each token, averaged over noise levels, layers and heads.

  The images are noised as in training: no sampler is needed, and any image can be asked about.

  Args:
    run, weights: of a model of texts, such as of diffusion.load.
    images: uint8 [N, H, W, C], of the model's size.
    cond: of the prompts, [N, ...], one text each.
  Returns:
    float32 [N, H, W, L]; a pixel's attention to all tokens is at most 1 (pixels that are keys, too, have the rest).
  """
  x0 = to_unit(images)
  index = np.unique(np.linspace(0, len(run.levels.logsnr) - 2, LEVELS).astype(int))

  @jax.jit
  def maps(weights, key):
    look, total = run.model(weights).attention(cond), 0.
    for i in index:
      noise = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), take(run.levels, int(i)))
      x = q_sample(x0, noise, jax.random.normal(jax.random.fold_in(key, i), x0.shape))
      found = [resized(jnp.mean(layer, 1), images.shape[1:3]) for layer in look(x, noise)]
      total += sum(found) / len(found)
    return total / len(index)
  return np.asarray(sharding.fetch(maps(weights, jax.random.key(seed))))


def resized(weights, shape):
  """[N, h * w, K] at a lower resolution -> [N, H, W, K], each value repeated; H / h and W / w are equal."""
  H, W = shape
  factor = round((H * W / weights.shape[1]) ** .5)
  small = weights.reshape(len(weights), H // factor, W // factor, -1)
  return jnp.repeat(jnp.repeat(small, factor, 1), factor, 2)


def page(run, weights, images, asked, title):
  """A row for each sample: the image, then one picture for each word, red where pixels attend to it most."""
  found = word_maps(run, weights, images, asked.cond)
  tokenizer = text.rebuild(run.task.facts['tokens'], run.task.fitted)
  counts = (asked.cond['weights'] > 0).sum(-1)
  words = [[tokenizer.decode(ids[k:k + 1]) for k in range(1, count - 1)]  # without begin and end
           for ids, count in zip(asked.cond['tokens'], counts)]
  columns = 1 + max(map(len, words))
  tiles, texts = [], []
  for image, attention, row, prompt in zip(images, found, words, asked.labels):
    grey = np.broadcast_to(image[..., :3].mean(-1, keepdims=True), (*image.shape[:2], 3)) * .5 + 127
    spread = attention - attention.min((0, 1))
    spread = (spread / np.maximum(spread.max((0, 1)), 1e-9))[..., None]
    heat = [np.round((1 - s) * grey + s * TINT).astype(np.uint8) for s in np.moveaxis(spread, 2, 0)]
    colour = np.broadcast_to(image[..., :3], (*image.shape[:2], 3))
    blank = np.full_like(colour, 255)
    tiles += [colour, *heat[1:1 + len(row)]] + [blank] * (columns - 1 - len(row))
    texts += [prompt, *row] + [''] * (columns - 1 - len(row))
  return captioned_page(np.stack(tiles), texts, f'attention to each word, {title}', columns, width=90)
