"""U-Nets of diffusers: outputs and gradients beside the library's, and back into its folders."""
import json

import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.interop import models
from diffusion.setup.choices import make
from tests.interop.folders import normal, randomised, same_outputs_and_gradients, torch_of

SMALL = dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=8)
PLAIN = dict(SMALL, down_block_types=('DownBlock2D', 'AttnDownBlock2D'), up_block_types=('AttnUpBlock2D', 'UpBlock2D'),
             attention_head_dim=4)
CONTEXT = dict(SMALL, down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
               up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'), cross_attention_dim=12, attention_head_dim=2)
UNCONDITIONAL = dict(
  ddpm=dict(PLAIN, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1),
  classes=dict(PLAIN, num_class_embeds=3, center_input_sample=True, attention_head_dim=None, layers_per_block=2),
  scaled=dict(PLAIN, resnet_time_scale_shift='scale_shift', attn_norm_num_groups=2, mid_block_scale_factor=1.4,
              out_channels=6, act_fn='gelu', downsample_type='resnet', upsample_type='resnet'),
  resampled=dict(SMALL, down_block_types=('ResnetDownsampleBlock2D',) * 2,
                 up_block_types=('ResnetUpsampleBlock2D',) * 2, in_channels=6, add_attention=False,
                 resnet_time_scale_shift='scale_shift'))
CONDITIONAL = dict(
  sd1=CONTEXT,
  sd2=dict(CONTEXT, attention_head_dim=(2, 4), use_linear_projection=True, upcast_attention=True),
  inpainting=dict(CONTEXT, in_channels=9, only_cross_attention=(True, False)),
  sdxl=dict(CONTEXT, down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
            up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'), transformer_layers_per_block=(1, 2),
            layers_per_block=(1, 2),
            addition_embed_type='text_time', addition_time_embed_dim=4, projection_class_embeddings_input_dim=34,
            use_linear_projection=True),
  unclip=dict(CONTEXT, class_embed_type='projection', projection_class_embeddings_input_dim=5),
  upscaler=dict(CONTEXT, num_class_embeds=4, in_channels=7), timestep=dict(CONTEXT, class_embed_type='timestep'))


def saved(tmp_path, name, options, **more):
  """(their model, our Model) of a folder that the library has written."""
  torch_of()
  import diffusers
  theirs = randomised(getattr(diffusers, name)(**options))
  theirs.save_pretrained(tmp_path / 'saved', **more)
  return theirs, models.read(tmp_path / 'saved', more.get('variant', ''))


@pytest.mark.parametrize('case', UNCONDITIONAL)
def test_unconditional_networks(case, tmp_path):
  options = UNCONDITIONAL[case]
  theirs, ours = saved(tmp_path, 'UNet2DModel', options)
  import torch
  x, time, label = normal(1, 2, 8, 8, options.get('in_channels', 3)), np.array([3., 700.], np.float32), np.array([2, 0])
  classes = options.get('num_class_embeds')
  told = np.eye(classes, dtype=np.float32)[label] if classes else None
  labels = torch.tensor(label) if classes else None
  same_outputs_and_gradients(
    theirs, ours.params, lambda params, x: ours.module.apply(dict(params=params), x, time, told),
    lambda x: theirs(x, torch.tensor(time), class_labels=labels).sample, [x])
  back(tmp_path, ours, theirs)


@pytest.mark.parametrize('case', CONDITIONAL)
def test_conditional_networks(case, tmp_path):
  options = CONDITIONAL[case]
  theirs, ours = saved(tmp_path, 'UNet2DConditionModel', options)
  import torch
  size = 6 if case == 'sd1' else 8  # 6: pictures that halves do not divide
  time, C = np.array([3., 700.], np.float32), options.get('in_channels', 4)
  arrays = dict(x=normal(1, 2, size, size + 1, 4), context=normal(2, 2, 5, 12))
  if C > 4:
    arrays['image'] = normal(3, 2, size, size + 1, C - 4)
  if case == 'sdxl':
    arrays['pooled'] = normal(4, 2, 10)
  ids, label = np.abs(normal(5, 2, 6)) * 100, np.array([2, 0])
  told = dict(unclip=normal(6, 2, 5), upscaler=np.eye(4, dtype=np.float32)[label], timestep=np.float32([5, 30]))
  given = {'upscaler': torch.tensor(label)}.get(case, torch.tensor(told[case]) if case in told else None)
  names = list(arrays)

  def apply(params, x, *rest):
    cond = dict(zip(names[1:], rest)) | ({'cond': told[case]} if case in told else {})
    return ours.module.apply(dict(params=params), x, time, cond | ({'time_ids': ids} if case == 'sdxl' else {}))

  def call(x, context, *rest):
    rest = dict(zip(names[2:], rest))
    x = torch.cat([x, rest['image']], 1) if 'image' in rest else x
    added = dict(text_embeds=rest['pooled'], time_ids=torch.tensor(ids)) if case == 'sdxl' else None
    return theirs(x, torch.tensor(time), context, class_labels=given, added_cond_kwargs=added).sample
  same_outputs_and_gradients(theirs, ours.params, apply, call, list(arrays.values()))
  back(tmp_path, ours, theirs)


def back(tmp_path, ours, theirs):
  """Our folder is read by the library: equal tensors, names and config; and our string names the same network."""
  models.write(tmp_path / 'back', ours)
  again = type(theirs).from_pretrained(tmp_path / 'back', low_cpu_mem_usage=False)
  a, b = theirs.state_dict(), again.state_dict()
  assert a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)
  plain = lambda config: json.loads(json.dumps({k: v for k, v in config.items() if k[0] != '_'}))
  assert plain(theirs.config) == plain(again.config)
  assert make('net', models.spec_of(ours)) == ours.module
  made = type(theirs).from_config(models.config_of(models.KINDS[ours.kind].spec, ours.module))
  assert made.state_dict().keys() == a.keys()


