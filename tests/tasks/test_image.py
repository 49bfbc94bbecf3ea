"""The scaling of images to and from the range that models see."""
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.tasks.image import from_unit, to_unit


@pytest.mark.parametrize('xp', [np, jnp])
def test_all_256_values_come_back_from_the_unit_range(xp):
  values = xp.arange(256, dtype=xp.uint8)
  unit = to_unit(values)
  assert unit.dtype == np.float32
  assert (float(unit[0]), float(unit[255])) == (-1.0, 1.0)
  assert np.array_equal(from_unit(unit), np.arange(256))
  np.testing.assert_allclose(np.diff(np.asarray(unit, np.float64)), 2 / 255, rtol=1e-4)


@pytest.mark.parametrize('xp', [np, jnp])
def test_values_outside_the_unit_range_are_clipped(xp):
  assert np.array_equal(from_unit(xp.array([-7.0, -1.001, 1.001, 9.0], xp.float32)), [0, 0, 255, 255])
