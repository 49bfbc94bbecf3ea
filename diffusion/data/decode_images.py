"""Image files of any format, mode and size -> uint8 arrays of one shape."""
import collections
import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageColor, PngImagePlugin, UnidentifiedImageError

from diffusion.errors import check_positive, InputError, shown

_MODES = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}
_CHUNK = 32  # images that a thread decodes at a time
_MOVING = ('.gif', '.webp', '.tif', '.tiff', '.apng', '.png', '.avif')  # formats with several frames or pages
_ORIENTATION, _TURNS = 0x0112, {  # the EXIF tag, and what undoes its values
  2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90}

# Pillow refuses what might be an attack on a server: long texts and profiles, and images above 179 megapixels. The
# files here are the user's own, and every viewer opens them.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2 ** 28
Image.MAX_IMAGE_PIXELS = 2 ** 29
warnings.filterwarnings('ignore', module=r'PIL\.')  # on files that it reads all the same
_RESAMPLE = {name: Image.Resampling[name.upper()]
             for name in ('nearest', 'box', 'bilinear', 'bicubic', 'lanczos')}


def decoder(size=None, channels=3, background='white', fit='crop', resample='lanczos', white=None):
  """Checks the options and returns decode: (path or binary file) -> uint8 [H, W, channels].

  Args:
    size: pixels, or (height, width); None keeps the size of the file.
    channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; with 1 and 3, transparent parts show the background.
    background: a colour name or '#rrggbb'.
    fit: 'crop' scales to cover the size and keeps the centre; 'pad' scales down if larger, and centres on the
      background.
    resample: 'nearest', 'box', 'bilinear', 'bicubic' or 'lanczos'; all but nearest are antialiased.
    white: the value of white in images of more than 8 bits, such as 4095 or 1; 0 is black. None: 65535 in those of 16
      bits; in those of 32 bits, which define none, it is an error.
  Raises:
    InputError: an invalid option.
  """
  if white is not None:
    check_positive('folder', white=white)
  one_of('channels', channels, _MODES)
  one_of('fit', fit, ('crop', 'pad'))
  method = as_method(resample)
  shape = as_shape(size) if size is not None else None
  try:
    colour = ImageColor.getrgb(background)[:3]
  except (ValueError, AttributeError, TypeError) as error:
    raise InputError(f'background={background!r} is not a colour; give a name, or #rrggbb') from error

  def decode(file):
    with Image.open(file) as image:
      inverted, full = _depth(image, white)
      if shape:
        # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size while that is at least twice the size needed.
        image.draft(image.mode, (2 * max(shape),) * 2)
      converted = _convert(_upright(image), channels, colour, full, inverted)
    if shape:
      converted = _fit(converted, shape, fit, method, colour)
    array = np.array(converted)
    return array.reshape(*array.shape[:2], channels)

  return decode


def _depth(image, white):
  """(whether 0 is white, the value of white) of an image that is open and not read yet."""
  if ';16' in str(image.tile) and not image.mode.startswith('I') and white not in (None, 65535):
    raise InputError('16-bit colour, of which only the upper 8 bits can be read: leave out white')
  inverted = image.format == 'TIFF' and image.mode.startswith('I') and image.tag_v2.get(262) == 0
  return inverted, 65535 if image.format == 'PPM' else white  # Pillow scales that format itself


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
  if not any(type(value) is type(known) and value == known for known in valid):
    raise InputError(f'{option}={value!r} is unknown; choose from {", ".join(map(str, valid))}')
  return value


def _upright(image):
  """The image as the camera was held. EXIF data that cannot be read beside the orientation do not matter."""
  image.load()  # which turns a TIFF itself
  try:
    turn = _TURNS.get(image.getexif().get(_ORIENTATION))
  except Exception:  # Pillow's parser raises nearly anything; without an orientation the image is as it is
    turn = None
  return image if turn is None else image.transpose(turn)


