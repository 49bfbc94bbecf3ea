"""Folders with something wrong: one line that names it."""
import json
import shutil
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffusion.errors import InputError
from diffusion.interop import folder as folders, models, pipelines
from tests.interop.test_pipelines import FIXTURES


@pytest.fixture
def folder(tmp_path):
  """A shipped pipeline."""
  with zipfile.ZipFile(FIXTURES / 'StableDiffusionPipeline.zip') as file:
    file.extractall(tmp_path / 'folder')
  return tmp_path / 'folder'


def changed(path, **fields):
  config = json.loads(path.read_text()) | fields
  path.write_text(json.dumps({key: value for key, value in config.items() if value != 'absent'}))


def refused(part, message):
  with pytest.raises(InputError, match=message) as caught:
    models.read(part)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('part, fields, message', [
  ('unet', dict(cross_attention_dim=12), r'transformer_blocks.0.attn2.to_k.weight \[4, 8\] in the file, '
   r'\[4, 12\] by the config.*look at cross_attention_dim'),
  ('unet', dict(layers_per_block=2), r'resnets.1.*is missing.*look at.*layers_per_block'),
  ('unet', dict(transformer_layers_per_block=2), r'look at transformer_layers_per_block'),
  ('unet', dict(in_channels=9), r'conv_in \(1\): weight \[4, 4, 3, 3\] in the file, \[4, 9, 3, 3\] by.*'
   'look at in_channels'),
  ('unet', dict(class_embed_type='timestep'), r'class_embedding.*missing.*look at class_embed_type'),
  ('unet', dict(block_out_channels=[4, 16]), r'look at.*block_out_channels'),
  ('unet', dict(attention_head_dim=[2, 2, 2]), r'attention_head_dim=\(2, 2, 2\): expected 2 values'),
  ('unet', dict(attention_head_dim=3), '3 heads do not divide 4 channels'),
  ('unet', dict(norm_num_groups=3), 'norm_num_groups=3 does not divide'),
  ('unet', dict(addition_embed_type='image'), "addition_embed_type='image' is not offered"),
  ('unet', dict(down_block_types=['SkipDownBlock2D', 'DownBlock2D']), 'SkipDownBlock2D'),
  ('unet', dict(sharpness=3), 'field sharpness=3 has no meaning here'),
  ('unet', dict(_diffusers_version='2.0.0'), 'newer'),
  ('unet', dict(_class_name='UNet3DModel'), "unknown 'UNet3DModel'"),
  ('unet', dict(block_out_channels='wide'), "block_out_channels='wide': expected a number, or a list"),
  ('unet', dict(cross_attention_dim='x'), "cross_attention_dim='x': expected a number"),
  ('unet', dict(flip_sin_to_cos='yes'), "flip_sin_to_cos='yes': expected true or false"),
  ('unet', dict(norm_num_groups=0), 'make no network.*norm_num_groups=0'),
  ('unet', dict(block_out_channels=[]), r'make no network.*block_out_channels=\(\)'),
  ('unet', dict(in_channels='a'), "make no network.*in_channels='a'"),
  ('vae', dict(scaling_factor='a'), "scaling_factor='a': expected a number"),
  ('vae', dict(latent_channels=8), r'look at.*latent_channels'),
  ('vae', dict(use_quant_conv=False), r'quant_conv.*is not expected.*look at use_quant_conv'),
  ('vae', dict(latents_mean=[1., 2.]), 'latents_mean'),
  ('text_encoder', dict(num_hidden_layers=3), r'missing.*look at.*num_hidden_layers'),
  ('text_encoder', dict(vocab_size=10), r'look at vocab_size'),
])
def test_a_config_that_does_not_fit_is_answered_with_the_field(folder, part, fields, message):
  changed(folder / part / 'config.json', **fields)
  refused(folder / part, message)


def weights_of(folder):
  return folder / 'unet' / 'diffusion_pytorch_model.safetensors'


