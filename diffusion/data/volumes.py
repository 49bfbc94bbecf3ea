"""Slices through volumes, such as scans: NIfTI files, read with nibabel, among them a brain that nilearn ships."""
import importlib.util
import pathlib

import numpy as np
from PIL import Image

from diffusion.data import arrays, dataset, holdout
from diffusion.data.decode_images import as_method, as_shape, one_of, reason
from diffusion.data.folder import few
from diffusion.errors import InputError

AXES = dict(sagittal=0, coronal=1, axial=2)  # the axis that slices are taken across, of right, front, up
DARK = .1      # of white; what is above shows something
WHITE = .999   # share of the voxels below white, where `values` does not say it
TEMPLATE = 'mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz'


def nifti(path, axis='axial', size=64, least=.1, heldout=.15, gap=5., values=None, bits=8, seed=0):
  """Slices through the volumes of .nii and .nii.gz files, grey: column `images` uint8 [N, H, W, 1], or `high` uint16.

  Volumes are turned by what their headers say: the front or the top of the head is up, its right on the left. Slices
  keep their proportions in mm; what is left of an image is black. Of 4-D files all frames are read.

  Of one volume the slices in the middle are held out, since single ones would have near-copies on both sides of them.
  Of a folder whole volumes are held out, at least one. A sub-folder is one person, and stays together.

  Args:
    path: of a file, or of a folder of them, searched to any depth.
    axis: that slices lie across: axial, coronal or sagittal.
    size: pixels, or (height, width).
    least: share of the pixels of a slice that must be brighter than a tenth of white; others are left out.
    heldout: number (int) or share (float) of the slices of one volume, or of the persons of a folder.
    gap: mm between slices held out and those to train on, where both are of one volume; others are left out.
    values: (black, white), such as (-160, 240) in a CT; what lies outside is clipped. None: the least value of each
      volume, and the one that 99.9 % of it are below.
    bits: 8 or 16, of the images.
    seed: of the choice of persons.
  Raises:
    InputError: a file that is no volume, no slices that show something.
  """
  _check(axis, least, gap, values, bits)
  shape, root, files = as_shape(size), *_files(path)
  read = [_slices(file, axis, shape, values, bits) for file in files]
  kept = [np.mean(images > DARK * np.iinfo(images.dtype).max, (1, 2, 3)) >= least for images, *_ in read]
  images = np.concatenate([images[some] for (images, *_), some in zip(read, kept)])
  if not len(images):
    raise InputError(f'nifti({path}): no slice has {least:.0%} of its pixels above a tenth of white; lower least=, or '
                     'say what white is, values=(black, white)')
  index = np.concatenate([index[some] for (_, index, *_), some in zip(read, kept)])
  notes = [f'{len(images)} of {sum(map(len, kept))} slices show enough (least={least:g})'] + _value_notes(read, values)
  if len(files) == 1:
    train, held, note = _block(index, heldout, gap / read[0][2], f'nifti({path})')
  else:
    persons = np.repeat([file.relative_to(root).parts[0] for file in files], [some.sum() for some in kept])
    train, held, note = _persons(persons, heldout, seed, f'nifti({path})')
  data = arrays.image_dataset(images) if bits == 8 else dataset.Dataset(dict(high=images))
  return holdout.sides(dataset.take(data, train), dataset.take(data, held), (*notes, note))


def brain(size=64, axis='axial', heldout=.15, gap=5., bits=8):
  """Slices of 1 mm through one brain: the T1 template MNI ICBM152 (Fonov et al., NeuroImage 54, 2011), the mean of 152
  people, its halves made symmetric; a file that nilearn ships. It is one brain: a model of it knows no other.

  Args: as for nifti.
  """
  spec = importlib.util.find_spec('nilearn')  # runs no code of the package
  path = pathlib.Path(spec.origin).parent / 'datasets/data' / TEMPLATE if spec and spec.origin else None
  if path is None or not path.is_file():
    raise InputError('brain: the volume is a file of the package nilearn; install it: pip install nilearn')
  return nifti(path, axis, size, heldout=heldout, gap=gap, values=(0, 255), bits=bits)


def _check(axis, least, gap, values, bits):
  one_of('axis', axis, AXES)
  one_of('bits', bits, (8, 16))
  number = lambda value: not isinstance(value, bool) and isinstance(value, (int, float))
  if not number(least) or not 0 <= least < 1 or not number(gap) or not 0 <= gap < float('inf'):
    raise InputError(f'nifti: least={least!r}, gap={gap!r}: expected a share from 0 to 1, and mm of at least 0')
  pair = isinstance(values, (tuple, list)) and len(values) == 2 and all(map(number, values))
  if values is not None and not (pair and -float('inf') < values[0] < values[1] < float('inf')):
    raise InputError(f'nifti: values={values!r}: expected the values of black and of white, such as (-160, 240)')


def _files(path):
  """(root, files) of a file or a folder."""
  root = arrays.as_path(path, 'nifti')
  if root.is_file():
    return root.parent, [root]
  if not root.is_dir():
    raise InputError(f'{root}: no such file or folder')
  files = [file for file in sorted(root.rglob('*')) if file.name.lower().endswith(('.nii', '.nii.gz'))
           and file.is_file() and not any(part.startswith('.') for part in file.relative_to(root).parts)]
  if not files:
    raise InputError(f'{root}: no .nii or .nii.gz files in this folder')
  return root, files


