"""Benchmarks whose parts are easily broken by a change elsewhere, and their arithmetic."""
import math
from types import SimpleNamespace

import pytest

from diffusion.evaluation.metrics.record import normal
from experiments.benchmarks import quality, speed


def test_the_training_step_of_the_speed_benchmark_runs():
  options = SimpleNamespace(size=8, colours=1, channels=8, multipliers=[1], blocks=1, attention=4, batch=4, samples=2,
                            steps=2, dtype='float32')
  jobs = speed.ours(options)
  assert jobs['flops']['train'] > 2.5 * jobs['flops']['forward'] > 0  # backward costs twice the forward pass
  jobs['train']()


def test_the_time_to_a_goal_is_exact_on_a_power_law_and_unknown_where_it_is_not_crossed():
  points = [(t, 50 * t ** -.7) for t in (100., 250., 700.)]
  for t in (130., 250., 600.):
    assert quality.seconds_to(50 * t ** -.7, points) == pytest.approx(t, rel=1e-9)
  assert quality.seconds_to(points[0][1] * 1.01, points) is None
  assert quality.seconds_to(points[-1][1] * .99, points) is None


def test_the_table_has_the_median_of_the_seeds_and_the_interval_of_each():
  one = lambda value: dict(fd_infinity=normal(value, .1, 500))
  results = {('ours', 100.): [one(v) for v in (4., 9., 3.)], ('ours', 400.): [one(v) for v in (1., 1., 1.)]}
  text = '\n'.join(quality.rows(results, SimpleNamespace(goal=2.)))
  assert '| ours | 100 | 4.00 | 4.00 (3.80 to 4.20), 9.00' in text
  assert f'after {math.sqrt(100 * 400):.0f} s' in text  # 2 is in the middle of 4 and 1 on a logarithmic scale
