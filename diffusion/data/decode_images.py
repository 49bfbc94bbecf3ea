"""Image files of any format, mode and size -> uint8 arrays of one shape."""
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageColor, ImageOps

from diffusion.errors import InputError

_MODES = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}
_CHUNK = 32  # images that a thread decodes at a time
_RESAMPLE = {name: Image.Resampling[name.upper()]
             for name in ('nearest', 'box', 'bilinear', 'bicubic', 'lanczos')}


def decoder(size=None, channels=3, background='white', fit='crop', resample='lanczos'):
  """Checks the options and returns decode: (path or binary file) -> uint8 [H, W, channels].

  Args:
    size: pixels, or (height, width); None keeps the size of the file.
    channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; with 1 and 3, transparent parts show the background.
    background: a colour name or '#rrggbb'.
    fit: 'crop' scales to cover the size and keeps the centre; 'pad' scales down if larger, and centres on the
      background.
    resample: 'nearest', 'box', 'bilinear', 'bicubic' or 'lanczos'; all but nearest are antialiased.
  Raises:
    InputError: an invalid option.
  """
  one_of('channels', channels, _MODES)
  one_of('fit', fit, ('crop', 'pad'))
  method = as_method(resample)
  shape = as_shape(size) if size is not None else None
  try:
    colour = ImageColor.getrgb(background)[:3]
  except (ValueError, AttributeError) as error:
    raise InputError(f'background={background!r} is not a colour; give a name, or #rrggbb') from error

  def decode(file):
    with Image.open(file) as image:
      if shape:
        # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size while that is at least twice the size needed.
        image.draft(image.mode, (2 * max(shape),) * 2)
      converted = _convert(ImageOps.exif_transpose(image), channels, colour)
    if shape:
      converted = _fit(converted, shape, fit, method, colour)
    array = np.array(converted)
    return array.reshape(*array.shape[:2], channels)

  return decode


def as_shape(size):
  """Pixels or (height, width) -> (height, width), checked."""
  shape = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
  if len(shape) != 2 or not all(type(side) is int and 1 <= side <= 4096 for side in shape):
    raise InputError(f'size={size!r} is not valid; give pixels, such as 32, or (height, width), up to 4096')
  return shape


def as_method(resample):
  """Name of a resampling method -> Pillow's constant, checked."""
  return _RESAMPLE[one_of('resample', resample, _RESAMPLE)]


def one_of(option, value, valid):
  """The value of an option; raises InputError unless it is among the valid ones."""
  if value not in valid:
    raise InputError(f'{option}={value!r} is unknown; choose from {", ".join(map(str, valid))}')
  return value


def _convert(image, channels, colour):
  if image.mode.startswith('I') or image.mode == 'F':
    image = Image.fromarray(_to_8_bit(np.asarray(image), image.mode))
  if 'A' in image.getbands() or 'a' in image.getbands() or 'transparency' in image.info:
    image = image.convert('RGBA')
    if channels in (1, 3):
      image = Image.alpha_composite(Image.new('RGBA', image.size, colour + (255,)), image)
  elif image.mode not in ('L', 'RGB'):
    image = image.convert('RGB')
  return image.convert(_MODES[channels])


def _to_8_bit(values, mode):
  """-> uint8. Modes I and F do not define a range: 16-bit, 0..255 or [0, 1] is inferred from the values."""
  values = values.astype(np.float64)
  if mode.startswith('I;16') or values.max() > 255:
    values = values / 257
  elif mode == 'F' and values.max() <= 1:
    values = values * 255
  return values.round().clip(0, 255).astype(np.uint8)


def _fit(image, shape, fit, resample, colour):
  height, width = shape
  if fit == 'crop':
    scale = max(width / image.width, height / image.height)
    left, top = (image.width - width / scale) / 2, (image.height - height / scale) / 2
    box = (max(left, 0), max(top, 0), min(left + width / scale, image.width),
           min(top + height / scale, image.height))
    return image.resize((width, height), resample, box=box, reducing_gap=3.0)
  scale = min(1, width / image.width, height / image.height)
  inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
  canvas = Image.new('RGBA', (width, height), colour + (255,)).convert(image.mode)
  canvas.paste(image.resize(inner, resample, reducing_gap=3.0),
               ((width - inner[0]) // 2, (height - inner[1]) // 2))
  return canvas


def read_all(decode, names, opener, unreadable):
  """Reads many images in threads.

  Args:
    decode: as decoder returns it.
    names: of the images, for messages.
    opener: index -> argument of decode.
    unreadable: 'skip' leaves unreadable images out, with a note; 'stop' raises.
  Returns:
    (images uint8 [N, H, W, C], indices of the readable ones, notes).
  Raises:
    InputError: an unreadable image ('stop'), no readable image, or images of different sizes.
  """
  from tqdm import tqdm
  one_of('unreadable', unreadable, ('skip', 'stop'))

  def attempt(i):
    try:
      return decode(opener(i))
    except Exception as error:  # decoders of broken files raise nearly anything; the file is named below
      return f'{type(error).__name__}: {error}'

  images, good, broken = [], [], []
  chunks = [range(start, min(start + _CHUNK, len(names))) for start in range(0, len(names), _CHUNK)]
  # disable=None: shown only on a terminal.
  progress = tqdm(total=len(names), desc='reading images', delay=1, leave=False, disable=None)
  with ThreadPoolExecutor(os.cpu_count()) as pool, progress:
    for chunk, results in zip(chunks, pool.map(lambda chunk: [attempt(i) for i in chunk], chunks)):
      try:
        for i, result in zip(chunk, results):
          _collect(names, i, result, unreadable, images, good, broken)
      except InputError:
        pool.shutdown(cancel_futures=True)  # do not read the rest first
        raise
      progress.update(len(chunk))
  if not images:
    raise InputError(f'none of {len(names)} images can be read; the first: {broken[0]}')
  first = ', '.join(text.split(' (')[0] for text in broken[:5]) + (', ...' if len(broken) > 5 else '')
  notes = [f'{len(broken)} unreadable images skipped: {first}'] if broken else []
  return np.stack(images), np.array(good), notes


def _collect(names, i, result, unreadable, images, good, broken):
  if isinstance(result, str):
    if unreadable == 'stop':
      raise InputError(f"cannot read {names[i]} ({result}); repair or remove it, or set unreadable='skip'")
    broken.append(f'{names[i]} ({result})')
    return
  if images and result.shape != images[0].shape:
    raise InputError(f'images differ in size: {names[good[0]]} is {size_text(images[0].shape)}, '
                     f'{names[i]} is {size_text(result.shape)}; give size=, for example size=32')
  images.append(result)
  good.append(i)


def size_text(shape):
  """(H, W, ..) -> 'HxW'."""
  return f'{shape[0]}x{shape[1]}'
