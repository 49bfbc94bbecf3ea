"""DINOv2 and CLIP against transformers: side by side where it is installed, else against numbers that it gave for the same weights."""
import jax
import numpy as np
import pytest
import safetensors.numpy

from diffusion.errors import InputError
from diffusion.evaluation.metrics import pretrained_features
from diffusion.nets.pretrained.vit import Clip, Dinov2
from tests.random_weights import draw, pictures, summary

DINO = dict(width=24, depth=2, heads=3, patch=7, hidden=96, positions=26)  # trained at 35 x 35: 5 x 5 patches
MODULES = dict(dinov2=Dinov2(**DINO), gated=Dinov2(**DINO | dict(hidden=64, gated=True)),
               clip=Clip(width=24, depth=2, heads=3, patch=7, hidden=40, positions=17, size=10),
               gelu=Clip(width=24, depth=2, heads=3, patch=7, hidden=40, positions=17, size=10, activation='gelu'))
PIXELS = dict(dinov2=35, gated=35, clip=28, gelu=28)
SEEN = pictures(2, 20, 32, 3)
# summary() of the features that transformers 5.23 gives these weights for SEEN, resized by Pillow 13 (bicubic), at 21, 21, 28 and 28 pixels.
GIVEN = dict(dinov2=[-1.195468, -2.412490, .954499, -6.320038], gated=[-5.477321, -.636460, -1.491552, 2.835584],
             clip=[.758494, .191736, 3.708664, -.075299], gelu=[.763835, .192525, 3.724690, -.099967])
MEAN = dict(dinov2=[.485, .456, .406], clip=[.48145466, .4578275, .40821073])
DEVIATION = dict(dinov2=[.229, .224, .225], clip=[.26862954, .26130258, .27577711])


def tensors(kind):
  return draw(MODULES[kind], PIXELS[kind])


def extractor(kind, path, found=None):
  found = tensors(kind) if found is None else found
  safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in found.items()}, path)
  if kind in ('dinov2', 'gated'):
    return pretrained_features.dinov2(str(path), size=21, heads=3)
  return pretrained_features.clip(str(path), unit=False, heads=3, activation=dict(clip='quick_gelu', gelu='gelu')[kind])


def features(e, x=SEEN):
  return np.asarray(jax.jit(e.apply)(e.params, x).points)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """kind -> Extractor with the random weights."""
  folder = tmp_path_factory.mktemp('vit')
  return {kind: extractor(kind, folder / f'{kind}.safetensors') for kind in MODULES}


@pytest.mark.parametrize('kind', MODULES)
def test_features_are_those_that_transformers_gave(kind, made):
  np.testing.assert_allclose(summary(features(made[kind])), GIVEN[kind], atol=1e-4 * np.abs(GIVEN[kind]).max())


