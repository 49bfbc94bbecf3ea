"""--mode=edit --config.edit.task='restore(..)': posterior sampling on a user's file, with a model of images."""
import json

import numpy as np
import pytest
from PIL import Image

from diffusion.errors import InputError
from diffusion.generation import edit_inputs
from diffusion.tasks import degradations
from tests.generation.test_edits import config_of, edited, pixels, read


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


def test_scans_are_restored_by_the_gradient_of_the_network(trained, files):
  """A model of eight training steps hardly knows its data, but what was measured must be in its samples."""
  degradation = degradations.mri(2)
  _, arrays = edited(trained, task='restore(mri(2), tmpd, iterations=3)', image=files['mri'])
  x0 = arrays['images'] / np.float32(127.5) - 1
  y = np.load(files['mri'])
  forward = degradation.operator((16, 16, 3)).forward
  error = np.mean((forward(x0) - y) ** 2)
  _, free = edited(trained, task='img2img', image=files['whole'], strength=1.)
  assert error < .3 * np.mean((forward(free['images'] / np.float32(127.5) - 1) - y) ** 2)
  assert arrays['spread'].shape == (16, 16, 3) and np.array_equal(arrays['measured'], y)


def test_particles_tell_how_many_of_them_count(trained, files):
  task = 'restore(super_resolution(4, noise=.3), smc, particles=8)'
  folder, arrays = edited(trained, task=task, image=files['small'])
  record = json.loads((folder / 'record.json').read_text())
  assert record['particles'] == 8 and 1 <= record['different'] <= 8 and len(arrays['images']) == 3
  assert all(1 / 8 - 1e-3 <= share <= 1 for share in record['effective'])


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
  ('restore(super_resolution(4, noise=.1), smc, particles=2)', 'small', 'num_samples=3'),
])
def test_mistakes_are_named_before_the_checkpoint_is_read(task, image, message, trained, files):
  with pytest.raises(InputError, match=message) as raised:
    read(trained, {}, task=task, image=files[image])
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize('task, message', [
  ('restore(super_resolution(4), magic)', "method='magic'"), ('restore(blocks)', 'unknown'),
  ('restore(colour, particles=0)', 'particles=0'), ('inpaint(3)', 'unknown')])
def test_a_task_that_cannot_be_read_is_refused_at_once(task, message, trained):
  options = config_of(trained, task=task, image='x.png').edit
  with pytest.raises(InputError, match=message):
    edit_inputs.check(options)
