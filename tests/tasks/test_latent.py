"""The task of latents around a task of images, with autoencoders that are known exactly."""
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.data.arrays import image_dataset
from diffusion.data.dataset import Dataset
from diffusion.errors import InputError
from diffusion.generation import sampling
from diffusion.nets.layers import depth_to_space, space_to_depth
from diffusion.objectives.base import Model
from diffusion.setup import build
from diffusion.setup.build import Weights
from diffusion.setup.choices import CHOICES, make
from diffusion.setup.config import default, tiny
from diffusion.system import sharding
from diffusion.training import loop
from diffusion.training.open_model import encoded_example
from diffusion.training.state import make_state
from tests.linear_network import Linear

rng = np.random.default_rng(0)
DATA = image_dataset(rng.integers(0, 256, (40, 8, 8, 1)).astype(np.uint8), rng.integers(0, 2, 40).astype(np.int32),
                     ('a', 'b'))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('DIFFUSION_CACHE', str(tmp_path))
  monkeypatch.setitem(CHOICES['net'], 'linear', Linear)


def opened(model, channels=1, can=('encode',), scale=1., disc=0.):
  """open_model for an autoencoder: model(scale) -> Model."""
  weights = Weights(dict(scale=np.float32(scale), disc=dict(w=np.float32(disc))))
  run = SimpleNamespace(
    can=frozenset(can), model=lambda weights: model(weights.params['scale']),
    objective=SimpleNamespace(name='autoencoder', group=lambda path: 'disc' if path.startswith('disc/') else ''),
    task=SimpleNamespace(facts=dict(shape=[8, 8, channels])))
  return lambda where: SimpleNamespace(run=run, weights=weights, step=1)


def identity(scale):
  return Model(encode=lambda x0: x0, latent=lambda key, moments: moments, decode=lambda z: z)


def blocks(scale):
  """2x2 pixels become 4 channels, times different factors; the posterior is that value with standard deviation .01."""
  factor = scale * jnp.array([1., 2., 3., 4.])

  def encode(x0):
    if x0.shape[1] % 2:
      raise InputError(f'image height {x0.shape[1]} is not divisible by 2')
    return space_to_depth(x0, 2) * factor + 5
  latent = lambda key, m: m if key is None else m + .01 * jax.random.normal(key, m.shape)
  return Model(encode=encode, latent=latent, decode=lambda z: depth_to_space((z - 5) / factor, 2))


def task_of(spec, open_model, data=DATA, **given):
  return make('task', spec, data=data, open_model=open_model, **given)


# ---- the identity
def trained(task):
  """(parameters after three steps, images drawn from them)."""
  c = tiny(default())
  c.update(dict(net='linear', lr_schedule='constant(warmup=1)', batch=8, clip_x0=False, guide='cfg(2)', steps=3))
  run = build.build(c, task, encoded_example(task, DATA), sharding.make_mesh(devices=jax.devices()[:1]))
  state, step = make_state(run, jax.random.key(0)), loop.make_train_step(run)
  for i in range(3):
    batch = sharding.put_batch(run.task.batch(DATA, np.arange(8) + 8 * i), run.mesh)
    state, _ = step(state, batch, jax.random.key(1), frozen=run.frozen)
  asked = task.ask({}, np.arange(4), 0)
  drawn, _ = sampling.make_draw(run, 0, 4)(Weights(state.params, frozen=run.frozen), np.arange(4), asked.cond)
  return jax.device_get(state.params), drawn['images']


def test_diffusion_in_the_latents_of_the_identity_is_that_of_pixels_bit_for_bit():
  still = dict(latent_mean=np.zeros(1, np.float32), latent_std=np.ones(1, np.float32))
  pixels = trained(make('task', 'image(flip=True)', data=DATA))
  latents = trained(task_of('latent(ae, task=image(flip=True), cached=False)', opened(identity), fitted=still))
  jax.tree.map(np.testing.assert_array_equal, pixels, latents)
  assert len(np.unique(pixels[1])) > 4


# ---- statistics and the way back
def test_latents_have_mean_0_and_deviation_1_in_each_channel_and_go_back_to_the_same_image():
  task = task_of('latent(ae, task=image)', opened(blocks))
  values = (DATA.arrays['images'].astype(float) / 127.5 - 1).reshape(40, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4)
  values = values.reshape(-1, 4) * [1, 2, 3, 4] + 5
  np.testing.assert_allclose(task.fitted['latent_mean'], values.mean(0), atol=.01)
  np.testing.assert_allclose(task.fitted['latent_std'], np.sqrt(values.var(0) + .01 ** 2), rtol=2e-3)
  x0, cond = task.encode(task.frozen, None, task.batch(DATA, np.arange(40)))
  np.testing.assert_allclose(np.asarray(x0).mean((0, 1, 2)), 0, atol=.01)
  np.testing.assert_allclose(np.asarray(x0).std((0, 1, 2)), 1, atol=.01)
  assert x0.shape == (40, 4, 4, 4) and cond.shape == (40, 2)
  np.testing.assert_array_equal(task.decode(task.frozen, x0, cond)['images'], DATA.arrays['images'])
  assert task.bounds is None and task.levels is None and task.evaluators == ('loss', 'samples')


