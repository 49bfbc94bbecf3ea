"""Schedules against independent extended-precision computations and closed forms; `at_logsnr` inverts `evaluate`."""
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from diffusion.core import schedules
from diffusion.core.gaussian import CLEAN, flow, Noise, q_sample, take, ve, vp
from diffusion.core.schedule_transforms import shift, sub_vp, zero_terminal
from diffusion.errors import InputError

CURVES = {
  'linear': schedules.linear(None), 'scaled_linear': schedules.scaled_linear(None), 'cosine': schedules.cosine(None),
  'offset_cosine': schedules.offset_cosine(), 'sigmoid': schedules.sigmoid(), 'laplace': schedules.laplace(),
  'polynomial': schedules.polynomial(None), 'flow': schedules.flow(), 'cosine_flow': schedules.cosine_flow(),
  'edm': schedules.edm(), 'sub_vp': sub_vp(schedules.linear(None)), 'shifted flow': shift(schedules.flow(), 3.),
}
TABLES = {
  'linear': schedules.linear(), 'linear 100': schedules.linear(T=100), 'cosine': schedules.cosine(T=50),
  'variance': schedules.offset_cosine(T=30, told='variance'), 'flow': schedules.flow(T=64), 'edm': schedules.edm(T=40),
  'laplace': schedules.laplace(T=20), 'sub_vp': sub_vp(schedules.linear(T=80)), 'one row': schedules.from_betas([.3]),
  'zero_terminal': zero_terminal(schedules.scaled_linear()), 'shifted': shift(schedules.polynomial(T=30), .5),
}


def long_alpha_bar(betas):
  return np.cumprod(1 - np.asarray(betas, np.longdouble))


def cosine_betas(T):
  t = np.arange(T + 1, dtype=np.longdouble) / T
  bar = np.cos((t + np.longdouble('0.008')) / np.longdouble('1.008') * np.longdouble(np.pi) / 2) ** 2
  return np.minimum(1 - bar[1:] / bar[:-1], np.longdouble('0.999'))


@pytest.mark.parametrize('table, betas', [
  (schedules.linear(), np.linspace(1e-4, .02, 1000)),
  (schedules.linear(T=250), np.linspace(4e-4, .08, 250)),
  (schedules.scaled_linear(), np.linspace(.00085 ** .5, .012 ** .5, 1000) ** 2),
  (schedules.scaled_linear(T=100), 10 * np.linspace(.00085 ** .5, .012 ** .5, 100) ** 2),
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


@pytest.mark.parametrize('make, limit', [(schedules.linear, .02), (schedules.scaled_linear, .005)])
def test_tables_of_betas_converge_to_their_continuous_limit_as_levels_grow(make, limit):
  t = np.linspace(.1, 1, 7)
  def gap(T):
    return np.max(np.abs(schedules.evaluate(make(T), t).logsnr - schedules.evaluate(make(None), t).logsnr))
  assert gap(10_000) < limit
  assert gap(1000) / gap(10_000) == pytest.approx(10, rel=.2)


@pytest.mark.parametrize('t', [.05, .4, 1.])
def test_scaled_linear_limit_integrates_its_rate(t):
  rate = lambda s: 1000 * (.00085 ** .5 * (1 - s) + .012 ** .5 * s) ** 2
  total = integrate.quad(rate, 0, t, epsabs=0, epsrel=1e-12)[0]
  assert -2 * np.log(schedules.scaled_linear(None)(np.array(t)).alpha) == pytest.approx(total, rel=1e-10)


def test_vp_sde_has_the_signal_rate_of_song_et_al():
  t = np.array([.05, .3, 1.])
  expected = np.exp(-.25 * t ** 2 * (20 - .1) - .5 * t * .1)  # arXiv:2011.13456, equation 33
  np.testing.assert_allclose(schedules.linear(None)(t).alpha, expected, rtol=1e-12)


def test_offset_cosine_runs_between_its_signal_rates_along_a_circle():
  level = schedules.offset_cosine()(np.array([0., .25, 1.]))
  np.testing.assert_allclose(level.alpha[[0, 2]], [.95, .02], rtol=1e-12)
  angles = np.arctan2(level.sigma, level.alpha)
  np.testing.assert_allclose(angles[1], .75 * angles[0] + .25 * angles[2], rtol=1e-12)
  level = schedules.offset_cosine(told='variance')(np.array([.3]))
  np.testing.assert_allclose(level.time, 1000 * level.sigma ** 2, rtol=1e-12)


def test_sigmoid_is_the_gamma_of_its_paper():
  t = np.array([.1, .5, .8])
  sig = lambda x: 1 / (1 + np.exp(-x))
  gamma = (sig(3) - sig(t * 6 - 3)) / (sig(3) - sig(-3))
  np.testing.assert_allclose(schedules.sigmoid()(t).alpha ** 2, gamma, rtol=1e-12)


@pytest.mark.parametrize('mu, b', [(0., .5), (-1., 2.)])
def test_logsnr_of_laplace_at_uniform_times_follows_the_law(mu, b):
  t = np.array([1e-4, .01, .3, .5, .8, .999])
  logsnr = schedules.laplace(mu=mu, b=b)(t).logsnr
  np.testing.assert_allclose(stats.laplace(mu, b).sf(logsnr), t, rtol=1e-12)


@pytest.mark.parametrize('power, precision', [(2., 1e-5), (3., 1e-4)])
def test_polynomial_has_the_alpha_of_its_paper_to_full_precision_at_both_ends(power, precision):
  t = np.arange(1, 1001, dtype=np.longdouble) / 1000
  s = np.longdouble(precision)
  alpha = (1 - 2 * s) * (1 - t ** np.longdouble(power)) + s
  table = schedules.polynomial(1000, power, precision)
  np.testing.assert_allclose(table.alpha, alpha.astype(float), rtol=1e-9)
  np.testing.assert_allclose(table.sigma, np.sqrt(1 - alpha ** 2).astype(float), rtol=1e-12)
  assert schedules.polynomial(None)(np.array(0.)).alpha == pytest.approx(1 - 1e-5, rel=1e-12)


def test_cosine_without_offset_is_the_trigonometric_interpolant_and_cosine_flow_its_straight_twin():
  t = np.linspace(.01, .99, 9)
  circle, straight = schedules.cosine(None, s=0.)(t), schedules.cosine_flow()(t)
  np.testing.assert_allclose(circle.alpha, np.cos(np.pi * t / 2), rtol=1e-9)
  np.testing.assert_allclose(circle.sigma, np.sin(np.pi * t / 2), rtol=1e-9)
  # CosMap, arXiv:2403.03206
  np.testing.assert_allclose(straight.sigma, 1 - 1 / (np.tan(np.pi / 2 * t) + 1), rtol=1e-12)
  np.testing.assert_allclose(straight.logsnr, circle.logsnr, rtol=1e-9, atol=1e-9)
  ends = schedules.cosine_flow()(np.array([0., 1.]))
  assert ends.alpha.tolist() == [1, 0] and ends.sigma.tolist() == [0, 1] and ends.logsnr.tolist() == [np.inf, -np.inf]


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
  (vp, lambda n: n.alpha ** 2 + n.sigma ** 2), (ve, lambda n: n.alpha), (flow, lambda n: n.alpha + n.sigma),
  (schedules.sub_vp_scaling, lambda n: n.alpha ** 2 + n.sigma)])
