"""The score of samples against captions: against permutations that are carried out, and in simulated experiments."""
import itertools

import numpy as np
import pytest

from diffusion.evaluation.metrics.alignment import alignment, by_chance, gap
from diffusion.evaluation.metrics.record import normal

VALUES = (6, 3)  # of two heads
rng = np.random.default_rng(0)


def simulate(rng, n, follow, reading):
  """(seen, asked) of samples that do what is asked with the probability `follow` and else anything, which the judge
  reads rightly with the probability `reading`; captions speak of each head with 60 %, and of values unevenly."""
  columns = []
  for values in VALUES:
    uneven = np.arange(1., values + 1) / np.sum(np.arange(1., values + 1))
    asked, other, read = rng.choice(values, n, p=uneven), rng.choice(values, n, p=uneven), rng.integers(0, values, n)
    drawn = np.where(rng.random(n) < follow, asked, other)
    seen = np.where(rng.random(n) < reading, drawn, read)
    columns.append((seen, np.where(rng.random(n) < .6, asked, -1)))
  return tuple(np.stack(part, 1) for part in zip(*columns))


def test_the_floor_is_the_mean_over_all_ways_to_hand_captions_to_other_samples():
  seen, asked = rng.integers(0, 3, 6), rng.integers(0, 3, 6)
  handed = [seen == asked[list(order)] for order in itertools.permutations(range(6))
            if all(i != j for i, j in enumerate(order))]
  assert by_chance(seen, asked).mean() == pytest.approx(np.mean(handed), rel=1e-12)


@pytest.mark.parametrize('follow', [0., .3, 1.])
def test_the_score_is_the_share_of_samples_that_follow_and_its_interval_holds(follow):
  """Whatever the judge misreads, and however uneven the values are. Over 600 experiments of 150 samples."""
  runs = [alignment(*simulate(rng, 150, follow, .9), *simulate(rng, 400, 1., .9)) for _ in range(600)]
  values, errors = np.array([run.value for run in runs]), np.array([run.error for run in runs])
  assert abs(values.mean() - follow) < 4 * values.std() / np.sqrt(600)
  assert .9 < np.sqrt(np.mean(errors ** 2)) / values.std() < 1.15
  held = np.mean([run.low <= follow <= run.high for run in runs])
  assert .92 < held < .99


def test_a_few_samples_without_a_mistake_are_not_certain():
  asked = np.arange(40)[:, None] % 4
  perfect = alignment(asked, asked, asked, asked)
  assert perfect.value == 1 and .8 < perfect.low < .97  # by Wilson's interval, 40 of 40 are at least .91


def test_a_pooled_score_weighs_heads_by_how_often_captions_speak_of_them():
  n = 8000
  followed, ignored = rng.integers(0, 4, n), rng.integers(0, 4, n)
  asked = np.stack([followed, np.where(np.arange(n) % 4 == 0, ignored, -1)], 1)
  seen = np.stack([followed, rng.integers(0, 4, n)], 1)
  real = np.stack([followed, ignored], 1)
  assert alignment(seen, asked, real, real).value == pytest.approx(.8, abs=.01)  # 4 of 5 pairs


def test_without_captions_that_speak_of_a_head_there_is_no_score():
  none, some = np.full((9, 1), -1), np.arange(9)[:, None] % 2
  assert alignment(some, none, some, some) is None and alignment(some, some, some, none) is None
  assert alignment(some, 0 * some, some, 0 * some) is None  # one value tells nothing
  assert gap(None, normal(1, 1, 1)) is None
