"""Editing on data whose denoiser and posterior are known, with every solver that a config can name."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion import samplers
from diffusion.core import grids, operators, schedules
from diffusion.core.gaussian import CLEAN, clip, take
from diffusion.errors import InputError
from diffusion.samplers import constraints
from diffusion.setup import build
from tests.exact import correlated_denoiser, gaussian_denoiser, gaussian_flow

MEAN, STD = .3, .5
COSINE, TABLE = schedules.cosine(None), schedules.cosine(1000)
# adaptive does not stop on the way; the others are DDIM by another name.
OTHERS = {'adaptive', 'euler', 'euler_ancestral', 'flow_euler', 'dpmpp_1s', 'ancestral', 'confident', 'mixed'}
SOLVERS = sorted(set(build.CHOICES['sampler']) - OTHERS)
FACE = np.random.default_rng(0).uniform(-1, 1, (4, 4, 3)).astype(np.float32)
HOLE = np.zeros((4, 4, 1), bool)
HOLE[1:3, 1:] = True

# Two correlated coordinates, of which the first is known to be 1.2.
CENTRE, SPREAD = np.array([.3, -.2]), np.array([[.5, .35], [.35, .4]])
KNOWN, UNKNOWN = np.array([1.2, 0.], np.float32), np.array([False, True])
POSTERIOR_MEAN = -.2 + .35 / .5 * (1.2 - .3)
POSTERIOR_STD = np.sqrt(.4 - .35 ** 2 / .5)


def solver(name, levels=grids.trailing(10)(COSINE)):
  schedule = TABLE if name in ('ddim_shipped', 'pndm') else COSINE
  return build.make('sampler', name, schedule=schedule, levels=levels)


def run(sampler, levels, denoise, n=64, shape=(), x=None, seed=0):
  keys = samplers.sample_keys(seed, np.arange(n))
  x = samplers.prior(keys, levels, shape) if x is None else x
  return np.asarray(jax.jit(lambda keys, x: samplers.sample(keys, denoise, sampler, levels, x))(keys, x))


def part(levels, last):
  """The grid down to row `last`, which has noise left."""
  return take(levels, slice(0, last + 1))


# ---- replacement
@pytest.mark.parametrize('name', SOLVERS)
def test_known_pixels_are_exact_and_generated_ones_finite_with_every_solver(name):
  levels = grids.leading(5)(TABLE)
  sampler = constraints.repaint(solver(name, levels), FACE, HOLE, jump=2, repeats=2)  # which is inpaint, and more
  x = run(sampler, levels, gaussian_denoiser(MEAN, STD), 3, FACE.shape)
  np.testing.assert_array_equal(np.where(HOLE, 0, x), np.where(HOLE, 0, np.stack([FACE] * 3)))
  generated = x[:, HOLE[..., 0]]
  assert np.isfinite(generated).all() and np.ptp(generated) > .1


@pytest.mark.parametrize('name', ['ddpm', 'dpmpp_2m', 'heun'])
def test_where_nothing_is_known_the_sampler_does_what_it_did(name):
  levels, denoise = grids.trailing(6)(COSINE), gaussian_denoiser(MEAN, STD)
  plain = run(solver(name), levels, denoise)
  np.testing.assert_array_equal(run(constraints.inpaint(solver(name), 9., True), levels, denoise), plain)


def test_known_pixels_on_the_way_have_the_noise_of_their_level_and_a_stream_of_their_own():
  n, levels = 20_000, part(grids.trailing(8)(COSINE), 5)
  z = run(constraints.inpaint(samplers.ddpm(), .7, False), levels, gaussian_denoiser(MEAN, STD), n)
  s = take(levels, -1)
  z = (z - s.alpha * .7) / s.sigma
  assert abs(z.mean()) < 4 / np.sqrt(n) and z.std() == pytest.approx(1, rel=4 / np.sqrt(2 * n))
  keys = samplers.sample_keys(0, np.arange(n))
  for index in range(8):
    assert abs(np.corrcoef(z, samplers.gaussian(keys, index, jnp.zeros(n)))[0, 1]) < 4 / np.sqrt(n)


def test_repaint_recovers_the_posterior_of_correlated_data_and_plain_replacement_does_not():
  n, levels, denoise = 1500, grids.trailing(60)(COSINE), correlated_denoiser(CENTRE, SPREAD)
  x = run(constraints.repaint(samplers.ddpm('large'), KNOWN, UNKNOWN, jump=6, repeats=15), levels, denoise, n, (2,))
  x = x[:, 1]
  assert x.mean() == pytest.approx(POSTERIOR_MEAN, abs=.06)
  assert x.std() == pytest.approx(POSTERIOR_STD, rel=.09)
  x = run(constraints.inpaint(samplers.ddpm(), KNOWN, UNKNOWN), levels, denoise, n, (2,))[:, 1]
  assert x.mean() < POSTERIOR_MEAN - .15  # it goes two thirds of the way from -0.2


# ---- the walk
def rows_of_algorithm_1(S, jump, repeats):
  """Grid positions of each evaluation and where x is after it, by walking: position 0 is the noisiest, S is clean."""
  left, position, rows = {}, 0, []
  while position < S:
    rows.append((position, position + 1))
    position += 1
    turn = min(-(-position // jump) * jump, S - 1)  # where the way down that contains this step ends
    if position == turn and position < S:
      bottom = (position - 1) // jump * jump
      left[position] = left.get(position, repeats - 1) - 1
      if left[position] >= 0:
        position = bottom
    rows[-1] += (position,)
  return rows


@pytest.mark.parametrize('S, jump, repeats',
                         [(1, 1, 3), (2, 1, 3), (5, 1, 2), (6, 2, 3), (7, 3, 2), (4, 10, 3), (5, 2, 1)])
def test_repaint_walks_down_and_up_and_wastes_no_evaluation(S, jump, repeats):
  levels = grids.trailing(S)(COSINE)
  plan = constraints.repaint(samplers.ddim(), 0., True, jump, repeats).plan(levels)
  expected = rows_of_algorithm_1(S, jump, repeats)
  assert len(plan.h) == repeats * (S - 1) + 1 == len(expected)
  for i, (t, s, then) in enumerate(expected):
    assert (plan.t.logsnr[i], plan.s.logsnr[i]) == (levels.logsnr[t], levels.logsnr[s])
    assert (plan.extra.std[i] > 0) == (then < s)
  assert len(set(zip(plan.extra.number, plan.index))) == len(expected)  # no noise is used twice


@pytest.mark.parametrize('S, jump, repeats', [(5, 1, 4), (9, 3, 3)])
def test_going_up_and_down_keeps_every_marginal_of_one_data_point(S, jump, repeats):
  n, levels = 20_000, part(grids.trailing(S)(COSINE), S // 2 + 2)
  x = run(constraints.repaint(samplers.ddpm(), 0., True, jump, repeats), levels, gaussian_denoiser(MEAN, 0.), n)
  s = take(levels, -1)
  assert x.mean() == pytest.approx(s.alpha * MEAN, abs=5 * s.sigma / np.sqrt(n))
  assert x.std() == pytest.approx(s.sigma, rel=5 / np.sqrt(2 * n))


@pytest.mark.parametrize('name', ['dpmpp_2m', 'heun', 'unipc(3)', 'pndm'])
def test_a_solver_with_memory_forgets_it_on_the_way_up(name):
  """One data point: a right history or none lands on it; a history from other levels would not."""
  levels = grids.leading(10)(TABLE) if name == 'pndm' else grids.trailing(10)(COSINE)
  own, denoise = solver(name, levels), gaussian_denoiser(MEAN, STD)
  x = run(constraints.repaint(own, 0., True, jump=3, repeats=3), levels, gaussian_denoiser(MEAN, 0.), 8)
  np.testing.assert_allclose(x, MEAN, atol=1e-5)
  once = run(constraints.repaint(own, 0., True, jump=99, repeats=1), levels, denoise, 8)
  np.testing.assert_allclose(once, run(own, levels, denoise, 8), atol=1e-6)


def test_repaint_holds_the_network_once_whatever_the_walk():
  traces = []
  def denoise(x, noise):
    traces.append(0)
    return gaussian_denoiser(MEAN, STD)(x, noise)
  run(constraints.repaint(samplers.ddim(), 0., True, 3, 9), grids.trailing(30)(COSINE), denoise)
  assert len(traces) <= 2


# ---- measurements
# One of each way to end: at x0, at a weighted sum of evaluations, after a corrector, with fresh noise, off the grid.
ENDS = ['ddpm', 'consistency', 'dpm_solver_2', 'dpmpp_2m', 'lms', 'plms', 'flow_lms', 'flow_heun', 'flow_pc',
        'langevin', 'adaptive']
OPERATORS = dict(kept=operators.known_pixels(HOLE), luma=operators.luma(), blocks=operators.block_average(2))


@pytest.mark.parametrize('name, operator', [*((name, 'blocks') for name in ENDS), ('heun', 'kept'), ('unipc', 'luma')])
def test_solvers_end_on_an_image_that_agrees_with_the_measurement(name, operator):
  operator = OPERATORS[operator]
  y = operator.forward(FACE)
  denoise = operators.ddnm(clip(gaussian_denoiser(MEAN, STD)), operator, y)
  x = run(solver(name), grids.trailing(4)(COSINE), denoise, 2, FACE.shape)
  np.testing.assert_allclose(operator.forward(x), np.stack([y] * 2), atol=2e-4 if name == 'adaptive' else 1e-5)
  assert np.abs(x[0] - x[1]).max() > .05  # and leaves the rest open


def test_what_a_measurement_says_nothing_about_keeps_its_distribution():
  """Independent pixels of equal spread: the posterior of differences within a block is their prior."""
  n, y = 2000, np.full((1, 1, 1), .9, np.float32)
  denoise = operators.ddnm(gaussian_denoiser(0., STD), operators.block_average(2), y)
  x = run(samplers.ddpm(), grids.trailing(100)(COSINE), denoise, n, (2, 2, 1))
  np.testing.assert_allclose(x.mean((1, 2, 3)), .9, atol=1e-5)
  gap = (x[:, 0, 0, 0] - x[:, 1, 1, 0]) / np.sqrt(2)
  assert abs(gap.mean()) < 4 * STD / np.sqrt(n) and gap.std() == pytest.approx(STD, rel=4 / np.sqrt(2 * n) + .02)


def test_grey_and_small_images_are_those_of_pillow():
  image = np.random.default_rng(1).integers(0, 256, (8, 12, 3), np.uint8)
  grey = np.asarray(Image.fromarray(image).convert('L'))
  np.testing.assert_allclose(operators.luma().forward(image.astype(np.float32))[..., 0], grey, atol=1)
  small = np.asarray(Image.fromarray(image).resize((3, 2), Image.Resampling.BOX))
  np.testing.assert_allclose(operators.block_average(4).forward(image.astype(np.float32)), small, atol=1)
  for operator in OPERATORS.values():
    y = operator.forward(FACE)
    np.testing.assert_allclose(operator.forward(operator.inverse(y)), y, atol=1e-6)


# ---- where sampling starts
def test_sdedit_at_strength_0_is_the_image_and_at_1_a_fresh_sample():
  levels, denoise, x0 = grids.trailing(10)(COSINE), gaussian_denoiser(MEAN, STD), np.stack([FACE] * 3)
  keys = samplers.sample_keys(0, np.arange(3))
  nothing, start = constraints.sdedit(keys, levels, x0, 0.)
  assert tuple(a[-1] for a in nothing) == CLEAN and len(nothing.logsnr) == 1
  np.testing.assert_array_equal(start, x0)
  whole, start = constraints.sdedit(keys, levels, x0, 1.)
  for sampler in (samplers.ddim(), samplers.ddpm()):
    np.testing.assert_array_equal(run(sampler, whole, denoise, x=start, n=3),
                                  run(sampler, levels, denoise, 3, FACE.shape))


@pytest.mark.parametrize('strength, n', [(.04, 0), (.06, 1), (.55, 6), (.9, 9)])
def test_sdedit_ends_where_the_exact_ode_takes_the_noisy_image(strength, n):
  """The spread and the pull towards the data are known for every strength."""
  levels, many = grids.trailing(10)(COSINE), 4000
  keys, x0 = samplers.sample_keys(0, np.arange(many)), np.full(many, -1.5, np.float32)
  rest, start = constraints.sdedit(keys, levels, x0, strength)
  assert len(rest.logsnr) == n + 1
  level = take(rest, 0)
  np.testing.assert_array_equal(level, take(levels, 10 - n))
  fine = grids.trailing(1000)(COSINE)
  fine = take(fine, slice(int(np.argmin(np.abs(fine.logsnr - level.logsnr))), None)) if n else rest
  x = run(samplers.ddim(), fine, gaussian_denoiser(MEAN, STD), many, x=start) if n else start
  where = gaussian_flow(MEAN, STD, level.alpha * -1.5, level)
  width = gaussian_flow(MEAN, STD, level.alpha * -1.5 + level.sigma, level) - where
  assert np.mean(x) == pytest.approx(where, abs=4 * width / np.sqrt(many) + .005)
  assert np.std(x) == pytest.approx(width, rel=.06)


def test_inversion_finds_the_noise_of_the_exact_ode_and_reconstructs_with_an_error_that_halves():
  x0, denoise = jnp.linspace(-1.2, 1.8, 32), gaussian_denoiser(MEAN, STD)
  gaps, errors = [], []
  for S in (50, 100, 200):
    levels = grids.trailing(S)(schedules.linear(None))
    noise = jax.jit(lambda x: constraints.invert(denoise, levels, x))(x0)
    first = take(levels, 0)
    spread = np.sqrt(first.alpha ** 2 * STD ** 2 + first.sigma ** 2)
    exact = first.alpha * MEAN + spread / STD * (np.asarray(x0) - MEAN)
    gaps.append(float(jnp.abs(noise - exact).max()))
    errors.append(float(np.abs(run(samplers.ddim(), levels, denoise, 32, x=noise) - np.asarray(x0)).max()))
  for values in (gaps, errors):
    assert values[0] / values[1] == pytest.approx(2, rel=.25) and values[1] / values[2] == pytest.approx(2, rel=.25)
  assert errors[-1] < .05  # at three standard deviations


@pytest.mark.parametrize('order', [1, 2])
def test_inversion_has_its_order_in_float64(order):
  errors = []
  with jax.enable_x64(True):
    x0, denoise = jnp.linspace(-1.2, 1.8, 32), gaussian_denoiser(MEAN, STD)
    for S in (200, 400):
      levels = grids.exponential(S, sigma_min=.05, sigma_max=20.)(schedules.edm())
      noise = constraints.invert(denoise, levels, x0, order)
      assert noise.dtype == jnp.float64
      last, first = take(levels, -2), take(levels, 0)
      spread = np.sqrt((STD ** 2 + first.sigma ** 2) / (STD ** 2 + last.sigma ** 2))
      errors.append(float(jnp.abs(noise - (MEAN + spread * (x0 - MEAN))).max()))
    single = constraints.invert(denoise, levels, x0.astype(jnp.float32), order)
  assert single.dtype == jnp.float32
  assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=.1)


@pytest.mark.parametrize('order', [1, 2])
@pytest.mark.parametrize('schedule', [schedules.flow(), schedules.edm(), schedules.cosine()])
def test_inversion_is_finite_from_one_step_on_and_without_signal(schedule, order):
  for S in (1, 2, 3, 9):
    noise = constraints.invert(gaussian_denoiser(MEAN, STD), grids.trailing(S)(schedule), jnp.linspace(-1, 1, 4), order)
    assert noise.shape == (4,) and np.isfinite(noise).all()


@pytest.mark.parametrize('call, message', [
  (lambda: constraints.sdedit(None, grids.trailing(4)(COSINE), FACE, 1.2), 'strength=1.2'),
  (lambda: constraints.sdedit(None, grids.trailing(4)(COSINE), FACE, float('nan')), 'strength=nan'),
  (lambda: constraints.repaint(samplers.ddim(), FACE, HOLE, repeats=0), 'repeats=0'),
  (lambda: constraints.invert(None, grids.trailing(4)(COSINE), FACE, 3), 'order=3'),
  (lambda: constraints.repaint(samplers.ddim(), FACE, HOLE, jump=0), 'jump=0'),
  (lambda: operators.luma((1., 1., 1.)), 'sum is 1'), (lambda: operators.block_average(0), 'factor'),
  (lambda: constraints.inpaint(solver('adaptive'), FACE, HOLE).plan(grids.trailing(4)(COSINE)), 'every level'),
])
def test_bad_input_is_named(call, message):
  with pytest.raises(InputError, match=message):
    call()
