"""CLIP and SigLIP of other libraries: vectors and logits side by side where installed; else the vision tower of
nets/pretrained, which was compared with transformers, and files that come back bit for bit."""
import json
from functools import partial

import jax
import numpy as np
import pytest
import safetensors.numpy

from diffusion import nets
from diffusion.errors import InputError
from diffusion.interop import clip, clip_names
from diffusion.nets.clip import Clip
from diffusion.nets.pretrained import vit
from tests.random_weights import draw

RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, (2, 28, 28, 3)).astype(np.float32)
TOKENS = np.array([[1, 5, 7, 9, 19, 0], [1, 3, 19, 0, 0, 0]])
WEIGHTS = (np.arange(6) < np.array([5, 3])[:, None]).astype(np.float32)
SIZES = dict(width=24, blocks=2, heads=3, hidden=40, text_width=16, text_blocks=1, text_heads=2, text_hidden=28,
             size=10, patch=7, vocabulary=20, length=6)


def net_of(opened):
  """The Net of an Opened, with the vocabulary that its facts tell."""
  from diffusion.setup import specs
  name, args, kwargs = specs.parse(opened.net)
  assert name == 'clip' and not args
  return nets.make(Clip(**kwargs, vocabulary=opened.facts['vocabulary'], length=opened.facts['length']))


def outputs(opened, tokens=TOKENS):
  """Vectors of X and of the texts, of unit length, and their logits [images, texts]."""
  net = net_of(opened)
  images = np.asarray(jax.jit(net.apply)(opened.params, X, np.zeros(2)))
  texts = np.asarray(jax.jit(net.prepare)(opened.params, dict(tokens=tokens, weights=WEIGHTS)))
  images, texts = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (images, texts))
  return images, texts, np.exp(opened.params['logit_scale']) * images @ texts.T + opened.params.get('logit_bias', 0)


def made(form):
  """Parameters of nets/clip.py, all random."""
  net = nets.make(Clip(**SIZES | dict(form=form)))
  init = lambda key: net.init(key, X.shape, dict(tokens=TOKENS[:1], weights=WEIGHTS[:1]))
  params = jax.eval_shape(init, jax.random.key(0))
  params |= dict(logit_scale=np.zeros(())) | (dict(logit_bias=np.zeros(())) if form == 'siglip' else {})
  return jax.tree.map(lambda a: np.asarray(RNG.normal(size=np.shape(a)), np.float32) * .4, params)


@pytest.mark.parametrize('dialect', clip_names.DIALECTS)
def test_a_file_comes_back_bit_for_bit_and_with_its_sizes(dialect, tmp_path):
  form = clip_names.FORM[dialect]
  params = made(form)
  clip.save(tmp_path / 'a.safetensors', params, dialect)
  opened = clip.load(tmp_path / 'a.safetensors', 3, 2, 'gelu')
  jax.tree.map(np.testing.assert_array_equal, opened.params, params)
  assert opened.dialect == dialect and opened.facts == dict(vocabulary=20, length=6, pixels=28)
  sizes = {name: value for name, value in SIZES.items() if name not in ('vocabulary', 'length')}
  if form == 'siglip':
    sizes['size'] = 24
  for name, value in sizes.items():
    assert f'{name}={value}' in opened.net
  clip.save(tmp_path / 'b.safetensors', opened.params, dialect)
  assert (tmp_path / 'a.safetensors').read_bytes() == (tmp_path / 'b.safetensors').read_bytes()


def test_the_dialects_of_one_model_are_one_model(tmp_path):
  for form, names in (('clip', ('hf_clip', 'open_clip')), ('siglip', ('hf_siglip', 'open_clip_siglip'))):
    params = made(form)
    for name in names:
      clip.save(tmp_path / name, params, name)
    a, b = (clip.load(tmp_path / name, 3, 2, 'gelu') for name in names)
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    assert a.net == b.net


