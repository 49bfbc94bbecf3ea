"""What an import makes is a work directory as any other: trained, edited, written back."""
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest
from safetensors.numpy import load_file

from diffusion import commands, main, samplers
from diffusion.core.gaussian import from_x0
from diffusion.generation import edits
from diffusion.interop import pipelines
from diffusion.setup import build
from diffusion.setup.config import filled, put
from diffusion.setup.validate import check
from diffusion.system.checkpoint_reading import read_record
from diffusion.training.open_model import load, open_run, restore
from diffusion.training.state import init_state, whole
from tests.interop.made_pipelines import MASK, PAINTS, PICTURE
from tests.interop.test_pipelines import imported, shipped


def config_of(workdir, **settings):
  config = filled(ConfigDict(main.stored(str(workdir))['config']))
  for key, value in settings.items():
    put(config, key, value)
  return config


@pytest.fixture(scope='module')
def pixels(tmp_path_factory):
  """A work directory of a pipeline of pixels, and data for it."""
  place = tmp_path_factory.mktemp('pixels')
  folder, _ = shipped('DDPMPipeline', place)
  np.save(place / 'images.npy', np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8))
  return imported(folder, place), f"npy('{place}/images.npy')"


def test_an_import_holds_the_network_once_and_training_has_it_whole(pixels):
  workdir, _ = pixels
  layout = read_record(workdir / 'checkpoints' / '0')['layout']
  assert {path.split('/')[0] for path in layout} == {'step', 'params'}
  run, checkpoints, *_ = open_run(config_of(workdir), workdir)
  state = restore(run, checkpoints)
  assert all(a is b for a, b in zip(*map(jax.tree.leaves, (state.ema, state.params)), strict=True))
  made = jax.device_get(init_state(state.params, run.optimizer(run.plan.steps)))
  found = whole(run, state)
  assert jax.tree.structure(found) == jax.tree.structure(made)
  jax.tree.map(np.testing.assert_array_equal, found, made)
  buffers = [a.unsafe_buffer_pointer() for a in jax.tree.leaves((found.params, found.ema))]
  assert len(set(buffers)) == len(buffers)  # a step donates all of them


def test_training_goes_on_from_it_and_what_it_makes_goes_back(pixels):
  workdir, data = pixels
  quick = {'batch': 2, 'sample.num_samples': 1, 'sample.show': '', 'grid': "shipped(2, 'ddim')"}
  before = load(workdir).weights.params
  commands.train(config_of(workdir, data=data, steps=2, **quick), workdir)
  (run, weights, step), raw = load(workdir), load(workdir, **{'sample.params': 'raw'}).weights.params
  assert step == 2 and run.config.data == data
  assert all(np.any(raw[name] != before[name]) for name in ('conv_in.weight', 'time_embedding.linear_1.bias'))
  commands.export(config_of(workdir), workdir, 'diffusers')
  out = workdir / 'exports' / 'step_2_diffusers'
  tensors = load_file(out / 'unet' / 'diffusion_pytorch_model.safetensors')
  assert tensors.keys() == weights.params.keys()
  assert all(np.array_equal(a, weights.params[name]) for name, a in tensors.items())
  assert pipelines.settings(out)['net'] == run.config.net


# ---- edits
@pytest.fixture
def files(tmp_path):
  """Settings that name a picture and a mask."""
  edits.pages.save_png(edits.Image.fromarray(PICTURE), tmp_path / 'picture.png')
  edits.pages.save_png(edits.Image.fromarray(255 * MASK[..., 0].astype(np.uint8)), tmp_path / 'mask.png')
  return {'edit.image': str(tmp_path / 'picture.png'), 'edit.mask': str(tmp_path / 'mask.png'), 'edit.prompt': 'abc',
          'edit.num_samples': 2}


@pytest.fixture
def asked(monkeypatch):
  """What an edit asks to be drawn; grey pictures take the place of samples."""
  found = {}
  def draw(run, weights, cond, number, sampler=None, **rest):
    found.update(run=run, cond=cond, sampler=sampler)
    return np.full((number, 8, 8, 3), 7, np.uint8)
  monkeypatch.setattr(edits, 'draw', draw)
  return found


def edited(workdir, settings):
  commands.edit(config_of(workdir, **settings), workdir)
  with np.load(max((workdir / 'edits').iterdir()) / 'samples.npz') as arrays:
    images = arrays['images']
  np.testing.assert_array_equal(images, np.where(MASK, 7, np.stack([PICTURE] * 2)))


def test_a_network_that_is_told_what_to_paint(tmp_path, files, asked):
  folder, _ = shipped(PAINTS, tmp_path)
  workdir = imported(folder, tmp_path)
  edited(workdir, files | {'edit.task': 'inpaint', 'edit.num_samples': 2})
  told, run = asked['cond']['image'], asked['run']
  assert asked['sampler'] is run.sampler  # nothing is replaced on the way
  assert told.shape == (2, 4, 4, 5) and set(np.unique(told[..., 0])) == {0, 1}
  again = lambda picture: run.task.painted(run.task.frozen, picture[None], MASK, asked['cond'])['image']
  inside, outside = PICTURE.copy(), PICTURE.copy()
  inside[5, 4], outside[0, 0] = 0, 255 - outside[0, 0]
  np.testing.assert_array_equal(again(inside), told)  # what is painted over is not seen
  assert np.abs(again(outside) - told).max() > 1e-3
  np.testing.assert_array_equal(run.task.null(asked['cond'])['image'], told)  # nor does guidance lead away from it


def test_a_negative_prompt_leads_away_from_words_alone(tmp_path):
  folder, _ = shipped(PAINTS, tmp_path)
  workdir = imported(folder, tmp_path)
  config = config_of(workdir, guide='cfg(2, negative=cad)')
  run, *_ = open_run(config, workdir)
  ask = lambda prompt: run.task.ask(dict(prompt=prompt), np.arange(2), 0).cond
  cond = run.task.painted(run.task.frozen, PICTURE[None], MASK, ask('abc'))
  led = build._away(config, check(config), run.task, run.example[1])(cond)
  jax.tree.map(np.testing.assert_array_equal, led, ask('cad') | dict(image=cond['image']))


def test_masks_of_latents(tmp_path, files, asked):
  """Drawn by a denoiser whose x0 is 0: what is not painted is the picture's latents, and all else 0."""
  folder, _ = shipped('StableDiffusionPipeline', tmp_path)
  workdir = imported(folder, tmp_path)
  edited(workdir, files | {'edit.task': 'repaint', 'edit.jump': 2, 'edit.repeats': 2, 'sampler': 'ddim',
                           'grid': 'trailing(3)'})
  run = asked['run']
  denoise = lambda x, noise: from_x0(noise, x, jnp.zeros(x.shape))
  x = samplers.sample(samplers.sample_keys(0, np.arange(2)), denoise, asked['sampler'], run.levels,
                      np.ones((2, 4, 4, 4), np.float32))
  kept = edits.encoded(run, build.Weights({}, frozen=run.frozen), PICTURE[None])
  painted = np.zeros((4, 4, 1), bool)
  painted[1:, 1:] = True  # all latents of which a pixel is painted
  np.testing.assert_array_equal(x, np.where(painted, 0, np.repeat(kept, 2, 0)))
