"""Pixel art by materials: a 16x16 grid of material numbers, coloured last, many sprites at once.

Every material has four tones: outline, shade, base, light. Light falls from the top left, and a one-pixel
outline in the dark tone of its neighbour surrounds the silhouette. Only arithmetic that is the same on every
platform is used, so a sprite is too.
"""
import colorsys
import functools

import numpy as np

SIDE = 16
PLACES = tuple((x, y) for y in range(SIDE) for x in range(SIDE))
OUTLINE, SHADE, BASE, LIGHT = range(4)
AUTO = 4   # the tone follows from the neighbours

# Hue, saturation, value.
COLOURS = {
  'red': (.99, .78, .82), 'orange': (.075, .82, .93), 'yellow': (.135, .72, .96), 'green': (.35, .62, .66),
  'teal': (.49, .62, .70), 'blue': (.60, .70, .80), 'purple': (.77, .52, .70), 'pink': (.93, .42, .94),
  'brown': (.07, .55, .50), 'black': (.65, .25, .26), 'white': (.60, .04, .97), 'gray': (.62, .12, .62),
  'gold': (.12, .70, .90), 'silver': (.58, .10, .82), 'cyan': (.52, .50, .92), 'lime': (.25, .70, .82),
  'wood': (.07, .60, .52), 'cream': (.10, .35, .95), 'crust': (.08, .60, .72), 'parchment': (.11, .28, .95),
  'glass': (.55, .10, .93), 'ink': (.65, .40, .15), 'tongue': (.97, .60, .55), 'leaf': (.33, .70, .60),
}
VIVID = ('red', 'orange', 'yellow', 'green', 'teal', 'blue', 'purple', 'pink', 'cyan', 'lime')
CLOTH = ('red', 'orange', 'yellow', 'green', 'teal', 'blue', 'purple', 'pink', 'brown', 'black', 'white',
         'gray')
TINTS = ('', 'pale', 'dark')


def pick(rng, options):
  """One of the options; `random.random` is the one stream that Python promises to keep."""
  return options[int(rng.random() * len(options))]


def pick_other(rng, options, taken):
  return pick(rng, [option for option in options if option != taken])


def named(attributes, *names):
  """{name: value} of those that are there and are not '', None or False."""
  return {name: attributes[name] for name in names if attributes.get(name)}


def tinted(colour, tint=''):
  """Name of a colour -> (hue, saturation, value), made paler or darker."""
  hue, saturation, value = COLOURS[colour]
  if tint == 'pale':
    return hue, saturation * .62, min(1., value * 1.12)
  if tint == 'dark':
    return hue, min(1., saturation * 1.08), value * .72
  return hue, saturation, value


def glow(colour):
  """A bright, pale version of a colour."""
  hue, saturation, _ = COLOURS[colour]
  return hue, saturation * .3, 1.


@functools.lru_cache(maxsize=None)
def ramp(colour, tint=''):
  """uint8 [4, 3] RGB tones. Shadows drift towards blue and lights towards yellow, as pixel artists do it."""
  hue, saturation, value = tinted(colour, tint) if isinstance(colour, str) else colour
  drift = 0. if saturation < .15 else 1.
  tones = (
    (_toward(hue, .70, .06 * drift), min(saturation * 1.15 + .08, .9), value * .26 + .03),
    (_toward(hue, .70, .035 * drift), saturation * 1.12 + .03, value * .68),
    (hue, saturation, value),
    (_toward(hue, .15, .03 * drift), saturation * .66, value * 1.18 + .06),
  )
  rgb = [colorsys.hsv_to_rgb(h % 1, min(1, s), min(1, v)) for h, s, v in tones]
  return np.round(np.array(rgb) * 255).astype(np.uint8)


def _toward(hue, target, most):
  distance = (target - hue + .5) % 1 - .5
  return (hue + max(-most, min(most, distance))) % 1


