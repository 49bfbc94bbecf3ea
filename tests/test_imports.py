"""Imports go down: main, commands, evaluation, generation, training, setup, tasks, objectives, samplers, core."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / 'diffusion'
BELOW = {'errors': ''}  # what each package may import, itself aside
BELOW |= {name: 'errors' for name in ('core', 'system')}
BELOW |= dict(nets='errors', text='errors system', interop='nets system errors', data='errors system text')
BELOW |= dict(samplers='core errors', objectives='samplers core errors')
BELOW |= dict(tasks='objectives samplers core nets interop data text system errors')
UPPER = 'tasks setup training generation evaluation commands main'.split()
for lower, name in zip(UPPER, UPPER[1:]):
  BELOW[name] = f'{lower} {BELOW[lower]} system'


def imported(path):
  """The packages of ours that a file imports: diffusion.data.sources -> data."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'diffusion':
      yield from [node.module.split('.')[1]] if '.' in node.module else [alias.name for alias in node.names]
    elif isinstance(node, ast.Import):
      yield from [alias.name.split('.')[1] for alias in node.names if alias.name.startswith('diffusion.')]


@pytest.mark.parametrize('path', sorted(ROOT.rglob('*.py')), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_go_down(path):
  own = path.relative_to(ROOT).parts[0].removesuffix('.py')
  above = set(imported(path)) - {own, '__version__', *BELOW.get(own, '').split()}
  assert not above, f'{own} imports {", ".join(sorted(above))}, which stands above it or beside it'
