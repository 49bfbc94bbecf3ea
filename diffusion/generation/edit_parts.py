"""How images are edited: what all operations of --mode=edit share."""
from typing import NamedTuple

import jax
import numpy as np

from diffusion.core.gaussian import clip
from diffusion.generation import sampling
from diffusion.samplers import constraints
from diffusion.system import sharding

FEW, MOST = .02, .9  # shares of an image, beyond which a mask is rather the wrong way round


class Result(NamedTuple):
  """What an operation draws."""
  images: np.ndarray   # uint8 [n, H, W, C]
  labels: list         # one each
  before: list         # (label, uint8 [H, W, C]) of what precedes them on the page
  arrays: dict = {}    # more arrays for samples.npz
  facts: dict = {}     # more entries for record.json


def draw(run, weights, cond, number, start=None, sampler=None, levels=None):
  """Images uint8 [number, H, W, C] with the noise of config.edit.seed; the rest as for sampling.make_draw."""
  config = run.config
  drawn = sampling.make_draw(run, config.edit.seed, min(config.sample.batch, number), sampler, levels)
  return drawn(weights, np.arange(number), cond, start)[0]['images']


def encoded(run, weights, images):
  """x0 [n, ...] of images uint8 [n, H, W, C]."""
  return np.asarray(run.encode(weights.frozen, None, dict(images=images))[0])


def decoded(run, weights, x0):
  """Images uint8 [n, H, W, C] of x0 [n, ...]."""
  return np.asarray(run.decode(weights.frozen, x0, None)['images'])


def unguided(run):
  """The Experiment without guidance and self-conditioning: its DDIM steps can be inverted."""
  def denoise(weights, cond):
    plain = run.plain(weights, cond)
    return clip(plain, *run.task.bounds) if run.config.clip_x0 and run.task.bounds else plain
  config = run.config.copy_and_resolve_references()
  config.self_condition = False
  return run._replace(denoise=denoise, config=config)


def noise_of(run, weights, images, cond):
  """The noise, float32 [n, ...], from which DDIM draws the images uint8 [n, H, W, C]."""
  up = lambda weights, x0, cond: constraints.invert(run.denoise(weights, cond), run.levels, x0)
  x0 = encoded(run, weights, images)
  return np.asarray(jax.jit(up, out_shardings=sharding.replicated(run.mesh))(weights, x0, cond))


def mask_notes(mask, setting):
  """Lines for the user on a mask, True where it paints, that is probably meant the other way round."""
  share = mask.mean()
  if FEW <= share <= MOST:
    return ()
  return (f'{setting}: {100 * share:.1f} % of it is white, and white is what is painted; if it should be kept, invert '
          'the mask',)
