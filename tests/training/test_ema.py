"""Averages of the weights: profiles against sums and quadrature, widths made afterwards against those tracked."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate

from diffusion.errors import InputError
from diffusion.system.checkpoint import open_checkpoints
from diffusion.core import ema
from diffusion.objectives.base import Objective
from diffusion.setup.choices import parse_emas
from diffusion.training import posthoc
from diffusion.training.loop import train_step
from diffusion.training.state import init_state

STEPS = 1000
PAIR = (.05, .1)


def profile(t, sigma_rel):
  """Weights of the parameters after updates 1 .. t: the density, integrated from one update to the next."""
  gamma = ema.exponent(sigma_rel)
  at = lambda tau: (gamma + 1) / t * (tau / t) ** gamma
  return np.array([integrate.quad(at, i, i + 1, epsabs=1e-14)[0] for i in range(t)])


def track(trajectory, rule):
  """The average as a training keeps it, in float64: [steps, ...]."""
  decays = np.asarray(jax.vmap(rule)(np.arange(len(trajectory))), np.float64)
  average, kept = trajectory[0] * 0 + 1e6, []  # what is there before the first update must not matter
  for beta, params in zip(decays, trajectory):
    average = beta * average + (1 - beta) * params
    kept.append(average)
  return np.stack(kept)


@pytest.fixture(scope='module')
def descent():
  """Noisy gradient descent on a quadratic of condition number 20, its rate falling to 0 as a cosine: [STEPS, 20]."""
  rng = np.random.default_rng(0)
  curvature, best, x = np.geomspace(.05, 1, 20), rng.normal(size=20), 3 * rng.normal(size=20)
  points = []
  for i in range(STEPS):
    x = x - .3 * np.cos(np.pi / 2 * i / STEPS) * (curvature * (x - best) + rng.normal(size=20))
    points.append(x)
  return np.stack(points)


@pytest.fixture(scope='module')
def tracked(descent):
  """width -> its average at every step, as a training keeps it."""
  return {width: track(descent, ema.power(width)) for width in (.04, .05, .07, .1, .12, .15)}


def posthoc_error(descent, tracked, number, width):
  """(relative error against the tracked average, predicted residual), from `number` snapshots of the pair."""
  times = [round(STEPS * (k + 1) / number) for k in range(number)]
  weights, residual = ema.weights_of([(t, s) for t in times for s in PAIR], (STEPS, width))
  made = posthoc.reconstruct((dict(w=np.float32(tracked[s][t - 1])) for t in times for s in PAIR), weights)['w']
  return np.linalg.norm(made - tracked[width][-1]) / np.linalg.norm(tracked[width][-1]), residual


# ---- what training keeps
def test_specs():
  names = [name for name, _ in parse_emas(' decay(.9999)|power( .05 ) | power(sigma_rel=.1)')]
  assert names == ['decay(0.9999)', 'power(0.05)', 'power(0.1)']
  assert parse_emas('') == parse_emas('  ') == ()
  assert [name for name, _ in parse_emas('decay(.99999999)')] == ['decay(0.99999999)']
  text = 'warmup | warmup(.999, power=.75, after=10) | decay(.9, after=7) | halflife(5_000, rampup=None) | halflife'
  text += ' | halflife(inf, rampup=.09)'
  names = [name for name, _ in parse_emas(text, batch=64)]
  assert names == ['warmup(0.9999)', 'warmup(0.999, power=0.75, after=10)', 'decay(0.9, after=7)',
                   'halflife(5000.0, rampup=None)', 'halflife(500000.0)', 'halflife(inf, rampup=0.09)']
  assert [name for name, _ in parse_emas(' | '.join(names))] == names


@pytest.mark.parametrize('text, message', [
  ('powr(.1)', "config.extra_emas='powr.*did you mean 'power'"), ('power(.3)', 'above 0 and below 0.2887'),
  ('power(0)', 'above 0'), ('power(-.1)', 'above 0'), ('power(nan)', r"expected power\(sigma_rel\)"),
  ('power', 'missing'), ('power(.1, .2)', 'too many'),
  ('decay(1)', 'between 0 and 1'), ('decay(0)', 'between 0 and 1'), ('decay(.9, after=-1)', 'after=-1'),
  ('decay(.9, after=1.5)', 'after=1.5'), ('warmup(1.1)', 'warmup.1.1'), ('warmup(.9, least=.95)', 'least=0.95'),
  ('warmup(power=0)', 'power=0'), ('halflife(0)', 'images above 0'), ('halflife(rampup=-1)', 'rampup=-1'),
  ('halflife(many)', "'many'"),
  ('halflife | halflife(500000)', 'twice'),
  ('power(.1) |', 'unknown'), ('power(.1) | power(0.10)', 'twice'),
])
def test_bad_specs_are_refused_in_one_line(text, message):
  with pytest.raises(InputError, match=message) as caught:
    parse_emas(text)
  assert '\n' not in str(caught.value)


def test_a_decay_average_of_constant_parameters_forgets_what_was_before(descent):
  (_, rule), = parse_emas('decay(.9)')
  decays = np.asarray(jax.vmap(rule)(np.arange(300)))
  assert decays[0] == np.float32(.1) and decays[79] < .9 and np.all(decays[81:] == np.float32(.9))
  np.testing.assert_allclose(track(np.full((300, 1), 7.), rule)[-1], 7., rtol=1e-6)


@pytest.mark.parametrize('width', [.03, .1, .28])
def test_a_tracked_average_is_the_sum_over_its_profile(width):
  walk = np.cumsum(np.random.default_rng(1).normal(size=(200, 5)), 0)
  kept = track(walk, ema.power(width))
  for t in (1, 2, 77, 200):
    np.testing.assert_allclose(kept[t - 1], profile(t, width) @ walk[:t], rtol=0, atol=3e-6 * np.abs(walk).max())


def test_training_keeps_them(descent):
  """The step of state.py on a noisy quadratic: what it carries is the sum over the parameters after each update."""
  target = jnp.asarray(descent[:60, :3], jnp.float32)
  def loss(key, params, x0, cond, **options):
    return jnp.mean((params['w'] - x0) ** 2), {}
  rules = [rule for _, rule in parse_emas('power(.05) | power(.2)')]
  optimizer = optax.sgd(.5)
  step = jax.jit(functools.partial(train_step, encode=lambda frozen, key, batch: (batch, None), optimizer=optimizer,
                                   objective=Objective('test', None, loss, None), ema=ema.decay(.9), averages=rules))
  state, seen = init_state(dict(w=jnp.full(3, 50.)), optimizer, averages=2), []
  for batch in target:
    state, _ = step(state, batch, jax.random.key(0))
    seen.append(np.asarray(state.params['w'], np.float64))
  for width, average in zip((.05, .2), state.averages, strict=True):
    np.testing.assert_allclose(average['w'], profile(60, width) @ np.stack(seen), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('width', [.01, .05, .1, .2, .288])
def test_the_width_of_a_profile_is_its_relative_standard_deviation(width):
  t = 20000
  edges = (np.arange(t + 1) / t) ** (ema.exponent(width) + 1)
  weights, steps = np.diff(edges), np.arange(t) + .5
  mean = weights @ steps
  np.testing.assert_allclose(np.sqrt(weights @ (steps - mean) ** 2) / t, width, rtol=1e-4)


def test_the_exponents_of_the_paper():
  """arXiv:2312.02696, section 3.2: gamma = 16.97 and 6.94 for widths .05 and .10."""
  np.testing.assert_allclose([ema.exponent(.05), ema.exponent(.1)], [16.97, 6.94], atol=.005)


@pytest.mark.parametrize('width', [.05, .1])
def test_float32_keeps_the_profile_after_a_million_steps(width):
  """What is left of the parameters of step a at step b is (a / b)^(gamma + 1)."""
  start, end = 1_000_000, 1_200_000
  decays = np.asarray(jax.vmap(ema.power(width))(np.arange(start, end)))
  left = np.log(decays.astype(np.float64)).sum()
  wanted = (ema.exponent(width) + 1) * np.log(start / end)
  np.testing.assert_allclose(left, wanted, rtol=1e-4)


# ---- what is made afterwards
def density(t, sigma_rel):
  gamma = ema.exponent(sigma_rel)
  return lambda tau: np.where(tau <= t, (gamma + 1) / t * (np.minimum(tau, t) / t) ** gamma, 0.)


@pytest.mark.parametrize('a, b', [
  ((9, .05), (9, .05)), ((9, .05), (14, .1)), ((14, .2), (3, .1)), ((1, .2), (1, .03))])
def test_inner_products_against_quadrature(a, b):
  one, two = density(*a), density(*b)
  value, _ = integrate.quad(lambda tau: one(tau) * two(tau), 0, min(a[0], b[0]), epsabs=1e-12, limit=200)
  made = ema.profile_overlap(a[0], ema.exponent(a[1]), b[0], ema.exponent(b[1]))
  np.testing.assert_allclose(made, value, rtol=1e-8)


def test_the_residual_is_the_distance_of_the_profiles_and_the_weights_are_the_best():
  snapshots = [(t, s) for t in (25., 50., 75., 100.) for s in PAIR]
  weights, error = ema.weights_of(snapshots, (100., .14))
  tau = (np.arange(400000) + .5) / 4000
  basis, wanted = np.stack([density(*s)(tau) for s in snapshots]), density(100., .14)(tau)
  distance = lambda weights: np.linalg.norm(weights @ basis - wanted) / np.linalg.norm(wanted)
  np.testing.assert_allclose(distance(weights), error, rtol=1e-4)
  np.testing.assert_allclose(weights.sum(), 1, atol=1e-12)
  rng = np.random.default_rng(0)
  for _ in range(50):  # any other weights that sum to 1 fit worse
    away = rng.normal(size=len(weights))
    assert distance(weights + 1e-2 * (away - away.mean())) > error


def test_a_snapshot_that_is_asked_for_is_given_back():
  weights, error = ema.weights_of([(t, s) for t in range(20, 1001, 20) for s in PAIR], (600, .1))
  assert error < 1e-6
  np.testing.assert_allclose(weights, np.arange(100) == 2 * 29 + 1, atol=1e-6)


@pytest.mark.parametrize('number', [50, 20])
@pytest.mark.parametrize('width', [.05, .07, .1, .12, .15])
def test_widths_between_and_beyond_those_kept_are_within_a_thousandth(descent, tracked, number, width):
  error, residual = posthoc_error(descent, tracked, number, width)
  assert error < (1e-3 if number == 20 else 1e-4)
  assert error < max(residual, 1e-6)


@pytest.mark.parametrize('width', [.04, .07, .15])
def test_fewer_snapshots_are_worse_as_the_residual_says(descent, tracked, width):
  errors, residuals = np.transpose([posthoc_error(descent, tracked, number, width) for number in (2, 5, 10, 20, 50)])
  assert np.all(np.diff(errors) < 0) and np.all(np.diff(residuals) < 0)
  assert np.all(errors < residuals) and errors[0] > 30 * errors[3]


# ---- from the disk
def save_snapshots(workdir, tracked, times, kinds):
  store = open_checkpoints(workdir / 'snapshots', keep=10 ** 9)
  for t in times:
    store.save(t, tuple(dict(w=np.float32(tracked[s][t - 1]).reshape(4, 5)) for s in kinds), {})
  store.close()


ABSTRACT = dict(w=jax.ShapeDtypeStruct((4, 5), np.float32))


def test_posthoc_reads_snapshots(tmp_path, tracked):
  text = 'power(.05) | decay(.99) | power(.1)'
  save_snapshots(tmp_path, tracked, range(50, 1001, 50), (.05, .04, .1))  # the second is not to be used
  made = posthoc.posthoc(tmp_path, ABSTRACT, text, .07)['w']
  np.testing.assert_allclose(made.ravel(), tracked[.07][-1], rtol=0, atol=1e-3 * np.linalg.norm(tracked[.07][-1]))
  earlier = posthoc.posthoc(tmp_path, ABSTRACT, text, .1, step=500)['w']
  np.testing.assert_allclose(earlier.ravel(), tracked[.1][499], rtol=1e-5)
  for asked, step, message in ((.28, None, 'width 0.28 at step 1000.*profile.*config.snapshot_every'),
                               (.07, 1001, 'step 1001 .*from 50 to 1000'), (.3, None, 'below 0.2887'),
                               (.05, 12, 'width 0.05 at step 12.*profile')):
    with pytest.raises(InputError, match=message):
      posthoc.posthoc(tmp_path, ABSTRACT, text, asked, step)
  with pytest.raises(InputError, match='another model'):
    posthoc.posthoc(tmp_path, dict(w=jax.ShapeDtypeStruct((4, 6), np.float32)), text, .07)


def test_posthoc_says_what_is_missing(tmp_path):
  with pytest.raises(InputError, match=f'{tmp_path} .*config.snapshot_every'):
    posthoc.posthoc(tmp_path, ABSTRACT, 'power(.05)', .07)
  assert not list(tmp_path.iterdir())
  for text in ('', 'decay(.999)'):
    with pytest.raises(InputError, match='^config.extra_emas=.*power.*config.snapshot_every'):
      posthoc.posthoc(tmp_path, ABSTRACT, text, .07)
