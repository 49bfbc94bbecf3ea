"""Heroes: the same wardrobe seen from the front and from the side."""
from diffusion.data.sprites.canvas import BASE, Canvas, CLOTH, named, OUTLINE, pick, pick_other, SHADE, VIVID

SKINS = {'pale': (.07, .22, .98), 'fair': (.07, .34, .94), 'tan': (.07, .45, .82), 'brown': (.06, .52, .62),
         'dark': (.05, .55, .42),
         'green': (.30, .48, .66)}
HAIR = ('black', 'brown', 'red', 'orange', 'yellow', 'white', 'gray', 'blue', 'pink', 'green')
# Left halves, from row 1.
FRONT_HAIR = {
  'bald': '',
  'short': '......hh .....hhh ....hhhh ....hh.. ....h...',
  'long': '......hh .....hhh ....hhhh ...hhh.. ...hh... ...hh... ...hh... ...hh... ...h....',
  'spiky': '....h.hh ....hhhh ...hhhhh ....hh.h ....h...',
  'bob': '.....hhh ....hhhh ...hhhhh ...hhhhh ...hh... ...hh... ....h...',
  'mohawk': '.......h .......h ......hh .......h',
  'curly': '....h.hh ...hhhhh ...hhhhh ...hh.h. ...hh... ....h...',
  'bun': '.......h ......hh ....hhhh ....hhh. ....h...',
}
SIDE_HAIR = {   # looking right, from (4, 1)
  'short': '..hhhhh. .hhhhhhh hhhhhhhh hhhhh... hhhh.... hhh.....',
  'long': '..hhhhh. .hhhhhhh hhhhhhhh hhhhh... hhhh.... hhh..... hhh..... hhh..... hhh..... .h......',
  'spiky': 'h.hh.hh. .hhhhhhh hhhhhhhh hhhhh.h. hhhh.... h.h.....',
  'bob': '..hhhhh. .hhhhhhh hhhhhhhh hhhhhh.. hhhhh... hhhh.... .hhh....',
  'mohawk': '...hhhh. ..hhhhhh .hhhhh.. hh......',
  'curly': '.hh.hh.. hhhhhhhh hhhhhhhh hhhhhh.h hhhhh... hhhh.... .h......',
  'bun': '..hhhhh. .hhhhhhh hhhhhhhh hhhhh... hhh.....',
}
# First row, then left halves; a is the hat, b its trim.
FRONT_HATS = {
  'wizard hat': (0, '.......a ......aa ......aa .....bbb ...aaaaa'),
  'helmet': (1, '......aa .....aaa ....aaaa ....abbb ....a... ....a...'),
  'crown': (1, '....b.bb ....bbbb ....bab.'),
  'hood': (1, '.....aaa ....aaaa ...aaaaa ...aa... ...aa... ...aa... ....aa..'),
  'horned helmet': (1, '..b...aa ..bb.aaa ...baaaa ....aaaa'),
  'cap': (1, '......aa .....aaa ....aaaa ...bbbbb'),
}
SIDE_HATS = {   # from column 3
  'wizard hat': (0, '...aaa.... ...aaaa... ..aaaaa... ..bbbbbb.. aaaaaaaaaa'),
  'helmet': (1, '...aaaa... ..aaaaaa.. .aaaaaaaa. .aaaabbbb. .aaa...... .aa.......'),
  'crown': (1, '.b.b.b.b.. .bbbbbbb..'),
  'hood': (1, '..aaaaaa.. .aaaaaaaa. aaaaaaaaa. aaaaa..... aaaa...... aaaa...... .aaa......'),
  'horned helmet': (1, 'bb.aaaa... .bbaaaaa.. .aaaaaaa.. .aaaaaaaa.'),
  'cap': (1, '...aaaa... ..aaaaaa.. .aaaaaaa.. .bbbbbbbbb'),
}
# Rows 8 to 12, left halves: c cloth, d trim, s skin, l belt, m metal, p trousers, t boots.
FRONT_OUTFITS = {
  'tunic': '.....ccc ...ccccd ...scccd ...slll. .....ccc',
  'armor': '...mmmcc ...mmccm ...scccm ...sllll .....mmm',
  'robe': '.....ccd ...ccccd ...ccccd ...scccl ....cccd ....cccd ....dddd',
  'dress': '.....csc ....sccc ...s.ccc ...s.lll ....cccc ...ccccc .....tt.',
  'vest': '.....dcc ...dddcd ...s.dcd ...sllll .....ppp',
}
FRONT_LEGS = {'standing': '.....pp..pp..... .....tt..tt.....', 'astride': '....pp....pp.... ....tt....tt....',
              'walking': '.....pp..pp..... .........tt.....'}
