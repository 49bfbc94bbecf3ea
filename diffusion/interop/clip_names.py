"""The names that files of CLIP and SigLIP have for the parameters of nets/clip.py: one list of rules, read both ways.

Four dialects: Hugging Face's CLIPModel and SiglipModel, and open_clip's CLIP (whose names are OpenAI's) and SigLIP.
Rules are needed since arrays there are joined, cut and transposed here; networks that keep the names and layout of
their files (nets/pretrained) are read by models.py without any.
"""
from typing import NamedTuple

import numpy as np

FORM = dict(hf_clip='clip', open_clip='clip', hf_siglip='siglip', open_clip_siglip='siglip')  # by dialect
MARKS = dict(  # a name that only files of this dialect have
  hf_clip='vision_model.pre_layrnorm.weight', hf_siglip='vision_model.head.probe', open_clip='visual.ln_pre.weight',
  open_clip_siglip='visual.trunk.attn_pool.latent')


class Rule(NamedTuple):
  """The same numbers here and in a file: joined, they are one matrix or one array."""
  ours: tuple    # pairs (path, share): parts along the last axis, in proportion
  theirs: tuple  # pairs (name, share): parts along the first axis
  how: str       # matrix: transposed; plain; patches: [out, in, p, p] there, [p * p * in, out] here
  ones: int = 0  # leading dimensions of 1 there


# ---- rules
def _plain(ours, theirs, ones=0):
  return [Rule(((ours, 1),), ((theirs, 1),), 'plain', ones)]


def _norm(ours, theirs):
  return _plain(f'{ours}/scale', f'{theirs}.weight') + _plain(f'{ours}/bias', f'{theirs}.bias')


def _dense(ours, theirs, weight='.weight', bias='.bias'):
  """Linear layers; ours, theirs: a name, or pairs (name, share) of those that one matrix is cut into."""
  ours, theirs = ([(name, 1)] if isinstance(name, str) else name for name in (ours, theirs))
  parts = lambda names, end: tuple((name + end, share) for name, share in names)
  return [Rule(parts(ours, '/kernel'), parts(theirs, weight), 'matrix'),
          Rule(parts(ours, '/bias'), parts(theirs, bias), 'plain')]


def _hf_block(ours, i, theirs):
  at = f'{theirs}.{i}.'
  qkv = [(f'{at}self_attn.{part}_proj', 1) for part in 'qkv']
  return (_norm(f'{ours}/norm_a_{i}', at + 'layer_norm1') + _norm(f'{ours}/norm_b_{i}', at + 'layer_norm2')
          + _dense([(f'{ours}/qkv_{i}', 3)], qkv) + _dense(f'{ours}/attended_{i}', at + 'self_attn.out_proj')
          + _dense(f'{ours}/hidden_{i}', at + 'mlp.fc1') + _dense(f'{ours}/add_{i}', at + 'mlp.fc2'))


def _open_block(ours, i, theirs):
  at = f'{theirs}.{i}.'
  return (_norm(f'{ours}/norm_a_{i}', at + 'ln_1') + _norm(f'{ours}/norm_b_{i}', at + 'ln_2')
          + _dense(f'{ours}/qkv_{i}', at + 'attn.in_proj', '_weight', '_bias')
          + _dense(f'{ours}/attended_{i}', at + 'attn.out_proj')
          + _dense(f'{ours}/hidden_{i}', at + 'mlp.c_fc') + _dense(f'{ours}/add_{i}', at + 'mlp.c_proj'))


def _timm_block(ours, i, theirs):
  at = f'{theirs}.{i}.'
  return (_norm(f'{ours}/norm_a_{i}', at + 'norm1') + _norm(f'{ours}/norm_b_{i}', at + 'norm2')
          + _dense(f'{ours}/qkv_{i}', at + 'attn.qkv') + _dense(f'{ours}/attended_{i}', at + 'attn.proj')
          + _dense(f'{ours}/hidden_{i}', at + 'mlp.fc1') + _dense(f'{ours}/add_{i}', at + 'mlp.fc2'))


def _patches(theirs):
  return [Rule((('image/patches/kernel', 1),), ((f'{theirs}.weight', 1),), 'patches')]


IMAGE, TEXT, READER = 'image/sequence', 'text/encoder/sequence', 'image/reader'


