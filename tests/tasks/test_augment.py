"""Augmentation: what is told is what was done, and what was done is what a reference does."""
import jax
import numpy as np
import pytest
from scipy import ndimage

from diffusion.data.arrays import to_unit
from diffusion.setup.choices import make
from diffusion.tasks import augment as tasks
from diffusion.tasks.augment import SCALE, SHIFT, TOLD

RNG = np.random.default_rng(0)
augment, warp = jax.jit(tasks.augment), jax.jit(tasks.warp)


def told(**values):
  names = dict(mirrored=0, scale=1, cosine=2, sine=3, down=4, right=5)
  out = np.zeros(6, np.float32)
  for name, value in values.items():
    out[names[name]] = value
  return out


def test_nothing_told_is_nothing_done():
  image = RNG.normal(size=(8, 8, 3)).astype(np.float32)
  np.testing.assert_allclose(warp(image, told()), image, atol=1e-6)


def test_mirrors_quarter_turns_and_whole_shifts_are_exact():
  image = RNG.normal(size=(8, 8, 2)).astype(np.float32)
  np.testing.assert_allclose(warp(image, told(mirrored=1)), image[:, ::-1], atol=1e-5)
  np.testing.assert_allclose(warp(image, told(cosine=-1, sine=1)), np.rot90(image), atol=1e-4)
  np.testing.assert_allclose(warp(image, told(cosine=-2)), image[::-1, ::-1], atol=1e-4)
  shifted = np.pad(image, ((2, 0), (0, 0), (0, 0)), 'symmetric')[:8]
  np.testing.assert_allclose(warp(image, told(down=2 / 8 / SHIFT)), shifted, atol=1e-5)
  shifted = np.pad(image, ((0, 0), (1, 0), (0, 0)), 'symmetric')[:, :8]
  np.testing.assert_allclose(warp(image, told(right=1 / 8 / SHIFT)), shifted, atol=1e-5)


def test_a_blob_goes_where_its_transformation_takes_it():
  """The centre of mass of a blob, against the same map in complex numbers; its spread grows with the scale."""
  def blob(y, x, spread):
    rows, columns = np.mgrid[:33, :33] - 16
    return np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * spread ** 2))[..., None].astype(np.float32)
  angle, scale = .7, -1.3
  done = told(mirrored=1, scale=scale, cosine=np.cos(angle) - 1, sine=np.sin(angle), down=.4, right=-.3)
  image = np.asarray(warp(blob(3, 5, 2.), done))[..., 0]
  place = (-5 + 3j) * 2 ** (SCALE * scale) * np.exp(-1j * angle) + 33 * SHIFT * (-.3 + .4j)  # right + i * down
  rows, columns = np.mgrid[:33, :33] - 16
  image = image * (np.hypot(rows - place.imag, columns - place.real) < 8)  # reflections come in at the corners
  centre = np.array(ndimage.center_of_mass(image)) - 16
  np.testing.assert_allclose(centre, [place.imag, place.real], atol=.1)
  rows = np.arange(33) - 16 - centre[0]
  spread = np.sqrt((image.sum(1) * rows ** 2).sum() / image.sum())
  assert spread == pytest.approx(2 * 2 ** (SCALE * scale), rel=.08)  # bilinear interpolation adds a little


def test_a_batch_is_warped_as_told_and_each_transformation_is_as_frequent_as_asked():
  x = RNG.normal(size=(2000, 4, 4, 1)).astype(np.float32)
  images, done = jax.device_get(augment(jax.random.key(0), x, .25))
  np.testing.assert_allclose(images, jax.jit(jax.vmap(tasks.warp))(x, done), atol=1e-5)
  still = np.all(done == 0, -1)
  np.testing.assert_array_equal(images[still], x[still])
  share = np.mean(done != 0, 0)
  np.testing.assert_allclose(share, [.125, .25, .25, .25, .25, .25], atol=.03)
  assert len(TOLD) == 6
  np.testing.assert_allclose(done[:, 1][done[:, 1] != 0].std(), 1, atol=.1)
  np.testing.assert_array_equal(augment(jax.random.key(0), x, 0.)[0], x)


def test_without_a_condition_the_network_is_still_told():
  """Otherwise the unconditional model would learn augmented images."""
  data = make('data', 'sprites(size=16, n=64)').train
  task = make('task', 'image(augment=.5)', data=data)
  batch = task.batch(data, np.arange(64))
  x0, cond = jax.device_get(jax.jit(lambda key, batch: task.encode((), key, batch))(jax.random.key(1), batch))
  assert np.any(np.asarray(x0) != to_unit(batch['images']))
  away = task.null(cond)
  np.testing.assert_array_equal(away['augment'], cond['augment'])
  assert not np.any(away['cond'])
  plain, asked = task.encode((), None, batch)
  np.testing.assert_array_equal(plain, to_unit(batch['images']))
  np.testing.assert_array_equal(asked, batch['cond'])


def test_the_network_takes_a_missing_entry_as_zeros():
  net = make('net', 'unet(channels=8, multipliers=(1,), blocks=1, attention=())', classes=2, out_channels=None)
  from diffusion import nets
  net = nets.make(net)
  cond = dict(augment=np.zeros((2, 6), np.float32), cond=np.eye(2, dtype=np.float32))
  params = net.init(jax.random.key(0), (2, 8, 8, 3), cond)
  params, apply = jax.tree.map(lambda a: np.asarray(a) + np.float32(.1), params), jax.jit(net.apply)
  x, time = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32), np.array([10., 500.])
  np.testing.assert_allclose(apply(params, x, time, cond), apply(params, x, time, cond['cond']), atol=1e-5)
