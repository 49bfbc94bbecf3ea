"""Pages of images with a text under each, in as many lines as it takes."""
import numpy as np
from PIL import Image, ImageDraw

from diffusion.tasks.fonts import font_of
from diffusion.tasks.pages import enlarged

FONT, LINE, MARGIN = 12, 15, 10
WIDTH, COLUMNS, LINES = 150, 6, 4  # pixels of a cell, cells in a row, most lines of a text


def captioned_page(images, texts, title, columns=COLUMNS, width=WIDTH):
  """images: uint8 [N, H, W, C]; texts: N. Small images are enlarged; a text of more than 4 lines ends with a sign."""
  shown, columns = enlarged(images, 'images'), min(columns, len(images))
  side = max(width, shown[0].width + 6)
  wrapped = [_wrap(text, side - 6) for text in texts]
  height = shown[0].height + 4 + LINE * max(map(len, wrapped)) + 8
  rows = -(-len(shown) // columns)
  page = Image.new('RGB', (2 * MARGIN + columns * side, 2 * MARGIN + LINE + 6 + rows * height), 'white')
  draw = ImageDraw.Draw(page)
  font, line = font_of(title, FONT)
  draw.text((MARGIN, MARGIN), line, '#777777', font)
  for k, (tile, lines) in enumerate(zip(shown, wrapped)):
    x, y = MARGIN + k % columns * side + side // 2, MARGIN + LINE + 6 + k // columns * height
    page.paste(tile, (x - tile.width // 2, y))
    for i, line in enumerate(lines):
      font, line = font_of(line, FONT)
      draw.text((x, y + tile.height + 4 + i * LINE), line, 'black', font, 'ma')
  return page


def _wrap(text, width):
  """The text as at most LINES lines of at most `width` pixels."""
  lines = ['']
  for word in str(text).split():
    longer = f'{lines[-1]} {word}'.strip()
    if not lines[-1] or _width(longer) <= width:
      lines[-1] = longer
    else:
      lines.append(word)
  cut = [lines[LINES - 1] + ' …'] if len(lines) > LINES else lines[LINES - 1:LINES]
  return [_fitting(line, width) for line in lines[:LINES - 1] + cut]


def _fitting(line, width):
  """The line without what is beyond `width` pixels, such as of a word that is wider than that."""
  while _width(line) > width and len(line) > 1:
    line = line[:-2].rstrip() + '…'
  return line


def _width(text):
  font, text = font_of(text, FONT)
  return font.getlength(text)
