"""Pages of images to look at: grids with captions, labelled rows, animations.

Input arrays are uint8 [..., H, W, C] with C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA); transparency is white.
Small images are enlarged by an integer factor, nearest neighbour, until their longer side has at least 64 pixels, so
that pixel art stays exact; larger ones are unchanged. The result is an RGB `PIL.Image`.
"""
import io
import math
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from diffusion.errors import InputError
from diffusion.system.files import write_atomic
from diffusion.tasks.fonts import font_of

_READABLE = 64    # pixels on the longer side of an image, at least
_MARGIN = 10      # pixels around the page
_GAP = 4          # pixels between images
_FONT_SIZE = 13
_LABEL_WIDTH = 240  # pixels for row labels, at most
_MODES = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}


def grid(images, columns=None, labels=None, title=None) -> Image.Image:
  """A page with the images in reading order.

  Args:
    images: uint8 [N, H, W, C], N >= 1.
    columns: images per row; None: about as many as rows.
    labels: N captions, written under the images; long ones are cut with an ellipsis.
    title: a line at the top.
  Raises:
    InputError: images of another shape or dtype, or not one label per image.
  """
  tiles = enlarged(images, 'images')
  columns = _columns(len(tiles)) if columns is None else min(columns, len(tiles))
  if columns < 1:
    raise InputError(f'columns={columns}: expected at least 1')
  if labels is not None and len(labels) != len(tiles):
    raise InputError(f'labels: expected one for each of the {len(tiles)} images, got {len(labels)}')
  return _page(_chunks(tiles, columns), under=labels and _chunks(list(labels), columns), title=title)


def rows(rows, labels, column_labels=None, title=None) -> Image.Image:
  """A page with one labelled row per array: a film strip, two samplers, an interpolation.

  Args:
    rows: arrays uint8 [K, H, W, C]; K may differ from row to row.
    labels: one per row, written at its left.
    column_labels: one per image of the longest row, written above.
    title: a line at the top.
  Raises:
    InputError: a row of another shape or dtype, or labels that do not match the rows.
  """
  if not len(rows) or len(labels) != len(rows):
    raise InputError(f'rows: expected at least one, with a label each; got {len(rows)} rows and {len(labels)} labels')
  cells = [enlarged(row, f'row {label!r}') for row, label in zip(rows, labels)]
  longest = max(len(row) for row in cells)
  if column_labels is not None and len(column_labels) != longest:
    raise InputError(f'column_labels: expected {longest}, one per image of the longest row; got {len(column_labels)}')
  return _page(cells, left=labels, top=column_labels, title=title)


