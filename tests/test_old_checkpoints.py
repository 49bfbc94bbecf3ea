"""Work directories of revision 7d7d53a resume and sample as they did then (fixtures/README.md)."""
import json
import shutil
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

FIXTURES = Path(__file__).parent / 'fixtures'
# `resume` and `draws` of the records, whose settings have old names, in the present names.
RESUME = {'steps': 128}
THEN = {'vdm': {'sampler': 'unipc(2)'}}  # what `best` chose then, where it has another choice now
DRAWS = {
  'main': {
    'plain': {},
    'interval': {'guide': 'cfg(3, lo=-6, hi=5) | rescale(0.3)'},
    'negative': {'guide': 'cfg(2, negative=weapon)', 'sample.classes': 'hero'},
    'bad': {'guide': 'autoguidance({folder}/main@60, 2)'},
    'classifier': {'guide': 'classifier({folder}/classifier, 2)'},
    'mix': {'sample.class_mix': '0.5 * hero + 0.3 * food + 0.2 * weapon', 'sample.seed': 3},
  },
  'classifier': {},
  'vdm': {'plain': {}},
  'loss_aware': {'plain': {}},
  'averages': {
    'posthoc': {'sample.params': 'posthoc(.08)'},
    'power': {'sample.params': 'power(.1)'},
    'raw': {'sample.params': 'raw'},
  },
  'options': {'plain': {}},
}


def record(name):
  return json.loads((FIXTURES / f'{name}.json').read_text())


def settings(values, folder):
  return [f'--config.{key}={value}'.replace('{folder}', str(folder)) for key, value in values.items()]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The stored work directories. Sampling adds to them; tests that resume use a copy."""
  folder = tmp_path_factory.mktemp('old')
  for name in DRAWS:
    with zipfile.ZipFile(FIXTURES / f'{name}.zip') as packed:
      packed.extractall(folder / name)
  return folder


def same_images(name, kind, workdir):
  """Checks that the last images drawn in a work directory are those of the record, to 2 of 255 levels."""
  with np.load(max(workdir.glob('samples/*/samples.npz'))) as drawn, np.load(FIXTURES / f'{name}.npz') as recorded:
    assert drawn['images'].shape == recorded[kind].shape
    assert np.abs(drawn['images'].astype(int) - recorded[kind]).max() <= 2


@pytest.mark.parametrize('name, kind', [(name, kind) for name, kinds in DRAWS.items() for kind in kinds])
def test_samples(name, kind, folder, command):
  changes = settings(THEN.get(name, {}) | DRAWS[name][kind], folder)
  done = command('--mode=sample', f'--workdir={folder / name}', *changes)
  assert done.returncode == 0, done.stderr
  same_images(name, kind, folder / name)


@pytest.mark.parametrize('name', DRAWS)
def test_resumes(name, folder, command, tmp_path):
  workdir = shutil.copytree(folder / name, tmp_path / name, ignore=shutil.ignore_patterns('samples'))
  done = command(f'--workdir={workdir}', *settings(THEN.get(name, {}) | RESUME, folder))
  assert done.returncode == 0, done.stderr
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  then = record(name)
  steps = range(then['train']['steps'] + 1, then['resume']['steps'] + 1)
  assert [line['step'] for line in lines] == list(steps)
  # Another version of jax compiles another program, which rounds differently; the updates amplify the difference.
  close = dict(rel=1e-5 if jax.__version__ == then['versions']['jax'] else 1e-4)
  assert [line['loss'] for line in lines] == pytest.approx(then['losses'], **close)
  assert lines[-1]['heldout_loss'] == pytest.approx(then['heldout_loss'], **close)
  if DRAWS[name]:
    same_images(name, 'resumed', workdir)  # training ends with samples


@pytest.mark.parametrize('name', DRAWS)
def test_every_kind_is_drawn(name):
  assert set(DRAWS[name]) == set(record(name)['draws'])
