"""Pages of pictures to look at: grids with captions, labelled rows, animations.

Arrays in are uint8 [..., H, W, C] with C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA); transparency shows
white. Small pictures are enlarged by a whole factor, nearest neighbour, until their longer side has at least
64 pixels, so that pixel art stays exact; larger ones are left alone. Out comes an RGB `PIL.Image`.
"""
import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffusion.errors import InputError
from diffusion.system.files import write_atomic

_READABLE = 64    # pixels on the longer side of a picture, at least
_MARGIN = 10      # pixels around the page
_GAP = 4          # pixels between pictures
_FONT_SIZE = 13
_LABEL_WIDTH = 240  # pixels for the labels of rows, at most
_MODES = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}


def grid(images, columns=None, labels=None, title=None) -> Image.Image:
  """A page with the pictures in reading order.

  Args:
    images: uint8 [N, H, W, C], N >= 1.
    columns: pictures in a row; None takes about as many as there are rows.
    labels: N captions, written under the pictures; one that is too long ends in an ellipsis.
    title: a line above everything.
  Raises:
    InputError: images of another shape or dtype, or another number of labels than of images.
  """
  tiles = _tiles(images, 'images')
  columns = _columns(len(tiles)) if columns is None else min(columns, len(tiles))
  if columns < 1:
    raise InputError(f'columns must be at least 1, got {columns}')
  if labels is not None and len(labels) != len(tiles):
    raise InputError(f'{len(tiles)} images need as many labels, got {len(labels)}')
  return _page(_chunks(tiles, columns), under=labels and _chunks(list(labels), columns), title=title)


def rows(rows, labels, column_labels=None, title=None) -> Image.Image:
  """A page with one labelled row for each array: a film strip, two samplers side by side, an interpolation.

  Args:
    rows: arrays uint8 [K, H, W, C]; K may differ from row to row.
    labels: one for each row, written at its left.
    column_labels: one for each picture of the longest row, written above.
    title: a line above everything.
  Raises:
    InputError: a row of another shape or dtype, or labels that do not fit the rows.
  """
  if not len(rows) or len(labels) != len(rows):
    raise InputError(f'rows need a label each and be at least one: {len(rows)} rows, {len(labels)} labels')
  cells = [_tiles(row, f'row {label!r}') for row, label in zip(rows, labels)]
  longest = max(len(row) for row in cells)
  if column_labels is not None and len(column_labels) != longest:
    raise InputError(f'the longest row has {longest} pictures, got {len(column_labels)} column_labels')
  return _page(cells, left=labels, top=column_labels, title=title)


def save_png(image, path) -> None:
  """Writes a PIL image, or one uint8 picture [H, W, C], as PNG; the file is there whole or not at all."""
  if not isinstance(image, Image.Image):
    image = _picture(_checked(np.asarray(image)[None], 'image')[0])
  buffer = io.BytesIO()
  image.save(buffer, 'PNG')
  write_atomic(path, buffer.getvalue())


def save_gif(frames, path, columns=None, labels=None, title=None, fps=10, hold_last=2.0) -> None:
  """Writes an endless animation of a grid, such as the denoising of N samples; written whole or not at all.

  Args:
    frames: uint8 [F, N, H, W, C], in the order of time.
    path: where to write; parents are made.
    columns, labels, title: as for `grid`.
    fps: frames in a second, up to 50.
    hold_last: seconds that the last frame stays.
  Raises:
    InputError: frames that `grid` would refuse, none at all, or fps outside (0, 50].
  """
  if not 0 < fps <= 50:
    raise InputError(f'fps must lie in (0, 50], got {fps}')
  if not len(frames):
    raise InputError('an animation needs at least one frame, got none')
  pages = [_indexed(grid(frame, columns, labels, title)) for frame in frames]
  durations = [round(1000 / fps)] * (len(pages) - 1) + [round(1000 * hold_last)]
  buffer = io.BytesIO()
  pages[0].save(buffer, 'GIF', save_all=True, append_images=pages[1:], duration=durations, loop=0)
  write_atomic(path, buffer.getvalue())


def _checked(images, name) -> np.ndarray:
  """The images as an array [N, H, W, C], or the InputError that says what is wrong with them."""
  images = np.asarray(images)
  if images.ndim != 4 or images.shape[-1] not in _MODES or 0 in images.shape:
    raise InputError(f'{name} must have the shape [N, H, W, C] with C from 1 to 4, got {list(images.shape)}')
  if images.dtype != np.uint8:
    raise InputError(f'{name} must be uint8 from 0 to 255, got {images.dtype}; scale and round it first')
  return images


