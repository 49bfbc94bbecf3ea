"""The command line as a user meets it: train, resume, kill, sample, evaluate, and one clear line for every mistake."""
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion.system.checkpoint import open_checkpoints
from diffusion.system.log import read_metrics
from tests.conftest import COSINE

ROOT = Path(__file__).parent.parent
# For tests of what happens around the network.
SMALL = '--config.net=unet(channels=16, multipliers=(1,), blocks=1, attention=(), patch=2)'
CONSTANT = '--config.lr_schedule=constant(warmup=2)'  # one compiled step for any number of steps
FASHION = ROOT.parent / 'shared' / 'data' / 'tfds'


def refused(done, *words):
  """The command failed with one line that says all of the words, and no traceback."""
  assert done.returncode == 2, done.stdout + done.stderr
  lines = [line for line in done.stderr.splitlines() if line]
  assert len(lines) == 1 and lines[0].startswith('error: '), done.stderr
  for word in words:
    assert word in lines[0], lines[0]


def checkpoint_sums(workdir):
  """The checksums of every array in the newest checkpoint."""
  step = open_checkpoints(workdir / 'checkpoints').steps()[-1]
  texts = [path.read_text() for path in (workdir / 'checkpoints' / str(step) / 'meta').rglob('*') if path.is_file()]
  [record] = [json.loads(text) for text in texts if '"checksums"' in text]
  return step, record['checksums']


def test_the_main_job_leaves_pictures_a_checkpoint_and_logs_and_says_where(main_job):
  workdir, printed = main_job
  [samples] = (workdir / 'samples').iterdir()
  for path in (samples / 'grid.png', samples / 'film.png', samples / 'samples.npz', workdir / 'data.png'):
    assert path.exists() and str(path) in printed
  with np.load(samples / 'samples.npz', allow_pickle=False) as arrays:
    assert arrays['images'].shape == (12, 16, 16, 3) and arrays['images'].dtype == np.uint8
    assert arrays['labels'].argmax(1).tolist() == [0, 1, 2, 3, 4, 5] * 2
    assert len(np.unique(arrays['images'].reshape(12, -1), axis=0)) == 12
  assert str(workdir / 'checkpoints' / '8') in printed and 'tensorboard --logdir' in printed
  assert '--mode=sample' in printed and 'sprites' in printed and '16x16x3' in printed
  lines = read_metrics(workdir / 'metrics.jsonl')
  assert [line['step'] for line in lines] == [4, 8]
  for name in ('loss', 'grad_norm', 'learning_rate', 'ema_decay', 'images_per_second', 'heldout_loss'):
    assert all(np.isfinite(line[name]) for line in lines), name
  assert any(name.startswith('loss_by_logsnr/') for name in lines[0])
  assert list((workdir / 'tensorboard').iterdir())


def test_the_same_command_again_keeps_everything_and_only_samples(trained, command):
  workdir = trained
  before = {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file() and 'tensorboard' not in str(path)}
  done = command(COSINE, f'--workdir={workdir}')
  assert done.returncode == 0 and 'complete after 8 steps' in done.stdout
  assert all(path.read_bytes() == content for path, content in before.items())
  first, second = sorted((workdir / 'samples').iterdir())[:2]
  assert (first / 'samples.npz').read_bytes() == (second / 'samples.npz').read_bytes()


def test_sampling_needs_only_the_work_directory_and_offers_every_picture(trained, command):
  workdir = trained
  done = command('--mode=sample', f'--workdir={workdir}', '--config.sample.num_samples=5',
                 '--config.sample.classes=food,hero', '--config.guide=cfg(2)', '--config.sampler=ddim(eta=0.5)',
                 '--config.grid=leading(3)', '--config.sample.seed=3',
                 '--config.sample.params=raw', '--config.sample.show=film,gif,noising,interpolation')
  assert done.returncode == 0, done.stderr
  folder = max((workdir / 'samples').iterdir())
  names = {'grid.png', 'film.png', 'denoising.gif', 'noising.png', 'interpolation.png', 'samples.npz', 'record.json'}
  assert names == \
      {path.name for path in folder.iterdir()}
  with np.load(folder / 'samples.npz') as arrays:
    assert [arrays['classes'][i] for i in arrays['labels'].argmax(1)] == ['food', 'hero'] * 2 + ['food']
  record = json.loads((folder / 'record.json').read_text())
  assert (record['config']['guide'], record['config']['sampler'], record['step']) == ('cfg(2)', 'ddim(eta=0.5)', 8)
  with Image.open(folder / 'denoising.gif') as gif:
    assert gif.n_frames == 4  # the noise and three steps


def test_a_mix_of_two_contexts_is_drawn_with_its_strip(trained, command):
  workdir = trained
  done = command('--mode=sample', f'--workdir={workdir}', '--config.sample.class_mix=0.7 * hero + 0.3 * food',
                 '--config.sample.num_samples=4',
                 '--config.sample.show=')
  assert done.returncode == 0, done.stderr
  folder = max((workdir / 'samples').iterdir())
  with np.load(folder / 'samples.npz') as arrays:
    np.testing.assert_allclose(arrays['labels'], np.tile([.7, 0, .3, 0, 0, 0], (4, 1)))
  assert (folder / 'mix.png').exists() and not (folder / 'film.png').exists()


