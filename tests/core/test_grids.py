"""Grids against closed forms, published rows, each other, and diffusers where it is installed."""
from fractions import Fraction

import numpy as np
import pytest
from scipy import integrate

from diffusion.core import grids, schedules
from diffusion.core.gaussian import CLEAN, take
from diffusion.core.schedule_transforms import shift, sub_vp, zero_terminal
from diffusion.errors import InputError

SCHEDULES = {
  'linear': schedules.linear(), 'cosine': schedules.cosine(), 'linear 100': schedules.linear(T=100),
  'offset_cosine 50': schedules.offset_cosine(T=50), 'flow 64': schedules.flow(T=64),
  'zero_terminal': zero_terminal(schedules.scaled_linear()), 'sub_vp 80': sub_vp(schedules.linear(T=80)),
  'linear curve': schedules.linear(None), 'cosine curve': schedules.cosine(None),
  'offset_cosine curve': schedules.offset_cosine(),
  'sigmoid curve': schedules.sigmoid(), 'flow curve': schedules.flow(), 'edm curve': schedules.edm(),
  'shifted curve': shift(schedules.flow(), 3.),
}
IN_TIME = [grids.trailing, grids.leading, grids.linspace, grids.quadratic]
IN_NOISE = [grids.karras, grids.exponential, grids.polyexponential, grids.cosine]
ANY_TIME = schedules.cosine(None, s=0.)  # sigma / alpha = tan(pi t / 2)


def noise_ratio(levels):
  """sigma / alpha of the levels before CLEAN."""
  return levels.sigma[:-1] / levels.alpha[:-1]


def rows(grid, T=1000):
  return grid(schedules.linear(T))[0][:-1].astype(int).tolist()