def beside(images, lines, title=None, columns=2, width=420) -> Image.Image:
  """A page with coloured words at the right of each image.

  Args:
    images: uint8 [N, H, W, C], N >= 1.
    lines: for each image its lines, a list of pieces (text, colour) each; a line that is too long goes on in the next.
    title: a line at the top.
    columns: images in a row.
    width: pixels of the words.
  Raises:
    InputError: images of another shape or dtype, or not the lines of each image.
  """
  tiles, title = enlarged(images, 'images'), _line(title or '')
  if len(lines) != len(tiles):
    raise InputError(f'lines: expected those of each of the {len(tiles)} images, got {len(lines)}')
  placed = [_placed(each, width) for each in lines]
  high = max([tile.height for tile in tiles] + [y for words in placed for *_, y in words]) + 2 * _GAP
  wide = max(tile.width for tile in tiles) + width + 3 * _GAP
  top = _MARGIN + (_FONT_SIZE + 2 * _GAP if title.text else 0)
  page = Image.new('RGB', (2 * _MARGIN + columns * wide, top + -(-len(tiles) // columns) * high + _MARGIN), 'white')
  draw = ImageDraw.Draw(page)
  draw.text((_MARGIN, _MARGIN), title.text, 'black', title.font)
  for k, (tile, words) in enumerate(zip(tiles, placed)):
    left, y0 = _MARGIN + k % columns * wide, top + k // columns * high
    page.paste(tile, (left, y0))
    for line, colour, x, y in words:
      draw.text((left + tile.width + 2 * _GAP + x, y0 + y), line.text, colour, line.font, 'ld')
  return page


def _placed(lines, width):
  """Lines of pieces (text, colour) -> [(text as a _Line, colour, x, y of its lower end)]."""
  out, y = [], 0
  for line in lines:
    x, y = 0, y + _FONT_SIZE + _GAP
    for text, colour in line:
      piece = _line(text, width)
      if x and x + piece.width > width:
        x, y = 0, y + _FONT_SIZE + _GAP
      out.append((piece, colour, x, y))
      x += piece.width + _FONT_SIZE // 2
  return out


def save_png(image, path) -> None:
  """Writes a PIL image, or uint8 [H, W, C], as PNG, whole or not at all."""
  if not isinstance(image, Image.Image):
    image = _pil(_checked(np.asarray(image)[None], 'image')[0])
  buffer = io.BytesIO()
  image.save(buffer, 'PNG')
  write_atomic(path, buffer.getvalue())


def save_gif(frames, path, columns=None, labels=None, title=None, fps=10, hold_last=2.0) -> None:
  """Writes a looping animation of a grid, such as the denoising of N samples, whole or not at all.

  Args:
    frames: uint8 [F, N, H, W, C], in order of time.
    path: of the file; missing parent folders are made.
    columns, labels, title: as for `grid`.
    fps: frames per second, up to 50.
    hold_last: seconds that the last frame is shown.
  Raises:
    InputError: frames that `grid` refuses, no frames, or fps outside (0, 50].
  """
  if not 0 < fps <= 50:
    raise InputError(f'fps={fps}: expected a number in (0, 50]')
  if not len(frames):
    raise InputError('frames: expected at least one, got none')
  frame_pages = [_indexed(grid(frame, columns, labels, title)) for frame in frames]
  durations = [round(1000 / fps)] * (len(frame_pages) - 1) + [round(1000 * hold_last)]
  buffer = io.BytesIO()
  frame_pages[0].save(buffer, 'GIF', save_all=True, append_images=frame_pages[1:], duration=durations, loop=0)
  write_atomic(path, buffer.getvalue())


def _checked(images, name) -> np.ndarray:
  """The images as an array [N, H, W, C]; raises InputError if they are none."""
  images = np.asarray(images)
  if images.ndim != 4 or images.shape[-1] not in _MODES or 0 in images.shape:
    raise InputError(f'{name}: expected the shape [N, H, W, C] with C from 1 to 4, got {list(images.shape)}')
  if images.dtype != np.uint8:
    raise InputError(f'{name}: expected uint8 from 0 to 255, got {images.dtype}; scale and round first')
  return images


def _pil(array) -> Image.Image:
  """uint8 [H, W, C] -> PIL, lossless."""
  mode = _MODES[array.shape[-1]]
  return Image.fromarray(np.ascontiguousarray(array[..., 0] if mode == 'L' else array))


def enlarged(images, name) -> list:
  """uint8 [N, H, W, C] -> N opaque RGB images, enlarged if small."""
  images = _checked(images, name)
  height, width = images.shape[1:3]
  factor = math.ceil(_READABLE / max(height, width))
  tiles = []
  for array in images:
    tile = _pil(array)
    if tile.mode in ('LA', 'RGBA'):
      tile = tile.convert('RGBA')
      tile = Image.alpha_composite(Image.new('RGBA', tile.size, 'white'), tile)
    tiles.append(tile.convert('RGB').resize((width * factor, height * factor), Image.Resampling.NEAREST))
  return tiles


def _columns(n) -> int:
  """About the square root of n; a divisor of n if one is near, so that the last row is full."""
  root = math.ceil(math.sqrt(n))
  return next((c for c in range(root, 2 * root) if n % c == 0), root)


def _chunks(items, size) -> list:
  return [items[i:i + size] for i in range(0, len(items), size)]


class _Line(NamedTuple):
  text: str
  font: Any
  width: int


def _line(text, width=math.inf) -> _Line:
  """The text as one line, in a font that has its letters, cut with an ellipsis if it is wider than `width` pixels."""
  font, text = font_of(' '.join(str(text).split()), _FONT_SIZE)
  if font.getlength(text) > width:
    while text and font.getlength(text + '…') > width:
      text = text[:-1]
    text = text.rstrip() + '…'
  return _Line(text, font, math.ceil(font.getlength(text)))


def _page(cells, left=None, top=None, under=None, title=None) -> Image.Image:
  """Tiles [R][K] with labels at the left of rows, above columns and under tiles."""
  written = [_line(text) for text in (*(left or ()), *(top or ()), *sum(under or [], []), *([title] if title else []))]
  line = max([sum(text.font.getmetrics()) for text in written], default=_FONT_SIZE) + 2
  # Captions need a wider gap than images, or two neighbours read as one.
  gap = 3 * _GAP if top or under else _GAP
  width = max(tile.width for row in cells for tile in row)
  width = max(width, _READABLE) if top or under else width
  height = max(tile.height for row in cells for tile in row)
  pitch = height + _GAP + (line + _GAP if under else 0)
  left = [_line(text, _LABEL_WIDTH) for text in left or ()]
  x0 = _MARGIN + (max(text.width for text in left) + 2 * _GAP if left else 0)
  y0 = _MARGIN + (line + _GAP if title else 0) + (line if top else 0)
  title = _line(title or '')
  columns = max(map(len, cells))
  page_width = max(x0 + columns * (width + gap) - gap, _MARGIN + title.width) + _MARGIN
  page = Image.new('RGB', (page_width, y0 + len(cells) * pitch - _GAP + _MARGIN), 'white')
  draw = ImageDraw.Draw(page)

  def write(x, y, line, anchor):
    draw.text((x, y), line.text, 'black', line.font, anchor)

  write(_MARGIN, _MARGIN, title, 'la')
  for k, text in enumerate(top or []):
    write(x0 + k * (width + gap) + width // 2, y0 - line, _line(text, width + gap - _GAP), 'ma')
  for r, row in enumerate(cells):
    y = y0 + r * pitch
    if left:
      write(x0 - 2 * _GAP, y + height // 2, left[r], 'rm')
    for k, tile in enumerate(row):
      x = x0 + k * (width + gap)
      page.paste(tile, (x + (width - tile.width) // 2, y + (height - tile.height) // 2))
      if under:
        write(x + width // 2, y + height + 1, _line(under[r][k], width + gap - _GAP), 'ma')
  return page


def _indexed(page) -> Image.Image:
  """The page with its own palette: exact up to 256 colours, else the nearest ones, never dithered."""
  pixels = np.asarray(page).reshape(-1, 3)
  colours, index = np.unique(pixels @ np.array([65536, 256, 1]), return_inverse=True)
  if len(colours) > 256:
    return page.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
  indexed = Image.fromarray(index.reshape(page.height, page.width).astype(np.uint8), 'P')
  palette = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], -1)
  indexed.putpalette(palette.astype(np.uint8).tobytes())
  return indexed
