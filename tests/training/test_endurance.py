"""What the endurance benchmark calls flat, on series whose truth is known."""
import mmap
import time

import numpy as np
import pytest

from experiments.benchmarks.endurance import MEASURED, medians, series, state_of_process, trend, watched

STEPS = np.arange(1, 20001)


def noise(deviation, seed=0):
  return np.random.default_rng(seed).normal(scale=deviation, size=len(STEPS))


def verdict(values, name):
  return trend(*medians(STEPS, values, 500), *MEASURED[name][1:])


def test_noise_and_a_start_that_compiles_are_flat():
  values = 700 + noise(30)
  values[:1000] = 100  # before all is compiled
  found = verdict(values, 'resident memory')
  assert found.flat and found.first == pytest.approx(700, abs=3) == found.last and found.low < 0 < found.high


@pytest.mark.parametrize('name, level, growth', [
  ('resident memory', 700, 30), ('step time', 10, 1), ('open descriptors', 20, 8)])
def test_a_leak_is_not_flat_and_the_line_measures_it_through_outliers(name, level, growth):
  values = level + growth * STEPS / STEPS[-1] + noise(growth / 50)
  values[np.random.default_rng(1).random(len(values)) < .2] *= 3
  found = verdict(values, name)
  share = 37 / 40  # from the middle of the third interval to that of the last
  assert not found.flat and found.low > 0 and found.change == pytest.approx(share * growth, rel=.1)


def test_the_samples_of_the_process_are_put_at_the_steps_of_the_log():
  seen = np.array([[90., 1, 5, 2], [110, 2, 6, 3], [115, 3, 7, 4], [130, 4, 8, 5]])  # training: the middle two
  metrics = [dict(step=10, time=100., images_per_second=50.), dict(step=30, time=120., images_per_second=80.)]
  found = series(seen, metrics, 16)
  assert [x.tolist() for x in found['resident memory']] == [[20, 25], [2, 3]]
  assert [x.tolist() for x in found['step time']] == [[10, 30], [320, 200]]
  assert found['open descriptors'][1].tolist() == [6, 7] and found['threads'][1].tolist() == [3, 4]


def test_what_a_process_opens_and_holds_is_seen(tmp_path):
  before = state_of_process()
  files = [open(tmp_path / str(i), 'w') for i in range(5)]
  with mmap.mmap(-1, 40 << 20) as block:  # asked of the system, whatever the heap keeps
    for i in range(0, len(block), mmap.PAGESIZE):
      block[i] = 1
    after = state_of_process()
  for file in files:
    file.close()
  assert 30 < after[1] - before[1] < 80 and after[2] - before[2] == 5 and after[3] >= 1
  assert len(watched(lambda: time.sleep(.3), .02)) > 3
