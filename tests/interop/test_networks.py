"""Autoencoders, CLIP's towers, DiT and the prior of unCLIP: outputs and gradients beside the libraries', and back."""
import json

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.interop import models
from tests.interop.folders import close, from_torch, normal, randomised, same_outputs_and_gradients, to_torch, torch_of

BLOCKS = dict(down_block_types=('DownEncoderBlock2D',) * 2, up_block_types=('UpDecoderBlock2D',) * 2,
              block_out_channels=(8, 16), norm_num_groups=4, latent_channels=3)
SD3 = dict(use_quant_conv=False, use_post_quant_conv=False, shift_factor=.06, scaling_factor=1.5, layers_per_block=2)
TOWER = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, projection_dim=12)
DIT = dict(num_attention_heads=2, attention_head_dim=8, num_layers=2, patch_size=2, sample_size=8, in_channels=3,
           out_channels=6, num_embeds_ada_norm=4)
PRIOR = dict(num_attention_heads=2, attention_head_dim=8, num_layers=2, embedding_dim=10, num_embeddings=5)


def saved(tmp_path, theirs):
  theirs = randomised(theirs)
  theirs.save_pretrained(tmp_path / 'saved')
  return theirs, models.read(tmp_path / 'saved')


def back(tmp_path, ours, theirs):
  """Our folder is read by the library: equal tensors and config."""
  models.write(tmp_path / 'back', ours)
  again = type(theirs).from_pretrained(tmp_path / 'back', low_cpu_mem_usage=False)
  a, b = theirs.state_dict(), again.state_dict()
  assert a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)
  assert json.loads((tmp_path / 'back' / 'config.json').read_text()) == ours.config


def of(model, **options):
  return lambda params, x: model.module.apply(dict(params=params), x, **options)


@pytest.mark.parametrize('case', [{}, SD3])
def test_autoencoder(case, tmp_path):
  torch_of()
  import diffusers
  theirs, ours = saved(tmp_path, diffusers.AutoencoderKL(**BLOCKS | case))
  same_outputs_and_gradients(theirs, ours.params, of(ours), lambda x: theirs(x).sample, [normal(1, 2, 8, 8, 3)])
  given = theirs.encode(to_torch(normal(1, 2, 8, 8, 3))).latent_dist
  mean, logvar = of(ours, part='encode')(ours.params, normal(1, 2, 8, 8, 3))
  close(mean, from_torch(given.mean), 1e-4, 'mean')
  close(logvar, from_torch(given.logvar), 1e-4, 'log variance')
  z = normal(2, 2, 4, 4, 3)
  close(of(ours, part='decode')(ours.params, z), from_torch(theirs.decode(to_torch(z)).sample), 1e-4, 'decoded')
  np.testing.assert_allclose(ours.module.unscaled(ours.module.scaled(z)), z, atol=1e-6)
  back(tmp_path, ours, theirs)


def test_vq_model(tmp_path):
  torch_of()
  import diffusers
  theirs, ours = saved(tmp_path, diffusers.VQModel(**BLOCKS, num_vq_embeddings=16, vq_embed_dim=2))
  x = normal(1, 2, 8, 8, 3)
  z = from_torch(theirs.encode(to_torch(x)).latents)
  close(of(ours, part='encode')(ours.params, x), z, 1e-4, 'encoded')
  codes, index = of(ours, part='quantise')(ours.params, z)
  _, _, (_, _, expected) = theirs.quantize(to_torch(z))
  np.testing.assert_array_equal(index.ravel(), expected)
  np.testing.assert_array_equal(codes, ours.params['quantize.embedding.weight'][index])
  close(of(ours, part='decode')(ours.params, z), from_torch(theirs.decode(to_torch(z)).sample), 1e-4, 'decoded')
  theirs.quantize.embedding.weight.requires_grad_(False)  # has no gradient in a decoded picture
  params = {name: a for name, a in ours.params.items() if not name.startswith('quantize')}
  table = {'quantize.embedding.weight': ours.params['quantize.embedding.weight']}
  same_outputs_and_gradients(theirs, params, lambda params, x: of(ours)(params | table, x),
                             lambda x: theirs(x).sample, [x])
  back(tmp_path, ours, theirs)


@pytest.mark.parametrize('case', [dict(hidden_act='quick_gelu', eos_token_id=29),
                                  dict(hidden_act='gelu', eos_token_id=2)])
