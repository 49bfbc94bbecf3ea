"""Every recipe from the command line, in its tiny form."""
import json
import runpy
import shutil

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.setup.validate import check
from tests.test_main import FASHION, refused, ROOT
from tests.text.vocabularies import merges, write_folder

# One level less than the tiny form: recipes set everything else.
NET = '--config.net=unet(channels=16, multipliers=(1,), blocks=1, attention=(), patch=2)'


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('*.py')), ids=lambda path: path.stem)
def test_every_recipe_fits_together_at_full_size(path):
  recipe = runpy.run_path(str(path))['get_config']
  others = dict(cifar10=('pod',), imagenet64=('pod', 'quarter'), captions_discrete=('pod',), patients=('mixed',),
                restore=('sr', 'deblur', 'colour', 'mri', 'ct', 'low_dose', 'brain', 'ct_tiny', 'brain_tiny'),
                kl=('adversarial', 'pod'), vq=('pod',), latent=('pod',), upsample=('64', 'emoji', 'pod'),
                prior_diffusion=('pod',), prior_ar=('pod',), unclip=('pod',))
  for variant in ('', 'tiny', *others.get(path.stem, ())):
    check(recipe(variant))


@pytest.mark.parametrize('recipe', ['text_to_image', 'clip', 'siglip', 'noised_clip'])
def test_a_pod_of_texts_fits_together_with_a_vocabulary(recipe, tmp_path):
  folder = tmp_path / 'vocabulary'
  write_folder(folder, merges(40))
  config = runpy.run_path(str(ROOT / f'configs/{recipe}.py'))['get_config']('pod')
  with pytest.raises(InputError, match='bpe_simple_vocab_16e6.txt.gz'):
    check(config)
  config.task = f"{config.task.split('(')[0]}(tokens=clip, vocabulary='{folder}')"
  check(config)


@pytest.mark.parametrize('recipe', ['linear_ddpm', 'offset_cosine', 'sprites_course', 'fashion_mnist', 'cifar10',
                                    'learned_variance', 'own_folder', 'restore', 'denoising_ae', 'upsample'])
def test_every_recipe_runs_in_its_tiny_form(recipe, command, tmp_path):
  data = []
  if recipe == 'fashion_mnist':
    if not FASHION.exists():
      pytest.skip('the prepared Fashion-MNIST is not here')
    data = [f"--config.data=tfds(fashion_mnist, data_dir='{FASHION}', size=32, fit=pad, train='train[:2000]', "
            "test='test[:500]')"]
  if recipe in ('cifar10', 'own_folder'):  # stands in for pictures that nobody has prepared here
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    np.savez(tmp_path / 'cifar.npz', images=images, labels=np.arange(64) % 10)
    data = [f'--config.data=npz({tmp_path / "cifar.npz"})']
  recipe_file = f'--config={ROOT}/configs/{recipe}.py:tiny'
  short = ('--config.steps=4', '--config.sample_every=100')  # the page at the end draws with the same program
  done = command(recipe_file, '--workdir=run', NET, *short, *data, cwd=tmp_path)  # a relative directory
  assert done.returncode == 0, done.stderr
  assert len(list((tmp_path / 'run').glob('samples/*/grid.png'))) == 1


@pytest.mark.parametrize('recipe, files', [
  ('captions_discrete', ('samples.txt',)), ('digits_discrete', ('film.png',)), ('patients', ('table.csv',))])
def test_recipes_of_tokens_and_tables_run_and_are_evaluated(recipe, files, command, tmp_path):
  part = dict(patients='tables').get(recipe, 'nelbo')
  done = command(f'--config={ROOT}/configs/{recipe}.py:tiny', '--workdir=run', '--config.evaluate.at_end=True',
                 f'--config.evaluate.parts={part}', '--config.evaluate.num_samples=64', '--config.sample_every=100',
                 cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert all(list((tmp_path / 'run').glob(f'samples/*/{name}')) for name in ('grid.png', *files))
  made = json.loads(next((tmp_path / 'run').glob('evaluations/*/evaluation.json')).read_text())
  assert all(np.isfinite(metric['value']) for metric in made['metrics'].values()) and made['metrics']


def test_a_classifier_trains_and_draws_nothing_but_guides_another_model(command, main_job, tmp_path):
  done = command(f'--config={ROOT}/configs/noisy_classifier.py:tiny', '--workdir=judge', cwd=tmp_path)
  assert done.returncode == 0 and "--config.guide='classifier(judge, 2)'" in done.stdout, done.stderr
  refused(command('--mode=sample', '--workdir=judge', cwd=tmp_path), 'draws nothing', 'classifier(judge, 2)')
  shutil.copytree(main_job[0], tmp_path / 'model')
  done = command('--mode=sample', '--workdir=model', '--config.guide=classifier(judge, 2)', cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  record = json.loads((tmp_path / 'model/samples/002_step_8/record.json').read_text())
  assert record['config']['guide'] == 'classifier(judge, 2)'
