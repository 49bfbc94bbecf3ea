"""DINOv2 and CLIP against transformers: side by side if installed, else recorded numbers."""
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
IMAGES = pictures(2, 20, 32, 3)
# summary() of the features that transformers 5.23 computes with these weights for IMAGES, resized by Pillow 13
# (bicubic) to 21, 21, 28 and 28 pixels.
EXPECTED = dict(dinov2=[-1.195468, -2.412490, .954499, -6.320038], gated=[-5.477321, -.636460, -1.491552, 2.835584],
                clip=[.758494, .191736, 3.708664, -.075299], gelu=[.763835, .192525, 3.724690, -.099967])
MEAN = dict(dinov2=[.485, .456, .406], clip=[.48145466, .4578275, .40821073])
DEVIATION = dict(dinov2=[.229, .224, .225], clip=[.26862954, .26130258, .27577711])


def tensors(kind):
  return draw(MODULES[kind], PIXELS[kind])


def extractor(kind, path, weights=None):
  weights = tensors(kind) if weights is None else weights
  safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, path)
  if kind in ('dinov2', 'gated'):
    return pretrained_features.dinov2(str(path), size=21, heads=3)
  activation = dict(clip='quick_gelu', gelu='gelu')[kind]
  return pretrained_features.clip(str(path), unit=False, heads=3, activation=activation)


def features(e, x=IMAGES):
  return np.asarray(jax.jit(e.apply)(e.params, x).points)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """kind -> Extractor with the random weights."""
  folder = tmp_path_factory.mktemp('vit')
  return {kind: extractor(kind, folder / f'{kind}.safetensors') for kind in MODULES}


@pytest.mark.parametrize('kind', MODULES)
def test_features_are_those_that_transformers_gave(kind, made):
  np.testing.assert_allclose(summary(features(made[kind])), EXPECTED[kind],
                             atol=1e-4 * np.abs(EXPECTED[kind]).max())


@pytest.mark.parametrize('kind', MODULES)
def test_with_x64_the_file_is_read_and_the_numbers_are_the_same(kind, made, tmp_path):
  with jax.enable_x64(True):
    e = extractor(kind, tmp_path / 'x.safetensors')
    wide = features(e)
  assert wide.dtype == np.float32 and {a.dtype for a in jax.tree.leaves(e.params)} == {np.dtype(np.float32)}
  plain = features(made[kind])
  np.testing.assert_allclose(wide, plain, atol=1e-4 * np.abs(plain).max())


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
  resized = np.stack([np.asarray(Image.fromarray(x).resize((size, size), Image.Resampling.BICUBIC)) for x in IMAGES])
  pixels = (torch.tensor(resized).float() / 255 - torch.tensor(MEAN[name])) / torch.tensor(DEVIATION[name])
  with torch.no_grad():
    out = model.eval()(pixels.permute(0, 3, 1, 2))
  return (out.pooler_output if name == 'dinov2' else out.image_embeds).numpy()


@pytest.mark.parametrize('kind', MODULES)
def test_features_equal_those_of_transformers(kind, made, tmp_path):
  path = tmp_path / 'drawn.safetensors'
  safetensors.numpy.save_file(tensors(kind), path)
  expected = reference(kind, path)
  np.testing.assert_allclose(features(made[kind]), expected, atol=1e-4 * np.abs(expected).max())


def test_a_file_that_transformers_saved_is_read_as_it_is(tmp_path):
  """A CLIPModel, whose text tower is not needed, and the vision model alone give the same features."""
  pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  vision = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, image_size=28,
                patch_size=7)
  text = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9,
              bos_token_id=0, eos_token_id=1)
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
  weights = tensors('clip')
  same = extractor('clip', tmp_path / 'other_name.safetensors')
  assert same.digest == made['clip'].digest
  name, file = 'visual_projection.weight', str(tmp_path / 'other_name.safetensors')
  moved = extractor('clip', tmp_path / 'moved.safetensors', weights | {name: weights[name] + 1e-6})
  options = (dict(heads=3), dict(unit=False, heads=2))
  others = [moved.digest, made['gelu'].digest, *(pretrained_features.clip(file, **o).digest for o in options)]
  path = tmp_path / 'dinov2.safetensors'
  safetensors.numpy.save_file(tensors('dinov2'), path)
  sizes = [pretrained_features.dinov2(str(path), size=size, heads=3) for size in (21, 28, 35)]
  assert len({made['clip'].digest, *others, *(e.digest for e in sizes)}) == 8
  assert [e.resize for e in sizes] == ['bicubic 21 (pillow)', 'bicubic 28 (pillow)', 'bicubic 35 (pillow)']