def test_weights_that_cannot_be_read(folder):
  path, unet = weights_of(folder), folder / 'unet'
  whole, tensors = path.read_bytes(), load_file(path)
  path.write_bytes(whole[:-100])
  refused(unet, 'not a complete safetensors file')
  path.write_bytes(whole[:20])
  refused(unet, 'not a complete safetensors file')
  save_file(tensors | {'conv_in.bias': np.arange(4)}, path)
  assert models.read(unet).params['conv_in.bias'].tolist() == [0, 1, 2, 3]
  save_file(tensors | {'conv_in.bias': np.zeros(4, np.uint8)}, path)
  refused(unet, 'conv_in.bias is of type U8')
  save_file(tensors | {'conv_in.bias': np.float32([0, np.inf, np.nan, 1])}, path)
  refused(unet, '2 of the 4 numbers of conv_in.bias are NaN or infinite')
  save_file(tensors | {'conv_in.bias': np.float64([0, 1e300, 0, 1])}, path)
  refused(unet, '1 of the 4 numbers of conv_in.bias')
  save_file({key: a for key, a in tensors.items() if key != 'conv_in.bias'}, path)
  refused(unet, r'1 tensors do not fit config.json: conv_in \(1\): bias \[4\] is missing')
  path.rename(unet / 'diffusion_pytorch_model.bin')
  refused(unet, 'a pickle, which could run code.*convert_weights')
  (unet / 'diffusion_pytorch_model.bin').unlink()
  refused(unet, 'no weights of variant')
  (unet / 'config.json').write_text('[]')
  refused(unet, 'expected a JSON object')
  (unet / 'config.json').unlink()
  refused(unet, 'cannot be read')


def test_shards(folder):
  unet, found = folder / 'unet', models.read(folder / 'unet')
  weights_of(folder).unlink()
  tensors = {name: np.asarray(a) for name, a in found.params.items()}
  folders.write(unet, found.config, tensors, most=20_000)
  shards = sorted(unet.glob('*-of-*'))
  assert len(shards) > 2 and all(shard.stat().st_size < 30_000 for shard in shards)
  again = models.read(unet)
  assert all(np.array_equal(a, again.params[name]) for name, a in tensors.items())
  kept = shards[1].read_bytes()
  shards[1].unlink()
  refused(unet, f'lacks the shard {shards[1].name}')
  shutil.copy(shards[0], shards[1])
  refused(unet, r'lacks .* that its index names')
  shards[1].write_bytes(kept[:len(kept) // 2])
  refused(unet, 'not a complete safetensors file')


def test_pipelines_that_are_not_whole(folder):
  def refused(message):
    with pytest.raises(InputError, match=message):
      pipelines.settings(folder)
  changed(folder / 'scheduler' / 'scheduler_config.json', _class_name='LCMScheduler')
  refused("unknown 'LCMScheduler'")
  changed(folder / 'model_index.json', _class_name='FluxPipeline')
  refused("unknown 'FluxPipeline'")
  changed(folder / 'model_index.json', _class_name='StableDiffusionPipeline', _diffusers_version='1.0')
  refused('newer')
  changed(folder / 'model_index.json', _class_name=['StableDiffusionPipeline'], _diffusers_version='0.30')
  refused(r"unknown .*StableDiffusionPipeline")
  changed(folder / 'model_index.json', _class_name='StableDiffusionPipeline')
  shutil.rmtree(folder / 'vae')
  refused('lacks the folder vae')
  (folder / 'model_index.json').unlink()
  refused('no model_index.json')


def test_a_size_that_is_none(folder):
  changed(folder / 'unet' / 'config.json', sample_size=0)
  with pytest.raises(InputError, match='sample_size=0: expected a whole number of at least 1'):
    pipelines.settings(folder)


def test_names_of_classes_that_are_no_table(folder):
  with zipfile.ZipFile(FIXTURES / 'DiTPipeline.zip') as file:
    file.extractall(folder / 'dit')
  changed(folder / 'dit' / 'model_index.json', id2label=['a', 'b'])
  with pytest.raises(InputError, match='id2label is no object'):
    pipelines.facts(folder / 'dit')
