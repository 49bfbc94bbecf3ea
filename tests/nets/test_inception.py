"""InceptionV3 against pytorch-fid and torch-fidelity: side by side if installed, else recorded numbers."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from diffusion.errors import InputError
from diffusion.evaluation.metrics import pretrained_features
from diffusion.nets.pretrained import inception
from tests.random_weights import draw, pictures, summary

NET = inception.InceptionV3()
# 2 x 3 pixels remain at the end, so that every kernel sees a neighbour
SMALL = (pictures(1, 107, 139, 3) / 127.5 - 1).astype(np.float32)
# summary() of points and logits that pytorch-fid 0.3 gives the random weights for SMALL, without resizing.
POINTS, LOGITS = [-37.88355, 39.25682, -13.92404, -8.91087], [20.26689, -18.06394, 1.23385, 22.34405]


@pytest.fixture(scope='module')
def tensors():
  return draw(NET, 75) | {'fc.bias': np.random.default_rng(1).standard_normal(1008).astype(np.float32)}


@pytest.fixture(scope='module')
def path(tensors, tmp_path_factory):
  path = tmp_path_factory.mktemp('inception') / 'fid.safetensors'
  safetensors.numpy.save_file(tensors, path)
  return path


@pytest.fixture(scope='module')
def small(tensors):
  """(points, logits) for SMALL."""
  params = {name: jnp.asarray(value) for name, value in tensors.items() if name != 'fc.bias'}
  return [np.asarray(a) for a in jax.jit(lambda p, x: NET.apply({'params': p}, x))(params, SMALL)]


def assert_near(out, expected, tolerance=1e-4):
  np.testing.assert_allclose(out, expected, atol=tolerance * np.abs(expected).max())


def test_with_x64_the_file_is_read_and_the_numbers_are_the_same(path):
  """From an 8-bit image to the features, all in float32."""
  x = pictures(1, 40, 24, 3)
  with jax.enable_x64(True):
    e = pretrained_features.inception(str(path))
    features = jax.jit(e.apply)(e.params, x)
  assert {a.dtype for a in jax.tree.leaves((features, e.params))} == {np.dtype(np.float32)}
  plain = pretrained_features.inception(str(path))
  expected = jax.jit(plain.apply)(plain.params, x)
  assert_near(features.points, np.asarray(expected.points))
  assert_near(features.logits, np.asarray(expected.logits))
  with jax.enable_x64(True):
    wide = jax.eval_shape(lambda p: NET.apply({'params': p}, jnp.zeros((1, 75, 75, 3), jnp.float64)), e.params)
  assert wide[0].dtype == np.float32


def test_points_and_logits_are_those_that_pytorch_fid_gave(small):
  assert_near(summary(small[0]), POINTS)
  assert_near(summary(small[1]), LOGITS)


def pytorch_fid(tensors, monkeypatch):
  torch, module = pytest.importorskip('torch'), pytest.importorskip('pytorch_fid.inception')
  state = {name: torch.tensor(value) for name, value in tensors.items()}
  monkeypatch.setattr(module, 'load_state_dict_from_url', lambda *args, **kwargs: state)
  return module.InceptionV3([3], resize_input=False, normalize_input=False).eval()


def channels_first(x):
  import torch
  return torch.tensor(x).permute(0, 3, 1, 2)


def test_points_equal_those_of_pytorch_fid(tensors, small, monkeypatch):
  reference = pytorch_fid(tensors, monkeypatch)
  expected = reference(channels_first(SMALL))[0][:, :, 0, 0].numpy()
  assert_near(small[0], expected)
  assert_near(small[1], expected.astype(np.float64) @ tensors['fc.weight'].T)


def test_the_extractor_of_8_bit_images_equals_torch_fidelitys(tensors, path, tmp_path):
  torch, module = pytest.importorskip('torch'), pytest.importorskip('torch_fidelity.feature_extractor_inceptionv3')
  torch.save({name: torch.tensor(value) for name, value in tensors.items()}, tmp_path / 'fid.pth')
  reference = module.FeatureExtractorInceptionV3('inception-v3-compat', ['2048', 'logits_unbiased'],
                                                 feature_extractor_weights_path=str(tmp_path / 'fid.pth'))
  x = pictures(1, 40, 24, 3)
  points, logits = (a.numpy() for a in reference(channels_first(x)))
  e = pretrained_features.inception(str(path))  # resize='tensorflow'
  features = jax.jit(e.apply)(e.params, x)
  assert_near(features.points, points)
  assert_near(features.logits, logits)
  assert e.size == points.shape[1] and e.classes == ()


@pytest.mark.parametrize('height, width', [(16, 24), (330, 310)])
def test_pixels_are_those_that_each_code_feeds_it(height, width):
  x = pictures(1, height, width, 3) // 128 * 255  # black and white: the cubic overshoots
  channels = [Image.fromarray(x[0, ..., c].astype(np.float32)) for c in range(3)]
  clean = np.stack([np.asarray(c.resize((299, 299), Image.Resampling.BICUBIC)) for c in channels], -1)
  np.testing.assert_allclose(pretrained_features.fit(x, 'clean')[0], (clean.clip(0, 255) - 128) / 128, atol=2e-5)
  inputs = [pretrained_features.fit(x, code) for code in pretrained_features.FITS]
  ends = [[float(end) for end in (a.min(), a.max())] for a in inputs]
  np.testing.assert_allclose(ends, [[-1, 127 / 128], [-1, 1], [-1, 127 / 128]], atol=1e-6)

  torch, ours = pytest.importorskip('torch'), pytest.importorskip('torch_fidelity.interpolate_compat_tensorflow')
  seen = channels_first(x).float()
  tensorflow = ours.interpolate_bilinear_2d_like_tensorflow1x(seen, size=(299, 299), align_corners=False)
  plain = torch.nn.functional.interpolate(seen / 255, (299, 299), mode='bilinear', align_corners=False)
  for code, expected in (('tensorflow', (tensorflow - 128) / 128), ('torch', 2 * plain - 1)):
    np.testing.assert_allclose(pretrained_features.fit(x, code), expected.permute(0, 2, 3, 1), atol=2e-5)


def around(x, i, j):
  return x[:, max(i - 1, 0):i + 2, max(j - 1, 0):j + 2]


def test_pools_do_not_see_the_padding():
  x = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32) - 3
  for pool, reduce in ((inception.average, np.mean), (inception.max_around, np.max)):
    expected = np.stack([np.stack([reduce(around(x, i, j), (1, 2)) for j in range(5)], 1) for i in range(4)], 1)
    np.testing.assert_allclose(pool(x), expected, rtol=1e-5)


def test_each_kind_of_resizing_is_another_extractor(path, monkeypatch):
  monkeypatch.setattr(pretrained_features, 'select', lambda *args, **kwargs: {})  # the parameters do not matter here
  made = {kind: pretrained_features.inception(str(path), kind) for kind in ('tensorflow', 'torch', 'clean')}
  assert len({e.digest for e in made.values()}) == 3
  names = [e.resize for e in made.values()]
  assert names == ['bilinear 299 (tensorflow)', 'bilinear 299 (torch)', 'bicubic 299 (clean)']


@pytest.mark.parametrize('change, message', [
  (lambda t: {}, r'Conv2d_1a_3x3\.bn\.bias, .*\b468\b.*pt_inception-2015-12-05-6726825d\.pth'),
  (lambda t: t | {'fc.weight': t['fc.weight'][:1000]}, r'fc\.weight \[1000, 2048\].*\[1008, 2048\]'),
  (lambda t: t | {'AuxLogits.fc.weight': t['fc.bias']}, r': AuxLogits\.fc\.weight'),
])
def test_other_weights_are_refused(change, message, tensors, tmp_path):
  path = tmp_path / 'other.safetensors'
  safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in change(tensors).items()}, path)
  with pytest.raises(InputError, match=message) as error:
    pretrained_features.inception(str(path))
  assert '\n' not in str(error.value) and 'SHA-256' in str(error.value)


def test_an_unknown_resizing_is_refused_with_the_known_ones(path):
  with pytest.raises(InputError, match="resize='lanczos'.*tensorflow, torch, clean"):
    pretrained_features.inception(str(path), 'lanczos')
