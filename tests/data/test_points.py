"""Distributions in the plane: their points against their densities, and both against what is known exactly."""
import numpy as np
import pytest
from scipy import stats

from diffusion.data import points
from diffusion.errors import InputError

CELLS = 24
EDGES = np.linspace(-2, 2, CELLS + 1)


def per_cell(kind, fine=12, **level):
  """The probability of each cell of a grid over [-2, 2]^2, by the midpoint rule."""
  line = (np.arange(CELLS * fine) + .5) * 4 / (CELLS * fine) - 2
  values = points.density(kind, np.stack(np.meshgrid(line, line, indexing='ij'), -1), **level)
  return values.reshape(CELLS, fine, CELLS, fine).sum((1, 3)) * (4 / (CELLS * fine)) ** 2


@pytest.mark.parametrize('kind', points.KINDS)
@pytest.mark.parametrize('level', [{}, dict(alpha=.8, sigma=.3), dict(alpha=.9, sigma=np.array([.1, .4]))],
                         ids=['clean', 'noisy', 'noise of two sizes'])
def test_points_fall_where_the_density_is(kind, level):
  expected = per_cell(kind, **level)
  assert expected.sum() == pytest.approx(1, abs=2e-3)  # all of it, once
  rng, n = np.random.default_rng(0), 40_000
  xy, _ = points.draw(kind, n, rng)
  xy = level.get('alpha', 1.) * xy + level.get('sigma', 0.) * rng.normal(size=xy.shape)
  counts, *_ = np.histogram2d(*xy.T, EDGES)
  often = n * expected > 5
  chi2 = np.sum((counts - n * expected)[often] ** 2 / (n * expected)[often])
  assert chi2 < stats.chi2(often.sum()).ppf(1 - 1e-4)
  assert counts[~often].sum() < n * expected[~often].sum() + 60


def test_the_ring_of_gaussians_has_its_exact_density():
  xy = np.random.default_rng(0).normal(size=(50, 2))
  means = [(np.cos(np.pi * k / 4), np.sin(np.pi * k / 4)) for k in range(8)]
  known = np.mean([stats.multivariate_normal(mean, .08 ** 2).pdf(xy) for mean in means], 0)
  np.testing.assert_allclose(points.density('eight', xy), known, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize('kind, variances', [
  ('moons', (1 / 2 + .5 ** 2 + .08 ** 2, 1 / 2 - 1 / np.pi + .25 ** 2 + .08 ** 2)),  # of +-(cos - .5), +-(sin - .25)
  ('eight', (1 / 2 + .08 ** 2,) * 2), ('checkerboard', (1 / 3,) * 2)])
def test_means_are_0_and_variances_the_exact_ones(kind, variances):
  xy, _ = points.draw(kind, 200_000, np.random.default_rng(0))
  np.testing.assert_allclose(xy.mean(0), 0, atol=5 * np.sqrt(max(variances) / 200_000))
  np.testing.assert_allclose(xy.var(0), variances, rtol=.01)


def test_classes_are_the_parts_of_a_distribution_and_the_same_seed_gives_the_same_points():
  source = points.points('eight', n=2000, heldout=100)
  xy, labels = source.train.arrays['points'], source.train.arrays['labels']
  nearest = np.round(np.arctan2(xy[:, 1], xy[:, 0]) / (np.pi / 4)).astype(int) % 8
  assert np.mean(nearest == labels) > .999 and len(source.heldout.arrays['points']) == 100
  again = points.points('eight', n=2000, heldout=100)
  np.testing.assert_array_equal(again.train.arrays['points'], xy)
  assert points.points('checkerboard', n=10, heldout=0).train.facts == dict(kind='checkerboard', classes=())


@pytest.mark.parametrize('arguments, message', [
  (dict(kind='moon'), "kind='moon': expected one of moons"), (dict(n=0), 'n=0'), (dict(heldout=.1), 'heldout=0.1')])
def test_what_does_not_fit_is_named(arguments, message):
  with pytest.raises(InputError, match=message):
    points.points(**arguments)
