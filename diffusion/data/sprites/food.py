"""Things to eat."""
from diffusion.data.sprites.canvas import (BASE, Canvas, LIGHT, named, OUTLINE, pick, pick_other, SHADE, SIDE, TINTS,
                                           VIVID)

COLOURS = {
  'apple': ('red', 'green', 'yellow'), 'cherries': ('red', 'purple', 'pink'),
  'pear': ('green', 'yellow', 'lime'),
  'carrot': ('orange', 'purple', 'yellow'), 'bread': ('brown', 'orange', 'crust'),
  'cheese': ('yellow', 'orange', 'gold'),
  'fish': ('blue', 'orange', 'green', 'pink', 'gray', 'red', 'teal'),
  'drumstick': ('brown', 'orange', 'crust'), 'cake': VIVID,
  'donut': VIVID, 'grapes': ('purple', 'green', 'red', 'blue'), 'melon': ('green', 'lime', 'teal'),
  'ice cream': VIVID,
  'egg': ('white', 'cream', 'blue', 'pink', 'green', 'orange'), 'banana': ('yellow', 'lime', 'orange'),
  'pizza': ('yellow', 'orange'),
  'strawberry': ('red', 'pink'), 'burger': ('crust', 'orange', 'brown'), 'mug': VIVID, 'lollipop': VIVID,
}
# What the second colour is, where there is one.
EXTRAS = {'cake': 'topping', 'fish': 'stripes', 'egg': 'spots', 'donut': 'sprinkles',
          'ice cream': 'second scoop', 'melon': 'flesh',
          'pizza': 'toppings', 'burger': 'sauce', 'mug': 'drink', 'lollipop': 'swirl', 'drumstick': 'ribbon'}
BITTEN = ('apple', 'pear', 'bread', 'donut', 'cheese', 'burger', 'pizza', 'cake')


def design(rng):
  kind = pick(rng, tuple(COLOURS))
  colour = pick(rng, COLOURS[kind])
  out = {'kind': kind, 'colour': colour, 'tint': pick(rng, TINTS)}
  if kind in EXTRAS:
    out['second_colour'] = pick_other(rng, VIVID, colour)
  out['shape'] = pick(rng, (0, 1, 2))
  if kind in BITTEN:
    out['bitten'] = pick(rng, (True, False, False))
  return out


def caption(a):
  extra = EXTRAS.get(a['kind'])
  article = '' if not extra or extra.endswith('s') or extra in ('flesh', 'sauce') else 'a '
  second = f" with {article}{a['second_colour']} {extra}" if extra else ''
  bunch = {'cherries': 'a pair of ', 'grapes': 'a bunch of '}.get(a['kind'], 'a ')
  return f"{bunch}{a['tint']} {a['colour']} {a['kind']}{second}" + (', bitten' if a.get('bitten') else '')


def spoken(a):
  """What the caption says: {attribute: words}. Shapes are not spoken of."""
  bitten = dict(bitten='bitten') if a.get('bitten') else {}
  return named(a, 'kind', 'colour', 'tint', 'second_colour') | bitten


def draw(a):
  c = Canvas()
  key = {'a': c.material(a['colour'], a['tint']), 'b': c.material(a.get('second_colour', 'white')),
         'l': c.material('leaf'),
         'w': c.material('wood'), 'o': c.material('white'), 'c': c.material('cream'),
         'u': c.material('crust'),
         'k': (c.material('ink'), OUTLINE)}
  DRAW[a['kind']](c, key, a['shape'])
  if a.get('bitten'):
    edge = max(x for x in range(SIDE) if any(c.cells[y * SIDE + x] for y in (6, 7, 8)))
    c.erase(lambda x, y: (x - edge - .6) ** 2 + (y - 6.5) ** 2 < 9)
  return c


def _apple(c, key, shape):
  c.disc(5.6, 9.3, 3.6, 4.4, key['a'])
  c.disc(9.4, 9.3, 3.6, 4.4, key['a'])
  c.line(7, 5, 6 + shape, 2, key['w'])
  c.rows(2, 9, '.ll ll.', key)
  c.dots([(4, 7), (4, 8), (5, 7)], key['a'], LIGHT)


def _cherries(c, key, shape):
  c.line(5, 9, 8 + shape, 2, key['w'])
  c.line(11, 9, 8 + shape, 2, key['w'])
  c.disc(4.5, 11, 2.7, 2.7, key['a'])
  c.disc(11, 11.2, 2.7, 2.7, key['a'])
  c.dots([(4, 10), (10, 10)], key['o'], BASE)
  c.rows(1, 9 + shape, 'lll. .lll', key)


def _pear(c, key, shape):
  c.disc(7.5, 10.4, 4.4, 3.9, key['a'])
  c.disc(7 + shape * .5, 6, 2.6, 3.2, key['a'])
  c.line(6 + shape, 3, 7 + shape, 1, key['w'])
  c.dots([(8 + shape, 2), (9 + shape, 2)], key['l'])
  c.dots([(5, 9), (5, 10)], key['a'], LIGHT)


