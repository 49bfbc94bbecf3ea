"""Whole pipelines: folders that diffusers wrote, sampled to what it drew, and written back.

Those of tests/fixtures/interop were made by made_pipelines.py, with the library's own samples and random weights.
"""
import json
import zipfile
from pathlib import Path

from etils import epath
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from diffusion import samplers
from diffusion.core.gaussian import take
from diffusion.errors import InputError
from diffusion.interop import pipelines
from diffusion.setup.config import default
from diffusion.training.import_folder import export_folder, import_folder
from diffusion.training.open_model import load
from tests.interop import made_pipelines
from tests.interop.made_pipelines import MASK, NAMES, noise_for, PICTURE, PROMPTS, STEPS, TEXTS

FIXTURES = Path(__file__).parents[1] / 'fixtures' / 'interop'


def shipped(name, tmp_path):
  """(the folder of a pipeline, what the library drew with it)."""
  with zipfile.ZipFile(FIXTURES / f'{name}.zip') as file:
    file.extractall(tmp_path / 'folder')
  with np.load(tmp_path / 'folder' / 'drawn.npz') as found:
    expected = found['x0'], found['images']
  (tmp_path / 'folder' / 'drawn.npz').unlink()
  return tmp_path / 'folder', expected


def imported(folder, tmp_path):
  """A work directory with a pipeline."""
  workdir = epath.Path(tmp_path / 'work')
  import_folder(default(), str(folder), workdir, lambda label, text: None)
  return workdir


def draw(run, weights, x, request):
  """(x0, images uint8) from the noise x."""
  cond = run.task.ask(request, np.arange(len(x)), 0).cond
  if run.task.painted:
    cond = run.task.painted(weights.frozen['task'], PICTURE[None], MASK, cond)
  keys = samplers.sample_keys(0, np.arange(len(x)))
  def both(weights, x, cond):
    x0 = samplers.sample(keys, run.denoise(weights, cond), run.sampler, run.levels, x)
    return x0, run.decode(weights.frozen, x0, cond)['images']
  return jax.jit(both)(weights, x, cond)


def check_drawn(name, folder, workdir, expected):
  """Six steps with guidance 7.5, from the same noise."""
  settings = pipelines.settings(folder, STEPS)
  guide = '' if name == 'LDMPipeline' else 'cfg(7.5)'
  run, weights, step = load(workdir, sampler=settings['sampler'], grid=settings['grid'], guide=guide)
  request = {} if name == 'LDMPipeline' else dict(classes='class 3, class 999')
  request = dict(prompt='\n'.join(PROMPTS)) if name in TEXTS else request
  x0, images = draw(run, weights, noise_for(name), request)
  assert step == 0
  assert np.abs(x0 - expected[0]).max() <= 2e-4 * np.abs(expected[0]).max()
  assert np.abs(np.asarray(images, float) - 255 * expected[1]).max() < 1.01
  return run, weights


@pytest.mark.parametrize('name', NAMES[1:])
def test_a_shipped_pipeline_draws_what_the_library_drew(name, tmp_path):
  folder, expected = shipped(name, tmp_path)
  workdir = imported(folder, tmp_path)
  run, weights = check_drawn(name, folder, workdir, expected)
  check_back(run, weights, folder, workdir, tmp_path)


def check_back(run, weights, folder, workdir, tmp_path):
  """The folder that we write holds the same tensors, names and configs as the one that was read."""
  out = Path(export_folder(run, weights.params, workdir, tmp_path / 'out'))
  for path in sorted(folder.glob('**/*')):
    copy = out / path.relative_to(folder)
    if path.suffix == '.safetensors':
      a, b = load_file(path), load_file(copy)
      a = {(f'text_model.{key}' if 'encoder' in path.parent.name and 'text_model' not in key and 'projection' not in key
            else key): value for key, value in a.items()}  # as published files have it
      assert a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a), path
    elif path.suffix == '.json':
      assert json.loads(copy.read_text()) == json.loads(path.read_text()), path


def test_a_shipped_pipeline_of_pixels(tmp_path):
  folder, (eps, _) = shipped('DDPMPipeline', tmp_path)
  workdir = imported(folder, tmp_path)
  run, weights, _ = load(workdir)
  assert run.config.sampler == "ddpm('small')" and run.config.clip_x0 and run.task.bounds == (-1., 1.)
  x, level = noise_for('DDPMPipeline'), take(run.schedule, 981)
  pred = jax.jit(lambda weights, x: run.denoise(weights, None)(x, level))(weights, x)
  np.testing.assert_allclose(pred.x0, np.clip((x - level.sigma * eps) / level.alpha, -1, 1), atol=2e-4)
  check_back(run, weights, folder, workdir, tmp_path)
  (workdir / 'diffusers' / 'model_index.json').unlink()  # as of a model that was trained here
  out = Path(export_folder(run, weights.params, workdir, tmp_path / 'new'))
  again = pipelines.settings(out)
  assert again['net'] == run.config.net and again['task'] == 'image'
  a, b = (load_file(path / 'unet' / 'diffusion_pytorch_model.safetensors') for path in (folder, out))
  assert a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize('name', NAMES)
def test_a_new_pipeline_and_back_into_the_library(name, tmp_path):
  theirs = made_pipelines.make(name, tmp_path / 'folder')
  workdir = imported(tmp_path / 'folder', tmp_path)
  if name == 'DDPMPipeline':
    run, weights, _ = load(workdir)
  else:
    run, weights = check_drawn(name, tmp_path / 'folder', workdir, made_pipelines.drawn(name, theirs, noise_for(name)))
  out = export_folder(run, weights.params, workdir, tmp_path / 'out')
  again = type(theirs).from_pretrained(out)
  for key, part in theirs.components.items():
    if hasattr(part, 'state_dict'):
      a, b = part.state_dict(), getattr(again, key).state_dict()
      assert a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a), key


def test_a_folder_is_not_imported_over_a_run(tmp_path):
  folder, _ = shipped('DDPMPipeline', tmp_path)
  workdir = imported(folder, tmp_path)
  with pytest.raises(InputError, match='holds a checkpoint already'):
    import_folder(default(), str(folder), workdir, lambda label, text: None)
