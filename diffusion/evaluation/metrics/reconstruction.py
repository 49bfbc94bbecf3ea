"""How near pictures are to others, pixel by pixel: PSNR, SSIM, and principal components as the linear autoencoder."""
import numpy as np
from scipy.ndimage import correlate1d

WINDOW, SIGMA = 11, 1.5   # of SSIM, pixels
C1, C2 = (.01 * 255) ** 2, (.03 * 255) ** 2
LARGEST = 4096            # values of an image up to which principal components are computed


def psnr(a, b):
  """Peak signal-to-noise ratio of uint8 images [N, H, W, C] in decibels, [N]; equal ones have 148 dB."""
  square = np.mean((a.astype(np.float64) - b) ** 2, (1, 2, 3))
  return 10 * np.log10(255 ** 2 / np.maximum(square, 1e-10))


def ssim(a, b):
  """Structural similarity of uint8 images [N, H, W, C], [N]: 1 for equal ones (Wang et al. 2004, equation 13).

  With the paper's Gaussian window of 11 x 11 pixels, or what fits into smaller images, and each channel for itself.
  """
  size = min(WINDOW, *((side - 1) // 2 * 2 + 1 for side in a.shape[1:3]))
  at = np.arange(size) - size // 2
  weights = np.exp(-.5 * (at / SIGMA) ** 2)
  weights /= weights.sum()
  inside = slice(size // 2, -(size // 2) or None)

  def blur(x):
    return correlate1d(correlate1d(x, weights, 1), weights, 2)[:, inside, inside]
  x, y = a.astype(np.float64), b.astype(np.float64)
  mean_x, mean_y = blur(x), blur(y)
  var_x, var_y, cov = blur(x * x) - mean_x ** 2, blur(y * y) - mean_y ** 2, blur(x * y) - mean_x * mean_y
  likeness = (2 * mean_x * mean_y + C1) * (2 * cov + C2) / ((mean_x ** 2 + mean_y ** 2 + C1) * (var_x + var_y + C2))
  return likeness.mean((1, 2, 3))


def principal_components(train, images, number):
  """Images through the first principal components of training images: uint8, as `images`.

  Args:
    train, images: uint8 [N, H, W, C], of at most LARGEST values each.
    number: of components.
  """
  flat = lambda x: x.reshape(len(x), -1).astype(np.float32)
  known, rows = flat(train), flat(images)
  mean = known.mean(0)
  gap = known - mean
  _, axes = np.linalg.eigh((gap.T @ gap).astype(np.float64))
  axes = axes[:, ::-1][:, :number]
  made = mean + (rows - mean) @ axes @ axes.T
  return np.clip(np.round(made), 0, 255).astype(np.uint8).reshape(images.shape)
