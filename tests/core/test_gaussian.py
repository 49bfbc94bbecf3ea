"""Targets: each is inverted exactly and equals the formula of its paper."""
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import gaussian, schedules
from diffusion.core.gaussian import clip, denoiser, expand_to, Noise, q_sample, take, vp
from diffusion.errors import InputError

rng = np.random.default_rng(0)
X0, EPS = (jnp.asarray(rng.standard_normal((5, 4, 4, 3)), jnp.float32) for _ in range(2))
MIDDLE = vp(np.zeros(5), np.array([-4., -1., 0., 2., 4.]))
SCHEDULES = dict(vp=schedules.cosine(), flow=schedules.flow(T=100),
                 ve=schedules.edm(T=100, sigma_min=.05, sigma_max=20.))
TARGETS = dict(eps=gaussian.predict_eps(), x0=gaussian.predict_x0(), v=gaussian.predict_v(),
               flow=gaussian.predict_flow(), score=gaussian.predict_score(), edm=gaussian.predict_edm(.5))


def level32(noise):
  return Noise(*(jnp.asarray(a, jnp.float32) for a in noise))


@pytest.mark.parametrize('name, scaling', [(name, scaling) for name in TARGETS for scaling in SCHEDULES
                                           if name != 'edm' or scaling == 've'])  # EDM is defined for alpha = 1
def test_every_target_is_inverted_where_both_parts_are_visible(name, scaling):
  table = SCHEDULES[scaling]
  wide = take(table, np.searchsorted(-table.logsnr, [-2., -1., 0., 1., 2.]))
  noise = expand_to(level32(wide), X0)
  target = TARGETS[name](noise)
  pred = gaussian.solve(target, noise, q_sample(X0, level32(wide), EPS), target.a * X0 + target.b * EPS)
  np.testing.assert_allclose(pred.x0, X0, atol=3e-6)  # values of size 4: 1e-6 relative
  np.testing.assert_allclose(pred.eps, EPS, atol=3e-6)


@pytest.mark.parametrize('name', TARGETS)
def test_solve_is_exact_in_float64_algebra_at_every_level(name):
  table = SCHEDULES['ve' if name == 'edm' else 'vp']
  target = TARGETS[name](table)
  det = gaussian.determinant(target, table)
  for x0, eps in ((.3, -1.2), (-.9, .4)):
    x, out = table.alpha * x0 + table.sigma * eps, target.a * x0 + target.b * eps
    np.testing.assert_allclose((target.b * x - table.sigma * out) / det, x0, rtol=1e-6)
    np.testing.assert_allclose((table.alpha * out - target.a * x) / det, eps, rtol=1e-6)


def test_targets_are_those_of_their_papers():
  n = take(SCHEDULES['vp'], 300)
  x0, eps = .7, -.4
  value = lambda kind, n=n: TARGETS[kind](n).a * x0 + TARGETS[kind](n).b * eps
  angle = np.arctan2(n.sigma, n.alpha)
  step = 1e-6  # v is the derivative of x_t by the angle (arXiv:2202.00512, appendix D)
  along = lambda a: np.cos(a) * x0 + np.sin(a) * eps
  assert value('v') == pytest.approx((along(angle + step) - along(angle - step)) / (2 * step), rel=1e-6)
  x = n.alpha * x0 + n.sigma * eps
  log_q = lambda x: -.5 * (x - n.alpha * x0) ** 2 / n.sigma ** 2  # the score is the slope of log q(x_t | x0)
  assert value('score') == pytest.approx((log_q(x + step) - log_q(x - step)) / (2 * step), rel=1e-5)
  straight = lambda t: (1 - t) * x0 + t * eps  # the velocity of a straight path
  assert value('flow') == pytest.approx((straight(.5 + step) - straight(.5 - step)) / (2 * step), rel=1e-6)


