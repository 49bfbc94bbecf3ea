"""Columns that are computed once per example."""
import time

import numpy as np
import pytest

from diffusion.data.dataset import Dataset
from diffusion.tasks.prepare import with_column


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('DIFFUSION_CACHE', str(tmp_path))


def test_a_column_is_computed_in_batches_of_one_size_and_read_again_from_the_cache():
  data, seen = Dataset(dict(x=np.arange(10.))), []
  def compute(index):
    seen.append(index)
    time.sleep(.4)
    return data.arrays['x'][index] ** 2
  for _ in range(2):
    made = with_column(data, 'squares', compute, ['a'], batch=4)
    np.testing.assert_array_equal(made.arrays['squares'], np.arange(10.) ** 2)
    assert list(made.arrays) == ['x', 'squares'] and [len(index) for index in seen] == [4, 4, 4]
  with_column(data, 'squares', compute, ['b'], batch=4)  # other data, or other weights
  assert len(seen) == 6
