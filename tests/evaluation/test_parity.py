"""The numbers of torch-fidelity and pytorch-fid on the same features."""
import numpy as np
import pytest

from diffusion.evaluation.metrics import frechet, kid as kid_metric, neighbours, scores
from diffusion.evaluation.metrics.gaussian_stats import moments


def test_fd_kid_precision_recall_and_inception_score_equal_those_of_torch_fidelity():
  torch = pytest.importorskip('torch')
  fid, kid, prc, isc = (pytest.importorskip(f'torch_fidelity.metric_{name}') for name in ('fid', 'kid', 'prc', 'isc'))
  rng = np.random.default_rng(0)
  real = np.maximum(rng.standard_normal((300, 32)), 0).astype(np.float32)  # like features after a ReLU
  made = np.maximum(1.1 * rng.standard_normal((260, 32)) + .2, 0).astype(np.float32)
  a, b = torch.from_numpy(made), torch.from_numpy(real)
  known = fid.fid_statistics_to_metric(fid.fid_features_to_statistics(a), fid.fid_features_to_statistics(b), False)
  fd = frechet.fd(moments([made]), moments([real])).value
  assert fd == pytest.approx(known['frechet_inception_distance'], rel=1e-4)
  subsets = dict(kid_subsets=1, kid_subset_size=260, rng_seed=0, verbose=False)
  known = kid.kid_features_to_metric(a.double(), b[:260].double(), **subsets)
  assert kid_metric.kid(made, real[:260], 0).value == pytest.approx(known['kernel_inception_distance_mean'], rel=1e-4)
  known = prc.prc_features_to_metric(a, b, prc_neighborhood=3, prc_batch_size=1000, save_cpu_ram=False, verbose=False)
  precision, recall = neighbours.precision_recall(real, made, 3)
  assert (precision.value, recall.value) == pytest.approx((known['precision'], known['recall']), abs=1e-4)
  known = isc.isc_features_to_metric(b, splits=10, shuffle=False)
  # its splits are contiguous, ours every tenth sample
  found = scores.inception_score(real.reshape(10, 30, 32).swapaxes(0, 1).reshape(300, 32))
  assert found.value == pytest.approx(known['inception_score_mean'], rel=1e-4)
  # sqrt(10) times ours, with 10 instead of 9 in the denominator
  assert found.error * 3 == pytest.approx(known['inception_score_std'], rel=1e-4)


def test_fd_equals_that_of_pytorch_fid():
  score = pytest.importorskip('pytorch_fid.fid_score')
  rng = np.random.default_rng(1)
  x, y = (scale * rng.standard_normal((200, 16)) + shift for scale, shift in ((1., 0.), (1.3, .5)))
  known = score.calculate_frechet_distance(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
  assert frechet.fd(moments([x]), moments([y])).value == pytest.approx(known, rel=1e-4)
