"""Exports: the sampler draws the same images without this package, and the weights are bit for bit the parameters."""
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from diffusion.errors import InputError
from diffusion.generation import export, sampling
from diffusion.setup.config import default, tiny
from diffusion.system import tensors
from diffusion.system.checksums import flat
from diffusion.tasks import Asked
from experiments.image_run import image_run, weights_of

SHAPE, CLASSES = (8, 8, 3), ('a', 'b', 'c')
NET = 'unet(channels=16, multipliers=(1, 2), blocks=1, attention=(4,), zero_init=False)'
HERE = Path(__file__).parents[2]

# Two devices export what is to run on one, in a process of its own, and draw the images to compare with.
EXPORT = '''
import sys
import jax, numpy as np
from tests.generation.test_export import CLASSES, SHAPE, settings
from diffusion.generation import export, sampling
from diffusion.system import sharding
from experiments.image_run import image_run, weights_of
assert len(jax.devices()) == 2
c = settings()
run = image_run(c, SHAPE, CLASSES, sharding.make_mesh())
weights = jax.device_put(weights_of(run), sharding.replicated(run.mesh))
export.write(run, weights, 7, sys.argv[1] + '/exports/7', dict(jax=jax.__version__))
cond = np.eye(3, dtype=np.float32)[[2, 0, 2, 0, 2]]
np.save(sys.argv[1] + '/expected.npy', sampling.make_draw(run, 5, 5)(weights, np.arange(5), cond)[0]['images'])
'''

# `import diffusion` fails here, wherever it is installed.
OUTSIDE = '''
import os, runpy, sys
sys.modules['diffusion'] = None
for number in (1, 5):
  sys.argv = ['sample.py', str(number), '5']
  runpy.run_path('export/sample.py')
  os.rename('samples.png', f'samples_{number}.png')
assert not [name for name in sys.modules if name.startswith('diffusion.')]
'''


def settings(**changes):
  c = tiny(default())
  c.update(dict(net=NET, grid='trailing(3)', sampler='ddpm', guide='cfg(2)') | changes)
  c.sample.classes = 'c, a'
  return c


