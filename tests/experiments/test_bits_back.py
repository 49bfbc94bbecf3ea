"""The codec on an analytic model: exact return, net cost against the bound and the entropy, damage."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion import samplers
from diffusion.core import schedules
from diffusion.core.gaussian import take
from diffusion.errors import InputError
from diffusion.evaluation import elbo
from experiments import bits_back
from tests.exact import gaussian_denoiser

constriction = pytest.importorskip('constriction')
STD = .2
STEPS = np.linspace(-1, 1, 256)
MASS = np.diff(stats.norm(0., STD).cdf(np.concatenate([[-np.inf], (STEPS[1:] + STEPS[:-1]) / 2, [np.inf]])))
TABLE = schedules.edm(20, .01)
IMAGES = np.random.default_rng(0).choice(256, (20, 4, 8, 2), p=MASS).astype(np.uint8)
DENOISE = gaussian_denoiser(0., STD)


def estimate(x, noise, ids, denoise=jax.jit(DENOISE)):
  return denoise(x, noise)


@pytest.fixture(scope='module')
def fit():
  x0 = (np.random.default_rng(1).choice(256, (50, 64), p=MASS) / 127.5 - 1).astype(np.float32)
  return elbo.fit_variances(TABLE, elbo.errors(samplers.sample_keys(0, np.arange(50)), DENOISE, TABLE, x0))


@pytest.fixture(scope='module')
def file(fit):
  return bits_back.encode(IMAGES, estimate, bits_back.plan(TABLE, fit), model='a', batch=8, note=['hello'])


def test_images_come_back_at_the_cost_of_the_bound_which_is_near_the_entropy(file, fit):
  data, cost = file
  decoded = bits_back.decode(data, estimate, bits_back.plan(TABLE, fit), model='a')
  np.testing.assert_array_equal(decoded, IMAGES)  # the last batch is not full
  x0 = jnp.asarray(IMAGES / 127.5 - 1, jnp.float32)
  keys = samplers.sample_keys(0, np.arange(len(x0)))
  expected = float(np.mean(jax.jit(lambda x0: elbo.bound(keys, DENOISE, TABLE, x0, variance=fit)[0]['total'])(x0)))
  net = cost.batches.sum() / IMAGES.size
  assert net == pytest.approx(expected, rel=.02)
  assert net == pytest.approx(-np.log2(MASS[IMAGES]).mean(), rel=.02)
  assert 8 * len(data) == pytest.approx(cost.batches.sum() + cost.initial, abs=2500)  # plus the header
  assert bits_back.header(data)['note'] == ['hello']


def test_only_the_first_batch_needs_bits_and_they_do_not_grow_with_the_chain(file, fit):
  x = IMAGES[:8]
  encode = lambda T: bits_back.encode(x, estimate, bits_back.plan(schedules.edm(T, .01)), model='a', batch=8)
  initial = [encode(T)[1].initial / x.size for T in (4, 40)]
  assert max(initial) < 16 and initial[1] < initial[0] + 4  # two layers of 6 bits and the width of a coarser step
  assert file[1].initial / x.size < 14


@pytest.mark.parametrize('variance, share', [('small', None), ('large', None), ('learned', .3)])
def test_every_variance_decodes_every_image(variance, share):
  def with_variance(x, noise, ids):
    pred = estimate(x, noise, ids)
    return pred._replace(variance=share if share is None else jnp.full_like(x, share))
  chain = bits_back.plan(schedules.cosine(5), variance)
  noise = np.random.default_rng(0).integers(0, 256, IMAGES[:2].shape, np.uint8)
  images = np.concatenate([IMAGES[:2], 0 * IMAGES[:1], 255 + 0 * IMAGES[:1], noise])
  data, cost = bits_back.encode(images, with_variance, chain, model='a', batch=3)
  np.testing.assert_array_equal(bits_back.decode(data, with_variance, chain, model='a'), images)


def test_a_model_that_errs_far_beyond_its_variance_still_codes_without_loss():
  def wrong(x, noise, ids):
    pred = estimate(x, noise, ids)
    return pred._replace(x0=pred.x0 + 3. * (np.arange(8)[:, None] == 2))
  images, chain = IMAGES[:2], bits_back.plan(TABLE)
  data, _ = bits_back.encode(images, wrong, chain, model='a', batch=2)
  np.testing.assert_array_equal(bits_back.decode(data, wrong, chain, model='a'), images)


def test_a_last_level_without_signal_codes():
  table = take(schedules.flow(6), slice(None))
  assert table.alpha[-1] == 0
  chain = bits_back.plan(table)
  data, _ = bits_back.encode(IMAGES[:1], estimate, chain, model='a', batch=1)
  np.testing.assert_array_equal(bits_back.decode(data, estimate, chain, model='a'), IMAGES[:1])


def test_the_network_gets_the_indices_of_its_images():
  calls = []
  def recording(x, noise, ids):
    calls.append((x.shape, list(ids)))
    return estimate(x, noise, ids)
  bits_back.encode(IMAGES[:3], recording, bits_back.plan(schedules.cosine(2)), model='a', batch=2)
  assert calls == [((2, 4, 8, 2), [0, 1])] * 2 + [((2, 4, 8, 2), [2, 2])] * 2


def test_damage_and_other_models_are_reported(file, fit):
  data, chain = file[0], bits_back.plan(TABLE, fit)
  for place in (0, 9, 40, 200, len(data) // 2, len(data) - 1):
    broken = bytearray(data)
    broken[place] ^= 1
    with pytest.raises(InputError, match='damaged|not a file'):
      bits_back.decode(bytes(broken), estimate, chain, model='a')
  for short in (b'', data[:10], data[:-1]):
    with pytest.raises(InputError, match='damaged|not a file'):
      bits_back.decode(short, estimate, chain, model='a')
  others = (chain, 'b'), (bits_back.plan(TABLE), 'a'), (bits_back.plan(schedules.edm(21, .01), 'small'), 'a')
  for other, name in others:
    with pytest.raises(InputError, match='another model'):
      bits_back.decode(data, estimate, other, model=name)
  for factor in (1.0001, 2., np.nan):
    def unlike(x, noise, ids):
      return estimate(x, noise, ids)._replace(x0=factor * estimate(x, noise, ids).x0)
    with pytest.raises(InputError, match='decoded wrongly'):
      bits_back.decode(data, unlike, chain, model='a')


def not_finite(x, noise, ids):
  return estimate(x * np.nan, noise, ids)


@pytest.mark.parametrize('call, text', [
  (lambda: bits_back.plan(TABLE, bins=1), 'bins=1'),
  (lambda: bits_back.plan(schedules.flow()), 'at least 2 levels'),
  (lambda: bits_back.encode(IMAGES / 255., estimate, bits_back.plan(TABLE), model='a'), 'expected uint8 images'),
  (lambda: bits_back.encode(IMAGES, not_finite, bits_back.plan(TABLE), model='a'), 'not finite')])
def test_bad_input_is_reported(call, text):
  with pytest.raises(InputError, match=text):
    call()
