"""Published networks as feature extractors: `inception(path)`, `dinov2(path)`, `clip(path)`. Nothing is downloaded:
path is a local file.

All take 8-bit images, to which samples are rounded first, because distances of unrounded images would differ.
Everything is float32, in full precision on every device. Images that are not square are stretched.
"""
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError
from diffusion.evaluation.metrics.extractor import Extractor, Features
from diffusion.evaluation.metrics.resize import matrix, resize as resize_to, resize_pillow, to_rgb
from diffusion.nets.pretrained.inception import InceptionV3
from diffusion.nets.pretrained.vit import ACTIVATIONS, Clip, Dinov2
from diffusion.system.tensors import CONVERT, depth as count_layers, read, refuse, select, shape

INCEPTION = ('the weights of pt_inception-2015-12-05-6726825d.pth (its SHA-256 begins with 6726825d; from the '
             'releases of github.com/mseitzer/pytorch-fid or of github.com/toshas/torch-fidelity) '
             f'as {CONVERT} writes them')
DINOV2 = ('model.safetensors of a Dinov2Model, such as huggingface.co/facebook/dinov2-base '
          "(not Meta's own .pth, whose names differ)")
CLIP = ('model.safetensors of a CLIPModel or a CLIPVisionModelWithProjection, such as '
        "huggingface.co/openai/clip-vit-large-patch14 (not OpenAI's own .pt, whose names differ)")
# By width: 64 channels per head, in all models of DINOv2 and of OpenAI's CLIP.
HEADS = {384: 6, 768: 12, 1024: 16, 1536: 24}

# Preprocessing of 8-bit images in each code: resizing, then x -> (x - shift) / scale.
FITS = dict(
  tensorflow=('tensorflow', 128., 128.),  # the original, and torch-fidelity
  torch=('torch', 127.5, 127.5),          # pytorch-fid
  clean=('bicubic', 128., 128.))          # clean-fid (arXiv:2104.11222)
IMAGENET = 255 * np.array([.485, .456, .406]), 255 * np.array([.229, .224, .225])
CLIP_PIXELS = (255 * np.array([.48145466, .4578275, .40821073]), 255 * np.array([.26862954, .26130258, .27577711]))


def digest_of(weights, *how):
  """Hash of the file and of the preprocessing and options."""
  return hashlib.sha256(json.dumps([weights.digest, *how]).encode()).hexdigest()[:16]


def inception(path, resize='tensorflow'):
  """InceptionV3 as in FID, KID and the inception score: 2048 points and 1008 logits (without bias, as in the score).

  Args:
    path: of the weights, .safetensors, made by `python -m experiments.convert_weights IN.pth OUT.safetensors`.
    resize: how images are resized to 299 x 299, in float32 without rounding: 'tensorflow' as FID was defined and as in
      torch-fidelity, 'torch' as in pytorch-fid, 'clean' as in clean-fid. Distances of different kinds do not compare.
  Returns:
    Extractor.
  Raises:
    InputError: an unknown kind, or a file of another network, with its checksum.
  """
  if resize not in FITS:
    raise InputError(f'resize={resize!r}; valid: {", ".join(FITS)}')
  weights, net = read(path, INCEPTION), InceptionV3()
  params = select(weights, net, 299, unused=('fc.bias', 'num_batches_tracked'))

  def apply(params, x):
    with jax.default_matmul_precision('highest'):
      return Features(*net.apply({'params': params}, fit(x, resize)))

  name = f'{"bicubic" if resize == "clean" else "bilinear"} 299 ({resize})'
  return Extractor('inception', digest_of(weights, 'inception', name), name, 2048, (), params, apply)


def fit(x, code):
  """Preprocesses images uint8 [B, H, W, C] for InceptionV3 like a code in FITS: float32 [B, 299, 299, 3]. Traced."""
  kind, shift, scale = FITS[code]
  x = resize_to(to_rgb(x), 299, kind)
  x = jnp.clip(x, 0, 255) if kind == 'bicubic' else x  # it overshoots, and clean-fid clips it
  return (x - shift) / scale