def _convert(image, channels, colour, white, inverted):
  if image.mode.startswith('I') or image.mode == 'F':
    values, transparent = np.asarray(image), image.info.get('transparency')
    grey = _to_8_bit(values, image.mode, white)
    grey = 255 - grey if inverted else grey
    alpha = np.uint8(255) * (values != transparent) if isinstance(transparent, int) else None
    image = Image.fromarray(grey if alpha is None else np.stack([grey, alpha], -1))
  if 'A' in image.getbands() or 'a' in image.getbands() or 'transparency' in image.info:
    image = image.convert('RGBA')
    if channels in (1, 3):
      image = Image.alpha_composite(Image.new('RGBA', image.size, colour + (255,)), image)
  elif image.mode not in ('L', 'RGB'):
    image = image.convert('RGB')
  return image.convert(_MODES[channels])


def _to_8_bit(values, mode, white):
  """-> uint8. The white of a data set is one: it is not told from the values of single images."""
  white = white or (65535 if mode.startswith('I;16') else None)
  low, high = values.min(), values.max()
  if not (np.isfinite(low) and np.isfinite(high)):
    raise InputError('values that are not finite')
  if white is None:
    raise InputError('its 32 bits do not say which value is white; say white=255, white=65535 or white=1')
  if low < -1e-3 * white or high > 1.001 * white:
    raise InputError(f'values outside 0 to {white:g}, which is white')
  return (values.astype(np.float64) * (255 / white)).round().clip(0, 255).astype(np.uint8)


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
      return reason(error)

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
    raise InputError(f'none of {len(names)} images can be read: {_grouped(broken)}')
  notes = [f'{len(broken)} unreadable images skipped: {_grouped(broken)}'] if broken else []
  return np.stack(images), np.array(good), notes + _moving(names, good, opener)


def _moving(names, good, opener):
  """A note on images of which only the first frame is read, if there are any."""
  def frames(file):
    try:
      with Image.open(file) as image:
        return getattr(image, 'n_frames', 1)
    except Exception:  # a damaged frame after the first, which is all that is read
      return 2
  moving = [shown(names[i]) for i in good if names[i].lower().endswith(_MOVING) and frames(opener(i)) > 1]
  more = ', ..' if len(moving) > 1 else ''
  return [f'{len(moving)} images have several frames, of which the first is read: {moving[0]}{more}'] if moving else []


def reason(error):
  """Why a file cannot be read, in one line that is the same for all files with this fault."""
  if isinstance(error, UnidentifiedImageError):
    return 'it is no image'
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  text = ' '.join(str(error).split())
  return text if isinstance(error, (InputError, OSError)) else f'{type(error).__name__}: {text}'


def _grouped(broken, most=4):
  """[(name, reason)] as one line: for each reason how many, and the first of them."""
  groups = collections.defaultdict(list)
  for name, why in broken:
    groups[why].append(name)
  parts = [f'{len(names)} for {why} ({", ".join(map(shown, names[:3]))}{", .." * (len(names) > 3)})'
           for why, names in sorted(groups.items(), key=lambda group: -len(group[1]))]
  return '; '.join(parts[:most]) + ('; ..' if len(parts) > most else '')


def _collect(names, i, result, unreadable, images, good, broken):
  if isinstance(result, str):
    if unreadable == 'stop':
      raise InputError(f"cannot read {shown(names[i])} ({result}); repair or remove it, or set unreadable='skip'")
    broken.append((names[i], result))
    return
  if images and result.shape != images[0].shape:
    raise InputError(f'images differ in size: {names[good[0]]} is {size_text(images[0].shape)}, '
                     f'{names[i]} is {size_text(result.shape)}; give size=, for example size=32')
  images.append(result)
  good.append(i)


def size_text(shape):
  """(H, W, ..) -> 'HxW'."""
  return f'{shape[0]}x{shape[1]}'
