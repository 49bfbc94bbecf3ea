"""The task of restoration: pairs, their condition, its residual form, and what is refused."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import integrate, ndimage

from diffusion import samplers
from diffusion.core.gaussian import Noise, q_sample
from diffusion.data import pairs, phantoms
from diffusion.data.dataset import Dataset
from diffusion.errors import InputError
from diffusion.setup.choices import make
from diffusion.tasks import degradations, restore
from tests.exact import gaussian_denoiser

RNG = np.random.default_rng(0)
DEGRADED = dict(super_resolution=degradations.super_resolution(2), deblur=degradations.deblur(.8),
                denoise=degradations.denoise(.1), mri=degradations.mri(2.), ct=degradations.ct(6))


def images(channels=1, bits=8, n=6, size=(8, 12)):
  return RNG.integers(0, 2 ** bits, (n, *size, channels)).astype(np.uint8 if bits == 8 else np.uint16)


def data_of(columns):
  return Dataset({name: column for name, column in columns.items()})


def encoded(task, data, key=None):
  return task.encode((), key, task.batch(data, np.arange(len(next(iter(data.arrays.values()))))))


# ---- pairs and their condition
@pytest.mark.parametrize('name, channels, bits, residual', [
  *((name, *rest) for name in ('super_resolution', 'mri') for rest in ((1, 8, False), (3, 8, True), (2, 16, True))),
  ('deblur', 4, 16, False), ('denoise', 4, 16, True), ('ct', 1, 16, True)])
def test_what_is_encoded_is_decoded_to_the_same_values(name, channels, bits, residual):
  data = data_of(dict(high=images(channels, bits)))
  task = restore.restore(DEGRADED[name], residual, data=data)
  x0, cond = encoded(task, data)
  assert cond['image'].shape == (6, 8, 12, channels) and set(cond) == {'image'}
  np.testing.assert_array_equal(task.decode((), x0, cond)['images'], data.arrays['high'])
  assert task.decode((), x0, cond)['inputs'].dtype == data.arrays['high'].dtype


def test_the_network_sees_what_other_libraries_make_of_the_measurement():
  data = data_of(dict(images=images(3, size=(16, 24))))
  x0 = pairs.as_unit(data.arrays['images'])
  _, cond = encoded(restore.restore(degradations.super_resolution(4), data=data), data)
  for c in range(3):
    small = x0[0, ..., c].reshape(4, 4, 6, 4).mean((1, 3))
    large = Image.fromarray(small).resize((24, 16), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(cond['image'][0, ..., c], large, atol=1e-5)
  _, cond = encoded(restore.restore(degradations.mri(3, noise=0.), data=data), data)
  kept = np.fft.fft2(x0, axes=(1, 2)) * degradations.lines(24, 3, .12, 0)[:, None]
  np.testing.assert_allclose(cond['image'], np.fft.ifft2(kept, axes=(1, 2)).real, atol=1e-5)
  _, cond = encoded(restore.restore(degradations.colour(), data=data), data)
  grey = np.stack([np.array(Image.fromarray(image).convert('L')) for image in data.arrays['images']])
  np.testing.assert_allclose((cond['image'][..., 0] + 1) * 127.5, grey, atol=1.)


@pytest.mark.parametrize('acceleration', [2, 3, 5])
def test_lines_are_as_many_as_asked_for_with_the_lowest_frequencies(acceleration):
  chosen = degradations.lines(60, acceleration, .1, 1)
  assert chosen.sum() == 60 // acceleration and chosen[np.abs(np.fft.fftfreq(60)) <= .05].all()


def test_noise_of_a_degradation_has_its_strength_and_is_fixed_without_a_key():
  data = data_of(dict(images=images(n=200)))
  task = restore.restore(degradations.denoise(.2), data=data)
  x0, cond = encoded(task, data, jax.random.key(1))
  assert np.std(cond['image'] - x0) == pytest.approx(.2, rel=.02)
  np.testing.assert_array_equal(encoded(task, data)[1]['image'], encoded(task, data)[1]['image'])
  assert np.std(encoded(task, data)[1]['image'] - x0) == pytest.approx(.2, rel=.02)


def test_the_network_is_told_how_the_degraded_image_was_augmented():
  data = data_of(dict(images=images(n=100, size=(16, 16))))
  plain = restore.restore(degradations.deblur(.5, 0.), data=data)
  view = np.asarray(encoded(plain, data)[1]['image'])
  _, cond = encoded(restore.restore(degradations.deblur(.5, 0.), noise=.3, data=data), data, jax.random.key(0))
  strength = np.std(np.asarray(cond['image']) - view, (1, 2, 3))
  np.testing.assert_allclose(strength, .3 * cond['told'][:, 0], rtol=.25, atol=1e-5)
  assert not np.any(cond['told'][:, 1]) and np.ptp(cond['told'][:, 0]) > .9
  _, cond = encoded(restore.restore(degradations.deblur(.5, 0.), blur=1.5, data=data), data, jax.random.key(0))
  for i in range(5):
    width = 1.5 * float(cond['told'][i, 1])
    wrapped = ndimage.gaussian_filter(view[i, ..., 0], width, mode='wrap', truncate=8)
    np.testing.assert_allclose(cond['image'][i, ..., 0], wrapped, atol=.02 if width > .5 else .25)
  _, cond = encoded(restore.restore(degradations.deblur(.5, 0.), noise=.3, blur=1.5, data=data), data)
  np.testing.assert_array_equal(cond['told'], np.zeros((100, 2)))
  np.testing.assert_array_equal(cond['image'], view)


def test_mirrored_images_have_mirrored_conditions():
  data = data_of(dict(high=images(n=40), low=None))
  data = data_of(dict(high=data.arrays['high'], low=data.arrays['high']))
  x0, cond = encoded(restore.restore(flip=True, data=data), data, jax.random.key(0))
  np.testing.assert_array_equal(x0, cond['image'])
  assert 5 < sum(not np.array_equal(a, b) for a, b in zip(x0, pairs.as_unit(data.arrays['high']))) < 35


# ---- the residual form
def ouve(t, theta=1.5, low=.05, high=.5):
  """alpha and sigma of SGMSE+'s process (arXiv:2208.05830, equation 6)."""
  L = np.log(high / low)
  variance = low ** 2 * ((high / low) ** (2 * t) - np.exp(-2 * theta * t)) * L / (theta + L)
  return np.exp(-theta * t), np.sqrt(variance)


