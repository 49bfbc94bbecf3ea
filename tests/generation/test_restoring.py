"""--mode=edit --config.edit.task='restore(..)': posterior sampling on a user's file, with a model of images."""
import json
import runpy

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion.core import grids, schedules
from diffusion.data.pairs import as_unit, from_unit_of
from diffusion.errors import InputError
from diffusion.evaluation import EVALUATORS
from diffusion.generation import edit_inputs, edits, restoring
from diffusion.setup.build import load_data, Weights
from diffusion.setup.config import default, tiny
from diffusion.system import sharding
from diffusion.tasks import degradations
from diffusion.training import open_model
from experiments.image_run import image_run
from tests.exact import gaussian_denoiser
from tests.generation.test_edits import edited, pixels
from tests.test_main import ROOT


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  folder, rng = tmp_path_factory.mktemp('measured'), np.random.default_rng(0)
  Image.fromarray(rng.integers(64, 192, (4, 4, 3), np.uint8)).save(folder / 'small.png')
  Image.fromarray(rng.integers(64, 192, (16, 16, 3), np.uint8)).save(folder / 'whole.png')
  x0 = rng.uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
  for name, degradation in dict(mri=degradations.mri(2), ct=degradations.ct(4)).items():
    np.save(folder / f'{name}.npy', degradations.measured(degradation, None, x0)[0])
  np.save(folder / 'far.npy', np.full((4, 4, 3), 7.))
  return {path.stem: str(path) for path in folder.iterdir()}


def test_a_small_image_is_enlarged_to_images_with_these_block_means(trained, files):
  folder, arrays = edited(trained, task='restore(super_resolution(4), ddnm)', image=files['small'], classes='hero')
  means = arrays['images'].reshape(3, 4, 4, 4, 4, 3).mean((2, 4))
  np.testing.assert_allclose(means, np.stack([pixels(files['small'])] * 3), atol=12)  # but for values beyond 0 and 255
  assert np.abs(means - pixels(files['small'])).mean() < 1
  record = json.loads((folder / 'record.json').read_text())
  assert record['labels'] == ['input', 'mean of 3', 'hero', 'hero', 'hero']


@pytest.fixture(scope='module')
def model():
  """An Experiment of 16x16 RGB images without a checkpoint, whose denoiser is that of independent pixels N(0, .5^2)."""
  config = tiny(default())
  config.guide = ''
  run = image_run(config, (16, 16, 3))
  exact = lambda weights, cond: gaussian_denoiser(0., .5)
  return run._replace(denoise=exact, levels=grids.trailing(40)(schedules.cosine(1000)))


@pytest.mark.parametrize('method', ['tmpd, iterations=3', 'pigdm, variance=.25', 'smc, variance=.25, particles=64',
                                    'ddrm', 'ddnm_plus'])
def test_samples_are_those_of_the_posterior_of_the_scan(method, model, files):
  """The singular values of half of k-space are 1 / sqrt(2) or less; what is measured falls from .5 to the posterior."""
  how = restoring.parse(f'restore(mri(2, noise=.2), {method})')
  operator = how.degradation.operator((16, 16, 3))
  x0 = .5 * np.random.default_rng(2).standard_normal((1, 16, 16, 3)).astype(np.float32)
  y = degradations.measured(how.degradation, None, x0)[0]
  images, facts = restoring.draw(model, Weights(None), how, y, None, 64)
  svd = operator.svd((16, 16, 3))
  gain = svd.s * .25 / (svd.s ** 2 * .25 + .2 ** 2)
  mean, spread = gain * np.asarray(svd.measured(y[None]))[0], np.sqrt(.25 * (1 - gain * svd.s))
  z = np.asarray(svd.coordinates(images / np.float32(127.5) - 1))
  seen = svd.s > 0
  gap = (z.mean(0) - mean)[seen]
  exact = method.startswith(('tmpd', 'pigdm'))
  # 64 samples, cut to [-1, 1]; particles share ancestors; the others are not exact
  assert np.sqrt(np.mean(gap ** 2)) < (.06 if exact else .3)
  assert np.std(z[:, ~seen]) == pytest.approx(.5, rel=.1 if exact else .3)
  if exact:
    np.testing.assert_allclose(z.std(0)[seen].mean(), spread[seen].mean(), rtol=.1)
  if method.startswith('smc'):
    assert facts['particles'] == 64 and all(1 / 64 - 1e-3 <= share <= 1 for share in facts['effective'])


