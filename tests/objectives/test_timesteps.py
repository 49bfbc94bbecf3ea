"""How times are drawn: the distributions that were asked for, and what must not change them."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion.core import lookup, schedules
from diffusion.errors import InputError
from diffusion.objectives import timesteps

KEY = jax.random.key(0)


def test_uniform_and_stratified_times_are_uniform_and_the_second_spread_evenly():
  for draw in (timesteps.uniform(), timesteps.stratified()):
    drawn = jax.jit(lambda seed: draw(jax.random.key(seed), 64))
    u = np.concatenate([drawn(i) for i in range(200)])
    assert 0 <= u.min() and u.max() < 1
    assert np.histogram(u, 8, (0, 1))[0] / len(u) == pytest.approx(np.full(8, 1 / 8), abs=.015)
  u = np.asarray(timesteps.stratified()(KEY, 64))
  np.testing.assert_array_equal(np.histogram(u, 32, (0, 1))[0], np.full(32, 2))  # two in each 32nd


def test_table_times_follow_their_histogram():
  u = np.asarray(timesteps.histogram([1, 0, 3])(KEY, 30_000))
  np.testing.assert_allclose(np.histogram(u, 3, (0, 1))[0] / 30_000, [.25, 0, .75], atol=.01)


def test_draws_from_a_table_cover_its_rows_and_curves_stay_finite():
  levels = lambda schedule, n: jax.jit(lambda key: timesteps.draw_levels(timesteps.uniform(), schedule)(key, n))(KEY)
  rows = np.asarray(levels(schedules.linear(T=50), 20_000).time)
  np.testing.assert_allclose(np.bincount(rows.astype(int), minlength=50), 400, atol=120)
  for curve in (schedules.flow(), schedules.cosine(None), schedules.linear(None), schedules.sigmoid()):
    assert np.isfinite(levels(curve, 10_000).logsnr).all()


@pytest.mark.parametrize('mean, std', [(0., 1.), (.5, .6)])
def test_logit_normal_times(mean, std):
  u = np.asarray(jax.jit(timesteps.logit_normal(mean, std), static_argnums=1)(KEY, 20_000), np.float64)
  assert 0 < u.min() and u.max() < 1
  assert stats.kstest(np.log(u / (1 - u)), stats.norm(mean, std).cdf).pvalue > .01


@pytest.mark.parametrize('schedule',
                         [schedules.edm(), schedules.cosine(None), schedules.flow(), schedules.linear(None)],
                         ids=['edm', 'cosine', 'flow', 'linear'])
def test_edm_times_have_a_normal_log_sigma_on_any_curve(schedule):
  draw = jax.jit(timesteps.draw_levels(timesteps.edm_lognormal(-.4, .9, schedule=schedule), schedule),
                 static_argnums=1)
  noise = draw(KEY, 20_000)
  log_sigma = np.log(np.asarray(noise.sigma, np.float64) / np.asarray(noise.alpha, np.float64))
  assert stats.kstest(log_sigma, stats.norm(-.4, .9).cdf).pvalue > .01


def test_edm_times_on_a_table_are_its_nearest_rows():
  table = schedules.cosine(40)
  draw = timesteps.draw_levels(timesteps.edm_lognormal(-.4, .9, schedule=table), table)
  rows = np.asarray(jax.jit(lambda key: draw(key, 40_000).time)(KEY)).astype(int)
  middles = np.concatenate([[-np.inf], (table.logsnr[1:] + table.logsnr[:-1]) / -4, [np.inf]])  # in log sigma, rising
  np.testing.assert_allclose(np.bincount(rows, minlength=40) / 40_000, np.diff(stats.norm(-.4, .9).cdf(middles)),
                             atol=.006)


# ---- k-diffusion's distributions, by their quantiles
LOW, HIGH = .01, 50.


def cut(law, u):
  """Quantiles of a law of log sigma between the two ends."""
  first, last = law.cdf(np.log([LOW, HIGH]))
  return law.ppf(first + u * (last - first))


class HalfNormals:
  """Of the logarithm: std a below the mean, std b above, by SciPy's half-normal."""
  def __init__(self, mean, a, b):
    self.mean, self.a, self.b = mean, a, b

  def ppf(self, u):
    share = self.a / (self.a + self.b)
    with np.errstate(invalid='ignore'):
      below, above = stats.halfnorm(0, self.a).isf(u / share), stats.halfnorm(0, self.b).ppf((u - share) / (1 - share))
    return self.mean + np.where(u < share, -below, above)


ENDS = dict(sigma_min=LOW, sigma_max=HIGH)
LAWS = dict(  # sigma / sd of v_diffusion is the absolute value of a Cauchy variable
  loguniform=(dict(**ENDS), lambda u: np.log(stats.loguniform(LOW, HIGH).ppf(u))),
  log_logistic=(dict(median=.4, scale=.6, **ENDS), lambda u: cut(stats.logistic(np.log(.4), .6), u)),
  split_lognormal=(dict(mean=-.4, std_1=.5, std_2=1.1), HalfNormals(-.4, .5, 1.1).ppf),
  v_diffusion=(dict(sd=.7, **ENDS), lambda u: np.log(stats.halfcauchy(scale=.7).ppf(
    stats.halfcauchy(scale=.7).cdf(LOW) + u * np.diff(stats.halfcauchy(scale=.7).cdf([LOW, HIGH]))))))