@pytest.mark.parametrize('activation', ['gelu', 'quick_gelu'])
def test_the_image_tower_is_that_of_the_tested_features(activation, tmp_path):
  """nets/pretrained/vit.py shares no code with it, and takes Hugging Face's names as they are."""
  theirs = vit.Clip(width=24, depth=2, heads=3, patch=7, hidden=40, positions=17, size=10, activation=activation)
  weights = draw(theirs, 28)
  clip.save(tmp_path / 'text.safetensors', made('clip'), 'hf_clip')
  tensors = safetensors.numpy.load_file(tmp_path / 'text.safetensors') | weights
  safetensors.numpy.save_file(tensors, tmp_path / 'model.safetensors')
  images, *_ = outputs(clip.load(tmp_path / 'model.safetensors', 3, 2, activation))
  mean, deviation = np.array([.48145466, .4578275, .40821073]), np.array([.26862954, .26130258, .27577711])
  wanted = np.asarray(theirs.apply({'params': weights}, ((X + 1) / 2 - mean) / deviation))
  np.testing.assert_allclose(images, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)


# ---- side by side
def compared(opened, images, texts, logits, tokens=TOKENS):
  for found, wanted in zip(outputs(opened, tokens), (images, texts, logits)):
    wanted = wanted.detach().numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


def randomised(model):
  """A torch model in which every parameter is random."""
  torch = pytest.importorskip('torch')
  torch.manual_seed(0)
  with torch.no_grad():
    for name, value in model.named_parameters():
      value.copy_(.3 * torch.randn(value.shape) + (1. if 'norm' in name or 'ln_' in name else 0.))
  return model.eval()


@pytest.mark.parametrize('kind', ['quick_gelu', 'gelu', 'siglip'])
def test_transformers_gives_the_same_vectors_and_logits(kind, tmp_path):
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  text = dict(hidden_size=16, intermediate_size=28, num_hidden_layers=1, num_attention_heads=2, vocab_size=20,
              max_position_embeddings=6, bos_token_id=1, eos_token_id=19, pad_token_id=0)
  image = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, image_size=28,
               patch_size=7)
  if kind == 'siglip':
    text |= dict(projection_size=24)
    model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=image))
    pixels = X
  else:
    text, image = (part | dict(hidden_act=kind, projection_dim=10) for part in (text, image))
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=10))
    pixels = ((X + 1) / 2 - [.48145466, .4578275, .40821073]) / [.26862954, .26130258, .27577711]
  model = randomised(model)
  model.save_pretrained(tmp_path)
  pixels = torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)
  with torch.no_grad():
    asked = dict(input_ids=torch.tensor(TOKENS), pixel_values=pixels)
    out = model(**asked, **({} if kind == 'siglip' else dict(attention_mask=torch.tensor(WEIGHTS))))
  opened = clip.load(tmp_path)
  compared(opened, out.image_embeds, out.text_embeds, out.logits_per_image)
  clip.save(tmp_path / 'again.safetensors', opened.params, opened.dialect)
  before, after = (safetensors.numpy.load_file(tmp_path / name) for name in ('model.safetensors', 'again.safetensors'))
  assert set(before) == set(after)
  for name in before:
    np.testing.assert_array_equal(before[name], after[name])