def dinov2(path, size=224, heads=0):
  """DINOv2: the class token after the last normalisation, as in the Frechet distance of Stein et al. 2023
  (arXiv:2306.04675).

  The sizes of the network are read from the tensors. Position embeddings are resized as in Hugging Face's code; Meta's
  adds 0.1 to the number of patches first, which changes features slightly. Models with registers are not supported.

  Args:
    path: model.safetensors of a Dinov2Model.
    size: pixels to which images are resized, by Pillow's bicubic filter for 8 bits; a multiple of the patch, 14.
    heads: attention heads; 0: as in the published models of this width.
  Returns:
    Extractor without logits.
  Raises:
    InputError: a size or number of heads that does not fit, or a file of another network, with its checksum.
  """
  weights = read(path, DINOV2)
  at = 'embeddings.position_embeddings'
  width, _, patch, _ = shape(weights, 'embeddings.patch_embeddings.projection.weight', 4)
  one, _, columns = shape(weights, at, 3)
  if (one, columns) != (1, width):
    refuse(weights, f'{at} is {list(weights.tensors[at].shape)}, not [1, positions, {width}]')
  if not isinstance(size, int) or size < patch or size % patch:
    raise InputError(f'size={size!r}: expected a multiple of {patch} pixels, such as {16 * patch}')
  side = size // patch
  weights = weights._replace(tensors=weights.tensors | {at: positions_for(weights, weights.tensors[at], side)})
  gated, prefix = 'encoder.layer.0.mlp.weights_in.weight' in weights.tensors, 'encoder.layer.'
  hidden, _ = shape(weights, f'{prefix}0.mlp.weights_in.weight' if gated else f'{prefix}0.mlp.fc1.weight', 2)
  heads = _heads(heads, width)
  net = Dinov2(width, count_layers(weights, prefix), heads, patch, hidden // (1 + gated), side ** 2 + 1, gated)
  params = select(weights, net, size, unused=('embeddings.mask_token',))
  apply = transformer(net, size, *IMAGENET)
  name = f'bicubic {size} (pillow)'
  return Extractor('dinov2', digest_of(weights, 'dinov2', name, heads), name, width, (), params, apply)


def clip(path, unit=True, heads=0, activation='quick_gelu'):
  """CLIP: embeddings of images in the space they share with texts.

  Args:
    path: model.safetensors of a CLIPModel or a CLIPVisionModelWithProjection. Images are resized to its training size,
      by Pillow's bicubic filter for 8 bits.
    unit: whether embeddings are scaled to length 1, as CLIP does before comparing them (and CMMD, arXiv:2401.09603);
      torch-fidelity and Hugging Face's image_embeds do not.
    heads: attention heads; 0: as in OpenAI's models of this width.
    activation: quick_gelu (OpenAI's) or gelu (most of OpenCLIP's); the file does not say which.
  Returns:
    Extractor without logits.
  Raises:
    InputError: an option that does not fit, or a file of another network, with its checksum.
  """
  weights, prefix = read(path, CLIP), 'vision_model.encoder.layers.'
  if activation not in ACTIVATIONS:
    raise InputError(f'activation={activation!r}; valid: {", ".join(ACTIVATIONS)}')
  width, _, patch, _ = shape(weights, 'vision_model.embeddings.patch_embedding.weight', 4)
  positions, _ = shape(weights, 'vision_model.embeddings.position_embedding.weight', 2)
  side = side_of(weights, positions)
  hidden, _ = shape(weights, f'{prefix}0.mlp.fc1.weight', 2)
  features, _ = shape(weights, 'visual_projection.weight', 2)
  heads, size = _heads(heads, width), side * patch
  net = Clip(width, count_layers(weights, prefix), heads, patch, hidden, positions, features, activation)
  unused = ('text_model.', 'text_projection.', 'logit_scale', 'embeddings.position_ids')
  params = select(weights, net, size, unused=unused)
  apply = transformer(net, size, *CLIP_PIXELS, unit)
  name = f'bicubic {size} (pillow)'
  digest = digest_of(weights, 'clip', name, heads, activation, unit)
  return Extractor('clip', digest, name, features, (), params, apply)


def transformer(net, size, mean, deviation, unit=False):
  """`apply` of an Extractor: (params, uint8 images) -> Features."""
  def apply(params, x):
    with jax.default_matmul_precision('highest'):
      x = resize_pillow(to_rgb(x), size, 'bicubic') - jnp.asarray(mean, jnp.float32)
      x = x / jnp.asarray(deviation, jnp.float32)
      points = net.apply({'params': params}, x)
    return Features(points / jnp.linalg.norm(points, axis=-1, keepdims=True) if unit else points)
  return apply


def _heads(heads, width):
  heads = heads or HEADS.get(width, 0)
  if not isinstance(heads, int) or heads < 1 or width % heads:
    known = ', '.join(f'{h} at {w}' for w, h in HEADS.items())
    raise InputError(f'heads={heads!r}: expected a divisor of the width {width}; published models have {known}')
  return heads


def side_of(weights, positions):
  """Patches per side of an image with this number of positions, including the class token's."""
  side = round((positions - 1) ** .5)
  if side < 1 or side ** 2 != positions - 1:
    refuse(weights, f'has {positions} positions, expected 1 plus a square number')
  return side


def positions_for(weights, embeddings, side):
  """Resizes position embeddings [1, 1 + n^2, width] to side^2 patches, in float64 on the host."""
  old, width = side_of(weights, embeddings.shape[1]), embeddings.shape[2]
  if old == side:
    return embeddings
  rows = matrix(old, side, 'bicubic_sharp')
  grid = embeddings[0, 1:].reshape(old, old, width).astype(np.float64)
  grid = np.einsum('ui,vj,ijc->uvc', rows, rows, grid, optimize=True)
  return np.concatenate([embeddings[:, :1], grid.reshape(1, side ** 2, width).astype(np.float32)], 1)
