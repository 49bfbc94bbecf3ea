"""Linear measurements: adjoints, inverses and singular values, against dense matrices."""
import jax
import numpy as np
import pytest
from scipy import ndimage

from diffusion.core import operators
from diffusion.errors import InputError

SHAPE = (4, 6, 3)
RNG = np.random.default_rng(0)
LINES = np.tile(RNG.random(6) < .5, (4, 1))
SCATTERED = RNG.random((4, 6)) < .5
OPERATORS = dict(
  kept=operators.known_pixels(RNG.random((4, 6, 1)) < .4), luma=operators.luma(), blocks=operators.block_average(2),
  blur=operators.blur(.7), wide_blur=operators.blur(2.), lines=operators.kspace(LINES),
  kspace=operators.kspace(SCATTERED), radon=operators.radon(np.arange(0, 180, 30), SHAPE))
OPERATORS = {name: operator._replace(forward=jax.jit(operator.forward), inverse=jax.jit(operator.inverse))
             for name, operator in OPERATORS.items()}
KNOWN = [name for name, operator in OPERATORS.items() if operator.svd]


def rows(n=3, seed=1, shape=SHAPE):
  return np.random.default_rng(seed).standard_normal((n, *shape)).astype(np.float32)


def dense(operator):
  """A as a matrix [size of y, size of x]."""
  columns = operator.forward(np.eye(np.prod(SHAPE), dtype=np.float32).reshape(-1, *SHAPE))
  return np.asarray(columns, np.float64).reshape(len(columns), -1).T


def flat(a):
  return np.asarray(a, np.float64).reshape(len(a), -1)


@pytest.mark.parametrize('name', OPERATORS)
def test_the_adjoint_is_the_transpose_of_the_dense_matrix(name):
  operator, x = OPERATORS[name], rows()
  y = operator.forward(x)
  u = rows(seed=2, shape=y.shape[1:])
  back = jax.jit(operators.transposed(operator.forward, x.shape))(u)
  np.testing.assert_allclose(flat(back), flat(u) @ dense(operator), atol=2e-6)
  left, right = (flat(y) * flat(u)).sum(), (flat(x) * flat(back)).sum()
  assert abs(left - right) < 1e-6 * np.linalg.norm(y) * np.linalg.norm(u)


@pytest.mark.parametrize('name', OPERATORS)
def test_an_inverse_gives_back_the_measurement(name):
  operator, x = OPERATORS[name], rows()
  y = operator.forward(x)
  again = operator.forward(operator.inverse(y))
  np.testing.assert_allclose(again, y, atol=2e-4 if name == 'radon' else 1e-5)


@pytest.mark.parametrize('name', OPERATORS)
def test_conjugate_gradients_find_the_moore_penrose_inverse(name):
  operator = OPERATORS[name]
  y = operator.forward(rows())
  matrix = dense(operator)
  by_numpy = flat(y) @ np.linalg.pinv(matrix, rcond=1e-5).T
  found = flat(jax.jit(operators.pseudo_inverse(operator.forward, SHAPE))(y))
  # where singular values reach 1e-3, float32 determines x only to some percent, and A x much better
  atol = .1 if name in ('wide_blur', 'radon') else 1e-3 if name == 'blur' else 1e-5
  np.testing.assert_allclose(found, by_numpy, atol=atol)
  np.testing.assert_allclose(found @ matrix.T, flat(y), atol=1e-4)
  if name not in ('luma', 'radon'):  # whose inverse is another one, or this
    np.testing.assert_allclose(flat(operator.inverse(y)), by_numpy, atol=1e-3 if 'blur' in name else 1e-5)


