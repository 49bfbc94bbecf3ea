"""Autoencoders and diffusion in their latents through the whole program: train, resume, evaluate, sample, edit."""
import json
import runpy

import numpy as np
from PIL import Image
import pytest
from etils import epath

import diffusion
from diffusion import commands
from diffusion.errors import InputError
from diffusion.system.log import read_metrics
from diffusion.training.open_model import stored_meta
from tests.test_main import ROOT

NETS = dict(kl='autoencoder(channels=4, multipliers=(1, 2), groups=2, attention=False, critic_channels=4, '
               'critic_layers=1)',
            latent='unet(channels=16, multipliers=(1,), blocks=1, attention=(), patch=2)')


def recipe(name, variant='tiny', **changes):
  """The config of a recipe with a network that compiles fast, two steps long."""
  c = runpy.run_path(str(ROOT / f'configs/{name}.py'))['get_config'](variant)
  c.update(dict(net=NETS['latent' if name == 'latent' else 'kl'], steps=2, batch=8, log_every=2, val_every=2,
                sample_every=2, save_every=2, data='sprites(size=16, n=64, heldout=24)'))
  c.sample.update(dict(show='', num_samples=4, batch=4))
  c.evaluate.update(dict(num_samples=16, features='own(2)'))
  c.update(changes)
  return c


@pytest.fixture(scope='module')
def kl(tmp_path_factory):
  workdir = epath.Path(tmp_path_factory.mktemp('kl'))
  objective = 'autoencoder(kl(1e-4), adversarial=hinge(.5, start=1, warmup=1))'
  commands.train(recipe('kl', objective=objective, optimizer='adamw | disc: adam'), workdir)
  return workdir


@pytest.fixture(scope='module')
def latent(kl, tmp_path_factory):
  workdir = epath.Path(tmp_path_factory.mktemp('latent'))
  commands.train(recipe('latent', task=f"latent('{kl}', task=image)"), workdir)
  return workdir


def test_an_autoencoder_with_a_discriminator_is_trained_and_measured(kl):
  last = read_metrics(kl / 'metrics.jsonl')[-1]
  for name in ('loss', 'psnr', 'rate', 'critic_loss', 'critic_gap', 'adversarial_weight', 'heldout_loss'):
    assert np.isfinite(last[name]), name
  assert not any(name.startswith('_') for name in last)
  c = diffusion.load(kl).run.config
  c.evaluate.parts = 'reconstruction'
  commands.evaluate(c, kl)
  [folder] = (kl / 'evaluations').iterdir()
  made = json.loads((folder / 'evaluation.json').read_text())
  assert {'psnr', 'ssim', 'rfd', 'rfd_infinity', 'elbo_nll'} <= set(made['metrics'])
  assert len(made['details']['reconstruction']['kl_per_channel']) == 4
  with Image.open(folder / 'reconstructions.png') as page:
    assert page.size[0] > 300


@pytest.mark.parametrize('name, metric', [('vq', 'perplexity'), ('vae', 'rate')])
def test_other_autoencoders_are_trained_and_one_draws(name, metric, tmp_path):
  commands.train(recipe(name), epath.Path(tmp_path))
  assert np.isfinite(read_metrics(tmp_path / 'metrics.jsonl')[-1][metric])
  assert (tmp_path / 'samples').exists() == (name == 'vae')
  if name == 'vq':
    loaded = diffusion.load(tmp_path)
    count = np.asarray(loaded.weights.memory.count)
    assert np.all(np.isfinite(count)) and count.sum() > 0  # started from data, and in the checkpoint


def test_a_model_of_latents_is_trained_resumed_drawn_and_evaluated(latent, kl):
  meta = stored_meta(latent)
  assert set(meta['hashes']) == {'task'} and meta['example'][0] == ['float32', [1, 8, 8, 4]]
  commands.train(recipe('latent', task=f"latent('{kl}', task=image)", steps=3), latent)
  loaded = diffusion.load(latent)
  assert loaded.step == 3
  images = diffusion.draw(loaded, 3, batch=4)
  assert images.shape == (3, 16, 16, 3) and images.dtype == np.uint8
  c = loaded.run.config
  c.evaluate.parts = 'bound'
  with pytest.raises(InputError, match='the bits of latents lack the part of their autoencoder'):
    commands.evaluate(c, latent)


def test_an_image_is_edited_in_latents_and_what_is_kept_stays_bit_for_bit(latent, tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
  mask = np.zeros((16, 16), np.uint8)
  mask[:7] = 255
  for name, array in (('image', image), ('mask', mask)):
    Image.fromarray(array).save(tmp_path / f'{name}.png')
  c = diffusion.load(latent).run.config
  c.edit.update(dict(task='inpaint', image=str(tmp_path / 'image.png'), mask=str(tmp_path / 'mask.png'), num_samples=2))
  commands.edit(c, latent)
  with np.load(next((latent / 'edits').glob('*/samples.npz'))) as made:
    np.testing.assert_array_equal(made['images'][:, 7:], np.broadcast_to(image[7:], (2, 9, 16, 3)))
    assert np.any(made['images'][:, :7] != image[:7])
  c.edit.update(dict(task='upscale', mask=''))
  with pytest.raises(InputError, match="config.edit.task='upscale' measures pixels"):
    commands.edit(c, latent)


def test_another_autoencoder_in_its_place_is_refused(latent, tmp_path):
  other = epath.Path(tmp_path / 'other')
  commands.train(recipe('kl', steps=1, seed=1), other)
  with pytest.raises(InputError, match='its weights have the hash'):
    commands.train(recipe('latent', task=f"latent('{other}', task=image)", steps=4), latent)


def test_a_model_of_latents_is_exported_with_its_decoder(latent):
  c = diffusion.load(latent).run.config
  commands.export(c, latent)
  [folder] = (latent / 'exports').iterdir()
  names = {path.name for path in folder.iterdir()}
  assert {'weights.safetensors', 'frozen.safetensors', 'sampler.stablehlo', 'sample.py'} <= names
