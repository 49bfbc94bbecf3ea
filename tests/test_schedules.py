"""Schedules and grids against independent extended-precision computations and published closed forms."""
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import grids, schedules
from diffusion.errors import InputError
from diffusion.noise import CLEAN, flow, q_sample, take, ve, vp

CONTINUOUS = [schedules.linear(None), schedules.cosine(None), schedules.offset_cosine(), schedules.sigmoid(), schedules.flow(),
              schedules.edm()]
TABLES = [schedules.linear(), schedules.cosine(), schedules.linear(T=100), schedules.offset_cosine(T=50), schedules.flow(T=64)]
GRIDS = [grids.trailing, grids.leading, grids.linspace]


def long_alpha_bar(betas):
  return np.cumprod(1 - np.asarray(betas, np.longdouble))


def cosine_betas(T):
  t = np.arange(T + 1, dtype=np.longdouble) / T
  bar = np.cos((t + np.longdouble('0.008')) / np.longdouble('1.008') * np.longdouble(np.pi) / 2) ** 2
  return np.minimum(1 - bar[1:] / bar[:-1], np.longdouble('0.999'))


@pytest.mark.parametrize('table, betas', [
  (schedules.linear(), np.linspace(1e-4, .02, 1000)),
  (schedules.linear(T=250), np.linspace(4e-4, .08, 250)),
  (schedules.cosine(), cosine_betas(1000)),
  (schedules.cosine(T=37), cosine_betas(37)),
  (schedules.from_betas([.1, .5, .9]), [.1, .5, .9]),
])
def test_tables_agree_with_products_of_one_minus_beta_in_long_double(table, betas):
  bar = long_alpha_bar(betas)
  np.testing.assert_allclose(table.alpha ** 2, bar.astype(float), rtol=1e-9)
  np.testing.assert_allclose(table.sigma ** 2, (1 - bar).astype(float), rtol=1e-9)
  np.testing.assert_allclose(table.logsnr, np.log(bar / (1 - bar)).astype(float), rtol=1e-8, atol=1e-9)
  for wide in table:
    np.testing.assert_allclose(np.float32(wide), wide, rtol=1e-6)


def test_published_values_of_the_ddpm_schedule():
  table = schedules.linear()
  assert table.alpha[-1] ** 2 == pytest.approx(4.0358e-5, rel=1e-4)  # alpha_bar_T of DDPM's linear schedule
  assert table.sigma[0] ** 2 == pytest.approx(1e-4, rel=1e-12)      # beta_1
  assert (table.time[0], table.time[-1]) == (0, 999)


def test_linear_table_converges_to_the_vp_sde_as_levels_grow():
  t = np.linspace(.1, 1, 7)
  def gap(T):
    return np.max(np.abs(schedules.at(schedules.linear(T), t).logsnr - schedules.at(schedules.linear(None), t).logsnr))
  assert gap(10_000) < .02
  assert gap(1000) / gap(10_000) == pytest.approx(10, rel=.2)


def test_vp_sde_has_the_signal_rate_of_song_et_al():
  t = np.array([.05, .3, 1.])
  expected = np.exp(-.25 * t ** 2 * (20 - .1) - .5 * t * .1)  # arXiv:2011.13456, equation 33
  np.testing.assert_allclose(schedules.linear(None)(t).alpha, expected, rtol=1e-12)


def test_offset_cosine_runs_between_its_signal_rates_along_a_circle():
  level = schedules.offset_cosine()(np.array([0., .25, 1.]))
  np.testing.assert_allclose(level.alpha[[0, 2]], [.95, .02], rtol=1e-12)
  angles = np.arctan2(level.sigma, level.alpha)
  np.testing.assert_allclose(angles[1], .75 * angles[0] + .25 * angles[2], rtol=1e-12)
  told = schedules.offset_cosine(told='variance')(np.array([.3]))
  np.testing.assert_allclose(told.time, 1000 * told.sigma ** 2, rtol=1e-12)


def test_sigmoid_is_the_gamma_of_its_paper():
  t = np.array([.1, .5, .8])
  sig = lambda x: 1 / (1 + np.exp(-x))
  gamma = (sig(3) - sig(t * 6 - 3)) / (sig(3) - sig(-3))
  np.testing.assert_allclose(schedules.sigmoid()(t).alpha ** 2, gamma, rtol=1e-12)


def test_flow_is_a_straight_path_exact_at_both_ends():
  t = np.array([0., .25, 1.])
  level = schedules.flow()(t)
  np.testing.assert_allclose(level.alpha, 1 - t, atol=1e-15)
  np.testing.assert_allclose(level.sigma, t, atol=1e-15)