def test_scalings_keep_their_law_and_the_snr_up_to_the_ends(scaling, law):
  logsnr = np.array([-np.inf, -30., -3., 0., 2., 25.])
  if scaling is ve:
    logsnr = logsnr[1:]
  level = scaling(0., logsnr)
  np.testing.assert_allclose(law(level), 1, rtol=1e-14)
  np.testing.assert_allclose(2 * np.log(level.alpha[1:] / level.sigma[1:]), logsnr[1:], rtol=1e-12, atol=1e-12)
  clean = scaling(0., np.array(np.inf))
  assert (clean.alpha, clean.sigma) == (CLEAN.alpha, CLEAN.sigma)


@pytest.mark.parametrize('name', CURVES)
def test_traced_float32_curves_agree_with_float64(name):
  schedule = CURVES[name]
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


# ---- level
@pytest.mark.parametrize('name', CURVES)
def test_level_inverts_a_curve_both_ways(name):
  curve = CURVES[name]
  expected = curve(np.array([.003, .02, .3, .5, .77, .95, .9985]))
  for actual, field in zip(schedules.at_logsnr(curve, expected.logsnr), expected):
    np.testing.assert_allclose(actual, field, rtol=1e-9, atol=1e-9)
  expected_logsnr = np.linspace(*curve(np.array([.9999, .0001])).logsnr, 41)
  actual = schedules.at_logsnr(curve, expected_logsnr)
  start, end = curve(np.array([0., 1.])).time  # what these tell is linear in t
  np.testing.assert_allclose(schedules.evaluate(curve, (actual.time - start) / (end - start)).logsnr, expected_logsnr,
                             rtol=0, atol=1e-9)
  np.testing.assert_array_equal(actual.logsnr, expected_logsnr)


@pytest.mark.parametrize('name', CURVES)
def test_level_gives_the_times_of_both_ends_infinite_and_flat_ones_included(name):
  ends = schedules.evaluate(CURVES[name], [0., 1.])
  actual = schedules.at_logsnr(CURVES[name], ends.logsnr)
  assert actual.time.tolist() == ends.time.tolist() and actual.logsnr.tolist() == ends.logsnr.tolist()
  np.testing.assert_allclose([actual.alpha, actual.sigma], [ends.alpha, ends.sigma], rtol=1e-9)


