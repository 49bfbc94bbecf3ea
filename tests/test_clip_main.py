"""CLIP from the command line: train, evaluate, guide another model, judge it; one clear line for every mistake."""
import json

import numpy as np
import pytest

from tests.test_main import refused, ROOT


@pytest.fixture(scope='module')
def folder(command, tmp_path_factory):
  """A folder with the work directories clip and model, of a few steps."""
  folder = tmp_path_factory.mktemp('clip')
  done = command(f'--config={ROOT}/configs/clip.py:tiny', '--workdir=clip', '--config.grad_accumulation=2', cwd=folder)
  assert done.returncode == 0 and 'clip_guidance(clip, 50)' in done.stdout, done.stderr
  done = command(f'--config={ROOT}/configs/text_to_image.py:tiny', '--workdir=model', '--config.sample_every=100',
                 cwd=folder)
  assert done.returncode == 0, done.stderr
  return folder


def evaluation(folder, run):
  return json.loads((sorted((folder / run / 'evaluations').iterdir())[-1] / 'evaluation.json').read_text())


def test_a_clip_finds_and_classifies_and_draws_nothing(folder, command):
  done = command('--mode=evaluate', '--workdir=clip', cwd=folder)
  assert done.returncode == 0, done.stderr
  made = evaluation(folder, 'clip')
  assert set(made['metrics']) == {'heldout_error', 'recall_text_1', 'recall_text_5', 'recall_image_1', 'recall_image_5',
                                  'zero_shot', 'zero_shot_mixture'}
  assert made['protocol']['recall_text_1']['candidates'] == 500 and made['protocol']['zero_shot']['classes'] == 60
  refused(command('--mode=sample', '--workdir=clip', cwd=folder), 'draws nothing')


def test_it_guides_and_another_one_judges(folder, command):
  guide = '--config.guide=cfg(2) | clip_guidance(clip, 50)'
  done = command('--mode=sample', '--workdir=model', '--prompt=a red dragon', guide, '--config.sample.num_samples=2',
                 cwd=folder)
  assert done.returncode == 0, done.stderr
  judged = ('--mode=evaluate', '--workdir=model', '--config.evaluate.parts=clip_score', '--config.evaluate.clip=clip')
  refused(command(*judged, guide, cwd=folder), 'is the CLIP that guides the samples', 'config.seed')
  done = command(*judged, cwd=folder)
  assert done.returncode == 0, done.stderr
  made = evaluation(folder, 'model')
  assert np.isfinite(made['metrics']['clip_score']['value']) and len(made['protocol']['clip_score']['clip_hash']) == 32
  refused(command(*judged[:-1], cwd=folder), 'config.evaluate.clip names no CLIP')
  refused(command(*judged[:-1], '--config.evaluate.clip=model', cwd=folder), 'configs/clip.py', 'objective denoising')


def test_mistakes_are_named_before_anything_is_trained(command, tmp_path):
  recipe = f'--config={ROOT}/configs/clip.py:tiny'
  refused(command(recipe, '--config.batch=1', '--workdir=a', cwd=tmp_path), 'config.batch=1')
  refused(command(recipe, '--config.task=text_to_image', '--workdir=a', cwd=tmp_path), "config.task='pairs'")
  refused(command(recipe, '--config.net=unet', '--workdir=a', cwd=tmp_path), 'belong together')
  refused(command(recipe, '--config.evaluate.templates=a thing', '--workdir=a', cwd=tmp_path), 'not one {}')
  images = np.zeros((64, 16, 16, 3), np.uint8)
  np.savez(tmp_path / 'same.npz', images=images, captions=np.array(['a hero'] * 64))
  same = f'--config.data=npz({tmp_path}/same.npz, heldout=0)'
  refused(command(recipe, same, '--workdir=a', cwd=tmp_path), 'captions are')
