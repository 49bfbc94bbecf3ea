"""Monsters and animals."""
from diffusion.data.sprites.canvas import BASE, Canvas, LIGHT, named, OUTLINE, pick, pick_other, VIVID

SKINS = VIVID + ('black', 'gray', 'white')
# What the second colour is.
EXTRAS = {'slime': 'bubbles', 'ghost': 'bow', 'bat': 'wings', 'spider': 'legs', 'skull': 'eyes',
          'mushroom': 'spots', 'eye': 'veins',
          'golem': 'runes', 'imp': 'wings', 'snake': 'scales', 'chick': 'wings', 'cat': 'collar',
          'dragon': 'belly'}
MOODS = ('calm', 'angry')
EYES = ('one eye', 'two eyes', 'three eyes')


def design(rng):
  kind = pick(rng, tuple(EXTRAS))
  colour = pick(rng, SKINS)
  out = {'kind': kind, 'colour': colour, 'second_colour': pick_other(rng, VIVID, colour)}
  if kind in ('slime', 'ghost'):
    out['eyes'] = pick(rng, (1, 2, 2, 3))
  if kind in ('slime', 'ghost', 'golem', 'eye', 'chick'):
    out['horns'] = pick(rng, (True, False, False))
  if kind not in ('slime', 'ghost'):
    out['mood'] = pick(rng, MOODS)
  if kind in ('slime', 'ghost', 'bat', 'eye', 'spider', 'mushroom', 'snake', 'cat', 'imp', 'chick', 'skull',
              'golem', 'dragon'):
    out['shape'] = pick(rng, (0, 1, 2))
  return out


def caption(a):
  kind = {'eye': 'eye monster'}.get(a['kind'], a['kind'])
  extra = EXTRAS[a['kind']]
  article = '' if extra.endswith('s') else 'a '
  text = f"a {a['colour']} {kind} with {article}{a['second_colour']} {extra}"
  more = []
  if 'eyes' in a:
    more += [EYES[a['eyes'] - 1]]
  if a.get('horns'):
    more += ['horns']
  mood = 'angry ' if a.get('mood') == 'angry' else ''
  return text.replace('a ', f'a {mood}', 1) + ''.join(f' and {part}' for part in more)


def spoken(a):
  """What the caption says: {attribute: words}. Shapes and calm are not spoken of."""
  eyes = dict(eyes=EYES[a['eyes'] - 1]) if 'eyes' in a else {}
  horns = dict(horns='horns') if a.get('horns') else {}
  mood = dict(mood='angry') if a.get('mood') == 'angry' else {}
  return named(a, 'kind', 'colour', 'second_colour') | eyes | horns | mood


def draw(a):
  c = Canvas()
  key = {'a': c.material(a['colour']), 'b': c.material(a['second_colour']), 'e': (c.material('ink'), OUTLINE),
         'w': (c.material('white'), BASE), 'k': c.material('tongue'), 's': c.material('cream'),
         'o': c.material('orange')}
  DRAW[a['kind']](c, key, a)
  if a.get('horns'):
    _horns(c, key['w'][0])
  return c


def _horns(c, material):
  for x, outwards in ((5, -1), (10, 1)):
    y = c.top(x)
    c.dot(x, y - 1, material)
    c.dot(x + outwards, max(y - 2, 1), material)


def _eyes(c, key, y, count):
  """Large eyes that look inwards, one, two or three."""
  if count == 1:
    c.rows(y - 1, 6, 'wwww weew weew wwww', key)
  for left in {1: (), 2: (5, 9), 3: (3, 7, 11)}[count]:
    c.rows(y, left, 'ww we' if left < 7 else 'ww ew', key)


def _brows(c, key, a, left, right, y):
  """An angry creature frowns; brows fall towards the middle."""
  if a['mood'] == 'angry':
    c.dots([(left - 1, y - 1), (left, y), (right, y), (right + 1, y - 1)], *key['e'])


def _slime(c, key, a):
  height = 4 + a['shape']
  c.disc(7.5, 13.5 - height * .1, 6.4 - .4 * a['shape'], height + 3, key['a'])
  c.erase(lambda x, y: y >= 14)
  _eyes(c, key, 14 - height, a['eyes'])
  c.dots([(4, 12), (11, 11), (12, 12)], key['b'], LIGHT)
  c.line(6, 12, 9, 12, *key['e'])
  c.dot(5, 13 - height - 1, key['a'], LIGHT)


