"""Weapons and shields: hafted ones upright, blades along the diagonal."""
from diffusion.data.sprites.canvas import BASE, Canvas, CLOTH, LIGHT, named, pick, pick_other, SHADE, TINTS, VIVID

METALS = ('silver', 'gold', 'black', 'red', 'blue', 'green', 'purple', 'teal', 'orange', 'white')
PARTS = {'sword': 'hilt', 'dagger': 'hilt', 'katana': 'hilt', 'axe': 'binding', 'battle axe': 'binding',
         'hammer': 'band', 'mace': 'grip', 'spear': 'tassel', 'trident': 'collar', 'staff': 'setting',
         'wand': 'tip', 'scythe': 'binding', 'bow': 'grip', 'shield': 'field'}
SHAFT = ' .......w'
# First row, then the picture. a metal, b second colour, j gem, w wood, s string.
# Left halves; the last column is the middle and is not doubled:
HALVES = {
  'battle axe': (1, '..aa...w .aaaa..w .aaaaabw .aaaaabw .aaaaabw .aaaa..w ..aa...w'
                    + SHAFT * 6 + ' ......bb'),
  'hammer': (1, '..aaaaaa ..abaaaa ..abaaaa ..abaaaa ..abaaaa ..aaaaaa ......bb' + SHAFT * 6 + ' ......bb'),
  'spear': (1, '.......a .......a ......aa ......aa ......aa .......a .....bbb ......bb' + SHAFT * 6),
  'mace': (1, '.......a ...a..aa ....aaaa ....aaaa ..aaaaaa ....aaaa ....aaaa ...a..aa .......a ......bb'
              + SHAFT * 3 + ' ......bb'),
  'trident': (1, '...a...a ..aaa.aa ...a...a ...a...a ...aa..a ....aaaa ......aa ......bb' + SHAFT * 6),
  'staff': (1, '......aa ..b..aaa .bb.aaaa .bb.aaaa .bbb.aaa ..bbb.aa ...bbbbb ......bb' + SHAFT * 6),
}
# Whole pictures:
WHOLE = {
  'axe': (1, '...a......w..... ..aaa.....w..... .aaaaaa..bwb.... .aaaaaaaabwb.... .aaaaaaaabwb....'
             ' .aaaaaa..bwb.... ..aaa.....w..... ...a......w.....' + ' ..........w.....' * 5
             + ' .........bbb....'),
  'scythe': (1, '.....aaaaaaa.... ...aaaaaaaaabw.. ..aaaaa....bbw.. .aaa.........w.. .aa..........w..'
                ' .a..........w...' + ' ............w...' * 3 + ' ...........w....' * 3
                + ' ..........w.....' * 2),
  'bow': (1, '....aa.......... ....saaa........ ....s..aaa...... ....s....aa..... ....s.....aa....'
             ' ....s.....aa.... ....s.....bb.... ....s.....bb.... ....s.....aa.... ....s.....aa....'
             ' ....s....aa..... ....s..aaa...... ....saaa........ ....aa..........'),
}
SHIELDS = {
  'kite': '.aaaaaaa .abbbbbb .abbbbbb .abbbbbj .abbbbjj .abbbbbj .abbbbbb ..abbbbb ..abbbbb ...abbbb'
          ' ....abbb .....abb ......aa',
  'round': '.....aaa ...aaabb ..aabbbb ..abbbbb .aabbbbj .abbbbjj .abbbbjj .aabbbbj ..abbbbb ..aabbbb'
           ' ...aaabb .....aaa',
  'heater': '..aa...a ..abaaab ..abbbbb ..abbbjb ..abbjjb ..abbbjb ..abbbbb ..abbbbb ...abbbb ...aabbb'
            ' ....aabb ......aa',
}
LENGTHS = {'sword': 11, 'dagger': 8, 'katana': 11}


