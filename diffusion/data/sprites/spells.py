"""Spells and magical things."""
import functools
import math

from diffusion.data.sprites.canvas import (BASE, Canvas, glow, LIGHT, named, pick, pick_other, PLACES, SHADE, TINTS,
                                           VIVID)

EXTRAS = {'fireball': 'sparks', 'lightning bolt': 'sparks', 'ice crystal': 'core', 'orb': 'core',
          'potion': 'label', 'star': 'core',
          'heart': 'rim', 'scroll': 'seal', 'rune': 'edge', 'vortex': 'arms', 'beam': 'sparks',
          'shield bubble': 'crest',
          'book': 'clasp'}
RUNES = tuple(art.replace('a', 'A') for art in (
  '.......a ......aa .....a.a .......a .......a .......a .......a',
  '.....a.. .....aaa .......a .......a .....aaa .....a..',
  '.....aaa .....a.. .....aaa .......a .......a .....aaa',
  '.......a ......a. .....a.. .....a.. ......a. .......a',
  '.....a.. ......a. .......a ......a. .....a.. .....aaa',
  '.....a.a .....a.a .....aaa .......a .......a ......aa',
  '......aa .....a.. .....a.. ......aa .......a .......a',
  '.....aaa .......a ......aa .....a.a .......a .....aaa'))
SPARKS = (((2, 3), (13, 12)), ((4, 2), (13, 11)), ((2, 2), (12, 13), (13, 4)), ((3, 13), (13, 2), (2, 6)))


def design(rng):
  kind = pick(rng, tuple(EXTRAS))
  colour = pick(rng, VIVID)
  out = {'kind': kind, 'colour': colour, 'tint': pick(rng, TINTS),
         'second_colour': pick_other(rng, VIVID, colour)}
  variants = {'star': (4, 5, 6, 8), 'rune': tuple(range(8)), 'vortex': tuple(range(6)),
              'potion': (7, 8, 9, 10), 'scroll': (0, 1, 2, 3),
              'ice crystal': (0, 1), 'fireball': (0, 1, 2), 'lightning bolt': (-1, 0, 1), 'beam': (0, 1, 2),
              'book': (0, 1, 2)}
  if kind in variants:
    out['variant'] = pick(rng, variants[kind])
  if kind in ('fireball', 'lightning bolt', 'beam', 'star', 'heart'):
    out['sparks'] = pick(rng, (0, 1, 2, 3, None))
  return out


def caption(a):
  extra = EXTRAS[a['kind']]
  text = f"a {a['tint']} {a['colour']} {a['kind']} spell"
  if extra == 'sparks' and a['sparks'] is None:
    return text
  return f"{text} with {'' if extra in ('sparks', 'arms') else 'a '}{a['second_colour']} {extra}"


def spoken(a):
  """What the caption says: {attribute: words}. Variants are not spoken of, nor are sparks that are not there."""
  sparks = EXTRAS[a['kind']] != 'sparks' or a['sparks'] is not None
  return named(a, 'kind', 'colour', 'tint', *['second_colour'] * sparks)


def draw(a):
  c = Canvas()
  key = {'a': c.material(a['colour'], a['tint']), 'b': c.material(a['second_colour']),
         'w': c.material('white'),
         'g': c.material('gold'), 'l': (c.material(glow(a['colour'])), BASE), 'p': c.material('parchment'),
         'd': c.material((.09, .45, .78)), 's': c.material('black'), 'k': c.material('brown'),
         'c': c.material('glass')}
  DRAW[a['kind']](c, key, a.get('variant'))
  if a.get('sparks') is not None:
    free = [(x, y) for x, y in SPARKS[a['sparks']] if not c.cells[y * 16 + x]]
    c.dots(free, key['b'], LIGHT)
  return c


def _fireball(c, key, variant):
  tail = ((.70, -.72), (.85, -.53), (.52, -.85))[variant]
  for t in range(8, -1, -1):
    far = t / 8
    wobble = (t % 2 - .5) * far
    size = 4.2 * (1 - far) + .7
    c.disc(7.5 + tail[0] * (far * 7 - 1.8) + wobble, 8.5 + tail[1] * (far * 7 - 1.8) + wobble, size, size,
           key['a'],
           SHADE if far > .6 else BASE)
  c.disc(7.5 - tail[0] * 1.8, 8.5 - tail[1] * 1.8, 2.9, 2.9, *key['l'])
  c.disc(7.5 - tail[0] * 2, 8.5 - tail[1] * 2, 1.5, 1.5, key['w'], LIGHT)


def _lightning(c, key, variant):
  x = 8 + variant
  corners = ((x + 2, 1), (x - 3, 7), (x + 1, 7), (x - 3, 14))
  for (x0, y0), (x1, y1) in zip(corners, corners[1:]):
    c.line(x0, y0, x1, y1, key['a'], SHADE)
    c.line(x0 + 1, y0, x1 + 1, y1, key['a'], BASE)
    c.line(x0 + 2, y0, x1 + 2, y1, key['a'], LIGHT)


def _ice(c, key, variant):
  arms = ((1, 0), (.5, .866), (.5, -.866)) if variant == 0 else ((0, 1), (.866, .5), (.866, -.5))
  for dx, dy in arms:
    c.line(7.5 - 6 * dx, 7.5 - 6 * dy, 7.5 + 6 * dx, 7.5 + 6 * dy, key['a'])
    for side in (-1, 1):
      x, y = 7.5 + side * 3.4 * dx, 7.5 + side * 3.4 * dy
      for turn in (-.565, .565):
        c.line(x, y, x + side * 2 * (.825 * dx - turn * dy), y + side * 2 * (.825 * dy + turn * dx),
               *key['l'])
  c.disc(7.5, 7.5, 1.3, 1.3, key['b'], LIGHT)


