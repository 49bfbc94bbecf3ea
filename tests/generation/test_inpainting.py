"""Painting with a model that has learned it: at first it is the model it started from, and what is kept is exact."""
import jax
import numpy as np
import pytest
from PIL import Image

from diffusion.core import operators
from diffusion.core.gaussian import take
from diffusion.errors import InputError
from diffusion.generation import edit_inputs, edits, requests, sampling
from diffusion.setup import build
from diffusion.setup.build import Weights
from diffusion.setup.config import default, tiny
from diffusion.system import sharding
from diffusion.system.checkpoint import open_checkpoints
from diffusion.tasks.inpaint import kept
from diffusion.training.init_from import start_from
from diffusion.training.open_model import fitted_of, run_of
from diffusion.training.record import to_meta
from diffusion.training.state import make_state
from tests.exact import gaussian_denoiser

NET = 'with_text(unet(channels=8, multipliers=(1,), blocks=1, attention=(), patch=2), width=8, blocks=1, heads=1)'
DATA = 'sprites(size=16, n=64, heldout=8)'


def config(task):
  c = tiny(default())
  c.update(dict(data=DATA, task=task, net=NET, sampler='ddim(eta=1)', grid='trailing(3)', guide='cfg(3)'))
  c.edit.update(dict(task='inpaint', num_samples=2))
  return c


def opened(c):
  return run_of(c, build.load_data(c), sharding.make_mesh(devices=jax.devices()[:1]))


def noisy(tree, rng):
  return jax.tree.map(lambda a: np.asarray(a) + .1 * rng.normal(size=a.shape).astype(np.float32), tree)


@pytest.fixture(scope='module')
def models(tmp_path_factory):
  """(a model of whole images, one that starts from it, what the start reported, the weights of each)."""
  folder = tmp_path_factory.mktemp('base')
  base = opened(config('text_to_image'))
  state, rng = make_state(base, jax.random.key(0)), np.random.default_rng(0)
  state = state._replace(params=noisy(state.params, rng), ema=noisy(state.ema, rng))
  with_checkpoint = open_checkpoints(folder / 'checkpoints')
  with_checkpoint.save(0, state, to_meta(base.config, base))
  with_checkpoint.close()
  c, said = config('inpaint(task=text_to_image)'), []
  c.init_from = str(folder)
  assert fitted_of(c).keys() == base.task.fitted.keys()
  run = opened(c)
  started = start_from(run, make_state(run, jax.random.key(1)), lambda label, text: said.append(text))
  return base, run, said, Weights(state.ema), Weights(started.ema)


@pytest.fixture(scope='module')
def learned(models):
  """The model, with weights by which it matters what is kept."""
  _, run, _, _, weights = models
  return run, Weights(noisy(weights.params, np.random.default_rng(1)))


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  folder, rng = tmp_path_factory.mktemp('files'), np.random.default_rng(2)
  mask = np.zeros((16, 16), np.uint8)
  mask[4:9, 3:12] = 255
  for name, array in dict(image=rng.integers(0, 256, (16, 16, 3), np.uint8), mask=mask,
                          small=rng.integers(0, 256, (8, 8, 3), np.uint8)).items():
    Image.fromarray(array).save(folder / f'{name}.png')
  return {path.stem: str(path) for path in folder.iterdir()}


def inputs(run, files, **options):
  run.config.edit.update(dict(task='inpaint', image=files['image'], mask=files['mask'],
                              prompt='a red dragon') | options)
  return edit_inputs.read(run)


def test_at_first_it_predicts_what_the_other_model_does_whatever_is_kept(models):
  base, run, said, before, after = models
  rng = np.random.default_rng(3)
  x = rng.normal(size=(4, 16, 16, 3)).astype(np.float32)
  cond = requests.ask(base, dict(prompt=['a red dragon', 'a hero', 'none', 'a blue axe']), np.arange(4), 0).cond
  shown = [kept(rng.uniform(-1, 1, x.shape), rng.integers(0, 2, (4, 16, 16, 1))), np.zeros((4, 16, 16, 4)),
           kept(x, np.zeros((4, 16, 16, 1)))]
  level = take(run.levels, 1)
  own = jax.jit(lambda weights, cond: base.denoise(weights, cond)(x, level))(before, cond)
  others = jax.jit(lambda weights, cond: run.denoise(weights, cond)(x, level))
  for seen in shown:
    pred = others(after, cond | dict(kept=np.float32(seen)))
    np.testing.assert_array_equal(pred.x0, own.x0)
    np.testing.assert_array_equal(pred.eps, own.eps)
  new = [path for path in said[0].split(': ')[-1].split(', ')]
  assert len(new) == 2 and all('in_kept/' in path for path in new)