def _hf(siglip):
  """(rules, (block, prefix) of images, (block, prefix) of texts) of Hugging Face's names."""
  found = (_patches('vision_model.embeddings.patch_embedding')
           + _plain('image/places', 'vision_model.embeddings.position_embedding.weight')
           + _norm(f'{IMAGE}/norm', 'vision_model.post_layernorm')
           + _plain('text/encoder/tokens', 'text_model.embeddings.token_embedding.weight')
           + _plain('text/encoder/places', 'text_model.embeddings.position_embedding.weight')
           + _norm(f'{TEXT}/norm', 'text_model.final_layer_norm')
           + _plain('logit_scale', 'logit_scale', int(siglip)))
  if siglip:
    head = 'vision_model.head.'
    found += (_plain('image/patches/bias', 'vision_model.embeddings.patch_embedding.bias')
              + _plain(f'{READER}/query', head + 'probe', 2) + _norm(f'{READER}/norm', head + 'layernorm')
              + _dense([(f'{READER}/q', 1), (f'{READER}/kv', 2)], head + 'attention.in_proj', '_weight', '_bias')
              + _dense(f'{READER}/attended', head + 'attention.out_proj') + _dense('text/out', 'text_model.head')
              + _dense(f'{READER}/hidden', head + 'mlp.fc1') + _dense(f'{READER}/add', head + 'mlp.fc2')
              + _plain('logit_bias', 'logit_bias', 1))
  else:
    found += (_plain('image/class', 'vision_model.embeddings.class_embedding')
              + _norm('image/norm_in', 'vision_model.pre_layrnorm')  # the file's spelling
              + _dense('image/out', 'visual_projection')[:1] + _dense('text/out', 'text_projection')[:1])
  return found, (_hf_block, 'vision_model.encoder.layers'), (_hf_block, 'text_model.encoder.layers')


def _open_texts(at):
  return (_plain('text/encoder/tokens', f'{at}token_embedding.weight')
          + _plain('text/encoder/places', f'{at}positional_embedding') + _norm(f'{TEXT}/norm', f'{at}ln_final')
          + _plain('logit_scale', 'logit_scale'))


def _open_clip():
  """As _hf, of open_clip's names, which are OpenAI's: projections are not transposed there."""
  found = (_open_texts('') + _patches('visual.conv1') + _plain('image/class', 'visual.class_embedding')
           + _plain('image/places', 'visual.positional_embedding') + _norm('image/norm_in', 'visual.ln_pre')
           + _norm(f'{IMAGE}/norm', 'visual.ln_post') + _plain('image/out/kernel', 'visual.proj')
           + _plain('text/out/kernel', 'text_projection'))
  return found, (_open_block, 'visual.transformer.resblocks'), (_open_block, 'transformer.resblocks')


def _open_siglip():
  """As _hf, of open_clip's SigLIP, whose image tower is timm's."""
  at, pool = 'visual.trunk.', 'visual.trunk.attn_pool.'
  found = (_open_texts('text.') + _patches(f'{at}patch_embed.proj')
           + _plain('image/patches/bias', f'{at}patch_embed.proj.bias') + _plain('image/places', f'{at}pos_embed', 1)
           + _norm(f'{IMAGE}/norm', f'{at}norm') + _plain(f'{READER}/query', pool + 'latent', 2)
           + _dense(f'{READER}/q', pool + 'q') + _dense(f'{READER}/kv', pool + 'kv')
           + _dense(f'{READER}/attended', pool + 'proj') + _norm(f'{READER}/norm', pool + 'norm')
           + _dense(f'{READER}/hidden', pool + 'mlp.fc1') + _dense(f'{READER}/add', pool + 'mlp.fc2')
           + _dense('text/out', 'text.text_projection') + _plain('logit_bias', 'logit_bias'))
  return found, (_timm_block, f'{at}blocks'), (_open_block, 'text.transformer.resblocks')


DIALECTS = dict(hf_clip=lambda: _hf(False), hf_siglip=lambda: _hf(True), open_clip=_open_clip,
                open_clip_siglip=_open_siglip)


def rules(dialect, image_blocks, text_blocks):
  """All Rules of a dialect, for these numbers of blocks."""
  found, (image, at_image), (text, at_text) = DIALECTS[dialect]()
  for i in range(image_blocks):
    found = found + image(IMAGE, i, at_image)
  for i in range(text_blocks):
    found = found + text(TEXT, i, at_text)
  return found


def _cut(array, parts, axis):
  """{name: part of the array along an axis}, in proportion to the shares of parts."""
  if len(parts) == 1:
    return {parts[0][0]: array}
  ends = np.cumsum([share for _, share in parts])
  where = [array.shape[axis] * end // ends[-1] for end in ends[:-1]]
  return dict(zip((name for name, _ in parts), np.split(array, where, axis)))


def _joined(arrays, parts, axis):
  found = [arrays[name] for name, _ in parts]
  return np.concatenate(found, axis) if len(found) > 1 else found[0]


def to_ours(rule, theirs):
  """{path: array} of a Rule, of the tensors of a file."""
  array = _joined(theirs, rule.theirs, 0)
  array = array.reshape(array.shape[rule.ones:])
  if rule.how == 'patches':
    array = array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
  return _cut(array.T if rule.how == 'matrix' else array, rule.ours, -1)


def to_theirs(rule, ours):
  """{name: array} of a Rule, of our parameters by path: the inverse of to_ours."""
  array = _joined(ours, rule.ours, -1)
  if rule.how == 'patches':  # of images of 3 channels
    side = round((array.shape[0] / 3) ** .5)
    array = array.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)
  array = array.T if rule.how == 'matrix' else array
  return _cut(array.reshape((1,) * rule.ones + array.shape), rule.theirs, 0)
