"""Sampling by texts: the encoder runs once; what words look at has a closed form in a network of zeros."""
import jax
import numpy as np
import pytest

from diffusion import samplers
from diffusion.core import grids
from diffusion.generation import requests, sampling, word_maps
from diffusion.nets.sequence import TextEncoder
from diffusion.setup import build
from diffusion.setup.build import Weights
from diffusion.setup.config import default, tiny
from diffusion.system import flops, sharding
from diffusion.training.open_model import run_of


@pytest.fixture(scope='module')
def run():
  config = default()
  config.task, config.guide = 'text_to_image', 'cfg(3)'
  config.net = 'with_text(unet(channels=8, multipliers=(1, 2), blocks=1, attention=(16,)), width=16, blocks=1, heads=2)'
  net = config.net
  tiny(config)
  config.net, config.data = net, 'sprites(size=16, n=64, heldout=8)'
  return run_of(config, build.load_data(config), sharding.make_mesh(1))


def test_the_text_is_encoded_once_for_a_sample_and_not_once_for_a_step(run):
  """FLOPs of sampling are those of the encoder, for the prompt and the null, and of the network in each step."""
  params = run.objective.init(jax.random.key(0))[0]
  cond = requests.ask(run, dict(prompt='a red dragon'), np.arange(2), 0).cond
  def cost(steps):
    levels = grids.trailing(steps)(run.schedule)
    sample = sampling.make_sample(run, 0, samplers.ddim(), levels)
    return flops.flops(lambda weights: sample(weights, np.arange(2), cond, None), Weights(params))
  encoder = TextEncoder(run.task.facts['tokens']['size'], run.task.facts['tokens']['length'], 16, 1, 2)
  alone = flops.flops(lambda params, cond: encoder.apply(dict(params=params), cond['tokens'], cond['weights'] > 0),
                      params['text'], cond)
  pooling = 2 * cond['tokens'].size * 2 * 16  # the sums of two vectors of each token
  assert 2 * cost(3) - cost(6) == 2 * (alone + pooling)


def test_without_knowledge_every_key_gets_the_same_and_padding_none(run):
  params = jax.tree.map(np.zeros_like, jax.device_get(run.objective.init(jax.random.key(0))[0]))
  asked = requests.ask(run, dict(prompt=['a red dragon', 'a hero with a crown']), np.arange(2), 0)
  images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
  maps = word_maps.word_maps(run, Weights(params), images, asked.cond)
  counts = (asked.cond['weights'] > 0).sum(1)
  layers = [256, 64, 256, 256]  # pixels: level 0 on the way down, the middle, and twice on the way up
  for n, attention in zip(counts, maps):
    expected = np.mean([1 / (n + pixels) for pixels in layers])
    np.testing.assert_allclose(attention[..., :n], expected, rtol=1e-5)
    assert not attention[..., n:].any()


def test_a_map_of_a_lower_resolution_lies_over_the_same_part_of_the_image():
  weights = np.arange(2 * 8 * 3).reshape(2, 8, 3).astype(np.float32)  # 2 x 4 pixels
  big = word_maps.resized(weights, (4, 8))
  for y, x in np.ndindex(4, 8):
    np.testing.assert_array_equal(big[:, y, x], weights[:, (y // 2) * 4 + x // 2])


def test_the_page_has_a_picture_for_each_word(run):
  params = run.objective.init(jax.random.key(0))[0]
  asked = requests.ask(run, dict(prompt=['a hero', 'a red dragon']), np.arange(2), 0)
  page = word_maps.page(run, Weights(params), np.zeros((2, 16, 16, 3), np.uint8), asked, 'title')
  assert page.width >= 4 * 90 and page.height > 2 * 64
