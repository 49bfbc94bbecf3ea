"""Cascades: a model of small images and up-samplers behind it, and what does not fit together."""
import jax
import numpy as np
import pytest

from diffusion.data.pairs import as_unit
from diffusion.errors import InputError
from diffusion.generation import chain, sampling
from diffusion.setup import build
from diffusion.setup.build import Weights
from diffusion.setup.config import default, tiny
from diffusion.system import sharding
from diffusion.tasks.degradations import enlarged
from diffusion.training.open_model import Loaded, run_of

NET = 'unet(channels=8, multipliers=(1,), blocks=1, attention=(), patch=2)'
TEXT = f'with_text({NET}, width=8, blocks=1, heads=1)'
ENLARGING = 'restore(enlarge=linear, noise=.5, blur=.5)'


def model(data, task, net=NET, **changes):
  c = tiny(default())
  c.update(dict(data=data, task=task, net=net, sampler='ddim', grid='trailing(2)', guide='') | changes)
  run = run_of(c, build.load_data(c), sharding.make_mesh(devices=jax.devices()[:1]))
  rng = np.random.default_rng(0)
  params = run.objective.init(jax.random.key(0))[0]
  return Loaded(run, Weights(jax.tree.map(lambda a: a + .1 * rng.normal(size=a.shape).astype(np.float32), params)), 8)


@pytest.fixture(scope='module')
def models():
  """One of 16 pixels, and two that double that."""
  sizes = [(32, 16), (64, 32)]
  return [model('sprites(size=16, n=40, heldout=8)', 'text_to_image', TEXT),
          *(model(f'sprites(size={big}, n=40, heldout=8, low={low})', ENLARGING) for big, low in sizes)]


@pytest.fixture(scope='module')
def drawn(models):
  return chain.draw(models, dict(prompt=['a hero', 'a red dragon']), 2, 3, 2)


def test_each_model_enlarges_what_the_one_before_it_has_drawn(models, drawn):
  assert [part.outputs['images'].shape for part in drawn] == [(2, side, side, 3) for side in (16, 32, 64)]
  assert [part.asked.labels for part in drawn] == [['a hero', 'a red dragon']] * 3
  for before, part in zip(drawn, drawn[1:]):
    image = before.outputs['images']
    np.testing.assert_allclose(part.asked.cond['image'], enlarged(as_unit(image), (2 * image.shape[1],) * 2, 'linear'),
                               atol=1e-6)


def test_other_small_images_are_enlarged_to_others_in_their_order(models):
  run, weights, _ = models[1]
  low = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
  draw = sampling.make_draw(run, 0, 3)
  one = lambda images: draw(weights, np.zeros(3, int), run.task.ask(dict(images=images), np.zeros(3, int), 0).cond)
  images = one(low)[0]['images']
  order = np.array([2, 0, 1])
  np.testing.assert_array_equal(one(low[order])[0]['images'], images[order])
  assert len(np.unique(images.reshape(3, -1), axis=0)) == 3


def test_a_later_model_has_requests_of_its_own(models, drawn):
  noisy = models[1].run.config.copy_and_resolve_references()
  noisy.sample.ask = 'level: .5'
  changed = [models[0], models[1]._replace(run=models[1].run._replace(config=noisy))]
  part = chain.draw(changed, dict(prompt=['a hero', 'a red dragon']), 2, 3, 2)[1]
  np.testing.assert_array_equal(part.asked.cond['told'], np.float32([[.5, 0]] * 2))
  assert not np.allclose(part.asked.cond['image'], drawn[1].asked.cond['image'], atol=.1)


@pytest.mark.parametrize('order, message', [
  ((0, 2), r'model 2 of the chain does not go on from model 1: .*\[16, 16, 3\].*\[32, 32, 3\]'),
  ((0, 1, 1), r'model 3 .* from model 2: .*\[32, 32, 3\].*\[16, 16, 3\]'),
  ((1, 0), 'model 2 of the chain takes prompt, prompt_mix, and the one before it gives images')])
def test_models_that_do_not_fit_are_named_before_anything_is_drawn(models, order, message, monkeypatch):
  monkeypatch.setattr(sampling, 'make_draw', None)
  with pytest.raises(InputError, match=message) as raised:
    chain.draw([models[i] for i in order], dict(prompt='a hero'), 2, 0, 2)
  assert '\n' not in str(raised.value)
