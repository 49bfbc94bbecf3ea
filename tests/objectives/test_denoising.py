"""The training loss against closed forms: known minimisers, known expectations, weights that are equal by algebra."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion import samplers
from diffusion.core import gaussian, schedules
from diffusion.core.gaussian import expand_to, Noise
from diffusion.errors import InputError
from diffusion.evaluation import elbo
from diffusion.objectives import denoising, timesteps, weighting

KEY = jax.random.key(0)
SCHEDULE = schedules.cosine()


def exact_gaussian_net(target, std):
  """A 'network' with the best possible output for data N(0, std^2), which gets its level from its time input."""
  table = Noise(*(jnp.asarray(a, jnp.float32) for a in SCHEDULE))
  def net(params, x, time, cond, train, rngs):
    n = expand_to(Noise(*(a[time.astype(jnp.int32)] for a in table)), x)
    variance = n.alpha ** 2 * std ** 2 + n.sigma ** 2
    row = target(n)
    return (row.a * n.alpha * std ** 2 + row.b * n.sigma) / variance * x
  return net


def call(net, target, x0, key=KEY, sampled=timesteps.uniform(), params=None, **options):
  options = dict(weight=weighting.one(), error=denoising.mse()) | options
  return denoising.loss(key, net, params, x0, None, draw=timesteps.draw_levels(sampled, SCHEDULE), predict=target,
                        **options)


@pytest.mark.parametrize('target, name',
                         [(gaussian.predict_eps(), 'eps'), (gaussian.predict_x0(), 'x0'), (gaussian.predict_v(), 'v')])
def test_the_exact_network_reaches_the_bayes_error_of_gaussian_data(target, name):
  """The least possible error is the conditional variance: for x0 it is std^2 sigma^2 / (alpha^2 std^2 + sigma^2)."""
  std = .5
  x0 = std * jax.random.normal(jax.random.key(1), (40_000, 2, 2, 1))
  least, parts = jax.jit(lambda x0: call(exact_gaussian_net(target, std), target, x0))(x0)
  a2, s2 = SCHEDULE.alpha ** 2, SCHEDULE.sigma ** 2
  x0_error = std ** 2 * s2 / (a2 * std ** 2 + s2)
  # errors of the other targets follow from x_t
  bayes = dict(x0=x0_error, eps=x0_error * a2 / s2, v=x0_error / s2)[name]
  assert float(least) == pytest.approx(bayes.mean(), rel=.02)
  assert float(parts['mse'].mean()) == pytest.approx(bayes.mean(), rel=.02)
  worse = float(call(lambda *a: 0. * a[1], target, x0)[0])
  assert worse > 1.2 * float(least)


def test_loss_is_deterministic_in_its_key_and_new_under_another():
  x0 = jnp.ones((8, 2, 2, 1))
  net = lambda params, x, time, cond, train, rngs: .3 * x
  value = lambda key: float(call(net, gaussian.predict_eps(), x0, key)[0])
  assert value(KEY) == value(KEY) != value(jax.random.key(1))


def test_a_loss_in_eps_space_is_the_snr_weighted_loss_of_the_same_denoiser_in_v_space():
  """One denoiser, x0 = 0.4 x, written as an eps and as a v network: its SNR-weighted losses must be equal."""
  def net_for(target):
    def net(params, x, time, cond, train, rngs):
      n = expand_to(Noise(*(jnp.asarray(a, jnp.float32)[time.astype(jnp.int32)] for a in SCHEDULE)), x)
      row, x0 = target(n), .4 * x
      return row.a * x0 + row.b * (x - n.alpha * x0) / n.sigma
    return net
  x0 = jax.random.normal(jax.random.key(1), (64, 2, 2, 1))
  middle = timesteps.histogram([0, 1, 1, 1, 0])  # away from the ends, where float32 runs out
  values = [float(call(net_for(t), t, x0, weight=weighting.snr(), sampled=middle)[0])
            for t in (gaussian.predict_eps(), gaussian.predict_v())]
  assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_errors_of_a_known_gap():
  gap = jnp.array([-3., -.5, 0., .5, 3.])
  np.testing.assert_allclose(denoising.mse()(gap, 0.), gap ** 2)
  np.testing.assert_allclose(denoising.mae()(gap, 0.), jnp.abs(gap))
  for delta in (.1, 1., 10.):  # Huber is the integral of the clipped gap
    x = np.linspace(0, 3, 300_001)
    area = np.sum(np.clip((x[1:] + x[:-1]) / 2, -delta, delta)) * (x[1] - x[0])
    assert float(denoising.huber(delta)(gap, 0.)[-1]) == pytest.approx(area, rel=1e-4)


def test_conditions_are_dropped_as_often_as_asked_and_wholly():
  cond = dict(label=jnp.ones((20_000, 3)), extra=jnp.ones((20_000,)))
  dropped = denoising.drop_condition(KEY, cond, lambda c: jax.tree.map(jnp.zeros_like, c), .2)
  assert float(1 - dropped['extra'].mean()) == pytest.approx(.2, abs=.01)
  np.testing.assert_array_equal(dropped['label'], np.repeat(np.asarray(dropped['extra'])[:, None], 3, 1))


def test_loss_works_under_jit_vmap_grad_and_pmap():
  net = lambda params, x, time, cond, train, rngs: params * x
  x0 = jax.random.normal(jax.random.key(1), (8, 2, 2, 1))
  def value(params, key, x0):
    return denoising.loss(key, net, params, x0, None, draw=timesteps.draw_levels(timesteps.uniform(), SCHEDULE),
                       predict=gaussian.predict_eps(), weight=weighting.one())[0]
  expected = value(.5, KEY, x0)
  assert float(jax.jit(value)(.5, KEY, x0)) == pytest.approx(float(expected), rel=1e-5)
  keys = jax.random.split(KEY, 3)
  each = [float(value(.5, k, x0)) for k in keys]
  np.testing.assert_allclose(jax.vmap(value, (None, 0, None))(.5, keys, x0), each, rtol=1e-5)
  np.testing.assert_allclose(jax.pmap(value, in_axes=(None, 0, None))(.5, keys[:1], x0), each[:1], rtol=1e-5)
  slope = jax.grad(value)(.5, KEY, x0)
  assert float(slope) == pytest.approx(float(value(.51, KEY, x0) - value(.49, KEY, x0)) / .02, rel=1e-3)


# ---- learned variance
STD = .5


def true_step_variance(table):
  """Var[x_s | x_t] of data N(0, STD^2), from the covariance of the two; of row 0, Var[x0 | x_t]."""
  s = Noise(0., *(np.append(first, a[:-1]) for first, a in zip((1., 0., np.inf), table[1:])))
  marginal = lambda n: n.alpha ** 2 * STD ** 2 + n.sigma ** 2
  a = table.alpha / s.alpha                                                   # x_t = a x_s + noise
  return marginal(s) - (a * marginal(s)) ** 2 / marginal(table)


def learned_case(schedule, examples=200, dims=500):
  """(noise, x0, gap) of the exact denoiser, `examples` of each row."""
  n = expand_to(Noise(*(jnp.repeat(jnp.asarray(a, jnp.float32), examples) for a in schedule)), np.zeros((1, 1)))
  x0 = STD * jax.random.normal(jax.random.key(0), (len(n.alpha), dims))
  x = n.alpha * x0 + n.sigma * jax.random.normal(jax.random.key(1), x0.shape)
  guess = n.alpha * STD ** 2 / (n.alpha ** 2 * STD ** 2 + n.sigma ** 2) * x
  return Noise(*(a[:, 0] for a in n)), x0, guess - x0


def bounds_of_variance(table):
  """(small, large): the posterior's variance and the forward step's; of row 0, those of x0 in its own units."""
  k = -np.expm1(np.diff(table.logsnr))
  ratio = (table.sigma[0] / table.alpha[0]) ** 2
  return np.append(ratio * k[0], table.sigma[:-1] ** 2 * k), np.append(ratio, table.sigma[1:] ** 2 * k)


@pytest.mark.parametrize('table', [schedules.cosine(12), schedules.offset_cosine(12)], ids=['cosine', 'offset_cosine'])
def test_the_learned_variance_is_best_at_the_true_variance_of_the_reverse_step(table):
  """Gaussian data: the variance of q(x_s | x_t) is known and between the bounds; row 0 is that of the likelihood."""
  noise, x0, gap = learned_case(table)
  bound = denoising.learned_variance(strength=1., levels=None, schedule=table)
  def step(v, _):
    slope = jax.grad(lambda v: jnp.sum(bound(noise, x0, gap, jnp.repeat(v, 200)[:, None])))(v) / 200 / 12
    return v - .3 * jnp.clip(slope, -.3, .3), None
  v = jax.jit(lambda: jax.lax.scan(step, jnp.full(12, .5), None, 300))()[0]
  small, large = bounds_of_variance(table)
  ours = np.exp(np.asarray(v) * np.log(large) + (1 - np.asarray(v)) * np.log(small))
  np.testing.assert_allclose(ours[1:], true_step_variance(table)[1:], rtol=.02)
  np.testing.assert_allclose(ours[0], true_step_variance(table)[0], rtol=.02)  # Var[x0 | x_t]: inside the bounds too
  assert np.all((v[1:] > 0) & (v[1:] < 1))


@pytest.mark.parametrize('schedule', [schedules.cosine(12), schedules.flow(12), schedules.edm(12)],
                         ids=['vp', 'flow', 've'])
def test_the_bound_of_a_step_is_the_divergence_of_its_two_gaussians(schedule):
  """Against means and variances written out in float64, in every scaling; the last row of `flow` has no signal."""
  noise, x0, gap = learned_case(schedule, 2, 3)
  v = jax.random.uniform(jax.random.key(2), x0.shape, minval=-.2, maxval=1.2)
  got = denoising.learned_variance(strength=1., schedule=schedule)(noise, x0, gap, v)[2:]
  t, s = (Noise(*(np.repeat(a[part], 2)[:, None] for a in schedule)) for part in (slice(1, None), slice(None, -1)))
  a = t.alpha / s.alpha
  forward = t.sigma ** 2 - a ** 2 * s.sigma ** 2                              # of q(x_t | x_s)
  small = forward * s.sigma ** 2 / t.sigma ** 2
  log_model = v[2:] * np.log(small * t.sigma ** 2 / s.sigma ** 2) + (1 - v[2:]) * np.log(small)
  shift = s.alpha * forward / t.sigma ** 2 * np.asarray(gap[2:], np.float64)  # x0's part of the posterior mean
  kl = .5 * (log_model - np.log(small) + (small + shift ** 2) / np.exp(log_model) - 1)
  np.testing.assert_allclose(got, 12 / np.log(2) * np.asarray(kl).mean(1), rtol=2e-4)


def test_the_decoder_is_one_in_training_and_evaluation_and_the_same_in_every_scaling():
  """On offset cosine, where sigma_0^2 and (sigma_0 / alpha_0)^2 differ by 10 %."""
  table, share = schedules.offset_cosine(1000), .3
  assert 1.10 < table.alpha[0] ** -2 < 1.12
  small, large = (bound[0] for bound in bounds_of_variance(table))
  x0 = jax.random.uniform(jax.random.key(3), (4, 6), minval=-1, maxval=1)
  guess = .9 * x0 + .02
  std = np.sqrt(small ** (1 - share) * large ** share)
  expected = -stats.norm(np.asarray(guess, np.float64), std).logpdf(np.asarray(x0, np.float64)).mean(1) / np.log(2)
  for scaling in (gaussian.vp, gaussian.ve, gaussian.flow):
    scaled = scaling(table.time, table.logsnr)
    row = Noise(*(jnp.repeat(jnp.asarray(a[:1], jnp.float32), 4) for a in scaled))
    bound = denoising.learned_variance(strength=1., levels=None, schedule=scaled)
    trained = bound(row, x0, guess - x0, jnp.full_like(x0, share)) / 1000
    def denoise(x, noise):
      return gaussian.Pred(guess, jnp.zeros_like(x), jnp.full_like(x, share))
    keys = samplers.sample_keys(0, np.arange(4))
    measured = elbo.bound(keys, denoise, scaled, x0, steps=1, variance='learned', levels=None)[0]['decoder']
    np.testing.assert_allclose(trained, expected, rtol=2e-4)
    np.testing.assert_allclose(measured, expected, rtol=2e-4)


def test_the_bound_trains_the_variance_and_leaves_the_mean_to_the_loss():
  x0 = jnp.clip(.5 * jax.random.normal(jax.random.key(1), (64, 4, 4, 1)), -1, 1)
  net = lambda params, x, time, cond, train, rngs: jnp.concatenate([params[0] * x, jnp.tanh(params[1]) + 0 * x], -1)
  def value(params, strength):
    variance = denoising.learned_variance(strength, schedule=SCHEDULE) if strength else None
    return call(net, gaussian.with_variance(gaussian.predict_eps()), x0, params=params, variance=variance)[0]
  params = jnp.array([.7, .2])
  plain, hybrid, more = (jax.grad(value)(params, strength) for strength in (0, .001, .002))
  np.testing.assert_allclose([hybrid[0], more[0]], [plain[0], plain[0]], rtol=1e-6)
  assert plain[1] == 0 != hybrid[1]
  assert float(more[1]) == pytest.approx(2 * float(hybrid[1]), rel=1e-5)


# ---- self-conditioning
def test_a_self_conditioned_network_sees_its_own_first_estimate_in_half_of_the_batches():
  """The 'network' outputs .3 x + .5 times the estimate beside x: by hand, for the two kinds of batch."""
  x0 = jax.random.normal(jax.random.key(1), (4, 3, 2))
  shapes = []
  def net(params, x, time, cond, train, rngs):
    shapes.append(x.shape)
    return params * x[..., :2] + .5 * x[..., 2:]
  options = dict(draw=lambda key, batch: Noise(*(jnp.full(batch, v) for v in (1., .6, .8, np.log(.36 / .64)))),
                 predict=gaussian.predict_x0(), weight=weighting.one(),
                 corrupt=lambda key, x0: (jnp.ones_like(x0), jnp.ones_like(x0)))
  x = .6 * x0 + .8
  estimates = dict(alone=0., beside=.3 * x)
  by_hand = {kind: float(jnp.mean((.3 * x + .5 * beside - x0) ** 2)) for kind, beside in estimates.items()}
  slopes = {kind: float(jnp.mean(2 * (.3 * x + .5 * beside - x0) * x)) for kind, beside in estimates.items()}
  counts = dict(alone=0, beside=0)
  loss = denoising.with_self_conditioning(denoising.loss)
  step = jax.jit(jax.value_and_grad(lambda params, key: loss(key, net, params, x0, None, **options)[0]))
  for i in range(60):
    value, slope = step(.3, jax.random.key(i))
    kind = min(by_hand, key=lambda k: abs(by_hand[k] - float(value)))
    counts[kind] += 1
    assert float(value) == pytest.approx(by_hand[kind], rel=1e-5)
    assert float(slope) == pytest.approx(slopes[kind], rel=1e-4)  # no gradient through the first estimate
  assert 18 <= counts['beside'] <= 42
  assert set(shapes) == {(4, 3, 4)}


# ---- wrappers


# ---- wrappers
def test_every_wrapper_of_the_loss_is_what_is_written_out_by_hand():
  """All at once, for each of two micro-batches: five streams, condition dropout, an error weighed by e^-u, plus u."""
  x0, cond = jax.random.normal(jax.random.key(1), (8, 3, 2)), dict(label=jnp.arange(1., 9.)[:, None])
  def net(params, x, time, cond, train, rngs):
    scale = 1. + jax.random.uniform(rngs['dropout']) if rngs else 1.
    return scale * params['w'] * (x[..., :2] + .5 * x[..., 2:]) + .1 * cond['label'][:, :, None]
  level = Noise(*(jnp.asarray(v) for v in (1., .6, .8, np.log(.36 / .64))))
  draw = lambda key, batch: Noise(*(jnp.full(batch, v) for v in level))
  u = lambda params, logsnr: params * logsnr
  params, key = dict(w=jnp.float32(.3), uncertainty=jnp.float32(.7)), jax.random.key(5)
  wrapped = denoising.with_self_conditioning(denoising.with_uncertainty(denoising.loss, u))
  _, eps_key, cond_key, net_key, self_key = jax.random.split(key, 5)
  eps, dropped = jax.random.normal(eps_key, x0.shape), np.asarray(jax.random.bernoulli(cond_key, .5, (8,)))
  assert 0 < dropped.sum() < 8
  label = np.where(dropped, 0., np.arange(1., 9.))[:, None, None]
  x, estimate = .6 * x0 + .8 * eps, .3 * (.6 * x0 + .8 * eps) + .1 * label
  estimate = estimate * bool(jax.random.bernoulli(self_key))
  for i in (0, 1):
    part = denoising.with_micro_batch(wrapped, i, 2)
    loss = denoising.with_condition_dropout(part, lambda c: jax.tree.map(jnp.zeros_like, c), .5)
    value, parts = loss(key, net, params, x0, cond, draw=draw, predict=gaussian.predict_x0(), weight=weighting.snr())
    scale = 1 + jax.random.uniform(jax.random.fold_in(net_key, i))
    error = jnp.mean((scale * .3 * (x + .5 * estimate) + .1 * label - x0) ** 2, (1, 2))[i::2]
    exponent = .7 * level.logsnr
    np.testing.assert_allclose(parts['each'], .36 / .64 * error * jnp.exp(-exponent) + exponent, rtol=2e-5)
    np.testing.assert_allclose(parts['mse'], error, rtol=2e-5)
    assert float(value) == pytest.approx(float(parts['each'].mean()), rel=1e-6)


def test_bad_input_is_named():
  for make, message in ((lambda: denoising.huber(0), 'above 0'),
                        (lambda: denoising.learned_variance(schedule=schedules.flow()), 'number of levels'),
                        (lambda: denoising.learned_variance(0., schedule=SCHEDULE), 'above 0')):
    with pytest.raises(InputError, match=message):
      make()
