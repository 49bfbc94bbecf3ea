"""Text to image from the command line: train, ask in every way, edit, evaluate; one clear line for every mistake."""
import json
import shutil

import numpy as np
from PIL import Image
import pytest

from diffusion.system.log import read_metrics
from tests.test_main import refused, ROOT

RECIPE = f'--config={ROOT}/configs/text_to_image.py:tiny'


@pytest.fixture(scope='module')
def written(command, tmp_path_factory):
  """(a work directory of a few steps, what was printed); the module's tests add to it."""
  folder = tmp_path_factory.mktemp('text')
  done = command(RECIPE, '--workdir=run', '--config.sample_every=100', cwd=folder)
  assert done.returncode == 0, done.stderr
  return folder, done.stdout


def newest(folder, what='samples'):
  return sorted((folder / 'run' / what).iterdir())[-1]


def test_a_run_draws_captions_of_its_data_and_says_how_to_ask(written):
  folder, printed = written
  samples = newest(folder)
  prompts = (samples / 'prompts.txt').read_text().splitlines()
  assert len(set(prompts)) == len(prompts) == 12 and all(prompt.split()[0] in ('a', 'an') for prompt in prompts)
  with np.load(samples / 'samples.npz', allow_pickle=False) as arrays:
    assert arrays['images'].shape == (12, 16, 16, 3) and arrays['tokens'].shape == arrays['weights'].shape == (12, 24)
  assert '--prompt=' in printed and 'show=words' in printed
  assert all(np.isfinite(line['loss']) for line in read_metrics(folder / 'run' / 'metrics.jsonl'))


def test_prompts_are_drawn_as_asked_and_what_they_lose_is_said(written, command):
  folder, _ = written
  (folder / 'asked.txt').write_text('a green hero\n\na blue axe\n')
  done = command('--mode=sample', '--workdir=run', '--prompt=a (red:1.5) zebra', '--prompt=@asked.txt', '--prompt=none',
                 '--config.sample.num_samples=4', '--config.sample.show=words, interpolation',
                 "--config.guide=cfg(3, negative='a hero')", cwd=folder)
  assert done.returncode == 0, done.stderr
  assert "'zebra'" in done.stdout
  samples = newest(folder)
  assert (samples / 'prompts.txt').read_text() == 'a (red:1.5) zebra\na green hero\na blue axe\n\n'
  with Image.open(samples / 'words.png') as page:
    assert page.size[0] > 300
  assert (samples / 'interpolation.png').exists()


def test_a_mix_of_two_texts_is_drawn_with_the_way_between(written, command):
  folder, _ = written
  done = command('--mode=sample', '--workdir=run', '--config.sample.num_samples=2',
                 '--config.sample.ask=prompt_mix: 0.5 * a red dragon + 0.5 * a green hero', cwd=folder)
  assert done.returncode == 0, done.stderr
  assert (newest(folder) / 'mix.png').exists()


@pytest.mark.parametrize('task', ('repaint', 'interpolate'))
def test_an_image_is_edited_by_a_prompt(written, command, task):
  folder, _ = written
  image = np.full((16, 16, 3), 255, np.uint8)
  image[4:12, 4:12] = 30, 90, 200
  mask = np.zeros((16, 16), np.uint8)
  mask[:8] = 255
  Image.fromarray(image).save(folder / 'image.png')
  Image.fromarray(image[::-1, :, ::-1].copy()).save(folder / 'target.png')
  Image.fromarray(mask).save(folder / 'mask.png')
  second = dict(repaint='--config.edit.mask=mask.png', interpolate='--config.edit.target=target.png')[task]
  done = command('--mode=edit', '--workdir=run', f'--config.edit.task={task}', '--config.edit.image=image.png', second,
                 '--prompt=a red hero', '--prompt=a blue axe', '--config.edit.num_samples=2', cwd=folder)
  assert done.returncode == 0, done.stderr
  labels = json.loads((newest(folder, 'edits') / 'record.json').read_text())['labels']
  assert labels[2:] == (['a red hero', 'a blue axe'] if task == 'repaint' else ['0.00', '1.00'])


def test_it_is_evaluated_by_the_judge_beside_all_that_fits_images(written, command):
  folder, _ = written
  done = command('--mode=evaluate', '--workdir=run', '--config.evaluate.parts=text, samples', cwd=folder)
  assert done.returncode == 0, done.stderr
  made = json.loads((newest(folder, 'evaluations') / 'evaluation.json').read_text())
  assert {'caption_class', 'fd_infinity', 'class_accuracy'} <= set(made['metrics'])
  assert (newest(folder, 'evaluations') / 'captions.png').exists()


def test_mistakes_are_one_line_and_write_nothing(written, command, main_job, tmp_path):
  folder, _ = written
  (folder / 'empty.txt').write_text('\n \n')
  sample = lambda *words: command('--mode=sample', '--workdir=run', *words, cwd=folder)
  before = len(list((folder / 'run' / 'samples').iterdir()))
  refused(sample('--prompt=@empty.txt'), 'holds no prompt', 'empty.txt')
  refused(sample('--prompt=@missing.txt'), '--prompt=@missing.txt', 'one prompt on each line')
  refused(sample('--config.sample.show=words', '--config.sample.ask=prompt_mix: 1 * a red dragon + 1 * a green hero'),
          'config.sample.show', 'prompt_mix', 'ask for a prompt')
  refused(sample('--prompt=zebra giraffe'), 'no word that occurs in the training texts')
  refused(sample('--config.sample.classes=hero'), "classes: config.task='text_to_image'", 'valid: prompt')
  refused(sample('--prompt=a (red'), 'not closed')
  refused(command('--mode=edit', '--workdir=run', '--config.edit.task=img2img', '--config.edit.image=image.png',
                  '--config.edit.classes=hero', cwd=folder), 'this model takes texts', '--prompt')
  assert len(list((folder / 'run' / 'samples').iterdir())) == before
  shutil.copytree(main_job[0], tmp_path / 'model')
  refused(command('--mode=sample', '--workdir=model', '--prompt=a hero', cwd=tmp_path), "unknown 'prompt'", 'classes')
  images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3)).astype(np.uint8)
  np.savez(tmp_path / 'plain.npz', images=images)
  refused(command(RECIPE, '--workdir=run', f'--config.data=npz({tmp_path}/plain.npz)', cwd=tmp_path),
          'it needs the column captions')