def start(words, **options):
  """Python in a process of its own, which must succeed."""
  done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300, **options)
  assert done.returncode == 0, done.stderr


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Of an export and what it should draw."""
  path = tmp_path_factory.mktemp('export')
  env = dict(os.environ, XLA_FLAGS=os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=2')
  start(['-c', EXPORT, str(path)], cwd=HERE, env=env)
  return path


def single(c, shape=SHAPE, classes=CLASSES):
  run = image_run(c, shape, classes)
  return run, weights_of(run)


def test_an_export_draws_the_same_images_without_this_package(folder, tmp_path):
  (tmp_path / 'export').symlink_to(folder / 'exports' / '7')
  start(['-I', '-c', OUTSIDE], cwd=tmp_path)
  expected = np.load(folder / 'expected.npy').astype(int)
  assert expected.std() > 20 and np.abs(expected[0] - expected[2]).max() > 20  # something is drawn, and no two alike
  one, five = (np.asarray(Image.open(tmp_path / f'samples_{number}.png')).astype(int) for number in (1, 5))
  tiles = five.reshape(2, 8, 3, 8, 3).swapaxes(1, 2).reshape(6, *SHAPE)
  assert np.abs(one - expected[0]).max() <= 1
  assert np.abs(tiles[:5] - expected).max() <= 1 and not tiles[5].any()
  assert len((tmp_path / 'export' / 'sample.py').read_text().splitlines()) <= 20


def test_what_an_export_says_of_itself(folder):
  files = {path.name: path for path in (folder / 'exports' / '7').iterdir()}
  assert set(files) == {'weights.safetensors', 'requests.safetensors', 'config.json', 'sampler.stablehlo', 'sample.py'}
  assert [path.name for path in (folder / 'exports').iterdir()] == ['7']  # no temporary left
  record = json.loads(files['config.json'].read_text())
  with safetensors.safe_open(files['weights.safetensors'], 'np') as weights:
    metadata = {key: json.loads(value) for key, value in weights.metadata().items()}
  assert metadata == dict(step=7, config=json.loads(settings().to_json())) and record['config'] == metadata['config']
  stored = safetensors.numpy.load_file(files['requests.safetensors'])
  assert {path: rows.tolist() for path, rows in stored.items()} == dict(value=[[0, 0, 1], [1, 0, 0]])
  assert record['facts'] == dict(classes=list(CLASSES), shape=list(SHAPE)) and record['step'] == 7
  artifact = jax.export.deserialize(files['sampler.stablehlo'].read_bytes())
  assert artifact.platforms == ('cpu', 'cuda', 'tpu') and artifact.nr_devices == 1
  assert files['sampler.stablehlo'].stat().st_size < 1e6  # the weights are not in it


def test_weights_come_back_bit_for_bit(folder):
  params = single(settings())[1].params
  read = tensors.read_tree(folder / 'exports' / '7' / 'weights.safetensors', params, 'X')
  assert jax.tree.structure(read) == jax.tree.structure(params)
  for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(params)):
    assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == np.asarray(b).tobytes()


def test_nothing_is_written_over_and_nothing_is_left_half(folder, tmp_path, monkeypatch):
  run, weights = single(settings())
  before = (folder / 'exports' / '7' / 'config.json').read_bytes()
  with pytest.raises(InputError, match='exports/7 exists'):
    export.write(run, weights, 8, folder / 'exports' / '7', {})
  assert (folder / 'exports' / '7' / 'config.json').read_bytes() == before
  monkeypatch.setattr(export, 'sampler', lambda run, params: type('Exported', (), dict(serialize=lambda self: b''))())
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='cannot write'):
    export.write(run, weights, 8, tmp_path / 'file' / 'export', {})
  broken = type('Broken', (), dict(encode=lambda self: self))()
  monkeypatch.setattr(export, 'SAMPLE', broken)  # the last of the files fails
  with pytest.raises(TypeError):
    export.write(run, weights, 8, tmp_path / 'export', {})
  assert [path.name for path in tmp_path.iterdir()] == ['file']
  with pytest.raises(InputError, match='classifier draws nothing'):
    judge = run._replace(can=frozenset(['log_prob']), objective=run.objective._replace(name='classifier'))
    export.write(judge, weights, 8, tmp_path / 'export', {})


def test_all_alternatives_of_a_request_are_stored_once():
  values = [3., 1., 4.]
  ask = lambda request, ids, seed: Asked(dict(cond=np.array(values)[ids % 3] if request else np.zeros(len(ids))), None)
  c = settings(guide='')
  for text, expected in (('given: 3 / 1 / 4', values), ('', [0.])):
    c.sample.classes, c.sample.ask, c.sample.num_samples = '', text, 8
    run = SimpleNamespace(config=c, task=SimpleNamespace(facts={}, takes=('given',), ask=ask))
    assert export.conditions(run)['cond'].tolist() == expected


@pytest.mark.parametrize('changes, classes', [
  (dict(guide='', sampler='ddim', grid='trailing(2)'), ()),
  (dict(self_condition=True, guide='apg | rescale(.5) | dynamic_threshold', clip_x0=False, variance='learned',
        sampler="ddpm('learned')", schedule='linear', predict='eps'), CLASSES)])
def test_other_models_export_too(changes, classes):
  c = settings(**changes)
  c.sample.classes, c.net = '', 'unet(channels=8, multipliers=(1,), blocks=1, attention=(), groups=4, zero_init=False)'
  run, weights = single(c, (8, 8, 1), classes)
  made = jax.export.deserialize(export.sampler(run, weights).serialize())
  cond, seed = run.task.ask({}, np.arange(3), 0).cond, 2 ** 32 - 1
  asked = dict(value=cond) if classes else {}
  images = made.call(flat(weights.params), {}, np.arange(3, dtype=np.int32), np.uint32(seed), asked)['images']
  expected = sampling.make_draw(run, seed, 3)(weights, np.arange(3), cond)[0]['images']
  assert expected.std() > 20 and np.abs(np.asarray(images).astype(int) - expected).max() <= 1
  stored = export.conditions(run)
  assert (stored['value'].tolist() == np.eye(3).tolist()) if classes else stored == {}