def test_the_residual_form_is_the_process_that_leads_from_x0_to_the_degraded_image():
  """dx = theta (y - x) dt + g dw, g^2 = 2 L low^2 (high / low)^(2 t): the moments by integration."""
  data = data_of(dict(images=images(n=1, size=(4, 4))))
  task = restore.restore(degradations.deblur(.7, 0.), residual=True, data=data)
  d, cond = encoded(task, data)
  x0, y = pairs.as_unit(data.arrays['images']).ravel().astype(float), np.asarray(cond['image']).ravel().astype(float)
  theta, low, high = 1.5, .05, .5
  L = np.log(high / low)
  def rates(t, state):
    mean, variance = state[:-1], state[-1]
    return [*(theta * (y - mean)), -2 * theta * variance + 2 * L * low ** 2 * (high / low) ** (2 * t)]
  for t in (.2, .6, 1.):
    end = integrate.solve_ivp(rates, (0, t), [*x0, 0.], rtol=1e-9, atol=1e-12).y[:, -1]
    alpha, sigma = ouve(t)
    level = Noise(0., alpha, sigma, 2 * np.log(alpha / sigma))
    mean = np.asarray(q_sample(d, level, np.zeros(d.shape)) + cond['image']).ravel()
    np.testing.assert_allclose(mean, end[:-1], atol=2e-6)
    assert sigma ** 2 == pytest.approx(end[-1], rel=1e-6)


def test_samples_of_the_residual_form_are_those_of_its_reverse_equation():
  """Against the probability-flow ODE of x itself, for Gaussian x0 around y, integrated by SciPy."""
  data = data_of(dict(images=images(n=1, size=(4, 4))))
  task = restore.restore(degradations.deblur(.7, 0.), residual=True, data=data)
  _, cond = encoded(task, data)
  y, std, theta, low, high = np.asarray(cond['image'], float), .3, 1.5, .05, .5
  L, eps = np.log(high / low), 1e-3
  start = y + ouve(1.)[1] * RNG.standard_normal(y.shape)
  def rate(t, x):
    alpha, sigma = ouve(t)
    score = -(x - y.ravel()) / (alpha ** 2 * std ** 2 + sigma ** 2)
    return theta * (y.ravel() - x) - L * low ** 2 * (high / low) ** (2 * t) * score
  end = integrate.solve_ivp(rate, (1, eps), start.ravel(), rtol=1e-9, atol=1e-11).y[:, -1]
  alpha, sigma = ouve(np.linspace(1, eps, 600))
  levels = Noise(np.zeros(600), alpha, sigma, 2 * np.log(alpha / sigma))
  x = samplers.sample(samplers.sample_keys(0, np.arange(1)), gaussian_denoiser(0., std), samplers.dpmpp_2m(), levels,
                      jnp.asarray(start - y, jnp.float32))
  np.testing.assert_allclose(np.asarray(x + cond['image']).ravel(), end, atol=1e-4)