def reference(kind, path):
  """Features by transformers and Pillow, of the weights of a file."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  from PIL import Image
  sizes = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, patch_size=7, image_size=PIXELS[kind])
  name = 'dinov2' if kind in ('dinov2', 'gated') else 'clip'
  if name == 'dinov2':
    config = transformers.Dinov2Config(**sizes, mlp_ratio=4, use_swiglu_ffn=kind == 'gated')
    kinds, size = transformers.Dinov2Model, 21
  else:
    config = transformers.CLIPVisionConfig(**sizes, intermediate_size=40, projection_dim=10,
                                           hidden_act='quick_gelu' if kind == 'clip' else 'gelu')
    kinds, size = transformers.CLIPVisionModelWithProjection, 28
  config.save_pretrained(path.parent)
  path.rename(path.parent / 'model.safetensors')
  model, report = kinds.from_pretrained(path.parent, output_loading_info=True)
  assert not [n for n in report['missing_keys'] if 'mask_token' not in n] and not report['unexpected_keys']
  resized = np.stack([np.asarray(Image.fromarray(x).resize((size, size), Image.Resampling.BICUBIC)) for x in SEEN])
  pixels = (torch.tensor(resized).float() / 255 - torch.tensor(MEAN[name])) / torch.tensor(DEVIATION[name])
  with torch.no_grad():
    out = model.eval()(pixels.permute(0, 3, 1, 2))
  return (out.pooler_output if name == 'dinov2' else out.image_embeds).numpy()


@pytest.mark.parametrize('kind', MODULES)
def test_features_equal_those_of_transformers(kind, made, tmp_path):
  path = tmp_path / 'drawn.safetensors'
  safetensors.numpy.save_file(tensors(kind), path)
  right = reference(kind, path)
  np.testing.assert_allclose(features(made[kind]), right, atol=1e-4 * np.abs(right).max())


def test_a_file_that_transformers_saved_is_read_as_it_is(tmp_path):
  """Its names, its shapes, the text tower that is not needed: a CLIPModel, and the vision model alone, give the same features."""
  pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  vision = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, image_size=28, patch_size=7)
  text = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9, bos_token_id=0, eos_token_id=1)
  both = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=10))
  alone = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**vision, projection_dim=10))
  alone.load_state_dict({k: v for k, v in both.state_dict().items() if k in alone.state_dict()})
  out = []
  for name, model in (('both', both), ('alone', alone)):
    model.save_pretrained(tmp_path / name)
    out.append(pretrained_features.clip(str(tmp_path / name / 'model.safetensors'), heads=3))
  assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), out[0].params, out[1].params))
  assert out[0].size == 10 and out[0].digest != out[1].digest  # other bytes


def test_unit_embeddings_are_the_others_at_length_one(made, tmp_path):
  path = tmp_path / 'clip.safetensors'
  safetensors.numpy.save_file(tensors('clip'), path)
  unit = features(pretrained_features.clip(str(path), heads=3))
  plain = features(made['clip'])
  np.testing.assert_allclose(unit * np.linalg.norm(plain, axis=1, keepdims=True), plain, atol=1e-5)


def test_the_digest_tells_weights_and_treatment_apart_and_not_paths(made, tmp_path):
  found = tensors('clip')
  same = extractor('clip', tmp_path / 'other_name.safetensors')
  assert same.digest == made['clip'].digest
  moved = extractor('clip', tmp_path / 'moved.safetensors', found | {'visual_projection.weight': found['visual_projection.weight'] + 1e-6})
  others = [moved.digest, made['gelu'].digest] + [
    pretrained_features.clip(str(tmp_path / 'other_name.safetensors'), **options).digest for options in (dict(heads=3), dict(unit=False, heads=2))]
  path = tmp_path / 'dinov2.safetensors'
  safetensors.numpy.save_file(tensors('dinov2'), path)
  sizes = [pretrained_features.dinov2(str(path), size=size, heads=3) for size in (21, 28, 35)]
  assert len({made['clip'].digest, *others, *(e.digest for e in sizes)}) == 8
  assert [e.resize for e in sizes] == ['bicubic 21 (pillow)', 'bicubic 28 (pillow)', 'bicubic 35 (pillow)']


def test_heads_are_those_of_the_published_widths(tmp_path):
  found = draw(Dinov2(width=384, depth=1, heads=6, patch=7, hidden=8, positions=5), 14)
  path = tmp_path / 'small.safetensors'
  safetensors.numpy.save_file(found, path)
  told, known = pretrained_features.dinov2(str(path), size=14, heads=6), pretrained_features.dinov2(str(path), size=14)
  assert told.digest == known.digest and known.size == 384
  assert pretrained_features.dinov2(str(path), size=14, heads=12).digest != known.digest


def without(kind, *names, **more):
  return {name: value for name, value in tensors(kind).items() if not name.startswith(names)} | more


@pytest.mark.parametrize('kind, found, message', [
  ('dinov2', without('dinov2', 'layernorm.'), r'lacks layernorm.bias, layernorm.weight; expected model.safetensors of a Dinov2Model'),
  ('dinov2', without('dinov2', 'embeddings.'), 'has no embeddings.patch_embeddings.projection.weight'),
  ('dinov2', without('dinov2', 'encoder.'), 'has no encoder.layer.0.mlp.fc1.weight'),
  ('dinov2', without('dinov2') | {'embeddings.register_tokens': np.zeros((1, 4, 24), np.float32)},
   'has tensors that the network does not: embeddings.register_tokens'),
  ('dinov2', without('dinov2') | {'layernorm.bias': np.zeros(7, np.float32)}, r'another shape: layernorm.bias \[7\], not \[24\]'),
  ('dinov2', without('dinov2') | {'embeddings.position_embeddings': np.zeros((1, 7, 24), np.float32)}, '7 positions, not 1 [+] a square'),
  ('dinov2', without('dinov2') | {'embeddings.position_embeddings': np.zeros((2, 5, 24), np.float32)}, r'\[2, 5, 24\], not \[1, pos'),
  ('dinov2', without('dinov2') | {'layernorm.bias': np.full(24, np.nan, np.float32)}, 'not finite numbers in layernorm.bias'),
  ('dinov2', without('dinov2') | {'layernorm.bias': np.zeros(24, np.int32)}, 'not finite numbers in layernorm.bias'),
  ('clip', tensors('dinov2'), 'has no vision_model.embeddings.patch_embedding.weight; expected model.safetensors of a CLIPModel'),
  ('clip', without('clip', 'visual_projection'), 'has no visual_projection.weight'),
  ('clip', without('clip', 'vision_model.encoder.layers.0.mlp', 'vision_model.encoder.layers.1'), 'has no vision_model.encoder.layers.0.mlp'),
])
def test_a_file_of_another_network_is_refused_with_its_checksum(kind, found, message, tmp_path):
  with pytest.raises(InputError, match=message) as error:
    extractor(kind, tmp_path / 'x.safetensors', found)
  assert '\n' not in str(error.value) and f'Found {len(found)} tensors, SHA-256 ' in str(error.value)


@pytest.mark.parametrize('kind, options, message', [
  ('dinov2', dict(size=20), 'size=20: expected a multiple of 7'), ('dinov2', dict(size='big'), "size='big'"),
  ('dinov2', {}, r'heads=0: expected a divisor of the width 24'), ('clip', dict(heads=5), 'heads=5'),
  ('clip', dict(activation='relu'), "activation='relu'; valid: gelu, quick_gelu"),
])
def test_an_option_that_does_not_fit_is_refused(kind, options, message, tmp_path):
  path = tmp_path / 'x.safetensors'
  safetensors.numpy.save_file(tensors(kind), path)
  with pytest.raises(InputError, match=message):
    getattr(pretrained_features, kind)(str(path), **(dict(size=21) if kind == 'dinov2' else {}) | options)
