"""The task of restoration as an up-sampler: what it sees, its augmentation, and noise that is asked for."""
import jax
import numpy as np
import pytest
from PIL import Image

from diffusion import samplers
from diffusion.data.dataset import Dataset
from diffusion.errors import InputError
from diffusion.tasks import degradations, restore
from tests.tasks.test_restore import encoded, images


def test_the_blur_of_augmentation_is_a_kernel_whose_sum_is_1_and_its_transform_the_gain():
  dot = np.zeros((30, 15, 15, 1), np.float32)
  dot[:, 7, 7] = 1
  made, told = restore._augmented(jax.random.key(2), dot, 0., 2.)
  kernel, width = np.asarray(made, np.float64)[..., 0], 2 * np.asarray(told['told'])[:, 1, None, None]
  np.testing.assert_allclose(kernel.sum((1, 2)), 1, atol=1e-5)
  f = np.hypot(np.fft.fftfreq(15)[:, None], np.fft.fftfreq(15))
  np.testing.assert_allclose(np.fft.fft2(np.roll(kernel, (-7, -7), (1, 2))), np.exp(-2 * (np.pi * width * f) ** 2),
                             atol=1e-5)


def test_an_image_can_be_asked_for_with_noise_of_which_the_network_is_told():
  task = restore.restore(degradations.downscale(2), noise=.4, data=Dataset(dict(images=images(n=3, size=(64, 64)))))
  low = np.full((4, 32, 32, 1), 128, np.uint8)
  ask = lambda ids, **more: task.ask(dict(images=low[ids]) | more, ids, 7).cond
  plain, noisy = ask(np.arange(4)), ask(np.arange(4), level='.5')
  np.testing.assert_array_equal(noisy['told'], np.float32([[.5, 0]] * 4))
  assert np.std(noisy['image'] - plain['image']) == pytest.approx(.2, rel=.05)
  some = np.array([3, 1])
  np.testing.assert_array_equal(ask(some, level=.5)['image'], noisy['image'][some])
  start = samplers.gaussian(samplers.sample_keys(7, np.arange(4)), 0, np.zeros((4, 64, 64, 1)))
  both = np.ravel(start), np.ravel(noisy['image'])
  assert abs(np.corrcoef(*both)[0, 1]) < .05  # it is not the noise that sampling starts from
  for wrong in ('2', -1, 'much'):
    with pytest.raises(InputError, match='level=.*from 0'):
      ask(np.arange(1), level=wrong)
  assert 'level' not in restore.restore(degradations.downscale(2)).takes


def test_an_up_sampler_sees_a_file_of_8_bits_enlarged_as_pillow_does():
  pictures = images(3, size=(16, 24))
  blocks = lambda: pictures.reshape(6, 4, 4, 6, 4, 3)
  halves, corners = blocks().sum((2, 4)) % 16 == 8, pictures[:, ::4, ::4]
  corners[halves] = np.where(corners[halves] < 255, corners[halves] + 1, 254)  # no mean lies between two levels
  data = Dataset(dict(images=pictures))
  _, cond = encoded(restore.restore(degradations.downscale(4), data=data), data)
  low_too = Dataset(dict(images=data.arrays['images'], low=images(3, size=(8, 12))))
  _, other = encoded(restore.restore(enlarge='linear', data=low_too), low_too)
  for seen, low in ((cond, np.round(blocks().mean((2, 4)))),
                    (other, low_too.arrays['low'])):
    for c in range(3):
      large = Image.fromarray(low[0, ..., c].astype(np.float32)).resize((24, 16), Image.Resampling.BILINEAR)
      np.testing.assert_allclose((seen['image'][0, ..., c] + 1) * 127.5, large, atol=1e-3)
  with pytest.raises(InputError, match="enlarge='cubik'.*did you mean 'cubic'"):
    restore.restore(enlarge='cubik')