class Canvas:
  """Drawing paper. Row by row, `cells` holds material numbers (0: empty), `tones` tones or AUTO."""

  def __init__(self):
    self.cells = bytearray(SIDE**2)
    self.tones = bytearray([AUTO]) * SIDE**2
    self.ramps = [np.full((4, 3), 255, np.uint8)]

  def material(self, colour, tint=''):
    """Adds a material by the name of its colour or by HSV; returns its number."""
    self.ramps.append(ramp(colour, tint))
    return len(self.ramps) - 1

  def dot(self, x, y, material, tone=AUTO):
    if 0 <= x < SIDE and 0 <= y < SIDE:
      self.cells[y * SIDE + x] = material
      self.tones[y * SIDE + x] = tone

  def dots(self, places, material, tone=AUTO):
    for x, y in places:
      self.dot(x, y, material, tone)

  def rows(self, top, left, art, key, mirror=False):
    """Draws text, rows separated by blanks. '.' leaves a pixel alone; a capital letter is the light tone.

    key: small letter -> material, or (material, tone). mirror: the text is the left half.
    """
    for letter, light, places in _parse(art, top, left, mirror):
      what = key[letter]
      material, tone = what if type(what) is tuple else (what, AUTO)
      self._set(places, material, LIGHT if light else tone)

  def disc(self, x, y, width, height, material, tone=AUTO):
    """Filled ellipse with half axes width and height around (x, y), which need not be whole numbers."""
    self._set(_ellipse(x, y, width, height), material, tone)

  def fill(self, inside, material, tone=AUTO):
    """Draws where inside(x, y)."""
    self._set([y * SIDE + x for y in range(SIDE) for x in range(SIDE) if inside(x, y)], material, tone)

  def _set(self, places, material, tone):
    cells, tones = self.cells, self.tones
    for i in places:
      cells[i] = material
      tones[i] = tone

  def line(self, x0, y0, x1, y1, material, tone=AUTO):
    steps = int(max(abs(x1 - x0), abs(y1 - y0), 1))
    for t in range(steps + 1):
      self.dot(round(x0 + (x1 - x0) * t / steps), round(y0 + (y1 - y0) * t / steps), material, tone)

  def erase(self, inside):
    self.fill(inside, 0)

  def top(self, x):
    """First row that is drawn on in column x, or SIDE."""
    return next((y for y in range(SIDE) if self.cells[y * SIDE + x]), SIDE)

  def move(self, dx, dy, mirrored=False):
    """Mirrors, then shifts as far as the drawing and its outline stay inside."""
    if mirrored:
      self.cells = bytearray().join(self.cells[y:y + SIDE][::-1] for y in range(0, SIDE**2, SIDE))
      self.tones = bytearray().join(self.tones[y:y + SIDE][::-1] for y in range(0, SIDE**2, SIDE))
    if dx or dy:
      lines = [y for y in range(SIDE) if any(self.cells[y * SIDE:(y + 1) * SIDE])]
      columns = [x for x in range(SIDE) if any(self.cells[x::SIDE])]
      right = _within(dx, 1 - columns[0], SIDE - 2 - columns[-1])
      down = _within(dy, 1 - lines[0], SIDE - 2 - lines[-1])
      by = down * SIDE + right
      # Nothing drawn crosses an edge, so rotating all places is a shift.
      self.cells = self.cells[-by:] + self.cells[:-by]
      self.tones = self.tones[-by:] + self.tones[:-by]


def _within(shift, low, high):
  return max(low, min(high, shift)) if low <= 0 <= high else 0


@functools.lru_cache(maxsize=4096)
def _parse(art, top, left, mirror):
  """Art -> for each letter (its small form, whether it is a capital, the places in the grid)."""
  places = {}
  for y, line in enumerate(art.split(), top):
    for x, letter in enumerate(line + line[::-1] if mirror else line, left):
      if letter != '.' and 0 <= x < SIDE and 0 <= y < SIDE:
        places.setdefault(letter, []).append(y * SIDE + x)
  return [(letter.lower(), letter.isupper(), where) for letter, where in places.items()]


@functools.lru_cache(maxsize=4096)
def _ellipse(x, y, width, height):
  return [py * SIDE + px for py in range(SIDE) for px in range(SIDE)
          if ((px - x) / width) ** 2 + ((py - y) / height) ** 2 <= 1]


def render(canvases):
  """Canvases -> uint8 [N, 16, 16, 3] RGB on white."""
  material = np.frombuffer(b''.join(canvas.cells for canvas in canvases), np.uint8).reshape(-1, SIDE, SIDE)
  forced = np.frombuffer(b''.join(canvas.tones for canvas in canvases), np.uint8).reshape(-1, SIDE, SIDE)
  ramps = np.full((len(canvases), max(len(canvas.ramps) for canvas in canvases), 4, 3), 255, np.uint8)
  for row, canvas in zip(ramps, canvases):
    row[:len(canvas.ramps)] = canvas.ramps
  up, down, left, right = _neighbours(material)
  tone = np.where(forced != AUTO, forced, _automatic(material, up, down, left, right))
  outline = np.zeros_like(material)
  for neighbour in (down, up, right, left):
    outline = np.where(outline == 0, neighbour, outline)
  tone = np.where(material == 0, OUTLINE, tone)
  material = np.where(material == 0, outline, material)
  return ramps[np.arange(len(canvases))[:, None, None], material, tone]


def _neighbours(grid):
  """The grid [N, H, W] as seen one pixel up, down, left and right; 0 outside."""
  padded = np.pad(grid, ((0, 0), (1, 1), (1, 1)))
  return padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]


def _automatic(m, up, down, left, right):
  """Tones of shapes lit from the top left; parts one pixel thin keep the base colour. Later rules win."""
  tone = np.full(m.shape, BASE, np.uint8)
  tone[(down != m) | ((right != m) & (up == m))] = SHADE
  tone[(up != m) & (down == m)] = LIGHT
  tone[(up != m) & (right != m)] = BASE
  tone[(down != m) & (left != m) & (up == m)] = SHADE
  tone[(up != m) & (down != m)] = BASE
  tone[(left != m) & (right != m)] = BASE
  return tone


def scale2x(images):
  """uint8 [N, H, W, 3] -> [N, 2H, 2W, 3] without blur or new colours, by the Scale2x (EPX) rule."""
  # One number a pixel compares faster than three.
  colours = images.astype(np.uint32) @ np.array([1, 1 << 8, 1 << 16], np.uint32)
  padded = np.pad(colours, ((0, 0), (1, 1), (1, 1)), mode='edge')
  up, down, left, right = padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]
  out = colours.repeat(2, 1).repeat(2, 2)
  corners = ((0, 0, left, up, right, down), (0, 1, up, right, left, down),
             (1, 0, left, down, right, up), (1, 1, down, right, up, left))
  for dy, dx, a, b, beyond_a, beyond_b in corners:
    rounded = (a == b) & (a != beyond_b) & (b != beyond_a)
    out[:, dy::2, dx::2] = np.where(rounded, a, colours)
  return np.stack([out >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)