def test_legacy_names_shards_and_variants(tmp_path):
  theirs, ours = saved(tmp_path, 'UNet2DModel', PLAIN)
  from safetensors.numpy import load_file, save_file
  theirs.save_pretrained(tmp_path / 'shards', max_shard_size='20KB')
  assert len(list((tmp_path / 'shards').glob('*-of-*.safetensors'))) > 2
  theirs.half().save_pretrained(tmp_path / 'half', variant='fp16')
  tensors = load_file(tmp_path / 'saved' / 'diffusion_pytorch_model.safetensors')
  old = {}
  for name, a in tensors.items():
    for new, before in (('to_q', 'query'), ('to_k', 'key'), ('to_v', 'value'), ('to_out.0', 'proj_attn')):
      if f'attentions.0.{new}.' in name:
        name, a = name.replace(new, before), a[..., None, None] if a.ndim == 2 else a
    old[name] = a
  (tmp_path / 'old').mkdir()
  (tmp_path / 'old' / 'config.json').write_text((tmp_path / 'saved' / 'config.json').read_text())
  save_file(old, tmp_path / 'old' / 'diffusion_pytorch_model.non_ema.safetensors')
  for name, variant, error in (('shards', '', 0), ('half', 'fp16', 1e-3), ('half', '', 1e-3), ('old', 'non_ema', 0)):
    again = models.read(tmp_path / name, variant)
    assert again.params.keys() == ours.params.keys()
    for key, a in again.params.items():
      np.testing.assert_allclose(a, ours.params[key], atol=error, rtol=error)
  with pytest.raises(InputError, match="no weights of variant 'ema'"):
    models.read(tmp_path / 'shards', 'ema')


# Not those of transformers, whose defaults are in config classes, and are those of one published model.
@pytest.mark.parametrize('name', [name for name, kind in models.KINDS.items() if kind.stem != 'model'])
def test_our_defaults_are_theirs(name):
  torch_of()
  import inspect
  import diffusers
  kind = models.KINDS[name]
  theirs = inspect.signature(getattr(diffusers, name).__init__).parameters
  module = kind.module()
  for key, parameter in theirs.items():
    if key == 'self' or key in kind.inert:
      continue
    here = kind.fixed.get(key) if not hasattr(module, key) else getattr(module, key)
    same = parameter.default in here if isinstance(here, tuple) and not isinstance(parameter.default, tuple) else (
      parameter.default == here)
    by_input = here is None and key in ('in_channels', 'out_channels', 'num_class_embeds', 'num_embeds_ada_norm')
    assert same or by_input, (key, parameter.default, here)
