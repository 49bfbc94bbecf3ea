"""How near restored images are to the true ones, and whether their spread is what it should be."""
import numpy as np
from scipy import ndimage, stats


def psnr(images, truth, peak):
  """Peak signal-to-noise ratio in dB of each image, float64 [n]; images, truth [n, H, W, C] from 0 to peak.

  Equal images have that of an error of half a step in every pixel: no more can be said of rounded ones.
  """
  error = np.mean((np.asarray(images, np.float64) - truth) ** 2, (1, 2, 3))
  return 10 * np.log10(peak ** 2 / np.maximum(error, .25))


def ssim(images, truth, peak):
  """Structural similarity of each image, float64 [n] (Wang et al. 2004: Gaussian window of 1.5 pixels, 11 wide).

  The mean is over pixels whose window lies inside of the image, or over all where there are none.
  """
  window = lambda a: ndimage.gaussian_filter(a, (0, 1.5, 1.5, 0), truncate=3.5)
  a, b = (np.asarray(each, np.float64) / peak for each in (images, truth))
  ma, mb = window(a), window(b)
  va, vb, vab = window(a * a) - ma ** 2, window(b * b) - mb ** 2, window(a * b) - ma * mb
  c1, c2 = .01 ** 2, .03 ** 2
  similarity = (2 * ma * mb + c1) * (2 * vab + c2) / ((ma ** 2 + mb ** 2 + c1) * (va + vb + c2))
  inner = similarity[:, 5:-5, 5:-5]
  return np.mean(inner if inner.size else similarity, (1, 2, 3))


def ranks(samples, truth, seed):
  """The rank of each true value among m samples, from 0 to m, int [n, ...]; ties are broken at random.

  If truth and samples come from one distribution every rank is as likely.

  Args:
    samples: [n, m, ...].   truth: [n, ...].   seed: of the ties.
  """
  truth = truth[:, None]
  below, equal = np.sum(samples < truth, 1), np.sum(samples == truth, 1)
  return below + np.random.default_rng(seed).integers(0, equal + 1)


def one_each(samples, truth, found, seed):
  """The rank of one random value of each example: independent ones, unlike those of neighbouring pixels.

  Values that are equal in truth and all samples, as of a white margin, are passed over where there are others.
  """
  n, m = samples.shape[:2]
  both = np.concatenate([samples, truth[:, None]], 1).reshape(n, m + 1, -1)
  varied, rng = np.ptp(both, 1) > 0, np.random.default_rng(seed)
  pick = [rng.choice(np.flatnonzero(row) if row.any() else len(row)) for row in varied]
  return found.reshape(n, -1)[np.arange(n), pick]


def rank_test(chosen, m):
  """p of Pearson's chi-square test that independent ranks 0 .. m are uniform; in bins with at least 5 expected.

  Args:
    chosen: int [n].   m: samples that each was compared with.
  Returns:
    p, or NaN for fewer than two such bins.
  """
  bins = max((k for k in range(1, m + 2) if (m + 1) % k == 0 and len(chosen) >= 5 * k), default=1)
  if bins < 2:
    return float('nan')
  counts = np.bincount(chosen * bins // (m + 1), minlength=bins)
  return float(stats.chisquare(counts).pvalue)


def inside(found, m):
  """Whether the truth lies between the smallest and the largest of m samples, as it does with (m - 1) / (m + 1)."""
  return (found > 0) & (found < m)