def _orb(c, key, variant):
  c.disc(7.5, 7, 5.4, 5.4, key['a'])
  c.disc(6, 5.4, 2.2, 2.2, *key['l'])
  c.dots([(5, 5), (5, 4)], key['w'], LIGHT)
  c.disc(9.6, 9.4, 1.5, 1.5, key['b'], BASE)
  c.rows(12, 0, '....gggg ...ggggg ...ggggg', key, mirror=True)


def _potion(c, key, level):
  glass = key['c']
  c.disc(7.5, 9.6, 4.8, 4.5, glass)
  c.rows(1, 0, '......kk ......kk ......cc ......cc ......cc', key, mirror=True)
  c.fill(lambda x, y: y >= level and c.cells[y * 16 + x] == glass, key['a'])
  c.rows(10, 6, 'bbbb bbbb', key)
  c.dots([(5, max(8, level)), (5, 9)], key['w'], LIGHT)


def _star(c, key, points):
  c.dots(_star_places(points), key['a'])
  c.disc(7.5, 7.5, 1.6, 1.6, key['b'], LIGHT)


@functools.lru_cache(maxsize=None)
def _star_places(points):
  def inside(x, y):
    turn = (math.atan2(y - 7.5, x - 7.5) / (2 * math.pi) + .25) * points
    notch = abs((turn + .5) % 1 - .5) * 2
    return round(math.hypot(x - 7.5, y - 7.5) - 6.8 + 4.0 * notch, 6) <= 0
  return [place for place in PLACES if inside(*place)]


def _heart(c, key, variant):
  c.rows(2, 1, '.bbbb....bbbb. baaaab..baaaab baaaaabbaaaaab bawwaaaaaaaaab bawaaaaaaaaaab .baaaaaaaaaab.'
               ' ..baaaaaaaab..'
               ' ...baaaaaab... ....baaaab.... .....baab..... ......bb......', key)


def _scroll(c, key, variant):
  c.rows(2, 0, '..dddddd ..dppppp' + ' ...ppppp' * 7 + ' ..dppppp ..dddddd', key, mirror=True)
  for line, y in enumerate((5, 7, 9)):
    c.line(5, y, 7 + (variant + line * 2) % 4, y, key['a'], SHADE)
  c.rows(9, 9, 'bb bb', key)


def _rune(c, key, variant):
  c.disc(7.5, 7.5, 6.2, 6.4, key['b'])
  c.disc(7.5, 7.5, 5.0, 5.2, key['s'], BASE)
  c.rows(4, 0, RUNES[variant], key, mirror=True)


def _vortex(c, key, variant):
  c.dots(_vortex_places(variant, 7, -.1), key['a'])
  c.dots(_vortex_places(variant, 6, .75), key['b'], LIGHT)
  c.disc(7.5, 7.5, 1.5, 1.5, key['w'], LIGHT)


@functools.lru_cache(maxsize=None)
def _vortex_places(variant, radius, level):
  """Places within the radius where a two-armed spiral wave is above the level, for 6 variants."""
  turn, phase = (1 if variant % 2 else -1), variant // 2 * 2.1
  def wave(x, y):
    return math.sin(2 * math.atan2(y - 7.5, x - 7.5) + turn * 1.1 * math.hypot(x - 7.5, y - 7.5) + phase)
  return [(x, y) for x, y in PLACES if math.hypot(x - 7.5, y - 7.5) < radius and round(wave(x, y), 6) > level]


def _beam(c, key, variant):
  for k in (-1, 1, 0):
    c.line(1 + max(k, 0), 13 + min(k, 0), 13, 2 + k, *((key['a'], BASE) if k else key['l']))
  c.disc(12.4, 2.8, 1.9, 1.9, key['w'], LIGHT)
  for i in range(1 + variant):
    c.line(4 + 3 * i, 8 - 3 * i, 5 + 3 * i, 13 - 3 * i, key['b'], BASE)


def _bubble(c, key, variant):
  c.disc(7.5, 7.5, 6.6, 6.6, key['a'])
  c.disc(7.5, 7.5, 4.9, 4.9, *key['l'])
  c.dots([(5, 5), (6, 4), (4, 6)], key['w'], LIGHT)
  c.rows(6, 6, 'bbbb bbbb bbbb .bb.', key)


def _book(c, key, variant):
  c.rows(2, 2, '.aaaaaaaaaa. aaaaaaaaaaa. aaaaaaaaaaa. aaaaaaaaaaa. aaaaaaaaaaa. aaaaaaaaaaa. aaaaaaaaaaa.'
               ' aaaaaaaaaaa. aaaaaaaaaaa.'
               ' awwwwwwwwww. aaaaaaaaaaa.', key)
  c.rows(5, 5, ('.gggg. .gbbg. .gbbg. .gggg.', '..gg.. .gbbg. gbbbbg .gggg.',
                'g.gg.g .gbbg. .gbbg. g.gg.g')[variant], key)
  c.line(3, 3, 3, 10, key['a'], SHADE)


DRAW = {'fireball': _fireball, 'lightning bolt': _lightning, 'ice crystal': _ice, 'orb': _orb,
        'potion': _potion, 'star': _star,
        'heart': _heart, 'scroll': _scroll, 'rune': _rune, 'vortex': _vortex, 'beam': _beam,
        'shield bubble': _bubble, 'book': _book}
