"""Streaming moments against NumPy in float64, in any batches, with any groups and devices."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.evaluation.metrics import gaussian_stats as m


def features(n, size, seed=0, mean=5.):
  rng = np.random.default_rng(seed)
  return (mean + rng.standard_normal((n, size)) * np.linspace(.1, 3, size)).astype(np.float32)


def groups_of(points, groups):
  """Each group on its own, in float64."""
  parts = [points[g::groups].astype(np.float64) for g in range(groups)]
  return [len(p) for p in parts], [p.mean(0) for p in parts], [(p - p.mean(0)).T @ (p - p.mean(0)) for p in parts]


@pytest.mark.parametrize('n, groups, mean', [(9001, 12, 5.), (4096, 5, 1000.), (700, 12, -3.), (13, 6, 0.)])
def test_groups_are_those_of_the_stream_whatever_its_batches(n, groups, mean):
  points = features(n, 7, mean=mean)
  found = m.moments(np.split(points, [1, 3, 6, n - 6, n - 5]), groups)
  count, middle, square = map(np.array, groups_of(points, groups))
  spread = np.sqrt(np.einsum('gi,gj->gij', *2 * (np.diagonal(square, axis1=1, axis2=2),)))
  np.testing.assert_array_equal(found.count, count)
  np.testing.assert_allclose(found.mean, middle, rtol=1e-7, atol=1e-6)
  assert np.max(np.abs(found.square - square) / spread) < 2e-6 and found.square.dtype == np.float64
  count, middle, covariance = m.total(found)
  assert count == n
  np.testing.assert_allclose(middle, points.mean(0, dtype=np.float64), rtol=1e-7, atol=1e-7)
  np.testing.assert_allclose(covariance, np.cov(points.astype(np.float64).T), atol=3e-6 * 9)


def test_left_out_and_repeated_groups_are_the_samples_left_out_and_repeated():
  points = features(500, 5)
  found, by_group = m.moments([points], 6), [points[g::6].astype(np.float64) for g in range(6)]
  for keep in ([0, 1, 4], [2, 2, 5, 0]):
    some = np.concatenate([by_group[g] for g in keep])
    n, mean, covariance = m.total(found, keep)
    assert n == len(some)
    np.testing.assert_allclose(mean, some.mean(0), rtol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(some.T), atol=1e-5)
  fewer = m.regroup(m.moments([points], 12), 4)  # i % 12 % 4 is i % 4
  for got, expected in zip(fewer, groups_of(points, 4)):
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-3)


def test_two_streams_together_are_one():
  a, b = features(240, 5), features(300, 5, seed=1, mean=-2.)
  joined, whole = m.merge(m.moments([a], 6), m.moments([b], 6)), m.moments([a, b], 6)  # 240 is a multiple of 6
  for got, expected in zip(joined, whole):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-3)


def test_memory_of_a_stream_does_not_grow():
  stream, waiting = m.start(), []
  for i in range(30):
    stream = m.add(stream, features(1000, 3, i))
    waiting.append(sum(map(len, stream.waiting)))
  assert max(waiting) < m.ROWS and m.finish(stream).count.sum() == 30_000


def test_files_are_read_back_and_those_of_other_tools_are_one_group(tmp_path):
  found = m.moments([features(300, 6)])
  m.write(tmp_path / 'own.npz', found)
  for got, expected in zip(m.read(tmp_path / 'own.npz'), found):
    np.testing.assert_array_equal(got, expected)
  _, mean, covariance = m.total(found)
  np.savez(tmp_path / 'fid.npz', mu=mean, sigma=covariance)
  other = m.read(tmp_path / 'fid.npz')
  assert len(other.count) == 1
  np.testing.assert_allclose(m.total(other)[1], mean, rtol=1e-12)
  np.testing.assert_allclose(m.total(other)[2], covariance, rtol=1e-10)


def test_what_is_no_feature_is_refused(tmp_path):
  with pytest.raises(InputError, match='no samples'):
    m.moments([])
  with pytest.raises(InputError, match='features of shape'):
    m.moments([np.zeros((3, 4)), np.zeros((3, 5))])
  with pytest.raises(InputError, match='2 of 3 samples'):
    m.moments([np.array([[1., np.nan], [1., 1.], [np.inf, 0.]])])
  with pytest.raises(InputError, match='at least 3'):
    m.start(groups=2)
  np.savez(tmp_path / 'a.npz', mu=np.zeros(3), sigma=np.zeros((4, 4)))
  (tmp_path / 'b.npz').write_text('nothing')
  np.savez(tmp_path / 'c.npz', x=1)
  for name in 'abcd':
    with pytest.raises(InputError, match=f'{name}.npz'):
      m.read(tmp_path / f'{name}.npz')


def test_the_jackknife_of_a_mean_is_its_standard_error():
  values = np.random.default_rng(0).standard_normal(50)
  found = m.jackknife(values.mean(), [np.delete(values, i).mean() for i in range(50)], 50)
  assert found.error == pytest.approx(values.std(ddof=1) / np.sqrt(50), rel=1e-12)
  assert (found.high - found.low) / 2 == pytest.approx(2.0096 * found.error, rel=1e-4)  # Student's t, 49 degrees
  assert np.isnan(m.jackknife(1., [], 5).low)


SCRIPT = '''
import json, sys
import jax, numpy as np
from diffusion.evaluation.metrics import frechet, kid, neighbours, scores
from diffusion.evaluation.metrics.gaussian_stats import moments
from diffusion.system import sharding
assert len(jax.devices()) == 4
mesh, rng = sharding.make_mesh(), np.random.default_rng(0)
x, y = rng.standard_normal((301, 6)).astype(np.float32), rng.standard_normal((203, 6)).astype(np.float32) + .3
found = {}
for name, mesh in ('one', None), ('four', mesh):
  a, b = moments([x], mesh=mesh), moments([y], mesh=mesh)
  found[name] = [
    *frechet.both(a, b), kid.kid(x, y, 0, mesh=mesh), *neighbours.precision_recall(x, y, mesh=mesh),
    *neighbours.density_coverage(x, y, mesh=mesh), neighbours.authenticity(x, y, mesh),
    scores.diversity(x, 0, mesh=mesh), scores.sliced_wasserstein(x, y, 0, mesh=mesh)]
print(json.dumps(found))
'''


def test_four_devices_find_what_one_finds():
  flags = os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=4'
  root = Path(__file__).parents[2]
  env = dict(os.environ, XLA_FLAGS=flags, NPROC='16')
  done = subprocess.run([sys.executable, '-c', SCRIPT], cwd=root, env=env, capture_output=True, text=True)
  assert not done.returncode, done.stderr
  found = json.loads(done.stdout)
  np.testing.assert_allclose(found['one'], found['four'], rtol=1e-5, atol=1e-6)