def test_edm_is_told_a_quarter_of_log_sigma():
  level = schedules.edm()(np.array([0., 1.]))
  np.testing.assert_allclose(level.sigma, [.002, 80.], rtol=1e-12)
  np.testing.assert_allclose(level.time, 250 * np.log([.002, 80.]), rtol=1e-12)


@pytest.mark.parametrize('scaling, law', [
  (vp, lambda n: n.alpha ** 2 + n.sigma ** 2), (ve, lambda n: n.alpha), (flow, lambda n: n.alpha + n.sigma)])
def test_scalings_keep_their_law_and_the_snr_up_to_the_ends(scaling, law):
  logsnr = np.array([-np.inf, -30., -3., 0., 2., 25.])
  if scaling is ve:
    logsnr = logsnr[1:]
  level = scaling(0., logsnr)
  np.testing.assert_allclose(law(level), 1, rtol=1e-14)
  np.testing.assert_allclose(2 * np.log(level.alpha[1:] / level.sigma[1:]), logsnr[1:], rtol=1e-12, atol=1e-12)
  clean = scaling(0., np.array(np.inf))
  assert (clean.alpha, clean.sigma) == (CLEAN.alpha, CLEAN.sigma)


@pytest.mark.parametrize('schedule', CONTINUOUS)
def test_traced_float32_curves_agree_with_float64(schedule):
  t = np.linspace(.001, .999, 50)
  for wide, narrow in zip(schedule(t), schedule(jnp.asarray(t, jnp.float32))):
    np.testing.assert_allclose(narrow, wide, rtol=2e-3, atol=2e-4)  # near t = 1, float32 knows 1 - t to 6e-5 relative


def test_q_sample_has_the_mean_and_variance_of_the_chain():
  rng = np.random.default_rng(0)
  betas, x0 = np.array([.1, .2, .4]), 1.5
  x = np.full(200_000, x0)
  for beta in betas:  # the chain, one step at a time
    x = np.sqrt(1 - beta) * x + np.sqrt(beta) * rng.standard_normal(x.shape)
  level = take(schedules.from_betas(betas), 2)
  drawn = q_sample(jnp.full(200_000, x0), level, jnp.asarray(rng.standard_normal(200_000), jnp.float32))
  assert float(drawn.mean()) == pytest.approx(x.mean(), abs=.01)
  assert float(drawn.var()) == pytest.approx(x.var(), rel=.02)


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('schedule', TABLES + CONTINUOUS)
def test_every_number_of_steps_gives_a_strictly_monotone_grid_that_ends_clean(grid, schedule):
  most = 1000 if callable(schedule) else len(schedule.logsnr)
  for S in sorted({1, 2, 3, 7, 10, 13, 37, most - 1, most} & set(range(1, most + 1))):
    if schedule is CONTINUOUS[1] and S > 900:
      continue  # the clipped end of the continuous cosine has fewer distinct levels
    levels = grid(S)(schedule)
    assert len(levels.logsnr) == S + 1 and levels.logsnr.dtype == np.float64
    assert np.all(np.diff(levels.logsnr) > 0)
    assert take(levels, -1) == CLEAN


def test_grids_visit_the_published_rows():
  rows = lambda grid: grid(schedules.linear())[0][:-1].astype(int).tolist()
  # arXiv:2305.08891, table 2, numbers from 1 there and from 0 here
  assert rows(grids.trailing(10)) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
  assert rows(grids.leading(10)) == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
  assert rows(grids.linspace(10)) == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]


@pytest.mark.parametrize('call, message', [
  (lambda: schedules.from_betas([.1, 1.2]), 'inside (0, 1)'),
  (lambda: schedules.linear(T=10), 'T >= 21'),
  (lambda: schedules.cosine(T=0), 'T=0'),
  (lambda: schedules.offset_cosine(min_signal=.9, max_signal=.1), 'min_signal < max_signal'),
  (lambda: schedules.offset_cosine(told='noise'), "told='noise'"),
  (lambda: schedules.sigmoid(tau=0), 'tau'),
  (lambda: schedules.edm(sigma_min=-1), 'sigma_min'),
  (lambda: grids.trailing(0), 'at least 1'),
  (lambda: grids.trailing(2.5), '2.5'),
  (lambda: grids.trailing(1001)(schedules.linear()), 'at most 1000'),
])
def test_bad_input_is_named(call, message):
  with pytest.raises(InputError, match='(?s).*' + message.replace('(', r'\(').replace(')', r'\)')):
    call()
