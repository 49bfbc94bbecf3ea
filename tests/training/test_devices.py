"""The same numbers on 1 to 8 simulated devices, sharded or not, in one process or two, in whole batches or parts."""
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
RUNS = {  # devices of a process, fsdp, accumulate, processes
  'one': (1, 1, 1, 1), '8': (8, 1, 1, 1), '2 x 4': (8, 4, 1, 1), '1 x 8, 2 parts': (8, 8, 2, 1),
  '2 processes': (2, 2, 1, 2),
}


def free_port():
  with socket.create_server(('127.0.0.1', 0)) as server:
    return server.getsockname()[1]


@pytest.fixture(scope='module')
def results(cache_dir, tmp_path_factory):
  env, folder, found = dict(os.environ, DIFFUSION_CACHE=str(cache_dir)), tmp_path_factory.mktemp('devices'), {}
  for i, (name, (devices, fsdp, accumulate, processes)) in enumerate(RUNS.items()):
    words = [sys.executable, '-m', 'tests.training_program', devices, fsdp, accumulate, folder / f'{i}.npz']
    others = [[f'127.0.0.1:{free_port()}', processes]] if processes > 1 else [[]]
    commands = [list(map(str, [*words, *others[0], *([k] if processes > 1 else [])])) for k in range(processes)]
    options = dict(cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    started = [subprocess.Popen(command, **options) for command in commands]
    for process in started:
      _, errors = process.communicate(timeout=400)
      assert process.returncode == 0, errors
    found[name] = np.load(folder / f'{i}.npz')
  return found


def parameters(result):
  """All parameters and averages in one vector, without the biases of attention keys.

  Their gradient is rounding alone, of which Adam makes steps of full length.
  """
  names = [key for key in sorted(result.files) if key.startswith('[') and not key.endswith("['qkv']['bias']")]
  return np.concatenate([result[key].ravel() for key in names])


@pytest.mark.parametrize('name', list(RUNS)[1:])
def test_twenty_steps_agree_with_one_device(results, name):
  one, other = results['one'], results[name]
  np.testing.assert_allclose(other['losses'], one['losses'], rtol=1e-5)
  np.testing.assert_allclose(other['norms'], one['norms'], rtol=1e-4)
  gap = parameters(other) - parameters(one)
  assert np.linalg.norm(gap) <= 1e-5 * np.linalg.norm(parameters(one))
  assert one['losses'][-1] < .5 * one['losses'][0]  # something was learned


@pytest.mark.parametrize('name', list(RUNS)[1:])
def test_samples_agree_with_one_device(results, name):
  one, other = results['one'], results[name]
  np.testing.assert_array_equal(other['noise'], one['noise'])  # bit for bit
  gap = np.abs(other['pictures'].astype(int) - one['pictures'])
  assert one['pictures'].std() > 10 and gap.max() <= 2 and np.mean(gap > 1) < .01  # of 255, after 20 steps of rounding
  assert np.abs(other['alone'].astype(int) - other['pictures'][:3]).max() <= 1  # the batch makes no difference


def test_a_device_holds_half_when_twice_as_many_share(results):
  names = {1: '8', 2: '2 processes', 4: '2 x 4', 8: '1 x 8, 2 parts'}
  held = {n: int(results[name]['bytes']) for n, name in names.items()}
  assert int(results['one']['bytes']) == held[1]
  for n in (1, 2, 4):
    assert .5 <= held[2 * n] / held[n] < .56  # vectors stay whole


def test_parameters_are_gathered_and_not_activations(results):
  shapes = {re.sub(r'\W', '', key): result.shape for key, result in results['one'].items() if key.startswith("['p']")}
  sizes = {math.prod(shape) for shape in shapes.values()}
  for name in ('2 x 4', '2 processes'):
    size = lambda shape: math.prod(map(int, re.search(r'\[([\d,]+)\]', shape)[1].split(',')))
    moved = [(kind, size(shape)) for kind, shape in results[name]['moved']]
    assert {kind for kind, _ in moved} == {'all-gather'}
    assert len(moved) == sum(len(shape) > 1 for shape in shapes.values())  # each kernel once
    assert {size for _, size in moved} <= sizes
  assert not len(results['8']['moved'])
