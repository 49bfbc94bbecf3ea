"""--mode=evaluate as a user meets it."""
import json

import numpy as np
from PIL import Image

from diffusion.evaluation.metrics import record
from diffusion.system.log import read_metrics
from tests.conftest import COSINE
from tests.test_main import refused

DATA = '--config.data=sprites(size=16, n=256, heldout=64)'
SAMPLES = {'fd_infinity', 'fd', 'kid', 'precision', 'recall', 'density', 'coverage', 'sliced_wasserstein', 'diversity',
           'inception_score', 'class_accuracy', 'copies', 'authenticity'}


def test_an_evaluation_measures_its_parts_and_records_how(trained, command, tmp_path):
  options = ('--mode=evaluate', f'--workdir={trained}', DATA, f'--config.evaluate.folder={tmp_path / "e"}',
             '--config.evaluate.parts=loss, samples, bound', '--config.evaluate.features=own(5)')
  done = command(*options)
  assert done.returncode == 0, done.stderr
  made = record.read(tmp_path / 'e' / 'evaluation.json')
  assert set(made['metrics']) == SAMPLES | {'heldout_error', 'bits_bound'}
  assert all(m['n'] == 16 for name, m in made['metrics'].items() if name in SAMPLES)
  assert SAMPLES - {'copies', 'authenticity'} == set(made['heldout'])
  assert all(made['heldout'][name]['n'] == made['metrics'][name]['n'] for name in made['heldout'])
  assert made['metrics'].pop('copies')['value'] is None  # 64 held-out images tell nothing of one in a hundred
  assert all(m['low'] < m['high'] for m in made['metrics'].values())
  assert made['heldout']['fd_infinity']['value'] < made['metrics']['fd_infinity']['value']  # after eight steps
  assert 'singular' in made['notes'][0] and made['notes'][0] in done.stdout  # 16 samples of 64 features
  assert made['subject']['evaluations'] == 4 and made['subject']['network_calls'] == 8
  assert len(made['protocol']['samples']['extractor_hash']) == len(made['subject']['weights_hash']) == 16
  assert '| fd_infinity | lower |' in (tmp_path / 'e' / 'evaluation.md').read_text() and 'log-SNR' in done.stdout
  with np.load(tmp_path / 'e' / 'samples.npz') as arrays:
    assert len(arrays['images']) == 16
  for name in ('memorisation', 'samples', 'heldout', 'bits'):
    with Image.open(tmp_path / 'e' / f'{name}.png') as page:
      assert page.size[0] > 300

  before = (tmp_path / 'e' / 'evaluation.json').read_bytes()
  again = command(*options)
  assert again.returncode == 0 and f'{tmp_path / "e" / "evaluation.json"} exists' in again.stdout
  refused(command(*options, '--config.evaluate.num_samples=17'), 'other settings', 'evaluate.folder')
  assert (tmp_path / 'e' / 'evaluation.json').read_bytes() == before


def test_a_run_can_follow_its_distance_and_end_with_an_evaluation(command, tmp_path):
  done = command(COSINE, DATA, f'--workdir={tmp_path}', '--config.evaluate.every=4', '--config.evaluate.at_end=True',
                 '--config.evaluate.parts=samples', '--config.evaluate.features=own(5)')
  assert done.returncode == 0, done.stderr
  lines = read_metrics(tmp_path / 'metrics.jsonl')
  assert [line['step'] for line in lines if 'fd_infinity' in line] == [4, 8] and lines[-1]['fd_infinity_error'] > 0
  [folder] = (tmp_path / 'evaluations').iterdir()
  assert set(json.loads((folder / 'evaluation.json').read_text())['metrics']) == SAMPLES


def test_mistakes_in_evaluation_are_one_line(trained, command):
  evaluate = lambda *words: command('--mode=evaluate', f'--workdir={trained}', *words)
  refused(evaluate('--config.evaluate.parts=likeness'), 'likeness', 'samples')
  refused(evaluate('--config.evaluate.features=inception(/absent.safetensors)'), '/absent.safetensors', '6726825d')
  refused(evaluate('--config.evaluate.features=owl'), "did you mean 'own'")
  refused(evaluate('--config.evaluate.num_samples=2'), 'at least 16')