def _picture(array) -> Image.Image:
  """uint8 [H, W, C] -> PIL, nothing lost."""
  mode = _MODES[array.shape[-1]]
  return Image.fromarray(np.ascontiguousarray(array[..., 0] if mode == 'L' else array))


def _tiles(images, name) -> list:
  """uint8 [N, H, W, C] -> N opaque RGB pictures, enlarged where they are small."""
  images = _checked(images, name)
  height, width = images.shape[1:3]
  factor = math.ceil(_READABLE / max(height, width))
  tiles = []
  for array in images:
    picture = _picture(array)
    if picture.mode in ('LA', 'RGBA'):
      picture = picture.convert('RGBA')
      picture = Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture)
    tiles.append(picture.convert('RGB').resize((width * factor, height * factor), Image.Resampling.NEAREST))
  return tiles


def _columns(n) -> int:
  """About the square root of n, and a divisor of n where one is near, so that the last row is full."""
  root = math.ceil(math.sqrt(n))
  return next((c for c in range(root, 2 * root) if n % c == 0), root)


def _chunks(items, size) -> list:
  return [items[i:i + size] for i in range(0, len(items), size)]


def _fit(text, font, width) -> str:
  """The text as one line, cut to `width` pixels with an ellipsis where it is longer."""
  text = ' '.join(str(text).split())
  if font.getlength(text) <= width:
    return text
  while text and font.getlength(text + '…') > width:
    text = text[:-1]
  return text.rstrip() + '…'


def _page(cells, left=None, top=None, under=None, title=None) -> Image.Image:
  """Pictures [R][K] with labels at the left of the rows, above the columns and under each picture."""
  font = ImageFont.load_default(_FONT_SIZE)
  line = sum(font.getmetrics()) + 2
  # Captions need a wider gap than pictures do, or two neighbours read as one.
  gap = 3 * _GAP if top or under else _GAP
  width = max(tile.width for row in cells for tile in row)
  width = max(width, _READABLE) if top or under else width
  height = max(tile.height for row in cells for tile in row)
  pitch = height + _GAP + (line + _GAP if under else 0)
  left = [_fit(text, font, _LABEL_WIDTH) for text in left] if left else []
  x0 = _MARGIN + (math.ceil(max(map(font.getlength, left))) + 2 * _GAP if left else 0)
  y0 = _MARGIN + (line + _GAP if title else 0) + (line if top else 0)
  title = _fit(title, font, math.inf) if title else ''
  columns = max(map(len, cells))
  page_width = max(x0 + columns * (width + gap) - gap, _MARGIN + math.ceil(font.getlength(title))) + _MARGIN
  page = Image.new('RGB', (page_width, y0 + len(cells) * pitch - _GAP + _MARGIN), 'white')
  draw = ImageDraw.Draw(page)

  def write(x, y, text, anchor, limit=math.inf):
    draw.text((x, y), _fit(text, font, limit), 'black', font, anchor)

  write(_MARGIN, _MARGIN, title, 'la')
  for k, text in enumerate(top or []):
    write(x0 + k * (width + gap) + width // 2, y0 - line, text, 'ma', width + gap - _GAP)
  for r, row in enumerate(cells):
    y = y0 + r * pitch
    if left:
      write(x0 - 2 * _GAP, y + height // 2, left[r], 'rm')
    for k, tile in enumerate(row):
      x = x0 + k * (width + gap)
      page.paste(tile, (x + (width - tile.width) // 2, y + (height - tile.height) // 2))
      if under:
        write(x + width // 2, y + height + 1, under[r][k], 'ma', width + gap - _GAP)
  return page


def _indexed(page) -> Image.Image:
  """The page with a palette of its own: exact up to 256 colours, else the nearest, and never dithered."""
  pixels = np.asarray(page).reshape(-1, 3)
  colours, index = np.unique(pixels @ np.array([65536, 256, 1]), return_inverse=True)
  if len(colours) > 256:
    return page.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
  indexed = Image.fromarray(index.reshape(page.height, page.width).astype(np.uint8), 'P')
  palette = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], -1)
  indexed.putpalette(palette.astype(np.uint8).tobytes())
  return indexed
