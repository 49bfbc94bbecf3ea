"""The task and the evaluator of points."""
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from diffusion.core import schedules
from diffusion.core.gaussian import Noise
from diffusion.data import points as data
from diffusion.data.dataset import Dataset
from diffusion.errors import InputError
from diffusion.evaluation import points as evaluation
from diffusion.setup.build import Weights
from diffusion.tasks.points import points
from tests.exact import gaussian_denoiser

TRAIN = data.points('moons', n=3000, heldout=500).train


def test_x0_is_standardised_by_what_was_measured_and_comes_back():
  task = points(data=TRAIN)
  xy = TRAIN.arrays['points'].astype(np.float64)
  np.testing.assert_allclose(task.fitted['mean'], xy.mean(0), rtol=1e-6)
  x0, cond = task.encode((), None, task.batch(TRAIN, np.arange(3000)))
  np.testing.assert_allclose([x0.mean(0), x0.std(0)], [[0, 0], [1, 1]], atol=1e-5)
  np.testing.assert_allclose(task.decode((), x0, cond)['points'], xy, atol=1e-6)
  np.testing.assert_array_equal(cond.argmax(1), TRAIN.arrays['labels'])
  stored = points(facts=task.facts, fitted=task.fitted)  # as from a checkpoint
  np.testing.assert_array_equal(stored.encode((), None, task.batch(TRAIN, np.arange(9)))[0], x0[:9])


def test_points_of_another_dimension_are_refused():
  with pytest.raises(InputError, match=r'points of the plane, \[N, 2\], and config.data has \[5, 3\]'):
    points(data=Dataset(dict(points=np.zeros((5, 3), np.float32))))


def test_the_files_hold_the_points(tmp_path):
  from etils import epath
  task = points(data=TRAIN)
  asked = task.ask(dict(classes='lower'), np.arange(4), 0)
  task.save(epath.Path(tmp_path), dict(points=TRAIN.arrays['points'][:4]), asked.cond, asked.labels)
  lines = (tmp_path / 'points.csv').read_text().splitlines()
  assert lines[0] == 'x,y,class' and lines[1].endswith(',lower')
  read = np.array([[float(word) for word in line.split(',')[:2]] for line in lines[1:]])
  np.testing.assert_allclose(read, TRAIN.arrays['points'][:4], rtol=1e-5)
  with np.load(tmp_path / 'samples.npz') as arrays:
    np.testing.assert_array_equal(arrays['points'], TRAIN.arrays['points'][:4])


def test_the_energy_distance_of_two_gaussians_is_the_known_one():
  rng, shift = np.random.default_rng(0), 3.
  a, b = rng.normal(size=(3000, 2)), rng.normal(size=(3000, 2)) + [shift, 0]
  # |difference of two points| is Rayleigh, or Rice with the shift, times sqrt 2
  apart = np.sqrt(2) * stats.rice(shift / np.sqrt(2)).mean()
  known = 2 * apart - 2 * np.sqrt(2) * stats.rayleigh().mean()
  found = evaluation.energy_distance(a, b, 0)
  assert found.value == pytest.approx(known, rel=.03) and found.low < known < found.high


def test_the_energy_distance_of_equal_distributions_is_0_within_its_error_in_whatever_order_points_come():
  found = []
  for seed in range(40):
    rng = np.random.default_rng(seed)
    (a, labels), (b, _) = data.draw('eight', 400, rng), data.draw('eight', 300, rng)
    found.append(evaluation.energy_distance(a[np.argsort(labels)], b, seed))
  assert np.mean([e.low < 0 < e.high for e in found]) >= .85
  assert np.mean([e.error for e in found]) < 3 * np.std([e.value for e in found])  # not by intervals that hold anything


@pytest.mark.parametrize('kind', ['moons', None], ids=['known density', 'points alone'])
def test_the_learned_field_and_the_density_are_drawn_at_their_place(kind):
  noise, mean, scale = schedules.cosine(None)(.4), np.array([.3, -.2], np.float32), np.array([.8, .5], np.float32)
  noise = Noise(*(np.float64(a) for a in noise))
  task = points(facts=dict(classes=['a', 'b'], kind=kind), fitted=dict(mean=mean, scale=scale))
  run = SimpleNamespace(task=task, example=(None, np.ones((1, 2), np.float32)),
                        plain=lambda weights, cond: gaussian_denoiser(0., 1.) if not cond.any() else None)
  start, arrow = evaluation.learned_field(run, None, noise, 2.)
  # the posterior mean of N(0, 1) is alpha x_t / (alpha^2 + sigma^2): all arrows point to 0, at lengths of square roots
  towards = -start * noise.sigma ** 2 / (noise.alpha ** 2 + noise.sigma ** 2)
  np.testing.assert_allclose(np.hypot(*arrow.T) ** 2 / np.hypot(*towards.T), np.hypot(*arrow[0]) ** 2
                             / np.hypot(*towards[0]), rtol=1e-3)
  np.testing.assert_allclose(np.sum(arrow * towards, 1), np.hypot(*arrow.T) * np.hypot(*towards.T), rtol=1e-4)
  xy, rng = data.draw('moons', 20000, np.random.default_rng(0))[0], np.random.default_rng(1)
  x = noise.alpha * (xy - mean) / scale + noise.sigma * rng.normal(size=xy.shape)
  image = evaluation.density_image(kind, noise, mean, scale, 6., x)
  centre = (np.arange(len(image)) + .5) * 12 / len(image) - 6
  share = image / image.sum()
  np.testing.assert_allclose([share.sum(0) @ centre, share.sum(1) @ centre], x.mean(0), atol=.05)
  np.testing.assert_allclose(centre @ share @ centre, np.mean(x[:, 0] * x[:, 1]), atol=.08)


@pytest.mark.parametrize('schedule', [schedules.cosine(), schedules.cosine(None)], ids=['table', 'curve'])
def test_log_densities_are_those_of_a_gaussian_under_its_exact_denoiser_in_the_units_of_the_points(schedule):
  std, scale, mean = np.float32(.7), np.array([2., .5], np.float32), np.array([1., -1.], np.float32)
  xy = (mean + scale * std * np.random.default_rng(0).normal(size=(40, 2))).astype(np.float32)
  task = points(facts=dict(classes=[]), fitted=dict(mean=mean, scale=scale))
  run = SimpleNamespace(task=task, schedule=schedule, encode=lambda frozen, key, batch: task.encode((), key, batch),
                        plain=lambda weights, cond: gaussian_denoiser(0., std))
  found = evaluation.log_densities(run, Weights({}), Dataset(dict(points=xy)), 40)
  known = stats.norm(mean, scale * std).logpdf(xy.astype(np.float64)).sum(1)
  np.testing.assert_allclose(found, known, atol=.03)