# ---- the check of the operator
def test_pairs_that_the_named_degradation_does_not_make_are_noticed_before_training():
  high = phantoms.phantoms(16, 40, 0).train.arrays['images']
  means = high.reshape(40, 8, 2, 8, 2, 1).mean((2, 4)).round().astype(np.uint8)
  named = degradations.super_resolution(2)
  def lines(low, degradation=named):
    data = data_of(dict(high=high, low=low))
    return restore.restore(degradation, data=data).prepare((), data).facts.get('lost', [])
  assert lines(means) == []
  [line] = lines(high[:, ::2, ::2])
  assert 'every so many-th pixel' in line
  noisy = (means + 8 * RNG.standard_normal(means.shape)).clip(0, 255).astype(np.uint8)
  assert 'noise' in lines(noisy)[0] and lines(noisy, degradations.super_resolution(2, .08)) == []
  assert '[16, 16, 1]' in lines(high)[0]
  assert lines(high, None) == []


# ---- requests
def test_a_file_an_array_or_an_example_is_restored(tmp_path):
  data = data_of(dict(images=images(1, n=20, size=(16, 16))))
  task = restore.restore(degradations.super_resolution(4), data=data)
  small = images(1, n=1, size=(4, 4))[0]
  Image.fromarray(small[..., 0]).save(tmp_path / 'small.png')
  np.save(tmp_path / 'small.npy', pairs.as_unit(small))
  asked = [task.ask(dict(image=str(tmp_path / name)), np.arange(3), 0) for name in ('small.png', 'small.npy')]
  asked.append(task.ask(dict(image=np.stack([small] * 3)), np.arange(3), 0))
  for each in asked:
    assert each.cond['image'].shape == (3, 16, 16, 1)
    np.testing.assert_allclose(each.cond['image'], asked[0].cond['image'], atol=1e-6)
  again = restore.restore(degradations.super_resolution(4), facts=task.facts, fitted=task.fitted)
  few, many = (again.ask({}, np.arange(n), 0).cond['image'] for n in (2, 40))
  np.testing.assert_array_equal(few, many[:2])


def test_mistakes_are_named(tmp_path):
  data = data_of(dict(images=images(1, n=4, size=(16, 16))))
  task = restore.restore(degradations.super_resolution(4), data=data)
  scan = restore.restore(degradations.mri(2.), data=data)
  ask = lambda task, array: task.ask(dict(image=[array]), np.arange(1), 0)
  np.save(tmp_path / 'y.npy', np.full((16, 16, 1, 2), 99.))
  for call, message in [
    (lambda: restore.restore(data=data), 'no pairs'),
    (lambda: restore.restore('blocks', data=data), "degradation='blocks'"),
    (lambda: restore.restore(5, data=data), 'degradation=5: expected one such as'),
    (lambda: restore.restore(noise=-1), 'noise=-1'), (lambda: degradations.mri(3, seed=-1), r'mri\(seed=-1\)'),
    (lambda: restore.restore(degradations.super_resolution(5), data=data), 'does not divide .* 16x16'),
    (lambda: restore.restore(degradations.colour(), data=data), '1 channels, expected 3'),
    (lambda: ask(task, np.zeros((4, 5, 1), np.uint8)), r'\[4, 5, 1\].*measures \[4, 4, 1\]'),
    (lambda: ask(task, np.zeros((4, 4, 1), np.uint16)), '16 bits, and the model is of 8'),
    (lambda: ask(task, np.full((4, 4, 1), 3.)), 'from 3 to 3'),
    (lambda: ask(task, np.full((4, 4, 1), np.nan)), 'nan'),
    (lambda: ask(scan, np.zeros((16, 16, 1), np.uint8)), 'measures no image'),
    (lambda: scan.ask(dict(image=str(tmp_path / 'y.npy')), np.arange(1), 0), 'from 99 to 99'),
    (lambda: task.ask(dict(image='nowhere.png'), np.arange(1), 0), 'no such file'),
    (lambda: degradations.mri(.5), 'acceleration=0.5'), (lambda: degradations.ct(0), 'angles=0'),
    (lambda: make('task', 'restore(blocks(4))'), 'unknown'), (lambda: phantoms.phantoms(bits=12), 'bits=12'),
  ]:
    with pytest.raises(InputError, match=message):
      call()


