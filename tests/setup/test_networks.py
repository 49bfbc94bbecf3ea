"""What the config asks of a network: each has its own tiny spec and usage, and takes only what it declares."""
import flax.linen as nn
import jax
import pytest

from diffusion import nets
from diffusion.errors import InputError
from diffusion.setup import build
from diffusion.setup.choices import make
from diffusion.setup.config import default, tiny
from diffusion.system import sharding
from diffusion.training.open_model import encoded_example
from experiments.image_run import image_run, params_of
from tests.clips import opened, pictures


class Minimal(nn.Module):
  """A network without any field of the protocol."""
  width: int = 3

  @nn.compact
  def __call__(self, x, time, cond=None, train=False):
    if isinstance(self.width, str):
      raise TypeError('width should be a number')
    h = nn.Dense(self.width)(x)
    return nn.Dense(x.shape[-1])(h)


def config(**changes):
  c = tiny(default())
  c.update(changes)
  return c


def built(c, shape=(8, 8, 1)):
  return image_run(c, shape, ('a', 'b'))


@pytest.fixture(autouse=True)
def minimal(monkeypatch):
  monkeypatch.setitem(build.CHOICES['net'], 'minimal', Minimal)


PRIORS = dict(prior=('embeddings(clip)', 'denoising'),
              prior_ar=('codes(clip, components=2, buckets=4, dots=4)', 'autoregressive'))


def built_prior(c):
  """The Experiment of a prior of embeddings."""
  data = pictures()
  task = make('task', c.task, data=data, open_model=opened(data))
  example = encoded_example(task, task.prepare(task.frozen, data))
  return build.build(c, task, example, sharding.make_mesh(devices=jax.devices()[:1]))


@pytest.mark.parametrize('name', nets.NETS)
def test_every_network_has_its_own_tiny_spec(name):
  c = default()
  c.net = f'{name}(channels=64)'
  c.objective = dict(classifier='classifier', clip='contrastive', autoencoder='autoencoder(kl)').get(name, 'denoising')
  c.task = dict(with_text='text_to_image', unet2d_condition='text_to_image', clip='pairs').get(name, c.task)
  if name in PRIORS:
    c.task, c.objective, c.guide = *PRIORS[name], ''
  assert tiny(c).net == nets.TINY[name]
  run = built_prior(c) if name in PRIORS else built(c, dict(unet1d=(8, 1), mlp=(2,)).get(name, (8, 8, 1)))
  assert sum(a.size for a in jax.tree.leaves(jax.eval_shape(run.objective.init, jax.random.key(0)))) < 2e5


def test_a_network_without_a_tiny_spec_is_left_alone():
  c = default()
  c.net = 'minimal(width=2)'
  assert tiny(c).net == 'minimal(width=2)'


def test_a_network_that_declares_nothing_can_be_trained():
  params = params_of(built(config(net='minimal(width=2)')))
  assert params['Dense_0']['kernel'].shape == (1, 2)


@pytest.mark.parametrize('changes', [
  dict(self_condition=True),
  dict(variance='learned', loss_weight='one', sampler='ddpm', schedule='linear', grid='trailing(4)'),
])
def test_extra_channels_need_a_network_that_declares_them(changes):
  with pytest.raises(InputError, match=r"config\.net='minimal'.*no field out_channels.*unet"):
    built(config(net='minimal', guide='', **changes))


def test_an_error_shows_the_usage_of_the_configured_network():
  with pytest.raises(InputError, match=r"config\.net='minimal\(width=wide\)': width.*minimal\(width=3\)"):
    built(config(net='minimal(width=wide)'))