def test_evaluation_prints_the_heldout_loss_by_log_snr_and_keeps_it(trained, command):
  workdir = trained
  done = command('--mode=evaluate', f'--workdir={workdir}', '--config.evaluate.parts=loss',
                 '--config.data=sprites(size=16, n=256, heldout=64)')
  assert done.returncode == 0 and 'log-SNR' in done.stdout, done.stderr
  [folder] = (workdir / 'evaluations').iterdir()
  result = json.loads((folder / 'heldout.json').read_text())
  weighted = sum(b['mean'] * b['count'] for b in result['bins']) / sum(b['count'] for b in result['bins'])
  assert weighted == pytest.approx(result['loss'], rel=1e-5) and 0 < result['loss_error'] < result['loss']
  with Image.open(folder / 'heldout.png') as plot:
    assert plot.size[0] > 300


def test_kill_minus_nine_loses_at_most_the_steps_since_the_last_checkpoint_and_changes_no_bit(command, tmp_path):
  options = (COSINE, SMALL, CONSTANT, '--config.steps=24', '--config.sample_every=100',
             '--config.sample.num_samples=1', '--config.sample.show=')
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  assert command(*options, f'--workdir={whole}').returncode == 0
  process = command(*options, f'--workdir={killed}', start=True)
  while not (killed / 'checkpoints' / '8').exists() and process.poll() is None:
    time.sleep(.02)
  process.kill()
  process.communicate()
  again = command(*options, f'--workdir={killed}')
  assert again.returncode == 0 and 'steps 0 to' not in again.stdout, again.stderr
  assert checkpoint_sums(killed) == checkpoint_sums(whole)
  steps = [line['step'] for line in read_metrics(killed / 'metrics.jsonl')]
  assert steps == [4, 8, 12, 16, 20, 24]


def test_a_termination_request_saves_and_says_how_to_go_on(command, tmp_path):
  process = command(COSINE, SMALL, CONSTANT, '--config.steps=100000', '--config.save_every=100000',
                    '--config.sample_every=100000',
                    '--config.val_every=100000', f'--workdir={tmp_path / "run"}', start=True)
  while not (tmp_path / 'run' / 'metrics.jsonl').exists() or not read_metrics(tmp_path / 'run' / 'metrics.jsonl'):
    assert process.poll() is None
    time.sleep(.1)
  process.send_signal(signal.SIGTERM)
  printed, _ = process.communicate(timeout=60)
  assert process.returncode == 0 and 'the same command resumes' in printed
  assert len(open_checkpoints(tmp_path / 'run' / 'checkpoints').steps()) == 1


def test_mistakes_are_one_line_before_any_work(command, trained, tmp_path):
  workdir = trained
  run = lambda *arguments: command(COSINE, f'--workdir={tmp_path / "new"}', *arguments)
  refused(run('--config.stepz=3'), "'stepz'", '"steps"')
  refused(run('--config.steps=many'), 'steps', 'many')
  refused(run('--config.minutes=5', '--config.steps=10'), 'give one of them')
  refused(run('--config.sampler=dimm'), 'dimm', "did you mean 'ddim'")
  refused(run('--config.batch=15'), 'batch=15', '2 devices')
  refused(run('--config.net=unet(channels=16, multipliers=(1,1,1,1,1,1))'), '16', '32')
  refused(run('--config.data=folder(/nowhere)'), '/nowhere')
  refused(run('--config.sample.show=flim'), 'flim', "'film'")
  refused(run('--mode=trian'), 'trian')
  refused(run('--wrkdir=x'), 'wrkdir')
  refused(command('--config=configs/cosine_ddim.py:tinny'), 'tinny', 'tiny')
  refused(command('--config=configs/nothing.py'), 'nothing.py')
  refused(command(), '--config')
  refused(command(real=True), '--config')
  refused(command('--mode=sample', f'--workdir={tmp_path / "empty"}'), 'holds no checkpoint')
  assert not (tmp_path / 'new').exists() or not list((tmp_path / 'new').rglob('*.png'))
  sample = lambda *arguments: command('--mode=sample', f'--workdir={workdir}', *arguments)
  refused(sample('--config.sample.classes=heroo'), 'heroo', "'hero'")
  refused(sample('--config.sample.class_mix=x * hero'), 'x')
  refused(sample('--config.sample.params=best'), 'best', 'ema')
  for seed in ('4294967296', '-1'):
    refused(sample(f'--config.sample.seed={seed}'), f'config.sample.seed={seed}', '4294967295')
  number = len(list((workdir / 'samples').iterdir()))
  refused(sample('--config.clip_x0=False', '--config.guide=cfg(1e38)'), '12 of 12 samples are not finite')
  assert len(list((workdir / 'samples').iterdir())) == number + 1  # what was drawn is written nevertheless
  done = command(COSINE, f'--workdir={workdir}', '--config.schedule=linear')
  refused(done, 'another model', "'linear' here, 'cosine' in the checkpoint")


def test_help_lists_the_commands(command):
  done = command('--help', real=True)
  assert (done.returncode, done.stdout) == (command('--help').returncode, command('--help').stdout)  # a fork is as good
  assert all(text in done.stdout for text in ('--mode=sample', 'configs/cosine_ddim.py', '--config.NAME=VALUE'))
