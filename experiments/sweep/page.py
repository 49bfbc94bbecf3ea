"""A report as a list of blocks, rendered as Markdown and as HTML.

A block is ('title' | 'heading' | 'text', text), ('table', header, rows), ('image', file name, caption, PNG) or
('details', summary, text). In texts and cells, `this` is code.
"""
import base64
import html as escaping
import re

STYLE = '''
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; color: #1b1f24;
  background: #fff }
h1 { font-size: 1.5rem; line-height: 1.25 } h2 { font-size: 1.15rem; margin-top: 2rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #d8dee4; text-align: left; white-space: nowrap }
td.long { white-space: normal; min-width: 16rem } th { background: #f3f5f7 }
img { max-width: 100%; height: auto } figure { margin: 1rem 0 } figcaption { font-size: .88rem; color: #57606a }
code, pre { font: .85rem ui-monospace, monospace; background: #f3f5f7; border-radius: 3px }
code { padding: .1em .25em }
pre { padding: .6rem; overflow-x: auto }
'''


def markdown(blocks):
  """The blocks as Markdown; images are separate files."""
  return '\n\n'.join(_markdown(*block) for block in blocks) + '\n'


def _markdown(kind, *parts):
  if kind == 'table':
    line = lambda cells: '| ' + ' | '.join(str(cell).replace('|', '\\|').replace('\n', ' ') for cell in cells) + ' |'
    return '\n'.join([line(parts[0]), '|' + '---|' * len(parts[0]), *map(line, parts[1])])
  if kind == 'image':
    return f'![{parts[1]}]({parts[0]})\n\n{parts[1]}'
  if kind == 'details':
    return f'<details><summary>{parts[0]}</summary>\n\n```\n{parts[1]}\n```\n</details>'
  return {'title': '# ', 'heading': '## ', 'text': ''}[kind] + parts[0]


def html(blocks):
  """The blocks as one self-contained HTML file."""
  title = next((parts[0] for kind, *parts in blocks if kind == 'title'), 'Report')
  head = ('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
          f'<title>{escaping.escape(title)}</title><style>{STYLE}</style>')
  body = '\n'.join(_html(*block) for block in blocks)
  return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _inline(text):
  return re.sub('`([^`]*)`', r'<code>\1</code>', escaping.escape(str(text)))


def _html(kind, *parts):
  if kind == 'table':
    cell = lambda text: f'<td{" class=long" if len(str(text)) > 60 else ""}>{_inline(text)}</td>'
    header = ''.join(f'<th>{_inline(name)}</th>' for name in parts[0])
    rows = '\n'.join(f'<tr>{"".join(map(cell, row))}</tr>' for row in parts[1])
    return f'<div class="wide"><table><tr>{header}</tr>\n{rows}</table></div>'
  if kind == 'image':
    source = base64.b64encode(parts[2]).decode()
    caption = escaping.escape(parts[1])
    image = f'<img alt="{caption}" src="data:image/png;base64,{source}">'
    return f'<figure>{image}<figcaption>{caption}</figcaption></figure>'
  if kind == 'details':
    return f'<details><summary>{_inline(parts[0])}</summary><pre>{escaping.escape(parts[1])}</pre></details>'
  tag = {'title': 'h1', 'heading': 'h2', 'text': 'p'}[kind]
  return f'<{tag}>{_inline(parts[0])}</{tag}>'