@pytest.mark.parametrize('schedule', [schedules.edm(), schedules.cosine(None), schedules.flow()],
                         ids=['edm', 'cosine', 'flow'])
@pytest.mark.parametrize('name', LAWS)
def test_the_quantiles_of_sigma_are_those_of_scipy(name, schedule):
  options, law = LAWS[name]
  draw = timesteps.draw_levels(getattr(timesteps, name)(**options, schedule=schedule), schedule)
  u = np.asarray(jax.random.uniform(KEY, (4000,)), np.float64)
  logsnr = jax.jit(lambda key: draw(key, 4000).logsnr)(KEY)
  np.testing.assert_allclose(-np.asarray(logsnr, np.float64) / 2, law(u), atol=3e-3)


def test_ends_are_those_of_the_schedule_where_none_are_given():
  for schedule, low, high in ((schedules.edm(), np.exp(np.log(.002) + np.log(4e4) / 1000), 80.),
                              (schedules.flow(), 1 / 999, 999.), (schedules.linear(), None, None)):
    if low is None:
      low, high = np.exp(-schedule.logsnr[[0, -1]] / 2)
    for make in (timesteps.loguniform, timesteps.v_diffusion, timesteps.log_logistic):
      sigma = sigma_of(make(schedule=schedule), schedule, 20_000)
      assert low * .999 < sigma.min() and sigma.max() < high * 1.002
    uniform = np.log(sigma_of(timesteps.loguniform(schedule=schedule), schedule))
    assert stats.kstest(uniform, stats.uniform(np.log(low), np.log(high / low)).cdf).pvalue > .01


def sigma_of(times, schedule, n=4000):
  draw = timesteps.draw_levels(times, schedule)
  return np.exp(-np.asarray(jax.jit(lambda key: draw(key, n).logsnr)(KEY), np.float64) / 2)


def test_a_split_normal_of_equal_halves_is_edms():
  curve = schedules.edm()
  assert stats.kstest(np.log(sigma_of(timesteps.split_lognormal(schedule=curve), curve)),
                      stats.norm(-1.2, 1.2).cdf).pvalue > .01


def test_v_diffusion_with_data_of_unit_size_draws_the_cosine_schedule_at_uniform_times():
  circle = schedules.cosine(None, s=0.)
  draw = timesteps.v_diffusion(sd=1., sigma_min=1e-4, sigma_max=1e4, schedule=circle)
  u = jax.jit(draw, static_argnums=1)(KEY, 4000)
  np.testing.assert_allclose(u, jax.random.uniform(KEY, (4000,)), atol=3e-4)


def test_the_interpolated_cosine_is_the_published_sum_of_two_shifted_schedules():
  curve, u = schedules.edm(sigma_min=1e-4, sigma_max=1e4), np.asarray(jax.random.uniform(KEY, (4000,)), np.float64)
  ends = dict(sigma_min=1e-4, sigma_max=1e4, sd=1., schedule=curve)
  shifted = lambda size: -2 * np.log(np.tan(np.pi / 2 * u)) + 2 * np.log(size / 128)  # arXiv:2301.11093, equation 4
  expected = u * shifted(32) + (1 - u) * shifted(64)
  got = -2 * np.log(sigma_of(timesteps.cosine_interpolated(128, 32, 64, **ends), curve))
  inside = (u > .05) & (u < .95)
  np.testing.assert_allclose(got[inside], expected[inside], atol=.02)  # the ends are cut at another angle
  np.testing.assert_allclose(sigma_of(timesteps.cosine_interpolated(128, 64, 64, **ends), curve),
                             sigma_of(timesteps.v_diffusion(**ends | dict(sd=2.)), curve), rtol=1e-5)


@pytest.mark.parametrize('schedule',
                         [schedules.flow(), schedules.cosine(None), schedules.edm(), schedules.offset_cosine()])
def test_a_curve_is_inverted_by_its_table(schedule):
  t = np.linspace(.003, .997, 200)
  np.testing.assert_allclose(jax.jit(lookup.time_of_logsnr(schedule))(np.float32(schedule(t).logsnr)), t,
                             atol=2e-6, rtol=2e-5)


def test_every_row_finds_itself_also_one_without_signal():
  for table in (schedules.flow(50), schedules.cosine(1000), schedules.linear(1000)):
    np.testing.assert_array_equal(jax.jit(lookup.nearest_row(table))(np.float32(table.logsnr)),
                                  np.arange(len(table.logsnr)))


