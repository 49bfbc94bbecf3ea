"""Imports only go down; the networks stand beside and know nothing of the rest."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / 'diffusion'
LEVELS = [
  ['errors'], ['noise', 'hosts', 'agree', 'costs'], ['files', 'schedules', 'checksums'], ['schedule_transforms', 'grids', 'predict', 'times'],
  ['denoise', 'data', 'lock', 'log', 'pictures', 'weights', 'corrupt', 'likelihood'],
  ['checkpoint'], ['losses', 'samplers', 'guidance', 'classify', 'specs', 'sharding', 'nets', 'platform'],
  ['tasks', 'edit', 'learned', 'metrics', 'bound', 'ode'], ['config', 'parts', 'codec', 'averages'], ['checks'], ['build', 'state'],
  ['feed'], ['train', 'generate'], ['forecast', 'heldout', 'samples', 'second', 'bits'], ['distances'], ['editing', 'evaluate', 'export'], ['modes'], ['main'],
]
LEVEL = {name: i for i, names in enumerate(LEVELS) for name in names}


def imported(path):
  """Names of our own modules that a file imports: diffusion.data.sources -> data."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'diffusion':
      yield from [node.module.split('.')[1]] if '.' in node.module else [alias.name for alias in node.names]
    elif isinstance(node, ast.Import):
      yield from [alias.name.split('.')[1] for alias in node.names if alias.name.startswith('diffusion.')]


@pytest.mark.parametrize('path', sorted(ROOT.rglob('*.py')), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_go_down(path):
  own = path.relative_to(ROOT).parts[0].removesuffix('.py')
  if own == '__init__':
    assert not list(imported(path))
    return
  for other in imported(path):
    if other in (own, '__version__'):
      continue
    assert other in LEVEL, f'{other} has no place in the order yet'
    assert LEVEL[other] < LEVEL[own], f'{own} imports {other}'


def test_networks_know_only_errors():
  for path in (ROOT / 'nets').glob('*.py'):
    assert set(imported(path)) <= {'nets', 'errors'}, path.name
