"""DALL-E 2 through the whole program: a CLIP, both priors and a decoder are trained, chained, edited and evaluated."""
import json

import numpy as np
from PIL import Image
import pytest
from etils import epath

import diffusion
from diffusion import commands
from diffusion.errors import InputError
from tests.test_latents import recipe as recipe_of
from tests.test_main import refused

NETS = dict(clip='clip(size=8, patch=8, width=8, blocks=1, heads=1, text_width=8, text_blocks=1, text_heads=1)',
            prior_diffusion='prior(width=8, blocks=1, heads=1)', prior_ar='prior_ar(width=8, blocks=1, heads=1)',
            unclip='with_text(unet(channels=8, multipliers=(1,), blocks=1, attention=(), patch=4), width=8, blocks=1, '
                   'heads=1)')
TASKS = dict(prior_diffusion="embeddings('{}')", prior_ar="codes('{}', components=3, buckets=4, dots=4)",
             unclip="unclip('{}')")


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with the work directories clip, prior_diffusion, prior_ar and unclip, of two steps each."""
  folder = epath.Path(tmp_path_factory.mktemp('dalle2'))
  for name, net in NETS.items():
    task = dict(task=TASKS[name].format(folder / 'clip')) if name in TASKS else {}
    commands.train(recipe_of(name, net=net, **task), folder / name)
  return folder


def test_both_priors_draw_unit_vectors_on_one_interface_and_both_decode(folder):
  decoder = diffusion.load(folder / 'unclip')
  for name in ('prior_diffusion', 'prior_ar'):
    prior = diffusion.load(folder / name)
    z = diffusion.draw(prior, 5, prompt='a red dragon', seed=3)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(diffusion.draw(prior, 2, prompt='a red dragon', seed=3), z[:2])
    images = diffusion.draw([prior, decoder], 2, prompt='a red dragon', seed=3)
    assert images.shape == (2, 16, 16, 3) and images.dtype == np.uint8
  one = diffusion.load(folder / 'prior_diffusion', **{'sample.best_of': 1})
  z, best = (diffusion.draw(model, 24, prompt='a red dragon', seed=3) for model in
             (one, diffusion.load(folder / 'prior_diffusion')))
  text = one.run.task.ask(dict(prompt='a red dragon'), np.arange(1), 0).cond['text_embedding'][0]
  assert np.all(best @ text >= z @ text - 1e-5) and np.any(best @ text > z @ text + 1e-5)


def test_a_chain_is_one_command_that_names_what_does_not_fit(folder, command):
  sample = ('--mode=sample', '--prompt=a red dragon', '--config.sample.num_samples=2')
  done = command(*sample, '--chain=prior_ar, unclip grid=trailing(2)', cwd=folder)
  assert done.returncode == 0, done.stderr
  made = sorted((folder / 'prior_ar' / 'samples').iterdir())[-1]
  assert (made / 'part_2' / 'grid.png').exists()
  with np.load(made / 'part_1' / 'samples.npz') as z, np.load(made / 'part_2' / 'samples.npz') as images:
    np.testing.assert_allclose(images['embedding'], z['embedding'] * 8 ** .5, rtol=1e-5)
  refused(command(*sample, '--chain=unclip, prior_ar', cwd=folder), 'model 2 of the chain takes prompt')
  refused(command(*sample, '--chain=prior_ar', cwd=folder), 'expected two or more work directories')
  refused(command(*sample, '--chain=prior_ar, unclip', '--workdir=unclip', cwd=folder), 'without --workdir')


def edited(folder, image, task, **options):
  c = diffusion.load(folder / 'unclip').run.config
  c.edit.update(dict(task=task, image=str(image), num_samples=3) | options)
  commands.edit(c, folder / 'unclip')
  with np.load(sorted((folder / 'unclip' / 'edits').iterdir())[-1] / 'samples.npz') as made:
    return dict(made)


@pytest.fixture(scope='module')
def image(tmp_path_factory):
  path = tmp_path_factory.mktemp('images') / 'image.png'
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(path)
  return path


def test_no_text_difference_no_noise_and_the_end_of_an_interpolation_are_the_reconstruction(folder, image, tmp_path):
  again = edited(folder, image, 'invert')['images'][0]
  turned = edited(folder, image, 'text_difference', prompt='a red dragon', strength=.5)
  same = lambda a: np.testing.assert_allclose(a.astype(int), again, atol=1)  # batches of another size round otherwise
  same(turned['images'][0])
  assert np.any(turned['embedding'][-1] != turned['embedding'][0])
  still = edited(folder, image, 'variations', strength=0.)['images']
  assert still.shape == (3, 16, 16, 3)
  other = tmp_path / 'other.png'
  Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(other)
  path = edited(folder, image, 'interpolate', target=str(other))
  same(path['images'][0])
  strip = edited(folder, image, 'truncate')
  np.testing.assert_allclose(strip['embedding'][-1], turned['embedding'][0], atol=1e-5)
  assert len(strip['images']) == 3


def test_what_an_edit_lacks_is_said_in_one_line(folder, image, tmp_path):
  with pytest.raises(InputError, match='leads to one text: give --prompt=TEXT'):
    edited(folder, image, 'text_difference')
  large = tmp_path / 'large.png'
  Image.fromarray(np.zeros((20, 16, 3), np.uint8)).save(large)
  with pytest.raises(InputError, match=r'is 20x16 .*takes 16x16; crop it, or set --config.edit.resize=True'):
    edited(folder, large, 'variations')


def test_priors_are_measured_beside_simpler_rules(folder):
  for name, metric in (('prior_diffusion', 'prior_distance'), ('prior_ar', 'code_bits')):
    c = diffusion.load(folder / name).run.config
    c.evaluate.parts = 'prior'
    commands.evaluate(c, folder / name)
    [place] = (folder / name / 'evaluations').iterdir()
    made = json.loads((place / 'evaluation.json').read_text())
    assert {metric, 'regression_distance', 'nearest_distance', 'text_distance', 'prior_recall'} <= set(made['metrics'])
    assert '| regression |' in (place / 'evaluation.md').read_text()


def test_a_decoder_is_measured_with_embeddings_of_images_texts_and_priors(folder):
  c = diffusion.load(folder / 'unclip', grid='trailing(2)').run.config
  c.evaluate.update(dict(parts='decoder', prior=f"{folder / 'prior_ar'}"))
  commands.evaluate(c, folder / 'unclip')
  [place] = (folder / 'unclip' / 'evaluations').iterdir()
  made = json.loads((place / 'evaluation.json').read_text())
  assert {'image_kind', 'text_kind', 'inversion_psnr', 'variety'} <= set(made['metrics'])
  assert str(folder / 'prior_ar') in made['details']['decoder'] and (place / 'decoded.png').exists()