def test_only_what_is_white_is_painted_and_the_prompt_and_what_is_kept_both_matter(learned, files):
  run, weights = learned
  asked = inputs(run, files)
  result = edits.inpaint(run, weights, asked)
  white = asked.mask[..., 0]
  np.testing.assert_array_equal(result.images[:, ~white], np.stack([asked.image] * 2)[:, ~white])
  assert (result.images != asked.image)[:, white].mean() > .5
  for other in (inputs(run, files, prompt='a blue axe'), asked._replace(image=255 - asked.image)):
    assert np.any(edits.inpaint(run, weights, other).images[:, white] != result.images[:, white])


def test_with_all_kept_it_is_the_image_and_with_nothing_kept_a_sample(learned, files):
  run, weights = learned
  asked = inputs(run, files)
  held = edits.inpaint(run, weights, asked._replace(mask=np.zeros((16, 16, 1), bool)))
  np.testing.assert_array_equal(held.images, np.stack([asked.image] * 2))
  free = edits.inpaint(run, weights, asked._replace(mask=np.ones((16, 16, 1), bool)))
  cond = requests.ask(run, dict(prompt='a red dragon'), np.arange(2), 0).cond
  drawn = sampling.make_draw(run, run.config.edit.seed, 2)(weights, np.arange(2), cond)[0]['images']
  np.testing.assert_array_equal(free.images, drawn)


def test_guidance_away_from_a_text_still_sees_what_is_kept(models):
  c = config('inpaint(task=text_to_image)')
  c.guide = "cfg(2, negative='a hero')"
  run, (*_, weights) = opened(c), models
  rng = np.random.default_rng(5)
  strong = Weights(noisy(weights.params, rng))
  x, seen = rng.normal(size=(1, 16, 16, 3)).astype(np.float32), rng.normal(size=(16, 16, 4)).astype(np.float32)
  cond = lambda prompt: requests.ask(run, dict(prompt=prompt, kept=seen), np.arange(1), 0).cond
  level = take(run.levels, 1)
  plain, denoise = (jax.jit(lambda weights, cond, kind=kind: kind(weights, cond)(x, level).x0)
                    for kind in (run.plain, run.denoise))
  one, other = (np.asarray(plain(strong, cond(prompt))) for prompt in ('a red dragon', 'a hero'))
  guided = denoise(strong, cond('a red dragon'))
  np.testing.assert_allclose(guided, np.clip(other + 2 * (one - other), -1, 1), atol=1e-5)


def test_a_fixed_x0_is_exact_and_the_rest_is_untouched():
  rng = np.random.default_rng(4)
  x, known = rng.normal(size=(2, 2, 4, 4, 3)).astype(np.float32)
  mask = rng.integers(0, 2, (4, 4, 1)).astype(bool)
  level = take(build.make('grid', 'trailing(4)')(build.make('schedule', 'cosine')), 2)
  plain = gaussian_denoiser(.3, .7)
  got, own = jax.device_get(jax.jit(lambda x: (operators.fixed(plain, known, mask)(x, level), plain(x, level)))(x))
  np.testing.assert_array_equal(got.x0, np.where(mask, own.x0, known))
  np.testing.assert_array_equal(np.where(mask, got.eps, 0), np.where(mask, own.eps, 0))
  np.testing.assert_allclose(level.alpha * got.x0 + level.sigma * got.eps, x, atol=1e-6)


def test_a_mask_that_is_nearly_all_white_or_black_is_noted(learned, files, tmp_path):
  run, _ = learned
  of_masks = lambda **options: [note for note in inputs(run, files, **options).notes if note.startswith('config.edit')]
  assert of_masks() == []
  for share, number in ((.96, 245), (.004, 1)):
    mask = np.zeros(256, np.uint8)
    mask[:number] = 255
    Image.fromarray(mask.reshape(16, 16)).save(tmp_path / 'mask.png')
    note, = of_masks(mask=str(tmp_path / 'mask.png'))
    assert f'{100 * number / 256:.1f} % of it is white' in note and 'invert' in note and '\n' not in note


def test_outpainting_goes_to_what_has_learned_to_paint(learned, files):
  run, weights = learned
  asked = inputs(run, files, task='outpaint', mask='', image=files['small'], repeats=1)
  np.testing.assert_array_equal(edits.OPERATIONS['outpaint'](run, weights, asked).images,
                                edits.inpaint(run, weights, asked).images)
  repainted = edits.repaint(run, weights, asked)
  assert np.any(repainted.images != edits.inpaint(run, weights, asked).images)


def test_a_start_that_does_not_exist_is_refused():
  c = config('inpaint(task=text_to_image)')
  c.init_from = 'runs/nowhere'
  with pytest.raises(InputError, match='config.init_from=.runs/nowhere.*no checkpoint'):
    fitted_of(c)
