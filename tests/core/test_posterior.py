"""Denoisers given a measurement, against the conditional distributions of Gaussian data, by dense linear algebra."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import samplers
from diffusion.core import grids, operators, posterior, schedules
from diffusion.core.gaussian import ve, vp
from diffusion.errors import InputError
from tests.exact import correlated_denoiser

RNG = np.random.default_rng(0)
D = 4
ROOT = RNG.standard_normal((D, D)) * np.array([1., .7, .5, .2])
COVARIANCE = ROOT @ ROOT.T
MEAN = RNG.standard_normal(D)
A = RNG.standard_normal((2, D))
NOISE = .1
TRUTH = MEAN + ROOT @ RNG.standard_normal(D)
Y = A @ TRUTH + NOISE * RNG.standard_normal(2)
LINEAR = operators.Linear(lambda x: x @ A.T.astype(np.float32), lambda y: y @ np.linalg.pinv(A).T.astype(np.float32))
LEVELS = [vp(0., np.float64(logsnr)) for logsnr in (-6., -2., 0., 3., 6.)] + [ve(0., np.float64(-3.)), ve(0., 1.)]


def plain():
  return correlated_denoiser(MEAN.astype(np.float32), COVARIANCE)


Y32 = Y.astype(np.float32)
TMPD, DPS, PIGDM = (jax.jit(make(plain(), LINEAR, Y32, NOISE)) for make in (posterior.tmpd, posterior.dps,
                                                                           posterior.pigdm))


def given(level, x, covariance=COVARIANCE):
  """(E[x0 | x_t], its covariance, E[x0 | x_t, y]) by conditioning the joint Gaussian of (x0, x_t, y); x [B, D]."""
  a, s = float(level.alpha), float(level.sigma)
  def condition(rows, noises, seen):
    joint = rows @ covariance @ rows.T + np.diag(noises)
    gain = np.linalg.solve(joint, rows @ covariance).T
    return MEAN + (seen - rows @ MEAN) @ gain.T, covariance - gain @ rows @ covariance
  of_x, spread = condition(a * np.eye(D), np.full(D, s ** 2), x)
  both = np.concatenate([a * np.eye(D), A])
  seen = np.concatenate([x, np.tile(Y, (len(x), 1))], 1)
  return of_x, spread, condition(both, [s ** 2] * D + [NOISE ** 2] * 2, seen)[0]


def states(level, n=5):
  rng = np.random.default_rng(3)
  x0 = MEAN + rng.standard_normal((n, D)) @ ROOT.T
  return (level.alpha * x0 + level.sigma * rng.standard_normal((n, D))).astype(np.float32)


@pytest.mark.parametrize('level', LEVELS)
def test_tmpd_is_the_exact_conditional_denoiser_of_gaussian_data(level):
  x = states(level)
  pred = TMPD(x, level)
  np.testing.assert_allclose(pred.x0, given(level, x)[2], atol=1e-5 * max(1, np.abs(x).max()))
  np.testing.assert_allclose(level.alpha * pred.x0 + level.sigma * pred.eps, x, atol=1e-5 * max(1, np.abs(x).max()))


@pytest.mark.parametrize('level', LEVELS)
def test_pigdm_and_dps_err_as_derived(level):
  """pigdm: as if A V A^T were r^2 A A^T; dps: the exact change times 1 + A V A^T / noise^2, in the space of y."""
  x = states(level)
  of_x, spread, exact = given(level, x)
  residual = Y - of_x @ A.T
  seen = A @ spread @ A.T
  needed = lambda matrix: spread @ A.T @ matrix
  change = residual @ needed(np.linalg.inv(seen + NOISE ** 2 * np.eye(2))).T
  np.testing.assert_allclose(of_x + change, exact, atol=1e-8)  # the derivation, against conditioning
  dps = DPS(x, level).x0
  factor = np.eye(2) + seen / NOISE ** 2
  derived = residual @ (needed(np.linalg.inv(seen + NOISE ** 2 * np.eye(2))) @ factor).T
  np.testing.assert_allclose(dps - of_x, derived, rtol=2e-4, atol=1e-4 * np.abs(derived).max())
  r2 = level.sigma ** 2 / (level.alpha ** 2 + level.sigma ** 2)
  wrong = (r2 * A @ A.T - seen) @ np.linalg.inv(r2 * A @ A.T + NOISE ** 2 * np.eye(2))
  error = PIGDM(x, level).x0 - exact
  derived = -residual @ (needed(np.linalg.inv(seen + NOISE ** 2 * np.eye(2))) @ wrong).T
  np.testing.assert_allclose(error, derived, atol=2e-5 * max(1, np.abs(residual).max() * 10))


@pytest.mark.parametrize('level', LEVELS[1:5])
def test_pigdm_is_exact_for_independent_pixels_of_its_variance(level):
  variance = .3
  x = states(level)
  denoise = correlated_denoiser(MEAN.astype(np.float32), variance * np.eye(D))
  found = jax.jit(posterior.pigdm(denoise, LINEAR, Y32, NOISE, variance))(x, level)
  np.testing.assert_allclose(found.x0, given(level, x, variance * np.eye(D))[2], atol=1e-5 * max(1, np.abs(x).max()))


def endpoint(denoise, steps=300):
  """Mean and covariance of what a deterministic solver draws: it is affine in the noise, so D + 1 starts tell all."""
  levels = grids.karras(steps)(schedules.edm())
  start = np.concatenate([np.zeros((1, D)), np.eye(D)]).astype(np.float32) * np.float32(levels.sigma[0])
  run = jax.jit(lambda x: samplers.sample(samplers.sample_keys(0, np.arange(D + 1)), denoise, samplers.dpmpp_2m(),
                                          levels, x))
  out = np.asarray(run(start), np.float64)
  columns = out[1:] - out[0]
  return out[0], columns.T @ columns


def test_samples_given_a_measurement_have_the_mean_and_covariance_of_the_posterior():
  precision = np.linalg.inv(COVARIANCE) + A.T @ A / NOISE ** 2
  covariance = np.linalg.inv(precision)
  mean = MEAN + covariance @ A.T @ (Y - A @ MEAN) / NOISE ** 2
  y, errors = Y32, {}
  for name, denoise in dict(tmpd=posterior.tmpd(plain(), LINEAR, y, NOISE),
                            pigdm=posterior.pigdm(plain(), LINEAR, y, NOISE),
                            ddnm=operators.ddnm(plain(), LINEAR, y), none=plain()).items():
    m, c = endpoint(denoise)
    errors[name] = (np.linalg.norm(m - mean) / np.linalg.norm(mean),
                    np.linalg.norm(c - covariance) / np.linalg.norm(covariance))
  assert errors['tmpd'][0] < .003 and errors['tmpd'][1] < .02
  assert errors['tmpd'][1] < errors['pigdm'][1] < errors['none'][1] and errors['tmpd'][1] < errors['ddnm'][1]


@pytest.mark.parametrize('make', [
  lambda denoise, operator, y: posterior.dps(denoise, operator, y, .5),
  lambda denoise, operator, y: posterior.pigdm(denoise, operator, y, .1),
  lambda denoise, operator, y: posterior.tmpd(denoise, operator, y, .1)])
def test_an_example_does_not_depend_on_its_neighbours(make):
  operator = operators.blur(.8)
  x = RNG.standard_normal((3, 4, 4, 1)).astype(np.float32)
  y = np.array(operator.forward(x))
  denoise = lambda x, noise: smooth(x, noise)
  level = vp(0., np.float64(0.))
  alone = jax.jit(make(denoise, operator, y[:1]))(x[:1], level).x0
  y[1:], x[1:] = 30., -9.
  np.testing.assert_allclose(np.asarray(jax.jit(make(denoise, operator, y))(x, level).x0)[:1], alone, atol=1e-5)


def smooth(x, noise):
  """A denoiser that is no linear function."""
  from diffusion.core.gaussian import expand_to, from_x0
  return from_x0(expand_to(noise, x), x, jnp.tanh(x + .5 * jnp.roll(x, 1, 1)))


def test_where_nothing_of_x0_is_left_the_measurement_waits():
  level = vp(0., np.float64(-np.inf))
  x = states(level)
  for denoise in (posterior.tmpd(plain(), LINEAR, Y.astype(np.float32), NOISE),
                  posterior.pigdm(plain(), LINEAR, Y.astype(np.float32), 0.)):
    np.testing.assert_array_equal(denoise(x, level).x0, plain()(x, level).x0)


@pytest.mark.parametrize('call, message', [
  (lambda: posterior.dps(None, LINEAR, Y, 0.), r'dps\(noise=0.0\).*above 0'),
  (lambda: posterior.dps(None, LINEAR, Y, .1, scale=-1), 'scale=-1'),
  (lambda: posterior.tmpd(None, LINEAR, Y, -1.), r'noise=-1.0'),
  (lambda: posterior.pigdm(None, LINEAR, Y, .1, variance=0.), 'variance=0.0'),
])
def test_bad_input_is_named(call, message):
  with pytest.raises(InputError, match=message):
    call()