@pytest.mark.parametrize('grid', IN_TIME + IN_NOISE + [grids.beta, grids.shifted])
@pytest.mark.parametrize('name', SCHEDULES)
def test_every_number_of_steps_gives_a_strictly_monotone_grid_that_ends_clean(grid, name):
  schedule = SCHEDULES[name]
  most = 1000 if callable(schedule) else len(schedule.logsnr)
  most = {grids.beta: most // 10, grids.shifted: most // 3}.get(grid, most)  # these crowd the rows of a table
  for S in {1, 2, 3, 7, 10, 13, 37, most - 1, most} & set(range(1, most + 1)):
    levels = grid(S)(schedule)
    assert len(levels.logsnr) == S + 1 and levels.logsnr.dtype == np.float64
    assert np.all(np.diff(levels.logsnr) > 0)
    assert take(levels, -1) == CLEAN
    for field in (levels.time, levels.alpha, levels.sigma):
      assert np.all(np.isfinite(field))


@pytest.mark.parametrize('grid',
                         [grids.trailing, grids.quadratic, grids.linspace, grids.beta, grids.shifted, grids.cosine])
@pytest.mark.parametrize('name', SCHEDULES)
def test_grids_begin_at_the_noisiest_trained_level(grid, name):
  for S in (1, 5):
    for first, field in zip(take(grid(S)(SCHEDULES[name]), 0), schedules.evaluate(SCHEDULES[name], 1.)):
      assert first == pytest.approx(field, rel=1e-12)


# ---- in time
def test_grids_visit_the_published_rows():
  # arXiv:2305.08891, table 2, numbers from 1 there and from 0 here
  assert rows(grids.trailing(10)) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
  assert rows(grids.leading(10)) == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
  assert rows(grids.linspace(10)) == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
  assert rows(grids.linspace(3)) == [999, 500, 0]  # improved DDPM rounds 499.5 to even


def test_quadratic_rows_are_squares_and_one_apart_where_squares_are_closer():
  assert rows(grids.quadratic(10)) == [10 * k * k - 1 for k in range(10, 0, -1)]
  crowded = rows(grids.quadratic(200))
  assert crowded[-3:] == [2, 1, 0] and crowded[:2] == [999, 989] and crowded[-100:] != list(range(99, -1, -1))
  assert rows(grids.quadratic(1000)) == list(range(999, -1, -1))


@pytest.mark.parametrize('a, b', [(.6, .6), (2., .8)])
def test_beta_times_hold_equal_shares_of_the_law(a, b):
  t = grids.beta(6, a, b)(ANY_TIME).time[:-1] / 1000
  assert t[0] == 1
  # x = y^(1/a) takes the singularity at 0 out of x^(a-1) (1-x)^(b-1)
  shares = [integrate.quad(lambda y: (1 - y ** (1 / a)) ** (b - 1) / a, 0, x ** a, limit=200)[0] for x in t]
  np.testing.assert_allclose(np.array(shares) / shares[0], np.arange(6, 0, -1) / 6, rtol=1e-6)


@pytest.mark.parametrize('grid', [grids.shifted(20, ratio=1.), grids.beta(20, a=1., b=1.)])
@pytest.mark.parametrize('name', ['linear', 'flow curve'])
def test_plain_members_of_families_are_trailing(grid, name):
  for field, expected in zip(grid(SCHEDULES[name]), grids.trailing(20)(SCHEDULES[name])):
    np.testing.assert_allclose(field, expected, rtol=1e-12, atol=1e-12)


def test_shifted_times_on_a_straight_path_are_trailing_times_of_the_shifted_schedule():
  moved, other = grids.shifted(8, 3.)(schedules.flow()), grids.trailing(8)(shift(schedules.flow(), 3.))
  np.testing.assert_allclose(moved.sigma, other.sigma, rtol=1e-12)
  # the time at which an unshifted network knows the level
  np.testing.assert_allclose(moved.time[:-1], 1000 * moved.sigma[:-1], rtol=1e-12)
  assert moved.sigma[4] == pytest.approx(3 * .5 / (1 + 2 * .5))


def by_definition(T, counts):
  """Each part from its first row to its last, in exact fractions; the two rows around a half are both right."""
  rows, start = [], 0
  for i, count in enumerate(counts):
    size = T // len(counts) + (i < T % len(counts))
    rows += [start + Fraction(k * (size - 1), max(count - 1, 1)) for k in range(count)]
    start += size
  return rows[::-1]


def assert_nearest(got, exact):
  assert len(got) == len(exact) and all(abs(row - at) <= Fraction(1, 2) for row, at in zip(got, exact))


def test_sections_are_those_of_guided_diffusion_and_glide():
  assert rows(grids.sections('ddim25')) == list(range(960, -1, -40))
  assert rows(grids.sections('ddim100')) == list(range(990, -1, -10))
  assert rows(grids.sections('ddim27')) == list(range(988, -1, -38))
  fast = [997, 800, 799, 600, 599, 500, 400, 399, 377, 355, 333, 311, 288, 266, 244, 222, 200,
          199, 177, 155, 133, 111, 88, 66, 44, 22, 0]
  assert rows(grids.sections('fast27')) == fast and len(fast) == 27
  assert rows(grids.sections('3,1,2'), 40) == [39, 27, 14, 13, 6, 0]  # parts of 14, 13 and 13 rows
  for T, counts in ((1000, (250,)), (1000, (100, 50, 20, 20, 10)), (300, (10, 15, 20)), (1000, (25,)),
                    (401, (7, 0, 9))):
    assert_nearest(rows(grids.sections(','.join(map(str, counts))), T), by_definition(T, counts))
  assert rows(grids.sections([10, 10, 15])) == rows(grids.sections(' 10, 10, 15'))
  assert rows(grids.sections(25)) == rows(grids.sections('25')) == rows(grids.sections((25,)))
  assert rows(grids.sections(25))[::24] == [999, 0]
  assert 149 in rows(grids.sections('10,15,20'), 300)  # 149.5 there is a sum of rounded strides, a little less


def test_sections_of_a_curve_are_those_of_a_thousand_rows():
  levels = grids.sections('fast27')(schedules.flow())
  np.testing.assert_allclose(levels.sigma[[0, 1, 2, -2]], [.998, .801, .8, .001], rtol=1e-12)


def test_times_are_visited_as_listed():
  assert rows(grids.times([1., .7, .301, .001])) == [999, 699, 300, 0]
  levels = grids.times([.9, .45, 1e-4])(schedules.flow())
  np.testing.assert_allclose(levels.sigma, [.9, .45, 1e-4, 0.], rtol=1e-12)


# ---- in noise
def edm_closed_form(S, low, high, rho):
  i, low, high, rho = np.arange(S, dtype=np.longdouble), *map(np.longdouble, (low, high, rho))
  return (high ** (1 / rho) + i / (S - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho


@pytest.mark.parametrize('S, rho', [(2, 7.), (18, 7.), (18, 3.), (40, 1.)])
def test_karras_on_the_edm_schedule_is_the_closed_form_of_edm(S, rho):
  levels = grids.karras(S, rho, sigma_min=.002)(schedules.edm())
  np.testing.assert_allclose(levels.sigma[:-1], edm_closed_form(S, .002, 80, rho).astype(float), rtol=1e-10)
  np.testing.assert_allclose(levels.time[:-1], 250 * np.log(levels.sigma[:-1]), rtol=1e-9)
  np.testing.assert_array_equal(levels.alpha, 1)


@pytest.mark.parametrize('name', SCHEDULES)
def test_karras_is_the_closed_form_in_the_ratio_of_noise_and_signal_between_the_ends_of_any_schedule(name):
  schedule = SCHEDULES[name]
  T = 1000 if callable(schedule) else len(schedule.logsnr)
  noisiest, second, cleanest = np.exp(-schedules.evaluate(schedule, [1., 1 - 1 / T, 1 / T]).logsnr / 2)
  noisiest = second if np.isinf(noisiest) else noisiest
  actual = noise_ratio(grids.karras(9)(schedule))
  np.testing.assert_allclose(actual, edm_closed_form(9, cleanest, noisiest, 7).astype(float), rtol=1e-9)


@pytest.mark.parametrize('grid', IN_NOISE)
@pytest.mark.parametrize('schedule',
                         [schedules.linear(), schedules.edm(), schedules.flow(), zero_terminal(schedules.linear())])
def test_given_ends_are_exact_in_every_scaling(grid, schedule):
  for S in (2, 9):
    actual = noise_ratio(grid(S, sigma_min=.05, sigma_max=20.)(schedule))
    np.testing.assert_allclose(actual[[0, -1]], [20., .05], rtol=1e-12)


@pytest.mark.parametrize('name', SCHEDULES)
def test_exponential_has_equal_steps_in_log_snr_and_is_the_limit_of_karras(name):
  levels = grids.exponential(12)(SCHEDULES[name])
  h = np.diff(levels.logsnr[:-1])
  np.testing.assert_allclose(h, h[0], rtol=1e-9)
  assert grids.logsnr is grids.exponential
  np.testing.assert_allclose(grids.karras(12, rho=1e6)(SCHEDULES[name]).logsnr[:-1], levels.logsnr[:-1], atol=1e-3)


@pytest.mark.parametrize('name', SCHEDULES)
@pytest.mark.parametrize('rho', [.5, 1., 3.])
def test_polyexponential_raises_the_ramp_in_log_sigma_to_a_power(name, rho):
  sigma = noise_ratio(grids.polyexponential(9, rho)(SCHEDULES[name]))
  share = np.log(sigma / sigma[-1]) / np.log(sigma[0] / sigma[-1])
  np.testing.assert_allclose(share, (np.arange(8, -1, -1) / 8) ** rho, atol=1e-9)
  same = grids.exponential(9)(SCHEDULES[name])
  np.testing.assert_allclose(grids.polyexponential(9)(SCHEDULES[name]).sigma, same.sigma, rtol=1e-9)


@pytest.mark.parametrize('name', SCHEDULES)
def test_cosine_has_equal_angles_and_may_begin_without_signal(name):
  levels = grids.cosine(12)(SCHEDULES[name])
  angles = np.diff(np.arctan2(levels.sigma, levels.alpha)[:-1])
  np.testing.assert_allclose(angles, angles[0], rtol=1e-9)


def test_cosine_visits_any_schedule_at_the_levels_of_the_circle_at_even_times():
  actual = grids.cosine(7, sigma_min=np.tan(np.pi / 16).item())(schedules.flow())
  circle = schedules.evaluate(ANY_TIME, np.linspace(1, 1 / 8, 7)[1:])
  np.testing.assert_allclose(actual.logsnr[1:-1], circle.logsnr, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('grid', IN_NOISE)
def test_a_schedule_without_signal_at_its_end_is_cut_one_row_cleaner_except_where_the_formula_needs_no_cut(grid):
  table = zero_terminal(schedules.scaled_linear())
  first = 0 if grid is grids.cosine else table.alpha[-2]
  assert grid(10)(table).alpha[0] == pytest.approx(first, rel=1e-12)
  assert grid(10)(schedules.flow()).sigma[0] == pytest.approx(1 if grid is grids.cosine else .999, rel=1e-12)


@pytest.mark.parametrize('grid',
                         [grids.karras(12, snap=True), grids.exponential(12, snap=True), grids.cosine(12, snap=True),
                                  grids.sigmas([100, 3, .5, .02], snap=True)])
@pytest.mark.parametrize('table',
                         [schedules.linear(), schedules.edm(T=200, sigma_max=200.), zero_terminal(schedules.linear())])
def test_snapping_takes_rows_of_the_table_and_the_nearest(grid, table):
  snapped = grid(table)
  index = np.searchsorted(-table.logsnr, -snapped.logsnr[:-1])
  for field, column in zip(snapped, table):
    np.testing.assert_array_equal(field[:-1], column[index])
  if len(index) == 4:  # the list of sigmas: no other row is nearer by more than the bend between two rows
    u = np.exp(-table.logsnr / 2)
    nearest = [np.argmin(np.abs(np.log(u / s))) for s in (100, 3, .5, .02)]
    np.testing.assert_array_equal(index, nearest)


def test_snapping_does_nothing_to_a_curve_and_crowded_rows_are_refused():
  for field, plain in zip(grids.karras(9, snap=True)(schedules.flow()), grids.karras(9)(schedules.flow())):
    np.testing.assert_array_equal(field, plain)
  grids.karras(90)(schedules.linear(T=100))  # between the rows there is room
  with pytest.raises(InputError, match='fewer steps'):
    grids.karras(90, snap=True)(schedules.linear(T=100))


def test_sigmas_are_visited_as_listed_in_every_scaling():
  for schedule in (schedules.linear(), schedules.flow(), schedules.edm()):
    np.testing.assert_allclose(noise_ratio(grids.sigmas([70, 10, 1, .1])(schedule)), [70, 10, 1, .1], rtol=1e-12)


@pytest.mark.parametrize('call, message', [
  (lambda: grids.trailing(0), 'at least 1'),
  (lambda: grids.trailing(2.5), '2.5'),
  (lambda: grids.trailing(1001)(schedules.linear()), 'at most 1000'),
  (lambda: grids.karras(True), 'True'),
  (lambda: grids.karras(rho=0), 'rho=0'),
  (lambda: grids.exponential(5, sigma_min=-1.), 'sigma_min=-1.0'),
  (lambda: grids.beta(5, a='x'), "a='x'"),
  (lambda: grids.shifted(5, ratio=0.), 'ratio=0.0'),
  (lambda: grids.beta(900)(schedules.linear()), 'beta(900): two steps'),
  (lambda: grids.polyexponential(rho=-1.), 'rho=-1.0'),
  (lambda: grids.sections('ddim300')(schedules.linear()), "sections('ddim300'): no whole stride visits 300 of 1000"),
  (lambda: grids.sections('10,x'), "sections('10,x'): expected numbers of steps"),
  (lambda: grids.sections('ddim'), "'ddim25' or 'fast27'"), (lambda: grids.sections('ddim5,5'), "'ddim5,5'"),
  (lambda: grids.sections(2.5), 'sections(2.5)'), (lambda: grids.sections(0), 'sections(0)'),
  (lambda: grids.sections([10, -1]), '[10, -1]'), (lambda: grids.sections(True), 'sections(True)'),
  (lambda: grids.sections('5,30')(schedules.linear(T=50)), '30 steps of a part of 25 levels'),
  (lambda: grids.times([]), 'list of numbers'),
  (lambda: grids.times([1.2, .5]), 'at most 1'),
  (lambda: grids.times('fast'), "'fast'"),
  (lambda: grids.times([.5, .7])(schedules.flow()), 'from noise to clean'),
  (lambda: grids.times([.5, .4999])(schedules.linear()), 'two steps'),
  (lambda: grids.sigmas([1, [2]]), 'list of numbers'),
  (lambda: grids.sigmas([1., 0.]), 'above 0'),
  (lambda: grids.sigmas([1., 2.])(schedules.linear()), 'later one is noisier'),
  (lambda: grids.sigmas([500., 2.])(schedules.linear()), '(sigma/alpha 500) is outside'),
  (lambda: grids.karras(5, sigma_max=81.)(schedules.edm()), '(sigma/alpha 81) is outside'),
  (lambda: grids.karras(5, sigma_min=3., sigma_max=2.)(schedules.edm()), 'later one is noisier'),
])
def test_bad_input_is_named(call, message):
  with pytest.raises(InputError) as caught:
    call()
  assert message in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('S', [1, 2, 7, 40])
def test_angle_is_trailing_on_the_circle_and_ends_there(S):
  circle, own = schedules.cosine(None, s=0.), schedules.edm()
  # the curve is cut at log-SNR -20
  np.testing.assert_allclose(grids.angle(S)(circle).logsnr[1:], grids.trailing(S)(circle).logsnr[1:], atol=4e-3)
  levels = grids.angle(S)(own)
  np.testing.assert_allclose(np.diff(np.arctan2(levels.sigma, levels.alpha)), -np.arctan(80.) / S, rtol=1e-9)


def test_angle_says_how_many_steps_a_schedule_allows():
  with pytest.raises(InputError, match='angle.5.: .*cleaner than the schedule.* at most 4 steps'):
    grids.angle(5)(schedules.offset_cosine())
  assert len(grids.angle(4)(schedules.offset_cosine()).time) == 5
