"""Copies, nearness and the membership attack against brute force, and against what holds when there is no leak."""
import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from diffusion.evaluation.metrics import table_privacy as privacy
from diffusion.evaluation.metrics.tables import as_written, count, take
from tests.evaluation.made_tables import mixed, table


# ---- exact copies
def test_copies_are_found_after_rounding_and_with_missing_numbers():
  train = mixed(60, 0)
  drawn = mixed(40, 1)
  drawn.numbers[:3], drawn.categories[:3] = train.numbers[5:8], train.categories[5:8]
  drawn.numbers[0, 0] += 4e-4 * np.sign(-1)  # less than half of the last decimal
  drawn.numbers[1, 1] = train.numbers[6, 1] = np.nan
  drawn.numbers[2, 0] += .002
  found = privacy.copied_rows(as_written(drawn), as_written(train))
  assert round(found.value * 40) == 2 and found.low < 2 / 40 < found.high
  other = drawn._replace(categories=drawn.categories + [0, 0, 1])
  assert privacy.copied_rows(as_written(other), as_written(train)).value == 0


def few_categories(n, seed):
  return as_written(table(categories=np.random.default_rng(seed).choice(3, (n, 4), p=[.6, .3, .1]), sizes=[3] * 4))


def test_natural_copies_are_those_of_all_splits_by_row():
  train, heldout = few_categories(25, 0), few_categories(15, 1)
  rows, rng, found = np.vstack([train.categories, heldout.categories]), np.random.default_rng(0), []
  for _ in range(2000):
    order = rng.permutation(40)
    known = {tuple(row) for row in rows[order[:25]]}
    found.append(np.mean([tuple(row) in known for row in rows[order[25:]]]))
  natural = privacy.natural_copies(train, heldout)
  assert natural.value == pytest.approx(np.mean(found), abs=4 * np.std(found) / np.sqrt(2000))
  assert privacy.natural_copies(mixed(25, 0), mixed(15, 1)).value == 0


@pytest.mark.parametrize('rows', [20, 60, 300])
def test_natural_duplicates_do_not_alarm_and_copies_do(rows):
  alarms = 0
  for seed in range(40):
    train, heldout, drawn = (few_categories(n, 3 * seed + k) for k, n in enumerate((2 * rows, rows, 2 * rows)))
    copied, natural = privacy.copied_rows(drawn, train), privacy.natural_copies(train, heldout)
    alarms += privacy.is_alarming(copied, natural)
  assert natural.value > .3 and alarms <= 2
  train, heldout = mixed(2 * rows, 0), mixed(rows, 1)
  assert privacy.is_alarming(privacy.copied_rows(take(train, [0]), train), privacy.natural_copies(train, heldout))


# ---- nearness
def test_distances_of_rows_are_those_of_loops():
  a, b = mixed(12, 0), mixed(9, 1)
  metric = privacy.metric_of(a, b)
  x = np.vstack([a.numbers, b.numbers])
  low, middle, high = (np.nanquantile(x, q, axis=0) for q in (.25, .5, .75))

  def distance(i, j):
    total = sum(a.categories[i, k] != b.categories[j, k] for k in range(3))
    for k in range(3):
      p, q = a.numbers[i, k], b.numbers[j, k]
      if np.isnan(p) or np.isnan(q):
        total += 0 if np.isnan(p) and np.isnan(q) else 1 + abs((q if np.isnan(p) else p) - middle[k]) / (
          high[k] - low[k])
      else:
        total += abs(p - q) / (high[k] - low[k])
    return total / 6
  expected = [[distance(i, j) for j in range(9)] for i in range(12)]
  np.testing.assert_allclose(privacy.row_distances(a, b, metric), expected, atol=1e-12)
  np.testing.assert_allclose(privacy.closest(a, b, metric), np.min(expected, 1), atol=1e-12)


def test_constant_and_empty_columns_have_a_scale():
  a = table(np.stack([np.full(9, 3.), np.full(9, np.nan), np.r_[np.zeros(8), 5.]], 1))
  distances = privacy.row_distances(a, a, privacy.metric_of(a))
  assert np.isfinite(distances).all() and distances[0, 8] > 0 == distances[0, 1]


def shares(n, m, drawn, repeats, make):
  found = []
  for seed in range(repeats):
    train, heldout, rows = (make(k, 3 * seed + i) for i, k in enumerate((n, m, drawn)))
    found.append(privacy.nearer_to_train(rows, train, heldout, privacy.metric_of(train, heldout)))
  values, errors = (np.array([getattr(e, name) for e, _ in found]) for name in ('value', 'error'))
  expected = np.array([e.value for _, e in found])
  return found, values, errors, expected


