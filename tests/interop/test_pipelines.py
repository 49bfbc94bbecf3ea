"""Whole pipelines: read from folders that diffusers wrote, sampled beside it, and written back."""
import json

import jax
import numpy as np
import pytest

from diffusion import samplers
from diffusion.interop import models, pipelines
from diffusion.setup.config import default
from diffusion.training.import_folder import export_folder, import_folder
from diffusion.training.open_model import load
from tests.interop import made_pipelines
from tests.interop.folders import normal, to_torch, torch_of
from etils import epath

STEPS, PROMPTS = 6, ('abc bé', 'cad')
TEXTS = ('StableDiffusionPipeline', 'StableDiffusionXLPipeline')


def imported(name, tmp_path):
  """(their pipeline, the folder, a work directory with it)."""
  theirs = made_pipelines.make(name, tmp_path / 'folder')
  workdir = epath.Path(tmp_path / 'work')
  import_folder(default(), str(tmp_path / 'folder'), workdir, lambda label, text: None)
  return theirs, tmp_path / 'folder', workdir


def sampled(run, weights, x, request):
  """(x0, images) from the noise x."""
  cond = run.task.ask(request, np.arange(len(x)), 0).cond
  keys = samplers.sample_keys(0, np.arange(len(x)))
  @jax.jit
  def draw(weights, x, cond):
    x0 = samplers.sample(keys, run.denoise(weights, cond), run.sampler, run.levels, x)
    return x0, run.decode(weights.frozen, x0, cond)['images']
  return draw(weights, x, cond)


@pytest.mark.parametrize('name', ['LDMPipeline', 'DiTPipeline', *TEXTS])
def test_samples_are_those_of_diffusers(name, tmp_path, monkeypatch):
  theirs, folder, workdir = imported(name, tmp_path)
  torch = torch_of()
  settings = pipelines.settings(folder, STEPS)
  guide = '' if name == 'LDMPipeline' else 'cfg(7.5)'
  run, weights, step = load(workdir, sampler=settings['sampler'], grid=settings['grid'], guide=guide)
  assert step == 0
  x = normal(7, 2, *run.shape)
  start = x / run.levels.sigma[0] * run.levels.sigma[0]
  if name in TEXTS:
    request = dict(prompt='\n'.join(PROMPTS))
    with torch.no_grad():
      given = dict(latents=to_torch(x), guidance_scale=7.5, num_inference_steps=STEPS)
      expected = theirs(list(PROMPTS), **given, output_type='latent').images
      images = theirs(list(PROMPTS), **given, output_type='np').images
  else:
    request = {} if name == 'LDMPipeline' else dict(classes='thing 3, thing 999')
    module = __import__(type(theirs).__module__, fromlist=['x'])
    monkeypatch.setattr(module, 'randn_tensor', lambda *a, **k: to_torch(x))
    kept = []
    decode = (theirs.vqvae if name == 'LDMPipeline' else theirs.vae).decode
    part = theirs.vqvae if name == 'LDMPipeline' else theirs.vae
    monkeypatch.setattr(part, 'decode', lambda z: kept.append(z) or decode(z))
    with torch.no_grad():
      more = dict(batch_size=2) if name == 'LDMPipeline' else dict(class_labels=[3, 999], guidance_scale=7.5)
      images = theirs(**more, num_inference_steps=STEPS, output_type='np').images
    expected = kept[0] * part.config.scaling_factor
  x0, pixels = sampled(run, weights, start, request)
  expected = np.moveaxis(expected.numpy(), 1, -1)
  assert np.abs(x0 - expected).max() <= 2e-4 * np.abs(expected).max()
  assert np.abs(np.asarray(pixels, float) - 255 * images).max() < 1.01
  back(run, weights, folder, workdir, theirs, tmp_path)


def back(run, weights, folder, workdir, theirs, tmp_path):
  """The folder that we write is read by the library, and equals the one that it wrote."""
  out = export_folder(run, weights.params, workdir, tmp_path / 'out')
  again = type(theirs).from_pretrained(out, safety_checker=None) if 'StableDiffusionPipeline' == type(theirs).__name__ else (
    type(theirs).from_pretrained(out))
  for key, part in theirs.components.items():
    if hasattr(part, 'state_dict'):
      a, b = part.state_dict(), getattr(again, key).state_dict()
      assert a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a), key
  for path in folder.glob('**/*.json'):
    if not path.name.endswith('index.json') or path.name == 'model_index.json':
      assert json.loads((out / path.relative_to(folder)).read_text()) == json.loads(path.read_text()), path


def test_ddpm_pipeline_and_one_of_ours(tmp_path):
  theirs, folder, workdir = imported('DDPMPipeline', tmp_path)
  torch = torch_of()
  run, weights, _ = load(workdir)
  assert run.config.sampler == "ddpm('small')" and run.config.clip_x0 and run.task.bounds == (-1., 1.)
  x, time = normal(3, 2, 8, 8, 3), np.float32([981, 981])
  with torch.no_grad():
    eps = np.moveaxis(theirs.unet(to_torch(x), 981).sample.numpy(), 1, -1)
  from diffusion.core.gaussian import take
  level = take(run.schedule, 981)
  pred = run.denoise(weights, None)(x, level)
  clipped = np.clip((x - level.sigma * eps) / level.alpha, -1, 1)
  np.testing.assert_allclose(pred.x0, clipped, atol=2e-4)
  back(run, weights, folder, workdir, theirs, tmp_path)
  import diffusers
  kept = workdir / 'diffusers' / 'model_index.json'
  kept.unlink()  # as of a model that was trained here
  again = diffusers.DDPMPipeline.from_pretrained(export_folder(run, weights.params, workdir, tmp_path / 'new'))
  assert all((a == again.unet.state_dict()[key]).all() for key, a in theirs.unet.state_dict().items())
  np.testing.assert_allclose(again.scheduler.alphas_cumprod, theirs.scheduler.alphas_cumprod, rtol=2e-4)
  assert models.describe(json.loads((tmp_path / 'new' / 'unet' / 'config.json').read_text()), '')[2] == (
    models.describe(json.loads((folder / 'unet' / 'config.json').read_text()), '')[2])
