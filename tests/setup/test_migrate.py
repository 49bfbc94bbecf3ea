"""Configs of earlier versions: every renamed or merged key finds its place, and is answered with its new name."""
import pytest

from diffusion.setup import guide, migrate
from diffusion.setup.config import default, filled
from diffusion.setup.specs import parse
from experiments.sweep.trials import flat

OLD = dict(  # as a version before the renaming stored it, away from its defaults
  seed=3, draw='uniform', weight='p2', error='mae', noise='plain', variance='fixed', uncertainty=7, clip_norm=2.,
  ema=.5,
  averages='power(.1)', accumulate=2, workers=1, save_failure='go on', clip=False, heldout_every=5, heldout_number=6,
  keep=9, decay='constant', warmup=12, beta2=.9, weight_decay=.25, guidance=3., 
  guide='cfg(lo=-3, hi=4) | rescale(.7)', negative='food',
  sample=dict(number=11, mix='a', weights='raw', bad='', classifier='', seed=5),
  edit=dict(picture='p', second='s', number=2, source='c', jump=3),
  evaluate=dict(what='loss', number=21, curve_number=22, likelihood_number=23, at_end=True))
NEW = {
  'seed': 3, 'timesteps': 'uniform', 'loss_weight': 'p2', 'loss_type': 'mae', 'noise_type': 'gaussian',
  'logvar_channels': 7, 'grad_clip': 2., 'ema_decay': .5, 'extra_emas': 'power(.1)', 'grad_accumulation': 2,
  'data_workers': 1, 'on_save_error': 'continue', 'clip_x0': False, 'val_every': 5, 'val_samples': 6, 'keep_last': 9,
  'sample.num_samples': 11, 'sample.class_mix': 'a', 'sample.params': 'raw', 'sample.seed': 5, 'edit.image': 'p',
  'edit.target': 's', 'edit.num_samples': 2, 'edit.source_class': 'c', 'edit.jump': 3, 'evaluate.parts': 'loss',
  'evaluate.num_samples': 21, 'evaluate.curve_samples': 22, 'evaluate.likelihood_samples': 23, 'evaluate.at_end': True}


def test_a_stored_config_of_an_earlier_version_keeps_every_value():
  config = flat(filled(OLD))
  assert {key: config[f'config.{key}'] for key in NEW} == NEW
  assert parse(config['config.optimizer']) == ('adamw', [], dict(b2=.9, weight_decay=.25))
  assert parse(config['config.lr_schedule']) == ('constant', [], dict(warmup=12))
  assert set(config) == set(flat(default()))  # no old key is carried along


def test_a_config_of_this_version_is_left_alone():
  config = default()
  assert filled(config.to_dict()) == config


@pytest.mark.parametrize('old, names, scale, negative, model', [
  (dict(guidance=2., guide='cfg'), ('cfg',), 2, '', ''),
  (dict(guidance=3., guide='cfg(lo=-3) | rescale(.7)', negative='food'), ('cfg', 'rescale'), 3, 'food', ''),
  (dict(guidance=2., guide='apg(eta=.5)'), ('apg',), 2, '', ''),
  (dict(guidance=4., guide='cfg(hi=2)', sample={'bad': 'runs/x@600'}), ('autoguidance',), 4, '', 'runs/x@600'),
  (dict(guidance=5., guide='classifier', sample={'classifier': 'runs/c'}), ('classifier',), 1, '', 'runs/c'),
])
def test_guidance_scales_and_models_move_into_the_stack(old, names, scale, negative, model):
  made = guide.parse(migrate.migrated(old)['guide'])
  start = made.start
  assert made.names == names and made.model == model
  assert start is None or (start.scale, start.negative) == (scale, negative)


def test_every_old_key_is_answered_with_a_key_that_exists():
  names = flat(default())
  for old in (*migrate.RENAMED, *migrate.MERGED):
    for name in (old, f'config.{old}', old.rpartition('.')[2]):
      new = migrate.answer(name).split('config.')[2].split(',')[0].split()[0]
      assert f'config.{new}' in names, name
    assert f'config.{old}' not in names
  assert migrate.answer('stepz') == migrate.answer('ema_decay') == ''