def _carrot(c, key, shape):
  for t in range(10):
    half = (2.1 + .3 * shape) * (1 - t / 10)
    c.line(10 - t * .75 - half, 5 + t, 10 - t * .75 + half, 5 + t, key['a'])
  for x, y in ((7, 8), (9, 6), (5, 11)):
    c.dots([(x, y), (x + 1, y)], key['a'], SHADE)
  for x0, y0, x1, y1 in ((10, 5, 9, 1), (11, 4, 13, 1), (11, 5, 14, 4), (10, 4, 11, 1)):
    c.line(x0, y0, x1, y1, key['l'])


def _bread(c, key, shape):
  c.disc(7.5, 8.5, 6.2, 4.0 + .4 * shape, key['a'])
  for x in (4, 7, 10):
    c.line(x, 10, x + 2, 5, key['c'])


def _cheese(c, key, shape):
  for y in range(5, 13):
    c.line(2 if y > 7 else 2 + (8 - y) * 3, y, 13, y, key['a'])
  c.line(2, 8, 13, 8, key['a'], LIGHT)
  holes = (((5, 10.5), (9, 11), (11, 9.6)), ((4, 10), (8, 10.6)), ((6, 11), (10, 10), (3.4, 9.8)))
  for x, y in holes[shape]:
    c.disc(x, y, 1.1, 1.1, key['a'], SHADE)


def _fish(c, key, shape):
  c.disc(7, 8, 4.8, 2.8 + .4 * shape, key['a'])
  c.rows(5, 11, '..aa .aa. aaa. aaa. .aa. ..aa', key)
  c.dots([(4, 7)], *key['k'])
  for x in ((7, 9), (8,), (6, 8, 10))[shape]:
    c.line(x, 6, x, 9, key['b'])
  c.line(6, 4, 8, 4, key['b'])


def _drumstick(c, key, shape):
  c.disc(6, 6.4, 3.6 + .7 * shape, 4.2, key['a'])
  c.line(9, 9, 12, 12, key['o'])
  c.line(9, 10, 11, 12, key['o'])
  c.disc(12.6, 12.2, 1.3, 1.3, key['o'])
  c.dot(11, 13, key['o'])
  c.dots([(9, 10), (10, 9), (10, 10)], key['b'])
  c.dots([(4, 4), (5, 4), (4, 5)], key['a'], LIGHT)


def _cake(c, key, shape):
  top = ('.....bb..... .....bb.....', '..b..bb..b.. ..b..bb..b..', '....bbbb.... ...bbbbbb...')[shape]
  c.rows(3, 2, top + ' ..aaaaaaaa.. .aaaaaaaaaa. aaaaaaaaaaaa aacaacaaacaa cccccccccccc oooooooooooo'
                     ' cccccccccccc cccccccccccc', key)


def _donut(c, key, shape):
  c.disc(7.5, 8, 6, 5.6, key['u'])
  c.disc(7.5, 7.3, 5.4, 4.7, key['a'])
  c.disc(7.5, 7.6, 1.7, 1.5, 0)
  sprinkles = (((4, 6), (7, 4), (11, 6), (5, 10), (10, 10)), ((5, 4), (9, 3), (12, 8), (3, 8), (8, 11)),
               ((4, 4), (6, 5), (10, 4), (11, 8), (4, 9), (7, 10), (10, 10)))
  c.dots(sprinkles[shape], key['b'], LIGHT)


def _grapes(c, key, shape):
  rows = ((5, (4, 7, 10)), (8, (5.5, 8.5)), (11, (7,)))
  for i, (x, y) in enumerate((x, y) for y, places in rows for x in places):
    # Each grape is a material of its own, so that each is shaded by itself.
    c.ramps.append(c.ramps[key['a']])
    c.disc(x + .5, y + .5, 1.9, 1.9, len(c.ramps) - 1)
    c.dot(int(x), y - 1, key['o'], BASE)
  c.line(8, 3, 7 + shape, 1, key['w'])
  c.rows(1, 9, ('lll .ll', 'll. lll', '.ll lll')[shape], key)


def _melon(c, key, shape):
  distance = lambda x, y: (x - 7.5) ** 2 + ((y - 3) * .95) ** 2
  for radius, material in ((7.0, key['a']), (6.1, key['o']), (5.3, key['b'])):
    c.fill(lambda x, y: y >= 4 and distance(x, y) < radius ** 2, material)
  seeds = (((5, 6), (8, 5), (10, 7), (7, 8)), ((4, 5), (7, 6), (10, 5), (8, 8)), ((6, 5), (9, 6), (6, 8)))
  c.dots(seeds[shape], *key['k'])