@pytest.mark.parametrize('task, image, message', [
  ('restore', 'small', 'say what was measured'),
  ('restore(ct(4), ddrm)', 'ct', 'singular values .* use tmpd'),
  ('restore(super_resolution(4), dps)', 'small', 'dps.noise=0.0.*above 0'),
  ('restore(deblur, ddnm)', 'whole', 'without noise'),
  ('restore(super_resolution(5))', 'small', 'does not divide'),
  ('restore(super_resolution(4))', 'whole', '16x16 .* takes 4x4'),
  ('restore(mri(2))', 'whole', 'measures no image'),
  ('restore(mri(2))', 'ct', r'measures \[16, 16, 3, 2\]'),
  ('restore(super_resolution(4))', 'far', 'from 7 to 7'),
  ('restore(super_resolution(4, noise=.1), smc, particles=2)', 'small', 'num_samples=4'),
])
def test_mistakes_are_named_before_the_checkpoint_is_read(task, image, message, model, files):
  model.config.edit.task, model.config.edit.image = task, files[image]
  with pytest.raises(InputError, match=message) as raised:
    edit_inputs.read(model)
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize('task, message', [
  ('restore(super_resolution(4), magic)', "method='magic'"), ('restore(blocks)', 'unknown'),
  ('restore(5)', 'degradation=5'),
  ('restore(colour, particles=0)', 'particles=0'), ('inpaint(3)', 'unknown')])
def test_a_task_that_cannot_be_read_is_refused_at_once(task, message):
  options = default().edit
  options.task, options.image = task, 'x.png'
  with pytest.raises(InputError, match=message):
    edit_inputs.check(options)


def test_a_model_that_has_learned_it_restores_a_scan_of_16_bits(tmp_path):
  """Before training the output is 0, and in residual form that is the degraded image itself, to the last bit."""
  config = runpy.run_path(str(ROOT / 'configs/restore.py'))['get_config']('tiny')
  config.data, config.task = 'phantoms(16, n=15, heldout=12, bits=16)', 'restore(mri(2), residual=True, noise=.1)'
  config.evaluate.num_samples = 19 * 12
  data = load_data(config)
  run = open_model.run_of(config, data, sharding.make_mesh(devices=jax.devices()[:1]))
  weights = Weights(run.objective.init(jax.random.key(0))[0])
  x0 = as_unit(data.heldout.arrays['high'][:1])
  y = degradations.measured(degradations.mri(2), None, x0)
  np.save(tmp_path / 'y.npy', y[0])
  config.edit.task, config.edit.image = 'restore', str(tmp_path / 'y.npy')
  folder = edits.write(run, edit_inputs.read(run), tmp_path / 'edits', weights, 0, {})
  with np.load(folder / 'samples.npz') as arrays:
    images = arrays['images']
  seen = from_unit_of(degradations.mri(2).view(y, (16, 16, 1)), 65535)
  assert images.dtype == np.uint16 and images.shape == (4, 16, 16, 1)
  np.testing.assert_allclose(images.astype(int), np.repeat(seen, 4, 0).astype(int), atol=1)
  np.testing.assert_array_equal(pixels(folder / 'edit_00.png'), images[0, ..., 0])
  measured = EVALUATORS['restoration'].measure(run, weights, data, tmp_path, lambda label, text: None)
  assert measured.metrics['psnr_gain'].value == pytest.approx(0, abs=1e-3)
  config.edit.task = 'restore(mri(2))'
  with pytest.raises(InputError, match='has learned what it restores'):
    edit_inputs.read(run)
  config.edit.task = 'img2img'
  with pytest.raises(InputError, match='use --config.edit.task=restore'):
    edit_inputs.read(run)