def numbers(n, seed):
  return table(np.random.default_rng(seed).normal(size=(n, 5)))


def test_without_a_leak_four_fifths_are_nearer_to_four_fifths_of_the_rows():
  _, values, _, expected = shares(400, 100, 333, 25, numbers)
  assert (expected == .8).all() and abs(values.mean() - .8) < 4 * values.std() / 5


def test_the_interval_holds_over_draws_of_all_tables_and_a_binomial_one_does_not():
  found, values, errors, _ = shares(60, 30, 500, 200, numbers)
  inside = np.mean([e.low <= 2 / 3 <= e.high for e, _ in found])
  binomial = np.mean(np.abs(values - 2 / 3) < 1.96 * np.sqrt(values * (1 - values) / 500))
  assert .9 < inside < .99 and binomial < .87
  assert errors.mean() == pytest.approx(values.std(), rel=.15)


def by_content(n, m, seed):
  """Rows of few categories, all equal ones on one side, as a split by content leaves them."""
  rows = few_categories(n + m, seed)
  names = privacy.identities(rows)
  kinds = sorted(set(names))
  train = np.random.default_rng(seed).permutation(len(kinds)) < len(kinds) * n / (n + m)
  held = np.array([not train[kinds.index(name)] for name in names])
  return take(rows, ~held), take(rows, held)


def test_with_many_equal_rows_the_expected_share_still_holds():
  _, values, errors, expected = shares(80, 40, 200, 60, few_categories)
  assert values.mean() == pytest.approx(2 / 3, abs=4 * values.std() / np.sqrt(60)) and (expected == 2 / 3).all()
  inside, gaps = [], []
  for seed in range(100):
    train, heldout = by_content(200, 100, seed)
    found, expected = privacy.nearer_to_train(few_categories(300, 1000 + seed), train, heldout,
                                              privacy.metric_of(train, heldout))
    inside.append(found.low <= expected.value <= found.high)
    gaps.append(found.value - expected.value)
  assert np.mean(inside) > .9 and abs(np.mean(gaps)) < 4 * np.std(gaps) / 10


def test_rows_that_are_training_rows_with_noise_are_found():
  train, heldout = numbers(100, 0), numbers(100, 1)
  near = table(train.numbers + .1 * np.random.default_rng(2).normal(size=(100, 5)))
  found, expected = privacy.nearer_to_train(near, train, heldout, privacy.metric_of(train, heldout))
  assert expected.value == .5 and found.low > .9 and found.high <= 1
  found, _ = privacy.nearer_to_train(train, train, heldout, privacy.metric_of(train, heldout))
  assert found.value == found.high == 1 and .9 < found.low < 1  # the interval does not vanish


# ---- membership
@pytest.mark.parametrize('d', [0, .5, 2])
def test_the_attack_is_as_good_as_gaussian_losses_allow(d):
  rng = np.random.default_rng(3)
  members, others = rng.normal(size=4000), rng.normal(size=4000) + d
  found = privacy.membership_attack(members, others, 0)
  auc, rate = found['attack_auc'], found['attack_tpr']
  assert abs(auc.value - ndtr(d / np.sqrt(2))) < 3 * auc.error and auc.low < ndtr(d / np.sqrt(2)) < auc.high
  assert abs(rate.value - ndtr(ndtri(.01) + d)) < 3 * rate.error and rate.error < .05
  assert privacy.membership_attack(others, members, 0)['attack_auc'].value == pytest.approx(1 - auc.value)


def test_the_interval_of_the_attack_holds_over_draws():
  draw = lambda seed: np.random.default_rng(seed).normal(size=(2, 60))
  found = [privacy.membership_attack(*draw(seed), seed) for seed in range(150)]
  inside = np.mean([e['attack_auc'].low <= .5 <= e['attack_auc'].high for e in found])
  assert .88 < inside < .99 and 'attack_tpr' not in found[0]  # 1 % of 60 is less than one


def test_nothing_here_depends_on_the_order_of_training_rows():
  train, heldout, drawn = mixed(50, 0), mixed(30, 1), mixed(40, 2)
  shuffled = take(train, np.random.default_rng(0).permutation(count(train)))
  metric = privacy.metric_of(train, heldout)
  one, two = (privacy.nearer_to_train(drawn, t, heldout, metric)[0] for t in (train, shuffled))
  assert one == pytest.approx(two) and 0 < one.value < 1