@pytest.mark.parametrize('name', ['CLIPTextModel', 'CLIPTextModelWithProjection'])
def test_clip_text(name, case, tmp_path):
  torch = torch_of()
  import transformers
  config = transformers.CLIPTextConfig(**TOWER, **case, vocab_size=30, max_position_embeddings=7)
  theirs, ours = saved(tmp_path, getattr(transformers, name)(config))
  tokens = np.array([[28, 3, 4, 29, 29, 29, 29], [28, 5, 6, 7, 8, 9, 29]])
  with torch.no_grad():
    out = theirs(torch.tensor(tokens), output_hidden_states=True)
  found = of(ours)(ours.params, tokens)
  close(found.last, out.last_hidden_state.numpy(), 1e-4, 'last')
  close(found.before, out.hidden_states[-2].numpy(), 1e-4, 'before')
  if name == 'CLIPTextModel':
    close(found.pooled, out.pooler_output.numpy(), 1e-4, 'pooled')
    pick = lambda params: jnp.concatenate([found_of(params).last, found_of(params).pooled[:, None]], 1)
    found_of = lambda params: of(ours)(params, tokens)
    def call(unused):
      out = theirs(torch.tensor(tokens))
      return torch.cat([out.last_hidden_state, out.pooler_output[:, None]], 1) + 0 * unused
    same_outputs_and_gradients(theirs, ours.params, lambda params, unused: pick(params) + 0 * unused, call,
                               [np.zeros((1, 1, 1), np.float32)])
  else:
    close(found.embedded, out.text_embeds.numpy(), 1e-4, 'embedded')
  back(tmp_path, ours, theirs)
  names_of_transformers_4(tmp_path, ours)


def names_of_transformers_4(tmp_path, ours):
  """The names of published files, with the buffer that older versions wrote."""
  from safetensors.numpy import load_file, save_file
  path = tmp_path / 'back' / 'model.safetensors'
  tensors = load_file(path)
  assert 'text_model.embeddings.token_embedding.weight' in tensors
  save_file(tensors | {'text_model.embeddings.position_ids': np.arange(7)[None]}, path)
  again = models.read(tmp_path / 'back')
  assert again.params.keys() == ours.params.keys()
  assert all(np.array_equal(a, ours.params[name]) for name, a in again.params.items())


@pytest.mark.parametrize('name', ['CLIPVisionModel', 'CLIPVisionModelWithProjection'])
def test_clip_vision(name, tmp_path):
  torch_of()
  import transformers
  config = transformers.CLIPVisionConfig(**TOWER, image_size=8, patch_size=4)
  theirs, ours = saved(tmp_path, getattr(transformers, name)(config))
  part = 'pooled' if name == 'CLIPVisionModel' else 'embedded'
  there = dict(pooled='pooler_output', embedded='image_embeds')[part]
  same_outputs_and_gradients(theirs, ours.params, lambda params, x: getattr(of(ours)(params, x), part),
                             lambda x: getattr(theirs(x), there), [normal(1, 2, 8, 8, 3)])
  back(tmp_path, ours, theirs)


def test_dit(tmp_path):
  torch = torch_of()
  import diffusers
  theirs, ours = saved(tmp_path, diffusers.DiTTransformer2DModel(**DIT))
  time, label = np.array([3., 700.], np.float32), np.array([1, 4])  # 4: no class
  told = np.eye(5, dtype=np.float32)[label][:, :4]
  same_outputs_and_gradients(
    theirs, ours.params, lambda params, x: ours.module.apply(dict(params=params), x, time, told),
    lambda x: theirs(x, torch.tensor(time), torch.tensor(label)).sample, [normal(1, 2, 8, 8, 3)])
  back(tmp_path, ours, theirs)


@pytest.mark.parametrize('masked', [False, True])
def test_prior(masked, tmp_path):
  torch = torch_of()
  import diffusers
  theirs, ours = saved(tmp_path, diffusers.PriorTransformer(**PRIOR))
  theirs.clip_mean.requires_grad_(False), theirs.clip_std.requires_grad_(False)  # not used by the network
  params = {name: a for name, a in ours.params.items() if not name.startswith('clip_')}
  rest = {name: a for name, a in ours.params.items() if name.startswith('clip_')}
  time, weights = np.array([3., 700.], np.float32), np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.float32)
  told = dict(context_weights=weights) if masked else {}
  mask = torch.tensor(weights > 0) if masked else None
  same_outputs_and_gradients(
    theirs, params, lambda params, x, a, b: ours.module.apply(
      dict(params=params | rest), x, time, dict(pooled=a, context=b, **told)),
    lambda x, a, b: theirs(x, torch.tensor(time), a, b, attention_mask=mask).predicted_image_embedding,
    [normal(1, 2, 10), normal(2, 2, 10), normal(3, 2, 5, 10)])
  back(tmp_path, ours, theirs)