# ---- one volume
def _slices(path, axis, shape, values, bits):
  """(images uint [N, H, W, 1], number of each slice [N], mm between slices, (black, white), voxels without a value)."""
  volume, mm = _volume(path)
  lost = int(volume.size - np.isfinite(volume).sum())
  black, white = values or _range(volume, path)
  light = np.clip((np.where(np.isfinite(volume), volume, black) - black) / np.float32(white - black), 0, 1)
  one = AXES[axis]
  across, up = (other for other in range(3) if other != one)
  slices = np.flip(light, (across, up)).transpose(one, 3, up, across)  # the first row is the top
  number, frames = slices.shape[:2]
  fitted = _fitted(slices.reshape(-1, *slices.shape[2:]), (mm[up], mm[across]), shape)
  images = np.round(fitted * (2 ** bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)[..., None]
  return images, np.repeat(np.arange(number), frames), mm[one], (black, white), lost


def _volume(path):
  """(float32 [X, Y, Z, T] whose axes point to the right, the front and up; mm of a voxel [3])."""
  try:
    import nibabel
  except ImportError as error:
    raise InputError(f'{path}: NIfTI files are read with nibabel; install it: pip install nibabel') from error
  try:
    image = nibabel.as_closest_canonical(nibabel.load(path))
    volume, mm = np.asarray(image.dataobj), np.array(image.header.get_zooms()[:3], float)
  except Exception as error:  # readers of damaged files raise nearly anything
    raise InputError(f'{path} cannot be read as a volume ({reason(error)})') from error
  if volume.ndim not in (3, 4) or volume.dtype.kind not in 'uif' or not volume.size:
    raise InputError(f'{path}: {volume.dtype} {list(volume.shape)}; expected a volume of numbers, 3-D or 4-D')
  if not (np.isfinite(mm) & (mm > 0)).all():
    raise InputError(f'{path}: voxels of {mm.tolist()} mm; expected sizes above 0, so mend the header')
  volume = volume.astype(np.float32)
  return volume if volume.ndim == 4 else volume[..., None], mm


def _range(volume, path):
  """(black, white) of a volume."""
  found = volume[np.isfinite(volume)]
  black, white = (float(found.min()), float(np.quantile(found, WHITE))) if found.size else (0., 0.)
  if not black < white:
    raise InputError(f'{path}: {WHITE:.1%} of the voxels are {white:g}, the least value; say values=(black, white)')
  return black, white


def _fitted(slices, mm, shape):
  """Slices [N, h, w], with pixels of mm (down, across), in the middle of black images [N, H, W] that they fill."""
  sides = np.array(slices.shape[1:]) * mm
  inner = np.maximum(1, np.round(sides * min(shape / sides))).astype(int)
  resized = [Image.fromarray(np.ascontiguousarray(one)).resize(inner[::-1].tolist(), as_method('lanczos'))
             for one in slices]
  before = (np.array(shape) - inner) // 2
  room = [(0, 0), *zip(before, shape - inner - before)]
  return np.pad(np.clip(np.stack(resized), 0, 1), room)  # Lanczos overshoots


# ---- what is held out
def _block(index, heldout, gap, name):
  """(train [N], held [N], a note): the middle of one volume is held out, and slices nearer than `gap` left out."""
  places = np.unique(index)
  number = holdout.number_of(heldout, len(places), name, 'slices')
  if not number:
    return np.ones(len(index), bool), np.zeros(len(index), bool), 'no slices are held out'
  first = (len(places) - number) // 2
  low, high = places[first], places[first + number - 1]
  held = (index >= low) & (index <= high)
  train = (index <= low - gap) & ~held | (index >= high + gap) & ~held
  if not train.any():
    raise InputError(f'{name}: heldout={heldout} and the gap beside it leave none of {len(places)} slices to train on; '
                     'lower heldout= or gap=')
  return train, held, (f'one volume: slices {low} to {high} are held out, and {(~train & ~held).sum()} left out, which '
                       'are near them')


def _persons(persons, heldout, seed, name):
  """(train [N], held [N], a note): all of some persons is held out."""
  found = dataset.Dataset(dict(persons=np.unique(persons)))
  number = max(holdout.number_of(heldout, dataset.size(found), name, 'persons'), int(heldout > 0))
  chosen = holdout.split(found, number, seed, name).heldout.arrays['persons']
  held = np.isin(persons, chosen)
  return ~held, held, (f'{dataset.size(found)} persons (sub-folders, or files outside of them), held out: '
                       f'{few(chosen.tolist()) if number else "none"}')


def _value_notes(read, values):
  blacks, whites = np.array([limits for *_, limits, _ in read]).T
  span = lambda a: f'{a.min():.4g}' if np.ptp(a) == 0 else f'{a.min():.4g} to {a.max():.4g}'
  guessed = (f'black is {span(blacks)} and white {span(whites)}, the least value of a volume and the one that '
             f'{WHITE:.1%} of it are below; where numbers have a unit, as in CT, say values=(black, white)')
  lost = sum(lost for *_, lost in read)
  return [guessed] * (values is None) + [f'{lost} voxels without a finite value are black'] * bool(lost)