def test_edm_target_is_the_preconditioner_of_karras_et_al():
  """D(x) = c_skip x + c_out F(c_in x): solving the target for x0 must give these coefficients (table 1)."""
  sd = .5
  for sigma in (.01, .5, 30.):
    n = Noise(0., 1., np.float64(sigma), -2 * np.log(sigma))
    target = gaussian.predict_edm(sd)(n)
    det = gaussian.determinant(target, n)
    r2 = sigma ** 2 + sd ** 2
    assert target.b / det == pytest.approx(sd ** 2 / r2)              # c_skip
    assert -sigma / det == pytest.approx(sigma * sd / np.sqrt(r2))    # c_out
    assert target.scale == pytest.approx(1 / np.sqrt(r2))             # c_in
    assert target.a ** 2 * sd ** 2 + target.b ** 2 == pytest.approx(1.)  # the target has unit variance


@pytest.mark.parametrize('name', SCHEDULES)
def test_a_scaled_input_has_unit_variance_in_every_scaling_and_the_target_is_the_same(name):
  noise, x0 = SCHEDULES[name], np.random.default_rng(0).standard_normal((100_000, 1)) * .3
  eps = np.random.default_rng(1).standard_normal(x0.shape)
  target, plain = gaussian.scaled(gaussian.predict_v(), sd=.3)(noise), gaussian.predict_v()(noise)
  for i in (0, 50, 99):
    x = target.scale[i] * (noise.alpha[i] * x0 + noise.sigma[i] * eps)
    assert np.std(x) == pytest.approx(1, abs=.01)
  assert target.b is plain.b and np.array_equal(target.a, plain.a)
  seen = []
  def net(params, x, *rest):
    seen.append(x)
    return x
  level = take(noise, 50)
  denoiser(net, None, None, gaussian.scaled(gaussian.predict_eps(), sd=.3))(X0, Noise(*map(np.float32, level)))
  np.testing.assert_allclose(seen[0], X0 / np.sqrt(.09 * level.alpha ** 2 + level.sigma ** 2), rtol=1e-5)


@pytest.mark.parametrize('name', ['eps', 'x0', 'v', 'flow', 'score'])
def test_a_network_that_outputs_the_target_makes_an_exact_denoiser(name):
  noise = level32(MIDDLE)
  target = TARGETS[name](expand_to(noise, X0))
  received = {}
  def net(params, x, time, cond, train, rngs):
    received.update(time=time, cond=cond, train=train)
    return target.a * X0 + target.b * EPS
  pred = denoiser(net, None, 'condition', TARGETS[name])(q_sample(X0, noise, EPS), noise)
  np.testing.assert_allclose(pred.x0, X0, atol=5e-5)
  np.testing.assert_allclose(pred.eps, EPS, atol=5e-5)
  assert received['cond'] == 'condition' and received['train'] is False and received['time'].shape == (5,)


def test_a_learned_variance_is_the_second_half_of_the_channels_and_another_shape_is_an_error():
  noise, calls = level32(MIDDLE), dict(plain=gaussian.predict_v(), both=gaussian.with_variance(gaussian.predict_v()))
  def pred(name, *parts):
    return denoiser(lambda *_: jnp.concatenate(parts, -1), None, None, calls[name])(X0, noise)
  expected = pred('plain', EPS)
  assert expected.variance is None
  learned = pred('both', EPS, 2 * X0 - 1)
  np.testing.assert_array_equal(learned.x0, expected.x0)
  np.testing.assert_allclose(learned.variance, X0, atol=1e-6)
  wrong = [('plain', [EPS, X0]), ('plain', [EPS[..., :1]]), ('both', [EPS]), ('both', [EPS, X0, X0]),
           ('plain', [EPS[:1]])]
  for name, parts in wrong:
    with pytest.raises(InputError, match=r'shape \(\d.*expected \(5, 4, 4, [36]\)'):
      pred(name, *parts)


def test_clipping_keeps_the_prediction_consistent_with_x():
  noise = level32(MIDDLE)
  x = q_sample(X0, noise, EPS)
  pred = clip(lambda x, n: gaussian.from_x0(expand_to(n, x), x, 3 * X0))(x, noise)
  assert float(jnp.max(jnp.abs(pred.x0))) == 1.
  np.testing.assert_allclose(q_sample(pred.x0, noise, pred.eps), x, atol=1e-5)