def test_heads_are_those_of_the_published_widths(tmp_path):
  path = tmp_path / 'small.safetensors'
  safetensors.numpy.save_file(draw(Dinov2(width=384, depth=1, heads=6, patch=7, hidden=8, positions=5), 14), path)
  explicit, default = (pretrained_features.dinov2(str(path), size=14, **heads) for heads in (dict(heads=6), {}))
  assert explicit.digest == default.digest and default.size == 384
  assert pretrained_features.dinov2(str(path), size=14, heads=12).digest != default.digest


def without(kind, *names):
  return {name: value for name, value in tensors(kind).items() if not name.startswith(names)}


def dinov2_with(name, *shape, fill=0., dtype=np.float32):
  return tensors('dinov2') | {name: np.full(shape, fill, dtype)}


POSITIONS = 'embeddings.position_embeddings'


@pytest.mark.parametrize('kind, weights, message', [
  ('dinov2', without('dinov2', 'layernorm.'), r'layernorm\.bias, layernorm\.weight.*Dinov2Model'),
  ('dinov2', without('dinov2', 'embeddings.'), r'no embeddings\.patch_embeddings\.projection\.weight'),
  ('dinov2', without('dinov2', 'encoder.'), r'no encoder\.layer\.0\.mlp\.fc1\.weight'),
  ('dinov2', dinov2_with('embeddings.register_tokens', 1, 4, 24), r': embeddings\.register_tokens'),
  ('dinov2', dinov2_with('layernorm.bias', 7), r'layernorm\.bias \[7\].*\[24\]'),
  ('dinov2', dinov2_with(POSITIONS, 1, 7, 24), r'\b7 position'),
  ('dinov2', dinov2_with(POSITIONS, 2, 5, 24), r'\[2, 5, 24\].*\[1, pos'),
  ('dinov2', dinov2_with('layernorm.bias', 24, fill=np.nan), r'finite.*layernorm\.bias'),
  ('dinov2', dinov2_with('layernorm.bias', 24, dtype=np.int32), r'finite.*layernorm\.bias'),
  ('clip', tensors('dinov2'), r'no vision_model\.embeddings\.patch_embedding\.weight.*CLIPModel'),
  ('clip', without('clip', 'visual_projection'), r'no visual_projection\.weight'),
  ('clip', without('clip', 'vision_model.encoder.layers.0.mlp', 'vision_model.encoder.layers.1'),
   r'no vision_model\.encoder\.layers\.0\.mlp'),
])
def test_a_file_of_another_network_is_refused_with_its_checksum(kind, weights, message, tmp_path):
  with pytest.raises(InputError, match=message) as error:
    extractor(kind, tmp_path / 'x.safetensors', weights)
  assert '\n' not in str(error.value) and f'{len(weights)} tensors, SHA-256 ' in str(error.value)


@pytest.mark.parametrize('kind, options, message', [
  ('dinov2', dict(size=20), r'size=20: .*\b7\b'), ('dinov2', dict(size='big'), "size='big'"),
  ('dinov2', {}, r'heads=0: .*\b24\b'), ('clip', dict(heads=5), 'heads=5'),
  ('clip', dict(activation='relu'), "activation='relu'.*gelu, quick_gelu"),
])
def test_an_option_that_does_not_fit_is_refused(kind, options, message, tmp_path):
  path = tmp_path / 'x.safetensors'
  safetensors.numpy.save_file(tensors(kind), path)
  with pytest.raises(InputError, match=message):
    getattr(pretrained_features, kind)(str(path), **(dict(size=21) if kind == 'dinov2' else {}) | options)
