"""One-dimensional signals: generated waves, or the user's own."""
import numpy as np

from diffusion.data import arrays, holdout
from diffusion.data.dataset import Dataset
from diffusion.errors import InputError

WAVES = dict(  # one period, of a phase in [0, 1), with a mean of 0 and a mean square of 1
  sine=lambda phase: np.sqrt(2) * np.sin(2 * np.pi * phase),
  sawtooth=lambda phase: np.sqrt(3) * (2 * phase - 1),
  square=lambda phase: np.where(phase < .5, 1., -1.))
LEAST = 8  # samples in a series, and at most
MOST = 64  # channels


def waves(length=128, n=10000, heldout=500, seed=0):
  """Sines, sawtooths and squares: column `series`, float32 [N, length, 1], and their class.

  Args:
    length: number of samples; a period has between 16 and 64 of them, whatever the length.
    n, heldout: series to train on, and held out.
    seed: other seeds give other phases, periods and amplitudes (from .5 to 1).
  """
  if not all(type(value) is int and value >= least for value, least in
             ((length, LEAST), (n, 1), (heldout, 0), (seed, 0))):
    raise InputError(f'waves(length={length!r}, n={n!r}, heldout={heldout!r}, seed={seed!r}): expected whole numbers, '
                     f'a length of at least {LEAST} and n of at least 1')
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, len(WAVES), n + heldout).astype(np.int32)
  period, phase, amplitude = (rng.uniform(low, high, (n + heldout, 1)) for low, high in ((16, 64), (0, 1), (.5, 1)))
  phases = (np.arange(length) / period + phase) % 1
  series = amplitude * np.choose(labels[:, None], [wave(phases) for wave in WAVES.values()])
  data = Dataset(dict(series=series[..., None].astype(np.float32), labels=labels), dict(classes=tuple(WAVES)))
  return holdout.split(data, heldout, seed, 'waves')


def series(path, labels=None, classes=(), heldout=.05, seed=0):
  """A NumPy file of series, [N, length] or [N, length, channels], numbers in any units.

  Args:
    path: of the .npy file.
    labels: path of class indices [N], names [N], one-hot rows or any context vectors [N, K]; None: unconditional.
    classes: K names; (): '0', '1', ..
    heldout: a number of series (int) or a fraction of them (float).
  Raises:
    InputError: an array of another shape, or values that are not finite.
  """
  values = arrays.load_array(path, 'series')
  if values.ndim not in (2, 3) or values.dtype.kind not in 'biuf':
    raise InputError(f'{path}: series must be numbers [N, length] or [N, length, channels], '
                     f'got {values.dtype} {list(values.shape)}')
  values = values[..., None] if values.ndim == 2 else values
  if values.size and np.any(np.abs(values).max((0, 1)) * 2. ** -24 > 1e-3 * values.std((0, 1), dtype=np.float64)) \
      and np.ptp(values):
    raise InputError(f'{path}: values near {values.max():.6g} differ by too little for 32-bit floats; '
                     'subtract their mean, or an offset that you know, first')
  values = values.astype(np.float32)
  if values.shape[1] < LEAST or not 1 <= values.shape[2] <= MOST:
    raise InputError(f'{path}: series need a length of at least {LEAST} and 1 to {MOST} channels, channels last; '
                     f'got {list(values.shape)}')
  finite = np.isfinite(values).all((1, 2))
  if not finite.all():
    raise InputError(f'{path}: series must be finite; number {finite.argmin()} is not')
  columns, facts = dict(series=values), {}
  if labels is not None:
    columns['labels'], facts['classes'] = arrays.as_labels(arrays.load_array(labels, 'series'), classes, labels)
  return holdout.split(Dataset(columns, facts), heldout, seed, path)