@pytest.mark.parametrize('kind', ['quick_gelu', 'gelu', 'siglip'])
def test_open_clip_gives_the_same_vectors_and_logits(kind, tmp_path):
  torch, open_clip = pytest.importorskip('torch'), pytest.importorskip('open_clip')
  text = dict(context_length=6, vocab_size=20, width=16, heads=2, layers=1)
  told = dict(embed_dim=10, quick_gelu=kind == 'quick_gelu', text_cfg=text,
              vision_cfg=dict(image_size=28, layers=2, width=24, head_width=8, patch_size=7))
  if kind == 'siglip':
    pytest.importorskip('timm')
    text |= dict(no_causal_mask=True, proj_bias=True, pool_type='last', norm_kwargs=dict(eps=1e-6),
                 act_kwargs=dict(approximate='tanh'))
    vision = dict(image_size=28, timm_model_name='vit_base_patch16_siglip_224', timm_model_pretrained=False,
                  timm_pool='map', timm_proj='none')
    model = _small_siglip(open_clip, dict(embed_dim=24, init_logit_bias=-10., text_cfg=text, vision_cfg=vision))
    pixels = X
  else:
    model = open_clip.CLIP(**told)
    pixels = ((X + 1) / 2 - [.48145466, .4578275, .40821073]) / [.26862954, .26130258, .27577711]
  model = randomised(model)
  arrays = {name: value.detach().numpy() for name, value in model.state_dict().items()}
  safetensors.numpy.save_file({name: np.ascontiguousarray(a) if a.ndim else a for name, a in arrays.items()},
                              tmp_path / 'open_clip_model.safetensors')
  (tmp_path / 'open_clip_config.json').write_text(json.dumps(dict(model_cfg=told, preprocess_cfg={})))
  tokens = np.where(WEIGHTS > 0, TOKENS, 0)
  with torch.no_grad():
    images = model.encode_image(torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32), normalize=True)
    texts = model.encode_text(torch.tensor(tokens), normalize=True)
    logits = model.logit_scale.exp() * images @ texts.T + (model.logit_bias if kind == 'siglip' else 0)
  opened = clip.load(tmp_path, heads=3)
  compared(opened, images, texts, logits, tokens)


def _small_siglip(open_clip, told):
  """open_clip's SigLIP with a trunk of timm's own class, small: its towers' sizes are in timm's registry."""
  import torch
  from timm.models.vision_transformer import VisionTransformer
  model = open_clip.CustomTextCLIP(**told)
  model.visual.trunk = VisionTransformer(
    img_size=28, patch_size=7, embed_dim=24, depth=2, num_heads=3, mlp_ratio=40 / 24, class_token=False,
    global_pool='map', num_classes=0, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    act_layer=partial(torch.nn.GELU, approximate='tanh'))
  return model


# ---- what is refused
def test_other_files_are_refused_in_one_line(tmp_path):
  params = made('clip')
  clip.save(tmp_path / 'a.safetensors', params, 'hf_clip')
  tensors = safetensors.numpy.load_file(tmp_path / 'a.safetensors')
  def refused(message, changed=tensors, **options):
    safetensors.numpy.save_file(changed, tmp_path / 'b.safetensors')
    with pytest.raises(InputError, match=message) as error:
      clip.load(tmp_path / 'b.safetensors', **dict(activation='gelu') | options)
    assert '\n' not in str(error.value)
  refused('quick_gelu', activation='')
  refused('none of the names', {'x': np.zeros(3, np.float32)})
  refused('lacks visual_projection.weight', {k: v for k, v in tensors.items() if k != 'visual_projection.weight'})
  refused('does not: other', tensors | dict(other=np.zeros(3, np.float32)))
  refused('not finite', tensors | {'text_projection.weight': np.full((10, 16), np.nan, np.float32)})
  (tmp_path / 'config.json').write_text(json.dumps(dict(text_config=dict(hidden_act='relu'), vision_config={})))
  refused("hidden_act .'quick_gelu', 'relu'.", activation='')
  (tmp_path / 'config.json').write_text('[]')
  refused('not the JSON of a CLIP', activation='')
  with pytest.raises(InputError, match="dialect='clip'"):
    clip.save(tmp_path / 'c', params, 'clip')
  for other in (made('siglip'), params | dict(image=params['image'] | dict(time0=dict(kernel=np.zeros((2, 2)))))):
    with pytest.raises(InputError, match='other parameters'):
      clip.save(tmp_path / 'c', other, 'hf_clip')