def _ghost(c, key, a):
  c.disc(7.5, 6.5, 5, 5, key['a'])
  c.fill(lambda x, y: 7 <= y < 13 and 3 <= x < 13, key['a'])
  c.dots([(x, 13) for x in range(3, 13) if (x + a['shape']) // 2 % 2], key['a'])
  _eyes(c, key, 5, a['eyes'])
  c.dots([(7, 9), (8, 9)], *key['e'])
  c.rows(11, 5, 'bb..bb .bbbb. bb..bb', key)


def _bat(c, key, a):
  c.disc(7.5, 8, 2.6, 3.4, key['a'])
  c.rows(4 + a['shape'], 0, '..b..... .bb..... .bbb.b.. .bbbbb.. .b.bb... ....b...', key, mirror=True)
  c.dots([(5, 3), (10, 3), (6, 4), (9, 4), (6, 5), (9, 5), (5, 4), (10, 4)], key['a'])
  c.rows(7, 6, 'e..e' if a['mood'] == 'calm' else 'k..k', key)
  c.rows(9, 6, 'eeee .ww.', key)


def _spider(c, key, a):
  legs = ('..b.... .b..b.. .b.b..a .b.b.aa ..bbaaa ....aaa .bbbaaa b...aaa ..bbaaa .b.b.aa .b..b..',
          '.b..... b...b.. b..b..a .b.b.aa ..bbaaa .b..aaa ..bbaaa ..b.aaa .bbbaaa b..b.aa b...b..',
          '...b... ..b.b.. .b.b..a .b.b.aa .bbbaaa b...aaa ..bbaaa .b..aaa .bbbaaa ..bb.aa ..b....')
  c.rows(3, 1, legs[a['shape']], key)
  c.rows(3, 8, ' '.join(row[::-1] for row in legs[a['shape']].split()), key)
  c.disc(7.5, 8, 3.6, 5.2, key['a'])
  c.rows(7, 5, 'ww..ww we..ew', key)
  c.dots([(6, 11), (9, 11)], *key['w'])
  c.dots([(7, 6), (8, 6)], key['b'])
  _brows(c, key, a, 6, 9, 7)


def _skull(c, key, a):
  c.rows(2, 0, '.....aaa ...aaaaa ..aaaaaa ..aaaaaa ..aaeeea ..aeeeea ..aeeeea ..aaeeaa ...aaaae ....aaaa'
               ' ....aaaa', key, mirror=True)
  c.rows(13, 4, 'a.a..a.a' if a['shape'] else 'aa.aa.aa', key)
  c.rows(12, 4, 'aeaaaaea' if a['shape'] == 2 else 'aaeaaeaa', key)
  c.dots([(5, 7), (10, 7)], key['b'], LIGHT)
  if a['mood'] == 'angry':
    c.dots([(4, 6), (11, 6)], key['a'])
    c.dots([(5, 8), (10, 8)], key['b'], LIGHT)


def _mushroom(c, key, a):
  caps = ('.....aaa ...aaaab ..aabaaa ..abbaaa .aaaaaab .aaaaabb',
          '....aaaa ..aabaaa ..abbaab .aaaaaab .abaaaaa .aaaabaa',
          '.....aaa ...abbaa ..aabbaa ..aaaaaa .aabaaab .aaaaaaa')[a['shape']]
  c.rows(2, 0, caps, key, mirror=True)
  c.rows(8, 0, '....ssss ....sess ....sess ....ssss ....ssss ....ssss', key, mirror=True)
  c.rows(12, 7, 'ee' if a['mood'] == 'calm' else 'kk', key)
  if a['mood'] == 'angry':
    c.dots([(4, 8), (5, 9), (10, 9), (11, 8)], *key['e'])


def _eye(c, key, a):
  c.disc(7.5, 7.5, 5.6, 5.6, key['w'][0])
  c.disc(6.5 + a['shape'], 8, 2.8, 2.8, key['a'], BASE)
  c.disc(6.5 + a['shape'], 8, 1.2, 1.2, *key['e'])
  c.dot(5 + a['shape'], 6, *key['w'])
  for x, lean in ((2, 1), (5, -1), (8, 0), (11, 1), (13, -1))[a['shape'] % 2:]:
    c.line(x, 13, x + lean, 14, key['b'])
  c.rows(2, 0, '.....bbb ...bbb.. ..bb....', key, mirror=True)
  if a['mood'] == 'angry':
    c.rows(3, 3, 'bb......bb .bbb..bbb. ..bbbbbb..', key)


def _golem(c, key, a):
  c.rows(2, 0, '.....aaa .....aaa .....aaa ..aaaaaa .aaaaaaa .aa.aaaa .aa.aaaa .aa.aaaa .aa.aaaa ....aaaa'
               ' ....aaa. ....aaa.', key,
         mirror=True)
  c.rows(6, 5, ('bb..bb .bbbb. ..bb..', '..bb.. .bbbb. ..bb..', 'b.bb.b b.bb.b .bbbb.')[a['shape']], key)
  if a['mood'] == 'angry':
    c.dots([(6, 3), (9, 3)], key['k'], LIGHT)
  else:
    c.dots([(6, 3), (9, 3)], *key['w'])


def _imp(c, key, a):
  wings = ('.b..aaaa .bbaaaab .bbaaabb ..b.aabb', '.bb.aaaa .bb.aaab ..baaabb ....aabb',
           '....aaaa ..b.aaab .bbaaabb .bb.aabb')[a['shape']]
  c.rows(2, 0, '...b.... ...bb... ....baaa ....aaaa ....aaaa ....aaaa .....aaa ' + wings + ' ....aaaa'
                                                                                           ' ....aa..', key,
         mirror=True)
  c.rows(5, 5, 'ww..ww we..ew', key)
  c.line(7, 8, 8, 8, *key['e'])
  _brows(c, key, a, 6, 9, 5)


def _snake(c, key, a):
  coils = ((3, 13), (11, 13), (12, 11), (5, 10), (4, 8), (9, 7), (9, 4))
  for (x0, y0), (x1, y1) in zip(coils, coils[1:]):
    c.line(x0, y0, x1, y1, key['a'])
    c.line(x0, y0 - 1, x1, y1 - 1, key['a'])
  c.dots([(x, 13) for x in range(4 + a['shape'] % 2, 12, 2)], key['b'])
  if a['shape'] == 2:
    c.dots([(6, 9), (8, 10), (10, 10)], key['b'])
  c.disc(9.5, 3.5, 2.6, 1.8, key['a'])
  c.dot(10, 3, *key['e'])
  c.dots([(12, 4), (13, 4)], key['k'])
  if a['mood'] == 'angry':
    c.dots([(13, 3), (13, 5)], key['k'])


def _chick(c, key, a):
  c.disc(7.5, 10, 4.6, 4, key['a'])
  c.disc(7.5, 5.5, 3.4, 3.2, key['a'])
  c.rows(6, 7, 'oo oo', key)
  c.rows(5, 6, 'e..e', key)
  c.dots((((7, 1), (8, 2)), ((6, 1), (7, 2), (9, 1)), ((8, 1), (7, 2)))[a['shape']], key['b'])
  c.dots([(6, 14), (9, 14)], key['o'])
  c.rows(9, 0, '..bb.... ..bb.... ...b....' if a['mood'] == 'calm' else '.bb..... ..bb.... ...b....', key,
         mirror=True)


def _cat(c, key, a):
  c.rows(2, 0, '...a.... ...aa.aa ...aaaaa ...aaaaa ...aeaaa ...aaaak ....aaaa .....bbb ....aaaa ....aaaa'
               ' ....aaaa ....aaaa ....aa.a', key,
         mirror=True)
  tail = (((12, 13), (13, 12), (13, 11), (13, 10)), ((12, 12), (13, 11), (12, 10)),
          ((12, 13), (13, 13), (14, 12)))[a['shape']]
  c.dots(tail, key['a'])
  c.dots([(7, 10), (8, 10), (7, 11), (8, 11)], *key['w'])
  _brows(c, key, a, 5, 10, 5)


def _dragon(c, key, a):
  c.rows(1, 1, '.b..b......... .aaaaa........ aaaeaaa....bb. aaaaaaa...bbb. .kaaaaa..bbbb. ...aaaa.bbbbb.'
               ' ...aaaaabbb.b. ..bbaaaaab....'
               ' .bbbaaaaaa.... .bbbaaaaaaa..a ..bbaaaaaaaaaa ...aaa.aaaaaa. ..aaa.aaa.....', key)
  c.dots([(8, 9), (10, 10)][:a['shape']], key['b'])
  if a['mood'] == 'angry':
    c.dots([(3, 2), (4, 2)], *key['e'])


DRAW = {'slime': _slime, 'ghost': _ghost, 'bat': _bat, 'spider': _spider, 'skull': _skull,
        'mushroom': _mushroom, 'eye': _eye,
        'golem': _golem, 'imp': _imp, 'snake': _snake, 'chick': _chick, 'cat': _cat, 'dragon': _dragon}