# ---- pairs of folders
def folders(tmp_path, high, low):
  for name, arrays in dict(high=high, low=low).items():
    (tmp_path / name).mkdir(exist_ok=True)
    for file, array in arrays.items():
      path = tmp_path / name / file
      if file.endswith('.npy'):
        np.save(path, array)
      else:
        Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(path)
  return str(tmp_path / 'high'), str(tmp_path / 'low')


@pytest.mark.parametrize('bits, channels, ending', [(8, 1, 'png'), (16, 1, 'png'), (16, 1, 'tif'), (8, 3, 'png'),
                                                    (8, 4, 'png'), (16, 3, 'npy'), (8, 2, 'npy')])
def test_pairs_are_read_as_they_are_stored(bits, channels, ending, tmp_path):
  high, low = images(channels, bits), images(channels, bits, size=(4, 6))
  name = lambda i: f'scan {i}.{ending}'
  source = pairs.pairs(*folders(tmp_path, {name(i): a for i, a in enumerate(high)},
                                {name(i): a for i, a in enumerate(low)}), heldout=2)
  for side in source[:2]:
    for a, b in zip(side.arrays['high'], side.arrays['low']):
      [i] = [i for i in range(6) if np.array_equal(high[i], a)]
      np.testing.assert_array_equal(low[i], b)
  assert len(source.heldout.arrays['high']) == 2 and source.train.arrays['low'].dtype == high.dtype


@pytest.mark.parametrize('high, low, message', [
  (dict(a=(8, 8, 1)), dict(b=(8, 8, 1)), 'without a partner of the same name: a, b'),
  (dict(a=(8, 8, 1), b=(8, 8, 1)), dict(a=(8, 8, 1)), '2 images in .* and 1 in'),
  (dict(a=(8, 8, 1)), dict(a=(3, 8, 1)), '8x8 .* 3x8; expected the same size'),
  (dict(a=(8, 8, 1), b=(8, 9, 1)), dict(a=(8, 8, 1), b=(8, 8, 1)), r'\[8, 9, 1\]'),
])
def test_pairs_that_do_not_fit_are_refused(high, low, message, tmp_path):
  write = lambda shapes: {f'{name}.png': np.zeros(shape, np.uint8) for name, shape in shapes.items()}
  with pytest.raises(InputError, match=message):
    pairs.pairs(*folders(tmp_path, write(high), write(low)))


def test_files_without_pixels_are_refused(tmp_path):
  with pytest.raises(InputError, match=r'a.npy: uint8 \[0, 8, 3\]; expected'):
    pairs.pairs(*folders(tmp_path, {'a.npy': np.zeros((0, 8, 3), np.uint8)}, {'a.npy': np.zeros((0, 8, 3), np.uint8)}))


def test_bits_are_not_mixed(tmp_path):
  eight, sixteen = images(n=1)[0], images(bits=16, n=1)[0]
  with pytest.raises(InputError, match='uint16 in .*uint8 in'):
    pairs.pairs(*folders(tmp_path, {'a.png': sixteen}, {'a.png': eight}))
  with pytest.raises(InputError, match='all with 8 or all with 16'):
    pairs.pairs(*folders(tmp_path, {'a.png': sixteen, 'b.png': eight}, {'a.png': sixteen, 'b.png': eight}))


# ---- phantoms
def test_phantoms_of_16_bits_are_those_of_8_more_finely():
  eight = phantoms.phantoms((16, 24), 30, 5).train.arrays['images']
  sixteen = phantoms.phantoms((16, 24), 30, 5, bits=16).train.arrays['high']
  assert eight.shape == (30, 16, 24, 1) and len(np.unique(eight.reshape(30, -1), axis=0)) == 30
  np.testing.assert_allclose(eight, sixteen / 257, atol=.51)
  assert not eight[:, [0, -1]][..., [0, -1], :].any() and (eight.max((1, 2, 3)) > 150).all()  # dark air, bright bone
