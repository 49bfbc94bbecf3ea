"""Schedules made of schedules, against the formulas of their papers in extended precision and against each other."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import schedules
from diffusion.core.schedule_transforms import shift, sub_vp, zero_terminal
from diffusion.errors import InputError

T = np.array([.01, .2, .5, .9, .99])


def test_shift_of_a_vp_schedule_is_that_of_simple_diffusion():
  plain, shifted = schedules.cosine(None)(T), shift(schedules.cosine(None), 512 / 64)(T)
  # arXiv:2301.11093, eq. 4
  np.testing.assert_allclose(shifted.logsnr, plain.logsnr + 2 * np.log(64 / 512), rtol=1e-12)
  np.testing.assert_allclose(shifted.alpha ** 2 + shifted.sigma ** 2, 1, rtol=1e-12)
  np.testing.assert_array_equal(shifted.time, plain.time)


@pytest.mark.parametrize('ratio', [.5, 1., 3.])
def test_shift_of_a_straight_path_moves_its_time_as_in_stable_diffusion_3(ratio):
  shifted = shift(schedules.flow(), ratio)(np.array([0., *T, 1.]))
  t = np.array([0., *T, 1.])
  np.testing.assert_allclose(shifted.sigma, ratio * t / (1 + (ratio - 1) * t), rtol=1e-12)  # arXiv:2403.03206, eq. 23
  np.testing.assert_allclose(shifted.alpha, 1 - shifted.sigma, rtol=1e-12, atol=1e-15)
  np.testing.assert_array_equal(shifted.time, 1000 * t)


@pytest.mark.parametrize('schedule', [schedules.linear(T=50), schedules.flow(T=20), sub_vp(schedules.cosine(T=30)),
                                      schedules.edm(T=10),
                                      schedules.laplace(), zero_terminal(schedules.linear(T=40))])
def test_shift_multiplies_the_ratio_of_noise_and_signal_and_can_be_undone(schedule):
  plain = schedules.evaluate(schedule, T)
  moved = schedules.evaluate(shift(schedule, 2.5), T)
  np.testing.assert_allclose(moved.sigma * plain.alpha, 2.5 * plain.sigma * moved.alpha, rtol=1e-12, atol=1e-15)
  for back, field in zip(schedules.evaluate(shift(shift(schedule, 2.5), 1 / 2.5), T), plain):
    np.testing.assert_allclose(back, field, rtol=1e-9, atol=1e-12)


def test_a_shifted_edm_schedule_has_shifted_ends():
  shifted = shift(schedules.edm(sigma_min=.01, sigma_max=10.), 4.)(T)
  other = schedules.edm(sigma_min=.04, sigma_max=40.)(T)
  np.testing.assert_allclose(shifted.sigma, other.sigma, rtol=1e-12)


@pytest.mark.parametrize('curve', [shift(schedules.flow(), 3.), sub_vp(schedules.scaled_linear(None))])
def test_transformed_curves_can_be_traced(curve):
  for wide, narrow in zip(curve(T), jax.jit(curve)(jnp.asarray(T, jnp.float32))):
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, rtol=1e-4, atol=1e-5)


def test_sub_vp_has_the_marginals_of_song_et_al():
  level = sub_vp(schedules.linear(None))(T)
  total = .5 * T ** 2 * (20 - .1) + T * .1  # the integral of beta, arXiv:2011.13456, equations 29 and 33
  np.testing.assert_allclose(level.alpha, np.exp(-.5 * total), rtol=1e-12)
  np.testing.assert_allclose(level.sigma, -np.expm1(-total), rtol=1e-12)


def test_sub_vp_table_keeps_alpha_and_squares_sigma_to_full_precision_at_both_ends():
  table, plain = sub_vp(schedules.linear()), schedules.linear()
  np.testing.assert_allclose(table.alpha, plain.alpha, rtol=1e-12)
  np.testing.assert_allclose(table.sigma, plain.sigma ** 2, rtol=1e-12)
  assert np.all(np.diff(table.logsnr) < 0)


@pytest.mark.parametrize('table', [schedules.scaled_linear(), schedules.linear(T=37), schedules.cosine(T=10)])
def test_zero_terminal_is_the_algorithm_of_its_paper_in_long_double(table):
  bar = 1 / (1 + np.exp(-table.logsnr.astype(np.longdouble)))
  alpha = np.sqrt(bar)
  alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])  # arXiv:2305.08891, algorithm 1
  done = zero_terminal(table)
  np.testing.assert_allclose(done.alpha, alpha.astype(float), rtol=1e-12, atol=1e-15)
  np.testing.assert_allclose(done.sigma, np.sqrt(1 - alpha ** 2).astype(float), rtol=1e-10)
  np.testing.assert_allclose(done.logsnr[:-1], np.log(alpha[:-1] ** 2 / (1 - alpha[:-1] ** 2)).astype(float),
                             rtol=1e-9, atol=1e-9)
  assert (done.alpha[-1], done.sigma[-1], done.logsnr[-1]) == (0, 1, -np.inf)
  for field, before in zip(done, table):
    assert field[0] == pytest.approx(before[0], rel=1e-13)
  np.testing.assert_array_equal(done.time, table.time)


def test_zero_terminal_leaves_a_table_that_ends_without_signal_as_it_is():
  once = zero_terminal(schedules.linear())
  for twice, field in zip(zero_terminal(once), once):
    np.testing.assert_allclose(twice, field, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('call, message', [
  (lambda: zero_terminal(schedules.linear(None)), 'table of at least 2 rows'),
  (lambda: zero_terminal(schedules.from_betas([.1])), 'table of at least 2 rows'),
  (lambda: zero_terminal(schedules.flow(T=10)), 'variance-preserving'),
  (lambda: sub_vp(schedules.edm()), 'variance-preserving'),
  (lambda: shift(schedules.flow(), 0), 'ratio=0'),
  (lambda: shift(schedules.flow(), 'big'), "ratio='big'"),
])
def test_bad_input_is_named(call, message):
  with pytest.raises(InputError, match=message):
    call()