def design(rng):
  kind = pick(rng, tuple(PARTS))
  colour = pick(rng, METALS)
  out = {'kind': kind, 'colour': colour, 'tint': pick(rng, TINTS),
         'second_colour': pick_other(rng, CLOTH, colour)}
  if kind in ('shield', 'sword', 'dagger', 'wand'):
    out['gem'] = pick(rng, VIVID)
  if kind == 'shield':
    out['shape'] = pick(rng, tuple(SHIELDS))
    out['emblem'] = pick(rng, ('gem', 'cross', 'stripe', 'plain'))
  if kind == 'sword':
    out['blade'] = pick(rng, ('slim', 'broad'))
  if kind == 'bow':
    out['arrow'] = pick(rng, (True, False))
  return out


def caption(a):
  kind = f"{a['tint']} {a['colour']} {a.get('blade', '')} {a.get('shape', '')} {a['kind']}"
  return f"a {kind} with a {a['second_colour']} {PARTS[a['kind']]}" + (' and an arrow'
                                                                       if a.get('arrow') else '')


def spoken(a):
  """What the caption says: {attribute: words}. Gems and emblems are not spoken of."""
  arrow = dict(arrow='arrow') if a.get('arrow') else {}
  return named(a, 'kind', 'colour', 'tint', 'blade', 'shape', 'second_colour') | arrow


def draw(a):
  c = Canvas()
  kind = a['kind']
  key = {'a': c.material(a['colour'], a['tint']), 'b': c.material(a['second_colour']),
         'w': c.material('wood'),
         'j': c.material(a.get('gem', 'white')), 's': c.material('parchment')}
  if kind in LENGTHS:
    _blade(c, kind, a.get('blade'), key)
  elif kind in HALVES:
    top, art = HALVES[kind]
    c.rows(top, 0, ' '.join(row + row[-2::-1] for row in art.split()), key)
  elif kind in WHOLE:
    c.rows(WHOLE[kind][0], 0, WHOLE[kind][1], key)
  elif kind == 'wand':
    _wand(c, key)
  else:
    _shield(c, a['shape'], a['emblem'], key)
  if a.get('arrow'):
    c.line(2, 7, 12, 7, key['w'], BASE)
    c.rows(6, 12, 's. ss s.', key)
    c.rows(6, 1, 'b b b', key)
  return c


def _blade(c, kind, width, key):
  """Along the diagonal from the pommel at (2, 13)."""
  at = lambda along, across: (2 + along, 13 - along + across)
  for i in range(3, LENGTHS[kind] + 1):
    c.dot(*at(i, 1), key['a'], SHADE)
    c.dot(*at(i, 0), key['a'], BASE)
    if i < LENGTHS[kind]:
      c.dot(*at(i, -1), key['a'], LIGHT)
    if width == 'broad' and i < LENGTHS[kind]:
      c.dot(*at(i, -2), key['a'], LIGHT)
      c.dot(*at(i, 2), key['a'], SHADE)
  c.dots([at(1, 0), at(2, 0), at(2, 1)], key['b'])
  reach = 1 if kind == 'katana' else 2
  for k in range(-reach, reach + 1):
    c.dot(5 + k, 10 + k, key['b'], LIGHT if k < 0 else SHADE)
  if kind != 'katana':
    c.dots([at(0, 0), (5, 10)], key['j'], LIGHT)


def _wand(c, key):
  c.line(2, 13, 8, 7, key['w'])
  c.line(3, 13, 8, 8, key['w'], SHADE)
  c.dots([(2, 13), (3, 12), (8, 7), (7, 8)], key['b'])
  c.rows(1, 7, '...a... ..aaa.. aaajaaa .ajjja. ..aja.. .aa.aa.', key)


def _shield(c, shape, emblem, key):
  plain = dict(key, j=key['j'] if emblem == 'gem' else key['b'])
  c.rows(1, 0, SHIELDS[shape], plain, mirror=True)
  if emblem == 'plain':
    return
  inside = lambda x, y: c.cells[y * 16 + x] == key['b']
  if emblem == 'cross':
    c.fill(lambda x, y: inside(x, y) and (x in (7, 8) or y in (5, 6)), key['j'])
  if emblem == 'stripe':
    c.fill(lambda x, y: inside(x, y) and -2 <= x - y - 1 <= 2, key['j'])