def test_level_of_a_straight_path_is_known():
  logsnr = np.array([-np.inf, -30., -8., 0., 8., 80., np.inf])
  sigma = 1 / (1 + np.exp(logsnr / 2))
  actual = schedules.at_logsnr(schedules.flow(), logsnr)
  np.testing.assert_allclose(actual.time, 1000 * sigma, rtol=1e-12, atol=0)
  np.testing.assert_allclose(actual.sigma, sigma, rtol=1e-12)
  assert schedules.at_logsnr(schedules.flow(), 0.).time == pytest.approx(500, rel=1e-14)  # one level, no array


@pytest.mark.parametrize('name', TABLES)
def test_level_gives_the_rows_of_a_table_and_keeps_its_law_between_them(name):
  table = TABLES[name]
  for actual, row in zip(schedules.at_logsnr(table, table.logsnr), table):
    np.testing.assert_allclose(actual, row, rtol=1e-12, atol=1e-12)
  between = (table.logsnr[1:] + table.logsnr[:-1]) / 2
  between = between[np.isfinite(between)]
  actual, rows = schedules.at_logsnr(table, between), len(between)
  if name != 'variance':  # times are evenly spaced: half-way in log-SNR is half-way in time
    np.testing.assert_allclose(actual.time, (table.time[:-1] + table.time[1:])[:rows] / 2, rtol=1e-9)
  law = {'flow': actual.alpha + actual.sigma, 'edm': actual.alpha, 'sub_vp': actual.alpha ** 2 + actual.sigma}
  np.testing.assert_allclose(law.get(name, actual.alpha ** 2 + actual.sigma ** 2), 1, rtol=1e-12)
  np.testing.assert_allclose(2 * np.log(actual.alpha / actual.sigma), between, rtol=1e-9, atol=1e-9)


def test_level_next_to_a_row_without_signal_is_told_a_time_in_proportion_to_its_signal():
  table = TABLES['zero_terminal']
  share = np.array([.9, .5, .01])
  alpha = share * table.alpha[-2]
  actual = schedules.at_logsnr(table, np.log(alpha ** 2 / (1 - alpha ** 2)))
  np.testing.assert_allclose(actual.time, 999 - share, rtol=1e-9)
  np.testing.assert_allclose(actual.alpha, alpha, rtol=1e-9)


@pytest.mark.parametrize('schedule', [schedules.linear(), schedules.cosine(None), schedules.edm()])
def test_level_refuses_what_no_time_has_but_forgives_rounding(schedule):
  last, first = schedules.evaluate(schedule, [1., 0.]).logsnr
  for beyond in (first + .1, last - .1, np.inf, -np.inf, np.nan):
    with pytest.raises(InputError, match='log-SNR .* outside .*, which runs from'):
      schedules.at_logsnr(schedule, [0., beyond])
  assert schedules.at_logsnr(schedule, np.float32([last, first])).logsnr == pytest.approx([last, first], rel=1e-6)
  assert schedules.at_logsnr(schedule, np.array([first + 5e-6])).time == schedules.evaluate(schedule, 0.).time


def test_a_schedule_of_no_known_scaling_is_named():
  def strange(t):
    t = np.clip(t, .001, .999)
    return Noise(1000 * t, 2 * (1 - t), t, 2 * np.log(2 * (1 - t) / t))
  with pytest.raises(InputError, match='known scaling .VP, VE, flow, sub-VP.'):
    schedules.at_logsnr(strange, 0.)


@pytest.mark.parametrize('call, message', [
  (lambda: schedules.from_betas([.1, 1.2]), 'inside (0, 1)'),
  (lambda: schedules.linear(T=10), 'T >= 21'),
  (lambda: schedules.scaled_linear(T=10), 'T >= 13'),
  (lambda: schedules.scaled_linear(start=-.1), 'above 0'),
  (lambda: schedules.laplace(b=0.), 'b > 0'),
  (lambda: schedules.polynomial(precision=.5), 'precision < 0.5'),
  (lambda: schedules.cosine(T=0), 'T=0'),
  (lambda: schedules.offset_cosine(min_signal=.9, max_signal=.1), 'min_signal < max_signal'),
  (lambda: schedules.offset_cosine(told='noise'), "told='noise'"),
  (lambda: schedules.sigmoid(tau=0), 'tau'),
  (lambda: schedules.edm(sigma_min=-1), 'sigma_min'),
])
def test_bad_input_is_named(call, message):
  with pytest.raises(InputError, match='(?s).*' + message.replace('(', r'\(').replace(')', r'\)')):
    call()
