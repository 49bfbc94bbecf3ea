"""Optimizers and learning-rate schedules that a config names, against closed forms."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion.errors import InputError
from diffusion.setup.choices import make
from diffusion.setup.optimizer import LR_SCHEDULES, OPTIMIZERS

RNG = np.random.default_rng(0)
PARAMS = dict(conv=dict(kernel=RNG.normal(size=(3, 3, 8, 16)).astype(np.float32), bias=np.ones(16, np.float32)),
              dense=dict(kernel=RNG.normal(size=(20, 12)).astype(np.float32)), norm=dict(scale=np.ones(4, np.float32)))
GRADS = jax.tree.map(lambda a: RNG.normal(size=a.shape).astype(np.float32), PARAMS)


def first_update(spec, rate=.1, mask=None, params=PARAMS, grads=GRADS):
  optimizer = make('optimizer', spec)(rate, mask)
  return optimizer.update(grads, optimizer.init(params), params)[0]


@pytest.mark.parametrize('spec', ['adam', 'adamw', 'radam(b2=.9)', 'lion', 'sgd', 'muon'])
def test_every_optimizer_finds_the_least_of_a_parabola(spec):
  target = jax.tree.map(lambda a: .5 * jnp.ones_like(a), PARAMS)
  optimizer = make('optimizer', spec)(optax.linear_schedule(.1, 0., 300), None)
  def step(carry, _):
    params, state = carry
    updates, state = optimizer.update(jax.tree.map(lambda p, t: p - t, params, target), state, params)
    return (optax.apply_updates(params, updates), state), None
  start = jax.tree.map(jnp.asarray, PARAMS)
  (found, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=300)
  assert max(float(jnp.abs(a - .5).max()) for a in jax.tree.leaves(found)) < .05


def test_the_first_steps_of_adam_and_lion_have_the_size_of_the_rate():
  for spec in ('adam', 'adamw(weight_decay=0)', 'lion'):
    for update, grad in zip(*map(jax.tree.leaves, (first_update(spec), GRADS))):
      np.testing.assert_allclose(update, -.1 * np.sign(grad), rtol=1e-4)
  np.testing.assert_allclose(first_update('sgd')['conv']['bias'], -.1 * GRADS['conv']['bias'], rtol=1e-6)


@pytest.mark.parametrize('spec', ['adamw', 'lion'])
def test_weight_decay_is_decoupled_and_spares_what_the_mask_spares(spec):
  mask = lambda params: {key: key != 'norm' for key in params}
  plain, decayed = first_update(spec), first_update(f'{spec}(weight_decay=.5)', mask=mask)
  shrunk = jax.tree.map(lambda a, b: np.asarray(b - a), plain, decayed)
  np.testing.assert_allclose(shrunk['conv']['kernel'], -.1 * .5 * PARAMS['conv']['kernel'], atol=1e-6)
  np.testing.assert_array_equal(shrunk['norm']['scale'], 0)


def test_muon_takes_a_convolution_as_one_matrix_and_orthogonalises_it():
  update = first_update('muon(rms=.2)')
  for name in ('conv', 'dense'):
    kernel = np.asarray(update[name]['kernel'])
    matrix = kernel.reshape(-1, kernel.shape[-1])
    values = np.linalg.svd(matrix, compute_uv=False) / (.1 * .2 * np.sqrt(max(matrix.shape)))
    assert .6 < values.min() and values.max() < 1.25  # five Newton-Schulz steps bring all of them near 1
    assert np.sqrt(np.mean(matrix ** 2)) == pytest.approx(.1 * .2, rel=.2)  # the size of an Adam step
  # Everything else: Adam's first step with Nesterov's momentum, b1 = .9.
  first = -.1 * (1 + .9 * (1 - .9) / (1 - .9 ** 2)) * np.sign(GRADS['conv']['bias'])
  np.testing.assert_allclose(update['conv']['bias'], first, rtol=1e-4)


def test_muon_spares_what_the_mask_spares():
  mask = lambda params: {key: key != 'dense' for key in params}
  plain, decayed = first_update('muon'), first_update('muon(weight_decay=.5)', mask=mask)
  np.testing.assert_array_equal(plain['dense']['kernel'], decayed['dense']['kernel'])
  np.testing.assert_allclose(decayed['conv']['kernel'] - plain['conv']['kernel'], -.05 * PARAMS['conv']['kernel'],
                             atol=1e-6)


@pytest.mark.parametrize('name', list(LR_SCHEDULES))
def test_learning_rates_rise_linearly_to_their_peak(name):
  rate = LR_SCHEDULES[name](warmup=10)(2e-3, 110)
  start, half, peak = (float(rate(step)) for step in (0, 5, 10))
  assert (start, half, peak) == pytest.approx((2e-4, 1.1e-3, 2e-3), rel=1e-5)
  middle = dict(cosine=1e-3, linear=1e-3, constant=2e-3)[name]
  quarter = dict(cosine=2e-3 * np.cos(np.pi / 8) ** 2, linear=1.5e-3, constant=2e-3)[name]
  end = dict(cosine=0, linear=0, constant=2e-3)[name]
  assert [float(rate(step)) for step in (35, 60, 110)] == pytest.approx([quarter, middle, end], rel=1e-5, abs=1e-9)
  assert float(LR_SCHEDULES[name](warmup=0)(2e-3, 100)(0)) == pytest.approx(2e-3)


@pytest.mark.parametrize('spec, message', [
  ('adamw(b2=1)', 'b2=1'), ('adam(eps=0)', 'eps=0'), ('lion(weight_decay=-1)', 'weight_decay=-1'),
  ('muon(rms=0)', 'rms=0'),
  ('sgd(momentum=x)', "momentum='x'"), ('adamw(beta2=.9)', "unknown argument 'beta2'")])
def test_arguments_out_of_range_are_named(spec, message):
  with pytest.raises(InputError, match=message):
    make('optimizer', spec)
  assert spec.partition('(')[0] in OPTIMIZERS
