"""Records compare only where they were measured alike, and nothing is ranked that cannot be told apart."""
import json

import numpy as np
import pytest
from scipy import stats

from diffusion.errors import InputError
from diffusion.evaluation.metrics import record
from diffusion.evaluation.metrics.record import Estimate

PROTOCOL = dict(reference='sprites', reference_hash='a', split='train', extractor='own', extractor_hash='b',
                resize='none')


def made(value, half=1., n=500, metric='fd_infinity', **changes):
  estimate = Estimate(value, half / 1.96, value - half, value + half, n)
  return record.make(dict(samples=PROTOCOL | changes), {}, {metric: estimate})


def test_records_survive_the_disk_and_other_files_are_refused(tmp_path):
  path = tmp_path / 'evaluation.json'
  path.write_text(json.dumps(made(float('nan'))))
  assert record.read(path)['metrics']['fd_infinity']['value'] is None
  for text in ('', '[]', '{"format": 0}'):
    path.write_text(text)
    with pytest.raises(InputError, match='evaluat'):
      record.read(path)
  with pytest.raises(InputError, match='mode=evaluate'):
    record.read(tmp_path / 'absent.json')


def test_the_best_is_first_and_whoever_overlaps_with_it_is_not_told_apart():
  ranked = record.ranked(dict(far=made(9.), near=made(3.5), best=made(2.)), 'fd_infinity')
  assert [(name, tied) for name, _, tied in ranked] == [('best', False), ('near', True), ('far', False)]
  records = {name: made(value, .1, metric='precision') for name, value in (('low', .2), ('high', .9))}
  higher = record.ranked(records, 'precision')
  assert [(name, tied) for name, _, tied in higher] == [('high', False), ('low', False)]


def test_a_number_without_an_interval_is_told_apart_from_nothing():
  unknown = made(5.)
  unknown['metrics']['fd_infinity'] |= dict(low=None, high=None)
  assert [tied for _, _, tied in record.ranked(dict(best=made(0.), other=unknown), 'fd_infinity')] == [False, True]


@pytest.mark.parametrize('change', [
  dict(reference_hash='c'), dict(extractor_hash='c'), dict(split='heldout'), dict(resize='bilinear 299'),
])
def test_unlike_records_are_not_compared_and_the_difference_is_named(change):
  [(key, value)] = change.items()
  with pytest.raises(InputError, match=f'{key}: {PROTOCOL[key]}, {value}'):
    record.ranked(dict(one=made(1.), two=made(2., **change)), 'fd_infinity')


def test_a_metric_with_a_protocol_of_its_own_goes_by_that_and_names_do_not_count_where_hashes_agree():
  one, two = made(1., metric='bits_bound', reference_hash='x'), made(2., metric='bits_bound', reference_hash='y')
  for record_of in (one, two):
    record_of['protocol']['bits_bound'] = dict(data_hash='same')
  assert not record.differences(one, two, 'bits_bound') and record.differences(one, two, 'kid')
  two['protocol']['bits_bound'] = dict(data_hash='other')
  assert record.differences(one, two, 'bits_bound') == ['data_hash: same, other']
  assert not record.differences(made(1.), made(1., reference='/elsewhere/sprites', extractor='own()'), 'fd_infinity')


def test_the_mean_of_few_values_has_students_interval():
  values = np.array([1., 2., 4., 9.])
  low, high = stats.t.interval(.95, 3, values.mean(), stats.sem(values))
  estimate = record.mean(values)
  assert (estimate.low, estimate.high, estimate.n) == (pytest.approx(low), pytest.approx(high), 4)
  assert np.isnan(record.mean(values[:1]).error)


def test_the_number_of_samples_matters_where_the_value_depends_on_it():
  with pytest.raises(InputError, match='n: 500, 400'):
    record.ranked(dict(one=made(1., metric='fd'), two=made(2., n=400, metric='fd')), 'fd')
  assert len(record.ranked(dict(one=made(1.), two=made(2., n=400)), 'fd_infinity')) == 2
  with pytest.raises(InputError, match='not measured for two'):
    record.ranked(dict(one=made(1.), two=made(2., metric='kid')), 'fd_infinity')
  with pytest.raises(InputError, match="unknown metric 'fid'"):
    record.ranked(dict(one=made(1.)), 'fid')


@pytest.mark.parametrize('count, n', [(0, 20), (1, 30), (7, 20), (20, 20), (480, 500)])
def test_shares_have_wilsons_interval(count, n):
  estimate, wilson = record.share(count, n), stats.binomtest(count, n).proportion_ci(.95, 'wilson')
  assert (estimate.low, estimate.high) == (pytest.approx(wilson.low, abs=1e-4), pytest.approx(wilson.high, abs=1e-4))
  assert estimate.value == count / n and np.isclose(estimate.error, np.sqrt(estimate.value * (1 - estimate.value) / n))
