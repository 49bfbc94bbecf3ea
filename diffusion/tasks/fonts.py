"""Fonts that have the letters of a text: Pillow's own has those of English, matplotlib brings one for most alphabets,
and for the others what is installed is searched."""
import functools

from PIL import ImageFont


def font_of(text, size):
  """(font, text to write): a Pillow font with all letters of the text, or, if there is none, escaped letters."""
  text = ''.join(c if c.isprintable() else ' ' for c in text)
  if text.isascii():
    return _default(size), text
  path = file_with(frozenset(text))
  return (_loaded(_usual(), size), escaped(text)) if path is None else (_loaded(path, size), text)


def escaped(text):
  """The text with letters escaped that matplotlib's font lacks: for plots, and where no font has them."""
  known = '' if text.isascii() else _letters(_usual())
  return ''.join(c if c.isascii() or ord(c) in known else ascii(c)[1:-1] for c in text)


def _usual():
  from matplotlib import font_manager  # a second to import, and only needed here
  return font_manager.findfont('DejaVu Sans')


@functools.cache
def file_with(letters):
  """The path of a font file with all of these letters (a frozenset), or None."""
  from matplotlib import font_manager
  installed = (font.fname for font in font_manager.fontManager.ttflist if 'Last Resort' not in font.name)  # boxes
  codes = {ord(c) for c in letters if not c.isspace()}
  return next((path for path in (_usual(), *sorted(set(installed))) if codes <= _letters(path)), None)


@functools.cache
def _letters(path):
  """The code points that a font has; none if Pillow cannot write with it, as with bitmaps."""
  from matplotlib.ft2font import FT2Font
  try:
    _loaded(path, 13)
    return set(FT2Font(path).get_charmap())
  except (OSError, RuntimeError):
    return set()


@functools.cache
def _default(size):
  return ImageFont.load_default(size)


@functools.cache
def _loaded(path, size):
  return ImageFont.truetype(path, size)
