"""Guidance against Bayes: classes, observations and ratios of Gaussians, whose guided denoiser is a closed form."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtri

from diffusion.core import schedules
from diffusion.core.gaussian import (CLEAN, dynamic_threshold, expand_to, flow, from_x0, Noise, Pred, q_sample,
                                     take, ve, vp)
from diffusion.core.guidance import apg, cfg, classifier, interval, rescale, separate_pair, shared_predictions
from diffusion.errors import InputError
from experiments.mixture import mixture_denoiser
from tests.exact import gaussian_denoiser

SCALINGS = dict(vp=vp, ve=ve, flow=flow)
LOGSNR = np.linspace(-8., 8., 17)
rng = np.random.default_rng(0)


def draw(*shape):
  return rng.standard_normal(shape).astype(np.float32)


def levels(scaling, logsnr=LOGSNR):
  return Noise(*(np.asarray(a, np.float32) for a in scaling(np.zeros(len(logsnr)), np.asarray(logsnr, np.float64))))


def fixed(x0):
  """A denoiser that answers x0 whatever it is asked, with a learned variance of its own."""
  return lambda x, n: from_x0(expand_to(n, x), x, jnp.broadcast_to(x0, x.shape), jnp.full(x.shape, np.mean(x0)))


X0, EPS = draw(5, 4, 4, 3), draw(5, 4, 4, 3)
MIDDLE = levels(vp, [-4., -1., 0., 2., 4.])
X = np.asarray(q_sample(X0, MIDDLE, EPS))
COND, NULL = fixed(X0), fixed(.5 * X0 - .3 * EPS)
TRANSFORMS = dict(
  cfg=cfg(COND, NULL, 3.),
  apg=apg(COND, NULL, 3., norm=2.),
  rescale=rescale(cfg(COND, NULL, 3.), COND),
  interval=interval(cfg(COND, NULL, 3.), COND, -2., 3.),
  classifier=classifier(COND, lambda x, noise: -jnp.sum(x ** 2, (1, 2, 3))),
  dynamic_threshold=dynamic_threshold(cfg(COND, NULL, 3.)),
  once=shared_predictions(separate_pair(COND, NULL), lambda c, u: dynamic_threshold(rescale(cfg(c, u, 3.), c))),
)


COMPILED = {name: jax.jit(guided) for name, guided in TRANSFORMS.items()}


# ---- every transform
@pytest.mark.parametrize('name', TRANSFORMS)
def test_prediction_stays_consistent_and_keeps_the_conditional_variance(name):
  pred = jax.device_get(COMPILED[name](X, MIDDLE))
  np.testing.assert_allclose(q_sample(pred.x0, MIDDLE, pred.eps), X, atol=1e-4)
  np.testing.assert_array_equal(pred.variance, COND(X, MIDDLE).variance)
  assert np.abs(pred.x0 - X0).max() > .1  # and it does something


@pytest.mark.parametrize('name', TRANSFORMS)
def test_a_scalar_level_is_a_batch_of_equal_levels_under_jit_and_scan(name):
  guided, fast = TRANSFORMS[name], COMPILED[name]
  def body(carry, noise):
    return carry, guided(X, noise)
  many = jax.device_get(jax.jit(lambda noise: jax.lax.scan(body, 0, noise)[1])(MIDDLE))
  for i in range(5):
    same = Noise(*(np.full(5, a) for a in take(MIDDLE, i)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), Pred(*(a[i] for a in many)), fast(X, same))
  host = guided(X, Noise(*(float(a[2]) for a in MIDDLE))).x0  # Python numbers, as in a notebook
  np.testing.assert_allclose(np.asarray(host)[2], np.asarray(fast(X, MIDDLE).x0)[2], atol=1e-5)


@pytest.mark.parametrize('name', TRANSFORMS)
@pytest.mark.parametrize('scaling', SCALINGS)
def test_finite_at_no_signal_and_nearly_without_noise(name, scaling):
  logsnr = [-14., 0., 8., 20., 30.] if scaling == 've' else [-np.inf, -30., 0., 20., 30.]
  noise = levels(SCALINGS[scaling], logsnr)
  pred = COMPILED[name](np.asarray(q_sample(X0, noise, EPS)), noise)
  assert all(np.isfinite(a).all() for a in pred)


@pytest.mark.parametrize('shape', [(5,), (5, 3)])
@pytest.mark.parametrize('value', [0., .7, 3.])
def test_samples_without_spread_and_without_dimensions_are_finite(shape, value):
  flat, other = fixed(jnp.full(shape, value)), fixed(jnp.zeros(shape))
  for guided in (apg(flat, other, 2.), apg(other, flat, 2., norm=1.), apg(flat, flat, 2., norm=1.)):
    assert np.isfinite(guided(jnp.ones(shape), MIDDLE).x0).all()
  np.testing.assert_allclose(rescale(cfg(flat, other, 2.), flat)(jnp.ones(shape), MIDDLE).x0, 2 * value, atol=1e-6)


# ---- classifier-free guidance
def test_guidance_scale_one_is_conditional_zero_unconditional_and_two_mirrors():
  cond, null = fixed(X0), fixed(0 * X0)
  for scale, expected in ((1., X0), (0., 0 * X0), (2., 2 * X0)):
    np.testing.assert_allclose(cfg(cond, null, scale)(X, MIDDLE).x0, expected, atol=1e-6)
  inside = cfg(cond, null, 3., lo=-1.5, hi=1.)(X, MIDDLE).x0 / X0
  np.testing.assert_allclose(inside.mean((1, 2, 3)), [1, 3, 3, 1, 1], rtol=1e-5)
  per_sample = jnp.arange(5.)[:, None, None, None]
  for noise in (MIDDLE, take(MIDDLE, 2)):  # the scale [B], the level [B] or scalar, the scale traced
    scaled = jax.jit(lambda k: cfg(cond, null, k)(X, noise).x0)(jnp.arange(5.))
    np.testing.assert_allclose(scaled, X0 * per_sample, atol=1e-5)


@pytest.mark.parametrize('scaling', SCALINGS)
def test_keeping_away_from_a_negative_condition_moves_the_mean_of_gaussian_classes(scaling):
  """Two classes of one width differ in their mean alone, and so does what cfg makes of them."""
  noise, scale = levels(SCALINGS[scaling]), 2.5
  x = noise.alpha * .4 + noise.sigma * draw(17)
  guided = cfg(gaussian_denoiser(.6, .3), gaussian_denoiser(-.2, .3), scale)(x, noise)
  exact = gaussian_denoiser(-.2 + scale * .8, .3)(x, noise)
  np.testing.assert_allclose(guided.x0, exact.x0, atol=2e-5)
  np.testing.assert_allclose(guided.eps, exact.eps, atol=2e-3)


@pytest.mark.parametrize('scaling', SCALINGS)
def test_autoguidance_follows_the_score_of_the_good_density_over_the_bad(scaling):
  """arXiv:2406.02507, section 3: p_good^w / p_bad^(w - 1), here two Gaussians, the bad one wider and off its place."""
  w, noise = 2., levels(SCALINGS[scaling])
  x = noise.alpha * .2 + noise.sigma * draw(17)
  def log_marginal(x, n, mean, std):
    return -.5 * (x - n.alpha * mean) ** 2 / (n.alpha ** 2 * std ** 2 + n.sigma ** 2)
  score = jax.jit(jax.grad(lambda x: jnp.sum(
    w * log_marginal(x, noise, .2, .4) - (w - 1) * log_marginal(x, noise, .3, .7))))(x)
  guided = cfg(gaussian_denoiser(.2, .4), gaussian_denoiser(.3, .7), w)(x, noise)
  np.testing.assert_allclose(guided.eps, -noise.sigma * score, rtol=1e-3, atol=2e-3)


# ---- a classifier: Bayes' rule
def observed(y, mean, std, blur):
  """(log p(y | x_t), mean and std of p(x0 | y)) for x0 ~ N(mean, std^2) and y = x0 + N(0, blur^2)."""
  def log_prob(x, n):
    variance = n.alpha ** 2 * std ** 2 + n.sigma ** 2
    expected = mean + n.alpha * std ** 2 / variance * (x - n.alpha * mean)
    return -.5 * (y - expected) ** 2 / (blur ** 2 + std ** 2 * n.sigma ** 2 / variance)
  precision = std ** -2 + blur ** -2
  return log_prob, (mean * std ** -2 + y * blur ** -2) / precision, precision ** -.5


@pytest.mark.parametrize('scaling', SCALINGS)
def test_guidance_with_the_exact_likelihood_is_the_exact_posterior_denoiser(scaling):
  log_prob, mean, std = observed(y=.9, mean=-.1, std=.5, blur=.4)
  noise = levels(SCALINGS[scaling])
  x = noise.alpha * mean + noise.sigma * draw(17)
  guided = jax.jit(classifier(gaussian_denoiser(-.1, .5), log_prob))(x, noise)
  exact = gaussian_denoiser(mean, std)(x, noise)
  np.testing.assert_allclose(guided.x0, exact.x0, atol=1e-4)
  np.testing.assert_allclose(guided.eps, exact.eps, atol=2e-3)


@pytest.mark.parametrize('schedule', [schedules.cosine(None), schedules.flow(), schedules.edm()])
def test_ddim_guided_by_the_exact_likelihood_draws_from_the_posterior(schedule):
  log_prob, mean, std = observed(y=.9, mean=-.1, std=.5, blur=.4)
  guided = classifier(gaussian_denoiser(-.1, .5), log_prob)
  path = schedules.evaluate(schedule, np.append(np.linspace(.9999, .002, 800), 1e-5))
  grid = Noise(*(jnp.asarray(np.append(a, c), jnp.float32) for a, c in zip(path, CLEAN)))
  z = jnp.asarray(ndtri((np.arange(400) + .5) / 400), jnp.float32)  # quantiles for draws: no sampling error
  def step(x, ends):
    t, s = ends
    pred = guided(x, t)
    return s.alpha * pred.x0 + s.sigma * pred.eps, None
  ends = take(grid, slice(0, -1)), take(grid, slice(1, None))
  x, _ = jax.jit(lambda x: jax.lax.scan(step, x, ends))(path.sigma[0] * z)
  assert float(x.mean()) == pytest.approx(mean, abs=.005)
  assert float(x.std()) == pytest.approx(std * float(z.std()), rel=.01)


MEANS, SPREAD = np.array([[-.5, .2], [.7, .4]], np.float32), .3


def log_class(k):
  """log p(k | x_t) of the equal mixture of N(MEANS[k], SPREAD^2)."""
  def log_prob(x, n):
    n = expand_to(n, x)
    variance = n.alpha ** 2 * SPREAD ** 2 + n.sigma ** 2
    each = [-.5 * jnp.sum((x - n.alpha * mean) ** 2 / variance, 1) for mean in MEANS]
    return jax.nn.log_softmax(jnp.stack(each), 0)[k]
  return log_prob


@pytest.mark.parametrize('scaling', SCALINGS)
def test_the_mixture_guided_by_its_class_posterior_is_the_denoiser_of_the_class(scaling):
  noise = levels(SCALINGS[scaling])
  x = np.asarray(q_sample(MEANS[np.arange(17) % 2] + np.float32(SPREAD) * draw(17, 2), noise, draw(17, 2)))
  null = mixture_denoiser(MEANS, SPREAD)
  for k in (0, 1):
    cond = gaussian_denoiser(MEANS[k], SPREAD)
    exact, guided = cond(x, noise), jax.jit(classifier(null, log_class(k)))(x, noise)
    np.testing.assert_allclose(guided.x0, exact.x0, atol=1e-4)
    np.testing.assert_allclose(guided.eps, exact.eps, rtol=1e-4, atol=2e-3)
    # an implicit classifier, arXiv:2207.12598, section 3.2
    free, trained = (jax.jit(guide)(x, noise) for guide in (cfg(cond, null, 3.), classifier(null, log_class(k), 3.)))
    np.testing.assert_allclose(free.x0, trained.x0, atol=3e-4)
  half = classifier(null, log_class(0), np.linspace(0., 1., 17, dtype=np.float32))  # a scale for each sample
  first = gaussian_denoiser(MEANS[0], SPREAD)
  half, free, exact = (np.asarray(jax.jit(guide)(x, noise).x0) for guide in (half, null, first))
  np.testing.assert_allclose([half[0], half[-1]], [free[0], exact[-1]], atol=1e-4)


# ---- adaptive projected guidance
def flat64(x):
  return np.asarray(x, np.float64).reshape(len(x), -1)


def test_projected_guidance_without_projection_and_limit_is_cfg():
  for scale in (0., 1., 4., np.arange(5.)):
    projected, free = apg(COND, NULL, scale, eta=1.)(X, MIDDLE), cfg(COND, NULL, scale)(X, MIDDLE)
    np.testing.assert_allclose(projected.x0, free.x0, atol=1e-5)
  limited, free = (f(COND, NULL, 4., lo=-1.5, hi=1.) for f in (partial(apg, eta=1.), cfg))
  np.testing.assert_allclose(limited(X, MIDDLE).x0, free(X, MIDDLE).x0, atol=1e-5)


def test_projected_guidance_moves_at_right_angles_to_the_prediction():
  update = flat64(apg(COND, NULL, 4.)(X, MIDDLE).x0 - X0)
  cosine = np.sum(update * flat64(X0), 1) / np.linalg.norm(update, axis=1) / np.linalg.norm(flat64(X0), axis=1)
  assert np.abs(cosine).max() < 1e-6
  for i, (c, u) in enumerate(zip(flat64(X0), flat64(.5 * X0 - .3 * EPS))):
    gap = c - u  # what a least-squares fit by c leaves over
    fit = c[:, None] @ np.linalg.lstsq(c[:, None], gap, rcond=None)[0]
    np.testing.assert_allclose(update[i], 3 * (gap - fit), atol=1e-5)
  quarter = flat64(apg(COND, NULL, 4., eta=.25)(X, MIDDLE).x0 - X0)
  whole = flat64(cfg(COND, NULL, 4.)(X, MIDDLE).x0 - X0)
  np.testing.assert_allclose(quarter, .75 * update + .25 * whole, atol=1e-5)


def test_the_norm_limit_is_met_and_changes_no_direction():
  limit = 1.5
  def move(null, norm):
    return flat64(apg(COND, null, 2., eta=1., norm=norm)(X, MIDDLE).x0 - X0)
  free = np.linalg.norm(move(NULL, np.inf), axis=1)
  assert free.min() > limit
  np.testing.assert_allclose(np.linalg.norm(move(NULL, limit), axis=1), limit, rtol=1e-5)
  np.testing.assert_allclose(move(NULL, limit) / limit, move(NULL, np.inf) / free[:, None], atol=1e-5)
  np.testing.assert_allclose(move(NULL, 1.01 * free.max()), move(NULL, np.inf), atol=1e-6)  # shorter: untouched


# ---- rescale, interval, dynamic threshold
@pytest.mark.parametrize('phi', [0., .7, 1.])
def test_rescale_mixes_the_spreads_and_keeps_the_image(phi):
  guided = fixed(X0 * jnp.array([3., 2., 1., .5, 4.])[:, None, None, None] + .1 * EPS)
  plain, mixed = guided(X, MIDDLE).x0, rescale(guided, COND, phi)(X, MIDDLE).x0
  spreads = flat64(plain).std(1), flat64(X0).std(1)
  np.testing.assert_allclose(flat64(mixed).std(1), (1 - phi) * spreads[0] + phi * spreads[1], rtol=1e-5)
  for a, b in zip(flat64(mixed), flat64(plain)):
    assert np.corrcoef(a, b)[0, 1] == pytest.approx(1, abs=1e-6)
  exaggerated = fixed(3 * X0)
  np.testing.assert_allclose(rescale(exaggerated, COND, 1.)(X, MIDDLE).x0, X0, atol=1e-5)


def test_an_interval_chooses_by_level_and_computes_only_its_choice():
  calls = []
  def counted(name, denoise):
    def conditional(x, noise):
      jax.debug.callback(lambda: calls.append(name))
      return denoise(x, noise)
    return conditional
  limited = interval(counted('guided', fixed(2 * X0)), counted('plain', COND), -1.5, 1.)
  jax.block_until_ready(jax.jit(lambda noise: jax.lax.scan(lambda c, n: (c, limited(X, n).x0), 0, noise))(MIDDLE))
  jax.effects_barrier()
  assert sorted(calls) == ['guided'] * 2 + ['plain'] * 3
  np.testing.assert_allclose((limited(X, MIDDLE).x0 / X0).mean((1, 2, 3)), [1, 2, 2, 1, 1], rtol=1e-5)
  both = interval(cfg(COND, NULL, 3.), COND, -1.5, 1.)(X, MIDDLE)
  np.testing.assert_allclose(both.x0, cfg(COND, NULL, 3., -1.5, 1.)(X, MIDDLE).x0, atol=1e-5)


def test_dynamic_threshold_brings_the_quantile_of_each_sample_to_one():
  sizes = np.array([.2, 1., 3., 40.], np.float32)
  ramp = np.linspace(-1, 1, 2001, dtype=np.float32)[rng.permutation(2001)]
  x0, noise = sizes[:, None] * ramp, take(MIDDLE, 2)
  def thresholded(x0, percentile):
    return np.asarray(dynamic_threshold(fixed(x0), percentile)(np.zeros_like(x0), noise).x0)
  got = thresholded(x0, .9)  # |x0| is even on [0, size]: its 0.9-quantile is 0.9 size
  for row, size in zip(got, sizes):
    s = max(1, .9 * size)
    np.testing.assert_allclose(row, np.clip(size * ramp / s, -1, 1), atol=2e-3)
  np.testing.assert_allclose(thresholded(2 * x0, .9)[2:], got[2:], atol=1e-5)  # beyond 1 only the shape counts
  np.testing.assert_allclose(np.abs(thresholded(x0, 1.)).max(1), [.2, 1., 1., 1.], rtol=1e-5)
  small = .3 * X0 / jnp.abs(X0).max()
  np.testing.assert_allclose(dynamic_threshold(fixed(small))(X, MIDDLE).x0, small, atol=1e-6)


# ---- bad input
@pytest.mark.parametrize('call, message', [
  (lambda: cfg(COND, NULL, np.nan), 'scale=nan'), (lambda: cfg(COND, NULL, 'big'), "scale='big'"),
  (lambda: cfg(COND, NULL, [1., np.inf]), 'inf'), (lambda: cfg(COND, NULL, 2., lo=3., hi=1.), 'lo=3.0, hi=1.0'),
  (lambda: cfg(COND, NULL, None), 'scale=None'), (lambda: cfg(COND, NULL, 2., hi=np.nan), 'hi=nan'),
  (lambda: apg(COND, NULL, 2., eta=1.5), 'eta=1.5'), (lambda: apg(COND, NULL, 2., norm=0.), 'norm=0.0'),
  (lambda: apg(COND, NULL, np.inf), 'apg.*scale'), (lambda: rescale(COND, COND, 1.2), 'phi=1.2'),
  (lambda: rescale(COND, COND, np.nan), 'phi=nan'), (lambda: interval(COND, COND, 1., -1.), 'lower one first'),
  (lambda: classifier(COND, None, -np.inf), 'classifier.*-inf'), (lambda: dynamic_threshold(COND, 0.), '0.0.*above 0'),
  (lambda: dynamic_threshold(COND, 99.5), '99.5'), (lambda: dynamic_threshold(COND, np.nan), 'nan'),
  (lambda: shared_predictions(separate_pair(COND, NULL), lambda c, u: rescale(cfg(c, u, 3.), c, 7.)), 'phi=7.0'),
])
def test_bad_values_are_named_when_the_stack_is_built(call, message):
  with pytest.raises(InputError, match=message) as error:
    call()
  assert '\n' not in str(error.value)