def _ice_cream(c, key, shape):
  c.disc(7.5, 5.6, 4.2, 3.9, key['a'])
  if shape:
    c.disc(7.5, 3.2 if shape == 1 else 3.8, 2.9, 2.4, key['b'])
  else:
    c.disc(10, 4.4, 2.4, 2.6, key['b'])
  c.rows(8, 3, '.aaaaaaaa. ..uuuuuu.. ..ucucuc.. ...cucu... ...ucuc... ....cu.... ....uc....', key)
  c.dots([(5, 5), (5, 6)], key['a'], LIGHT)


def _egg(c, key, shape):
  c.disc(7.5, 8.6, 4.4, 5.4, key['a'])
  spots = (((6, 8), (9, 10), (9, 6), (6, 11.5)), ((7, 6), (10, 9), (6, 10)),
           ((5.5, 9), (8, 8), (9, 11.5), (8, 5)))
  for x, y in spots[shape]:
    c.disc(x, y, .9, .9, key['b'])
  c.dot(5, 6, key['a'], LIGHT)


def _banana(c, key, shape):
  bend = .3 * shape
  c.fill(lambda x, y: (x - 5) ** 2 + (y - 4) ** 2 < 9.2 ** 2
         and (x - 3.4) ** 2 + (y - 2 + bend) ** 2 > 8.2 ** 2 and x > 1 and y > 2,
         key['a'])
  c.dots([(13, 3), (13, 4), (2, 12)], key['w'])


def _pizza(c, key, shape):
  for y in range(4, 15):
    half = (14 - y) * .58
    c.line(7.5 - half, y, 7.5 + half, y, key['a'])
  c.line(1, 3, 14, 3, key['u'])
  c.line(1, 4, 14, 4, key['u'], SHADE)
  toppings = (((5, 6), (10, 6.4), (7.5, 10)), ((4.5, 6.4), (8, 7), (11, 6)), ((6, 6), (9, 8.4), (7, 11)))
  for x, y in toppings[shape]:
    c.disc(x, y, 1.3, 1.3, key['b'])


def _strawberry(c, key, shape):
  c.rows(4, 0, '...aaaaa ..aaaaaa ..aaaaaa ..aaaaaa ...aaaaa ...aaaaa ....aaaa .....aaa ......aa', key,
         mirror=True)
  c.rows(2, 0, '.......l ...ll.ll ....llll .....l.l', key, mirror=True)
  seeds = (((5, 7), (9, 7), (7, 9), (10, 10), (5, 10)), ((4, 7), (7, 7), (10, 8), (6, 10)),
           ((6, 7), (11, 7), (8, 9), (6, 11)))
  c.dots(seeds[shape], key['c'], LIGHT)


def _burger(c, key, shape):
  c.rows(3, 1, '....aaaaaa.... ..aaaaaaaaaa.. .aaaaaaaaaaaa. .aaaaaaaaaaaa. llllllllllllll .bbbbbbbbbbbb.'
               ' .wwwwwwwwwwww. .wwwwwwwwwwww.'
               ' .aaaaaaaaaaaa. ..aaaaaaaaaa..', key)
  seeds = (((5, 4), (8, 4), (10, 5)), ((6, 4), (4, 5), (10, 4)), ((7, 4), (11, 5)))
  c.dots(seeds[shape], key['c'], LIGHT)
  c.dots([(3 + 2 * shape, 9), (11 - shape, 9)], key['b'])


def _mug(c, key, shape):
  c.rows(5, 2, 'aaaaaaaaa... aaaaaaaaaaa. aaaaaaaaa.aa aaaaaaaaa..a aaaaaaaaa..a aaaaaaaaa.aa aaaaaaaaaaa.'
               ' aaaaaaaaa... .aaaaaaa....', key)
  c.rows(4, 2, '.ooooooo. obbbbbbbo', key)
  if shape:
    c.rows(2, 2, ('..oo.oo.. .ooooooo.', '....oo... ..ooooo..')[shape - 1], key)
  c.line(4, 8, 4, 11, key['a'], LIGHT)


def _lollipop(c, key, shape):
  c.line(7, 9, 7, 14, key['o'])
  c.line(8, 9, 8, 14, key['o'], SHADE)
  c.disc(7.5, 5.5, 4.8, 4.6, key['a'])
  swirl = ('..bbb.. .b...b. b..bb.b b..b..b .b...bb ..bbb..',
           '...bbb. .bb.... b..bb.. ..bb..b ....bb. .bbb...',
           'b.....b .b...b. ..b.b.. ..b.b.. .b...b. b.....b')[shape]
  c.rows(3, 4, swirl, key)


DRAW = {'apple': _apple, 'cherries': _cherries, 'pear': _pear, 'carrot': _carrot, 'bread': _bread,
        'cheese': _cheese, 'fish': _fish,
        'drumstick': _drumstick, 'cake': _cake, 'donut': _donut, 'grapes': _grapes, 'melon': _melon,
        'ice cream': _ice_cream,
        'egg': _egg, 'banana': _banana, 'pizza': _pizza, 'strawberry': _strawberry, 'burger': _burger,
        'mug': _mug,
        'lollipop': _lollipop}