def test_a_checkpoint_has_the_statistics_and_needs_no_data():
  task = task_of('latent(ae, task=image)', opened(blocks))
  again = task_of('latent(ae, task=image)', opened(blocks), data=None, facts=task.facts, fitted=task.fitted)
  assert again.facts == task.facts
  batch = task.batch(DATA, np.arange(3))
  np.testing.assert_array_equal(*(t.encode(t.frozen, None, batch)[0] for t in (task, again)))


def test_cached_latents_are_those_of_the_images_which_are_then_not_read():
  class Unread(np.ndarray):
    def __getitem__(self, index):
      raise AssertionError('the images were read')
  task = task_of('latent(ae, task=image)', opened(blocks))
  made = task.prepare(task.frozen, DATA)
  hidden = made._replace(arrays=made.arrays | dict(images=DATA.arrays['images'].view(Unread)))
  cached, fresh = (task.encode(task.frozen, None, task.batch(data, np.arange(7)))[0] for data in (hidden, DATA))
  assert made.arrays['latents'].dtype == np.float16
  np.testing.assert_allclose(cached, fresh, atol=4e-3)
  drawn = [task.encode(task.frozen, jax.random.key(i), task.batch(made, np.arange(7)))[0] for i in (0, 0, 1)]
  np.testing.assert_array_equal(drawn[0], drawn[1])
  assert .002 < np.std(np.asarray(drawn[0] - drawn[2])[..., 0]) < .1  # drawn from the posterior


def test_a_latent_is_repainted_where_any_of_its_pixels_is():
  mask = np.zeros((8, 8, 1), bool)
  mask[3, 6] = True
  coarse = task_of('latent(ae, task=image)', opened(blocks)).coarse(mask, (4, 4, 4))
  assert coarse.shape == (4, 4, 1) and np.argwhere(coarse).tolist() == [[1, 3, 0]]


def test_captions_go_around_latents_as_they_go_around_images():
  captions = [f'a {name} thing' for name in ('red', 'blue') * 20]
  data = image_dataset(DATA.arrays['images'], DATA.arrays['labels'], ('a', 'b'), captions)
  task = task_of('latent(ae, task=text_to_image)', opened(blocks), data)
  made = task.prepare(task.frozen, data)
  x0, cond = task.encode(task.frozen, jax.random.key(0), task.batch(made, np.arange(4)))
  words = make('task', 'text_to_image', data=data)
  same = words.encode((), None, words.batch(words.prepare((), data), np.arange(4)))[1]
  jax.tree.map(np.testing.assert_array_equal, cond, same)
  assert x0.shape == (4, 4, 4, 4)
  again = task_of('latent(ae, task=text_to_image)', opened(blocks), data=None, facts=task.facts, fitted=task.fitted)
  asked = [t.ask(dict(prompt='a blue thing'), np.arange(1), 0).cond for t in (again, words)]
  jax.tree.map(np.testing.assert_array_equal, *asked)
  with pytest.raises(InputError, match='changes images at random'):
    task_of('latent(ae, task=text_to_image(flip=True))', opened(blocks), data)


# ---- what is refused
def test_another_autoencoder_than_the_models_is_refused_and_its_discriminator_does_not_matter():
  task = task_of('latent(ae, task=image)', opened(blocks))
  stored = dict(data=None, facts=task.facts, fitted=task.fitted)
  task_of('latent(ae, task=image)', opened(blocks, disc=3.), **stored)
  with pytest.raises(InputError, match="autoencoder='ae': its weights have the hash .*give that autoencoder"):
    task_of('latent(ae, task=image)', opened(blocks, scale=1.1), **stored)


ODD = Dataset(DATA.arrays | dict(images=DATA.arrays['images'][:, :7]), DATA.facts)


@pytest.mark.parametrize('spec, how, data, message', [
  ('latent(ae, task=image(flip=True))', {}, DATA, 'changes images at random .*set cached=False'),
  ('latent(ae, task=image)', {}, ODD, "autoencoder='ae': image height 7 is not divisible by 2"),
  ('latent(ae, task=image)', dict(channels=3), DATA, 'images of 3 channels, and these have 1'),
  ('latent(ae, task=image)', dict(can=('denoise',)), DATA, 'has no latents; give the work directory of an autoencoder'),
  ('latent(ae, task=grey_levels)', {}, DATA, 'use task=image or task=text_to_image'),
  ('latent(ae, task=image, cached=1)', {}, DATA, 'cached=1: expected True or False')])
def test_what_does_not_fit_is_refused_before_anything_is_encoded(spec, how, data, message):
  with pytest.raises(InputError, match=message):
    task_of(spec, opened(blocks, **how), data)


def test_a_missing_autoencoder_is_one_line_that_says_how_to_train_one():
  def missing(where):
    raise InputError(f'{where} holds no checkpoint yet')
  with pytest.raises(InputError, match="autoencoder='nowhere': nowhere holds no checkpoint.*configs/kl.py"):
    task_of('latent(nowhere, task=image)', missing)