@pytest.mark.parametrize('name', KNOWN)
def test_the_singular_values_are_those_of_the_dense_matrix(name):
  operator, x = OPERATORS[name], rows()
  svd = operator.svd(SHAPE)
  assert svd.s.shape == SHAPE
  values = np.linalg.svd(dense(operator), compute_uv=False)
  values = np.pad(values, (0, max(0, svd.s.size - len(values))))[:svd.s.size]
  np.testing.assert_allclose(np.sort(svd.s.ravel())[::-1], values, atol=1e-5)
  z = svd.coordinates(x)
  np.testing.assert_allclose(svd.image(z), x, atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(flat(z), axis=1), np.linalg.norm(flat(x), axis=1), rtol=1e-5)
  y = operator.forward(x)
  np.testing.assert_allclose(svd.measured(y), svd.s * z, atol=1e-5)   # U^T A x = S V^T x
  u = rows(seed=3, shape=y.shape[1:])                                 # S U^T y = V^T A^T y
  back = jax.jit(operators.transposed(operator.forward, x.shape))(u)
  np.testing.assert_allclose(svd.s * svd.measured(u), svd.coordinates(back), atol=1e-5)


def test_measurements_are_what_other_libraries_compute():
  x = rows(1)[0]
  blurred = ndimage.gaussian_filter(np.tile(rows(1, shape=(32, 32, 1))[0, ..., 0], (3, 3)), 1.2, truncate=8)
  ours = operators.blur(1.2).forward(rows(1, shape=(32, 32, 1)))[0, ..., 0]
  np.testing.assert_allclose(ours, blurred[32:64, 32:64], atol=2e-3)
  f = np.fft.fft2(x, axes=(0, 1), norm='ortho')
  y = operators.kspace(SCATTERED).forward(x[None])[0]
  np.testing.assert_allclose(y[..., 0] + 1j * y[..., 1], f * SCATTERED[..., None], atol=1e-5)
  sums = operators.radon((0, 90), SHAPE).forward(x[None])[0] * 6
  n = sums.shape[1]
  assert n == 8  # the diagonal of 4x6, rounded up: the rows and columns of the image are in its middle
  np.testing.assert_allclose(sums[0, 1:7], x.sum(0), atol=1e-5)
  np.testing.assert_allclose(sums[1, 2:6], x.sum(1), atol=1e-5)


def test_a_disc_casts_the_shadow_of_its_chords():
  r = np.hypot(*np.meshgrid(np.arange(64) - 31.5, np.arange(64) - 31.5))
  disc = np.clip(20.5 - r, 0, 1).astype(np.float32)[None, ..., None]
  shadows = operators.radon(np.arange(0, 180, 20), (64, 64, 1)).forward(disc)[0, ..., 0] * 64
  place = np.arange(shadows.shape[1]) - (shadows.shape[1] - 1) / 2
  chord = 2 * np.sqrt(np.maximum(20 ** 2 - place ** 2, 0))
  inside = np.abs(place) < 18
  np.testing.assert_allclose(shadows[:, inside], np.tile(chord[inside], (9, 1)), atol=.6)


def test_rays_as_a_matrix_are_those_by_interpolation(monkeypatch):
  x, angles = rows(2, shape=(9, 14, 2)), np.array([0., 17., 45., 90., 133.])
  matrix = operators.radon(angles, x.shape[1:]).forward(x)
  monkeypatch.setattr(operators, 'LARGEST_MATRIX', 0)
  np.testing.assert_allclose(matrix, operators.radon(angles, x.shape[1:]).forward(x), atol=1e-5)


def test_each_example_is_solved_by_itself():
  operator = OPERATORS['radon']
  y = np.array(operator.forward(rows()))
  alone = operator.inverse(y[:1])
  y[1:] *= 1e3
  np.testing.assert_allclose(operator.inverse(y)[:1], alone, atol=1e-5)


def test_a_matrix_that_is_not_positive_stops_and_gives_no_nan():
  b = rows()
  u = operators.solve(lambda u: -u, b, 9)
  np.testing.assert_array_equal(u, np.zeros_like(b))
  assert np.isfinite(operators.solve(lambda u: u * np.array([1., 0., 1.]), b, 9)).all()


@pytest.mark.parametrize('call, message', [
  (lambda: operators.blur(0), 'width=0'), (lambda: operators.block_average(2.5), 'whole number'),
  (lambda: operators.block_average(3).forward(rows()), 'does not divide .* 4x6'),
])
def test_bad_input_is_named(call, message):
  with pytest.raises(InputError, match=message):
    call()


def test_everything_compiles():
  x = rows()
  for operator in OPERATORS.values():
    again = jax.jit(lambda x, operator=operator: operator.inverse(operator.forward(x)))(x)
    assert again.shape == x.shape
