"""Resizing against Pillow to the bit, against jax.image and per-pixel interpolation; grey and transparent images."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion.errors import InputError
from diffusion.evaluation.metrics import resize

SIZES = [(8, 8, 23), (9, 12, 31), (30, 41, 16), (64, 64, 24), (5, 40, 16), (16, 16, 16), (1, 3, 7)]


def noise(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize('kind', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('height, width, size', SIZES)
def test_eight_bit_images_are_resized_as_by_pillow(height, width, size, kind):
  x = noise(2, height, width, 3)
  x[0] = x[0] // 128 * 255  # black and white: much is cut off
  pillow = [np.asarray(Image.fromarray(a).resize((size, size), Image.Resampling[kind.upper()])) for a in x]
  np.testing.assert_array_equal(resize.resize_pillow(x, size, kind), pillow)


@pytest.mark.parametrize('kind', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('height, width, size', SIZES)
def test_without_rounding_they_are_pillows_of_floating_point(height, width, size, kind):
  x = noise(height, width)
  pillow = np.asarray(Image.fromarray(x.astype(np.float32)).resize((size, size), Image.Resampling[kind.upper()]))
  np.testing.assert_allclose(resize.resize(x[None, ..., None], size, kind)[0, ..., 0], pillow, atol=2e-3)


@pytest.mark.parametrize('kind, method', [('bilinear', 'linear'), ('bicubic', 'cubic')])
@pytest.mark.parametrize('size', [7, 50])
def test_the_kinds_that_average_are_jaxs(kind, method, size):
  x = noise(1, 23, 16, 3).astype(np.float32)
  np.testing.assert_allclose(resize.resize(x, size, kind), jax.image.resize(x, (1, size, size, 3), method), atol=5e-3)


def at(line, place):
  """A line of pixels, read between them, the ends going on for ever."""
  place = min(max(place, 0), len(line) - 1)
  low = int(place)
  return line[low] + (place - low) * (line[min(low + 1, len(line) - 1)] - line[low])


@pytest.mark.parametrize('old, new', [(8, 23), (30, 16), (5, 5), (1, 4)])
def test_bilinear_kinds_read_between_pixels_at_the_places_of_their_codes(old, new):
  line = np.random.default_rng(0).uniform(0, 255, old)
  corners = [at(line, i * old / new) for i in range(new)]
  centres = [at(line, (i + .5) * old / new - .5) for i in range(new)]
  np.testing.assert_allclose(resize.matrix(old, new, 'tensorflow') @ line, corners, atol=2e-3)
  np.testing.assert_allclose(resize.matrix(old, new, 'torch') @ line, centres, atol=2e-3)


@pytest.mark.parametrize('kind', resize.KINDS)
def test_a_constant_image_stays_constant_and_a_ramp_a_ramp(kind):
  for old, new in ((37, 16), (16, 37), (9, 27)):
    rows = resize.matrix(old, new, kind)
    np.testing.assert_allclose(rows.sum(1), 1, atol=1e-6)
    place = 0 if kind == 'tensorflow' else .5
    inner = slice(new // 3, new - new // 3)  # the ends are cut
    if kind != 'bicubic_sharp':  # Keys 1981: only a = -1/2 is exact for a line
      expected = (np.arange(new) + place) * old / new - place
      np.testing.assert_allclose((rows @ np.arange(old))[inner], expected[inner], atol=.02 * old / new)


@pytest.mark.parametrize('old, new', [(37, 16), (16, 37), (4, 9)])
def test_the_sharp_cubic_and_the_others_are_torchs(old, new):
  torch = pytest.importorskip('torch')
  x = noise(1, old, old + 3, 2).astype(np.float32)
  def torchs(**options):
    first = torch.tensor(x).permute(0, 3, 1, 2)
    return torch.nn.functional.interpolate(first, (new, new), **options).permute(0, 2, 3, 1)
  kinds = dict(bicubic_sharp=dict(mode='bicubic'), bicubic=dict(mode='bicubic', antialias=True),
               torch=dict(mode='bilinear'), bilinear=dict(mode='bilinear', antialias=True))
  for kind, options in kinds.items():
    np.testing.assert_allclose(resize.resize(x, new, kind), torchs(**options), atol=5e-3)


def test_grey_becomes_rgb_and_transparency_white():
  grey, colour, alpha = noise(2, 5, 6, 1), noise(2, 5, 6, 3, seed=1), noise(2, 5, 6, 1, seed=2)
  alpha[0, 0, :2, 0] = 0, 255
  over_white = lambda x: np.round(x * (alpha / 255.) + 255 * (1 - alpha / 255.))
  np.testing.assert_array_equal(resize.to_rgb(grey), grey.repeat(3, -1))
  np.testing.assert_array_equal(resize.to_rgb(colour), colour)
  np.testing.assert_array_equal(resize.to_rgb(np.concatenate([colour, alpha], -1)), over_white(colour))
  np.testing.assert_array_equal(resize.to_rgb(np.concatenate([grey, alpha], -1)), over_white(grey).repeat(3, -1))


@pytest.mark.parametrize('x', [
  np.zeros((2, 4, 4, 5), np.uint8), np.zeros((4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3), np.float32),
])
def test_anything_but_8_bit_images_is_refused(x):
  with pytest.raises(InputError, match=r'expected .*uint8 \[B, H, W, C\]'):
    resize.to_rgb(jnp.asarray(x))
