"""Pairs of images, degraded and good ones, from two folders; images of 8 and of 16 bits."""
import os

import numpy as np
from PIL import Image

from diffusion.data import arrays, dataset, holdout
from diffusion.data.decode_images import reason
from diffusion.data.folder import few
from diffusion.errors import InputError

ENDINGS = ('.png', '.tif', '.tiff', '.jpg', '.jpeg', '.bmp', '.webp', '.npy')
TURNED = dict.fromkeys(('1', 'P', 'PA', 'CMYK', 'YCbCr', 'HSV', 'LAB', 'RGBX', 'RGBa', 'La'), 'RGB') | {'1': 'L'}


def as_unit(images):
  """uint8 or uint16 [...] -> float32 in [-1, 1]."""
  half = np.float32((2 ** (8 * images.dtype.itemsize) - 1) / 2)
  return images.astype('float32') / half - 1


def from_unit_of(x, top):
  """The inverse, rounded and clipped; top: 255 or 65535."""
  return ((x + 1) * (top / 2)).round().clip(0, top).astype('uint8' if top < 256 else 'uint16')


def read_image(path, setting):
  """uint8 or uint16 [H, W, C] of an image file as it is stored, or any array of numbers of a .npy file.

  Raises:
    InputError: starts with `setting`; no such file, or one that cannot be read.
  """
  if not os.path.isfile(path):
    raise InputError(f'{setting}: no such file')
  if str(path).endswith('.npy'):
    array = arrays.load_array(path, 'npy')
    return array[..., None] if array.ndim == 2 and array.dtype.kind == 'u' else array
  try:
    with Image.open(path) as image:
      if image.mode in ('I', 'F'):
        raise InputError(f'{setting}: numbers of 32 bits, whose white is not defined; save uint8 or uint16')
      image = image.convert(TURNED.get(image.mode, image.mode))
      array = np.array(image)
  except InputError:
    raise
  except Exception as error:  # decoders of broken files raise nearly anything
    raise InputError(f'{setting} cannot be read as an image ({reason(error)})') from error
  array = array.astype(np.uint16) if array.dtype.itemsize == 2 else array
  return array[..., None] if array.ndim == 2 else array


def pairs(high, low, heldout=.1, seed=0):
  """Columns high, uint8 or uint16 [N, H, W, C], and low [N, h, w, c], from two folders of files of the same names.

  All high images are of one size, and all low ones of another, by a whole factor smaller, or the same. Files are PNG,
  TIFF, JPEG or .npy (of more channels, or 16-bit colour, uint8 or uint16 [H, W] or [H, W, C]).

  Args:
    high, low: the folders.
    heldout: number (int) or share (float) of pairs held out.
    seed: of their choice.
  """
  roots = [arrays.as_path(path, 'pairs') for path in (high, low)]
  files = [_files(root) for root in roots]
  lone = sorted(files[0].keys() ^ files[1].keys())
  if lone:
    raise InputError(f'pairs: {len(files[0])} images in {high} and {len(files[1])} in {low}; without a partner of the '
                     f'same name: {few(lone)}')
  names = sorted(files[0])
  columns = [_column(root, [found[name] for name in names]) for root, found in zip(roots, files)]
  (H, W), (h, w) = (column.shape[1:3] for column in columns)
  if H % h or W % w or H // h != W // w:
    raise InputError(f'pairs: the images of {high} are {H}x{W} and those of {low} {h}x{w}; expected the same size, or '
                     'one that is smaller by a whole factor')
  if columns[0].dtype != columns[1].dtype:
    raise InputError(f'pairs: {columns[0].dtype} in {high} and {columns[1].dtype} in {low}; save both with 8 bits, or '
                     'both with 16')
  data = dataset.Dataset(dict(high=columns[0], low=columns[1]))
  return holdout.split(data, heldout, seed, f'pairs({high}, {low})')


def _files(root):
  """{path below the root without its ending: path}."""
  if not root.is_dir():
    raise InputError(f'{root}: no such folder')
  paths = [path for path in sorted(root.rglob('*')) if path.suffix.lower() in ENDINGS and path.is_file()
           and not any(part.startswith('.') for part in path.relative_to(root).parts)]
  if not paths:
    raise InputError(f'{root}: no images in this folder; expected {", ".join(ENDINGS)}')
  found = {}
  for path in paths:
    name = path.relative_to(root).with_suffix('').as_posix()
    if name in found:
      raise InputError(f'{root}: {path.name} and {found[name].name} have the same name; keep one')
    found[name] = path
  return found


def _column(root, paths):
  """[N, H, W, C] of files, all of one size and depth."""
  images = []
  for path in paths:
    image = read_image(path, str(path))
    if image.dtype not in (np.uint8, np.uint16) or image.ndim != 3 or not (image.size and image.shape[-1] <= 4):
      raise InputError(f'{path}: {image.dtype} {list(image.shape)}; expected uint8 or uint16 [H, W, C] with 1 to 4 '
                       'channels')
    if images and (image.dtype, image.shape) != (images[0].dtype, images[0].shape):
      raise InputError(f'{path} is {image.dtype} {list(image.shape)}, and {paths[0].name} {images[0].dtype} '
                       f'{list(images[0].shape)}; all of a folder must be equal: crop them, and save all with 8 or all '
                       'with 16 bits')
    images.append(image)
  return np.stack(images)