SIDE_OUTFITS = {'tunic': 'cccc cccc cccd llll', 'robe': 'cccd cccd cccd cccl', 'armor': 'mccc mmcc ccmm llll'}
SIDE_LEGS = {'standing': '.pppp. .pppp. .ttttt', 'walking': '.pppp. pp..pp tt..ttt'}
# Three columns wide, first row, held at row 11: m head, w shaft, g fittings, s string.
ITEMS = {
  'sword': (3, '.m. .m. .m. .m. .m. .m. ggg .w. .w. .g.'),
  'axe': (2, '.w. .wm mmm mmm .wm .w. .w. .w. .w. .w. .w. .w.'),
  'staff': (1, '.m. mmm mmm .m. .g. .w. .w. .w. .w. .w. .w. .w. .w. .w.'),
  'spear': (1, '.m. .m. mmm .g. .w. .w. .w. .w. .w. .w. .w. .w. .w. .w.'),
  'wand': (6, '.m. mmm .m. .w. .w. .w. .w.'),
  'hammer': (4, 'mmm mmm mmm .w. .w. .w. .w. .w. .w.'),
  'bow': (5, 'm.. sm. s.m s.m s.m s.m s.m s.m sm. m..'),
  'nothing': (0, ''),
}
ITEM_COLOURS = ('silver', 'gold', 'red', 'blue', 'purple', 'green')
COVERS_HAIR = ('hood',)


def design(rng, side):
  hats = SIDE_HATS if side else FRONT_HATS
  colour = pick(rng, CLOTH)
  outfit = pick(rng, tuple(SIDE_OUTFITS if side else FRONT_OUTFITS))
  out = {'skin': pick(rng, tuple(SKINS)), 'hair_style': pick(rng, tuple(SIDE_HAIR if side else FRONT_HAIR)),
         'hair': pick(rng, HAIR),
         'outfit': outfit, 'colour': colour, 'trim': pick_other(rng, CLOTH, colour)}
  if outfit not in ('robe', 'dress'):
    out['trousers'] = pick(rng, ('brown', 'gray', 'black', 'blue', 'white'))
    out['stance'] = pick(rng, tuple(SIDE_LEGS if side else FRONT_LEGS))
  if outfit != 'robe':
    out['boots'] = pick(rng, ('brown', 'black', 'red', 'gray'))
  if rng.random() < .35:
    out['hat'] = pick(rng, tuple(hats))
    if out['hat'] not in ('crown', 'helmet', 'horned helmet'):
      out['hat_colour'] = pick(rng, CLOTH)
  out['item'] = pick(rng, tuple(item for item in ITEMS if item != 'bow' or not side))
  if out['item'] != 'nothing':
    out['item_colour'] = pick(rng, ITEM_COLOURS)
  if not side and rng.random() < .25:
    out['shield'] = pick(rng, VIVID)
  if not side and out['hair_style'] != 'long' and out['skin'] != 'green' and rng.random() < .12:
    out['beard'] = True
  if out['hair_style'] == 'bald' and not out.get('beard'):
    del out['hair']
  return out


def caption(a, side):
  hat, style = a.get('hat'), a['hair_style']
  if hat:
    head = f"a {a.get('hat_colour', '')} {hat}"
  elif style == 'bald':
    head = 'a bald head'
  elif style in ('mohawk', 'bun', 'bob'):
    head = f"a {a['hair']} {style}"
  else:
    head = f"{style} {a['hair']} hair"
  clothes = f"{'' if a['outfit'] == 'armor' else 'a '}{a['colour']} {a['outfit']}"
  held = [f"a {a['item_colour']} {a['item']}"] if 'item_colour' in a else []
  held += [f"a {a['shield']} shield"] if 'shield' in a else []
  text = f"a {'side-facing ' if side else ''}hero with {head} in {clothes}"
  return text + (', holding ' + ' and '.join(held) if held else '') + (', bearded' if a.get('beard') else '')