# ---- times that follow the loss
def shape(u):
  """A loss with a known profile over time."""
  return .1 + 5 * u ** 4


def learn(aware, steps=400, batch=64, seed=0, memory=None):
  def step(memory, key):
    u, share = aware.times(key, batch, memory)
    loss = shape(u) * (1 + .3 * jax.random.normal(jax.random.fold_in(key, 1), u.shape))
    return aware.remember(memory, u, loss), (jnp.mean(loss), jnp.mean(share * loss), u, share)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(steps))
  memory = jnp.asarray(aware.start()) if memory is None else memory
  return jax.jit(lambda memory: jax.lax.scan(step, memory, keys))(memory)


def test_loss_aware_times_find_the_density_of_least_variance_and_leave_the_expectation():
  aware = timesteps.loss_aware(bins=20, history=400, floor=.01)
  memory, (_, weighed, u, share) = learn(aware)
  x = (np.arange(20_000) + .5) / 20_000
  root = np.sqrt((shape(x) ** 2 * 1.09).reshape(20, -1).mean(1))
  np.testing.assert_allclose(np.histogram(u[-200:], 20, (0, 1))[0] / (200 * 64), .99 * root / root.sum() + .01 / 20,
                             rtol=.15, atol=.001)
  # not what is drawn, but uniform's
  assert float(jnp.mean(weighed[100:])) == pytest.approx(shape(x).mean(), rel=.02)
  assert float(jnp.mean(share[100:])) == pytest.approx(1, abs=.02)                           # E_p[1/p] over [0, 1]
  fresh = lambda u: shape(u) * (1 + .3 * np.random.default_rng(0).standard_normal(u.shape))
  uniform = np.random.default_rng(1).random(12_800)
  last_u, last_share = np.asarray(u[-200:]).ravel(), np.asarray(share[-200:]).ravel()
  assert np.var(last_share * fresh(last_u)) < .25 * np.var(fresh(uniform))


def test_loss_aware_times_are_uniform_until_every_bin_was_seen_and_their_memory_is_bounded():
  aware = timesteps.loss_aware(bins=10, history=30, least=10)
  memory, (_, _, u, share) = learn(aware, steps=4, batch=20)
  np.testing.assert_array_equal(share, 1)
  for drawn in np.asarray(u):
    np.testing.assert_array_equal(np.histogram(drawn, 10, (0, 1))[0], np.full(10, 2))  # stratified
  memory, _ = learn(aware, steps=50, batch=20)
  assert np.all(np.asarray(memory[1]) >= 10) and float(memory[1].max()) == 30
  memory, remember = np.float32([np.ones(10), np.full(10, 30.)]), jax.jit(aware.remember)
  for _ in range(40):  # an old mean is forgotten at the rate of its history: (30/32)^40 of it is left
    memory = np.asarray(remember(memory, np.float32([.05, .05]), np.float32([2., 2.])))
  assert float(memory[0, 0]) == pytest.approx(4 - 3 * (30 / 32) ** 40, rel=.02)
  np.testing.assert_array_equal(memory[0, 1:], 1)


def test_a_mean_is_that_of_all_losses_until_the_memory_is_full():
  aware = timesteps.loss_aware(bins=4, history=1000)
  u, loss = (np.random.default_rng(seed).random((6, 32)).astype(np.float32) for seed in (0, 1))
  memory, remember = np.asarray(aware.start()), jax.jit(aware.remember)
  for i in range(6):
    memory = np.asarray(remember(memory, u[i], loss[i]))
  for b in range(4):
    inside = np.floor(u * 4) == b
    assert float(memory[0, b]) == pytest.approx(np.mean(loss[inside].astype(np.float64) ** 2), rel=1e-5)
    assert int(memory[1, b]) == inside.sum()


def test_bad_input_is_named():
  for make, message in ((lambda: timesteps.histogram([-1, 2]), 'none negative'),
                        (lambda: timesteps.histogram([]), 'list of weights'),
                        (lambda: timesteps.logit_normal(0, 0), 'above 0'),
                        (lambda: timesteps.edm_lognormal(std=-1, schedule=schedules.edm()), 'above 0'),
                        (lambda: timesteps.split_lognormal(std_2=0, schedule=schedules.edm()), 'std_2=0'),
                        (lambda: timesteps.log_logistic(median=-1, schedule=schedules.edm()), 'median=-1'),
                        (lambda: timesteps.v_diffusion(sigma_min='a', schedule=schedules.edm()), "sigma_min='a'"),
                        (lambda: timesteps.loguniform(3., 2., schedule=schedules.edm()), 'sigma_max=2.0.*lower one'),
                        (lambda: timesteps.cosine_interpolated(low=0, schedule=schedules.edm()), 'low=0'),
                        (lambda: timesteps.loss_aware(0), 'bins=0'), (lambda: timesteps.loss_aware(floor=0.), 'floor'),
                        (lambda: timesteps.loss_aware(history=5), 'least <= history')):
    with pytest.raises(InputError, match=message):
      make()
