"""Series: the generated waves, the network at any length, the task and its spectrum."""
import jax
import numpy as np
import pytest

from diffusion import nets
from diffusion.data import series as data
from diffusion.errors import InputError
from diffusion.evaluation import series as evaluation
from diffusion.nets.unet1d import UNet1d
from diffusion.tasks.series import series

TRAIN = data.waves(64, n=400, heldout=50).train


def test_x0_is_standardised_and_comes_back_and_a_request_may_name_a_length():
  task, values = series(data=TRAIN), TRAIN.arrays['series'].astype(np.float64)
  x0, cond = task.encode((), None, task.batch(TRAIN, np.arange(len(values))))
  np.testing.assert_allclose([x0.mean(), x0.std()], [0, 1], atol=1e-5)
  np.testing.assert_allclose(task.decode((), x0, cond)['series'], values, atol=1e-5)
  assert task.ask(dict(length='300'), np.arange(2), 0).shape == (300, 1)
  for text in ('abc', '7', '-9'):
    with pytest.raises(InputError, match=f"length='{text}'"):
      task.ask(dict(length=text), np.arange(2), 0)


def test_a_sine_has_its_power_at_its_frequency():
  wave = np.sin(2 * np.pi * 9 * np.arange(96) / 96)[None, :, None]
  assert evaluation.log_spectra(wave)[0].argmax() == 9 - 1  # without frequency 0
  assert evaluation.spectrum_distance(wave, wave) == 0
  assert evaluation.value_distance(wave, wave + 3) == pytest.approx(3)


def test_the_error_of_a_distance_is_its_spread_over_repeats():
  rng, found = np.random.default_rng(0), []
  for seed in range(60):
    a, b = rng.normal(size=(60, 8, 1)) + rng.normal(size=(60, 1, 1)), 3 + rng.normal(size=(40, 8, 1))
    found.append(evaluation.measured(evaluation.value_distance, a, b, seed))
  values, errors = np.array([e.value for e in found]), np.array([e.error for e in found])
  assert values.mean() == pytest.approx(3, abs=.06)
  assert errors.mean() == pytest.approx(values.std(), rel=.3)
  assert np.mean([e.low <= 3 <= e.high for e in found]) > .85


def test_far_from_its_ends_the_network_does_not_know_how_long_a_series_is():
  net = nets.make(UNet1d(channels=8, multipliers=(1, 1), blocks=1, groups=4, kernel=3))
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1, 96, 1)).astype(np.float32)
  params = net.init(jax.random.key(0), (1, 96, 1))
  params = jax.tree.map(lambda a: np.asarray(a) + .1 * rng.normal(size=a.shape).astype(np.float32), params)
  whole, part = (np.asarray(jax.jit(net.apply)(params, x[:, :n], np.full(1, 100.))) for n in (96, 61))
  assert part.shape == (1, 61, 1)  # a length that the resolutions do not divide
  np.testing.assert_allclose(part[:, :24], whole[:, :24], atol=1e-4)  # two programs: 2e-5 apart with jax 0.12
  assert np.abs(part[:, -4:] - whole[:, 57:61]).max() > 1e-3


def test_files_of_the_user_are_checked(tmp_path):
  path = str(tmp_path / 'x.npy')
  for array, message in ((np.zeros(9), 'numbers .N, length.'), (np.zeros((3, 4)), 'length of at least 8'),
                         (np.full((3, 9), np.nan), 'number 0 is not')):
    np.save(path, array)
    with pytest.raises(InputError, match=message):
      data.series(path)
  np.save(path, np.arange(90.).reshape(10, 9))
  read = np.concatenate([side.arrays['series'] for side in data.series(path)[:2]])
  np.testing.assert_array_equal(np.sort(read.ravel()), np.arange(90.))