def spoken(a):
  """What the caption says: {attribute: words}. A hat hides the hair, and nobody speaks of skin, trim, legs or boots."""
  head = named(a, 'hat', 'hat_colour') or named(a, 'hair_style', *['hair'] * (a['hair_style'] != 'bald'))
  held = named(a, 'item', 'item_colour') if 'item_colour' in a else {}
  beard = dict(beard='bearded') if a.get('beard') else {}
  return named(a, 'outfit', 'colour', 'shield') | head | held | beard


def draw(a, side):
  c = Canvas()
  key = {'s': c.material(SKINS[a['skin']]), 'h': c.material(a.get('hair', 'brown')),
         'c': c.material(a['colour']),
         'd': c.material(a['trim']), 'p': c.material(a.get('trousers', 'brown')),
         't': c.material(a.get('boots', 'brown')),
         'l': c.material('brown'), 'm': c.material('silver'), 'e': (c.material('ink'), SHADE)}
  (_side if side else _front)(c, key, a)
  if 'item_colour' in a:
    c.move(-1, 0)   # leaves a gap for the outline between the body and what it holds
    _item(c, a, key['s'], side)
  if 'shield' in a:
    _shield(c, a['shield'])
  return c


def _hat(c, hats, left, a, metal, mirror):
  if 'hat' in a:
    top, art = hats[a['hat']]
    main = c.material(a['hat_colour']) if 'hat_colour' in a else metal
    c.rows(top, left, art, {'a': main, 'b': c.material('gold')}, mirror)


def _front(c, key, a):
  c.rows(8, 0, FRONT_OUTFITS[a['outfit']], key, mirror=True)
  if 'stance' in a:
    c.rows(13, 0, FRONT_LEGS[a['stance']], key)
    if a['stance'] == 'walking':
      c.rows(13, 5, 'tt', key)
  c.rows(2, 0, '.....sss ....ssss ....ssss ....ssss ....ssss .....sss', key, mirror=True)
  c.rows(4, 6, 'e..e e..e', key)
  c.rows(1, 0, FRONT_HAIR[a['hair_style']], key, mirror=True)
  if a.get('beard'):
    c.rows(6, 0, '....h... ....hhhh .....hhh ......hh', key, mirror=True)
  _hat(c, FRONT_HATS, 0, a, key['m'], mirror=True)


def _side(c, key, a):
  c.rows(8, 6, SIDE_OUTFITS[a['outfit']], key)
  if 'stance' in a:
    c.rows(12, 5, SIDE_LEGS[a['stance']], key)
  else:
    c.rows(12, 5, 'cccccd cccccd dddddd', key)
  c.rows(2, 4, '.ssssss. ssssssss ssssssss ssssssss ssssssss .ssssss.', key)
  c.dot(12, 5, key['s'])
  c.rows(4, 9, 'e e', key)
  c.rows(1, 4, SIDE_HAIR[a['hair_style']], key)
  if a['hair_style'] == 'bun':
    c.disc(3, 3, 1.2, 1.2, key['h'])
  _hat(c, SIDE_HATS, 3, a, key['m'], mirror=False)
  sleeve = key['m'] if a['outfit'] == 'armor' else key['c']
  c.dot(8, 9, sleeve, SHADE)
  c.dot(9, 10, sleeve, SHADE)
  c.dots([(10, 11), (11, 11)] if 'item_colour' in a else [(10, 11)], key['s'])


def _item(c, a, skin, side):
  top, art = ITEMS[a['item']]
  c.rows(top, 12, art, {'m': c.material(a['item_colour']), 'w': c.material('wood'), 'g': c.material('gold'),
                        's': c.material('parchment')})
  c.dots([(12, 11), (13, 11)] if a['item'] != 'bow' else [(12, 11)], skin, BASE)


def _shield(c, colour):
  """On the left arm, with a dark rim where it covers the body."""
  face, emblem = c.material(colour), c.material('gold')
  c.rows(8, 0, '.oooo. oaaaao oabbao oabbao oaaaao .oaao. ..oo..',
         {'o': (face, OUTLINE), 'a': face, 'b': emblem})
