"""Networks of diffusers and transformers: config.json as a Flax module, tensors as its parameters, and back.

Parameters keep the names and layout of the files, but for a prefix. Files of CLIP for nets/clip.py, which has another
layout, are read by interop/clip.py with the rules of clip_names.py.
"""
import dataclasses
import re
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError, unknown
from diffusion.interop import folder as folders
from diffusion.interop.mismatch import refuse_mismatch
from diffusion.interop.schedulers import check_version
from diffusion.nets.pretrained import autoencoder, clip, dit, unet2d

OURS = ('dtype', 'constrain', 'projected', 'parent', 'name')  # fields that no config.json has


class Kind(NamedTuple):
  """A class of the other library."""
  module: Any         # Flax module class whose fields have the names of its config
  spec: str           # its name in our configs, '' if it is not trained
  example: Callable   # (module) -> its arguments, to find the shapes of its parameters
  fixed: dict = {}    # other fields of its config: the only value that is offered
  inert: tuple = ()   # fields without effect on the output
  stem: str = folders.STEMS[0]
  rename: Callable = lambda name: name  # of a file's tensors; None: not used
  save: Callable = lambda name: name    # of a parameter
  more: dict = {}     # fields of the module that no config has


class Model(NamedTuple):
  """A network with parameters, as read from a folder."""
  kind: str      # the class there
  config: dict   # config.json as it is
  module: Any
  params: dict   # {name: float32 array}


def _pixels(m, channels=None):
  return jnp.zeros((1, 16, 16, channels or m.in_channels or 3))


def _unconditional(m):
  return _pixels(m), jnp.zeros(1), jnp.zeros((1, m.num_class_embeds)) if m.num_class_embeds else None


def _conditional(m):
  width = unet2d.each('cross_attention_dim', m.cross_attention_dim, len(m.block_out_channels))[0]
  cond, projected = dict(context=jnp.zeros((1, 2, width))), m.projection_class_embeddings_input_dim
  if m.class_embed_type is None and m.num_class_embeds:
    cond['cond'] = jnp.zeros((1, m.num_class_embeds))
  elif m.class_embed_type == 'timestep':
    cond['cond'] = jnp.zeros(1)
  elif m.class_embed_type is not None:
    cond['cond'] = jnp.zeros((1, projected or m.time_embedding_dim or 4 * m.block_out_channels[0]))
  if m.addition_embed_type == 'text_time':
    cond |= dict(pooled=jnp.zeros((1, projected - 6 * m.addition_time_embed_dim)), time_ids=jnp.zeros((1, 6)))
  return _pixels(m, m.in_channels or 4), jnp.zeros(1), cond


def attention_names(name):
  """The present name of an attention's tensor of diffusers before 0.17."""
  for old, new in (('query', 'to_q'), ('key', 'to_k'), ('value', 'to_v'), ('proj_attn', 'to_out.0')):
    name = re.sub(rf'(attentions\.\d+)\.{old}\.(weight|bias)$', rf'\1.{new}.\2', name)
  return name


def _tower_names(prefix):
  """(rename, save) of a tower of transformers 4, whose names begin with it; those of 5 need not."""
  def rename(name):
    return None if name.endswith('position_ids') else name.removeprefix(prefix)
  return dict(rename=rename, save=lambda name: name if 'projection' in name else prefix + name)


def _towers(module, example, prefix, *names):
  return {name: Kind(module, '', example, inert=GENERIC, stem=folders.STEMS[1], **_tower_names(prefix),
                     more=dict(projected=name.endswith('WithProjection'))) for name in names}


GENERIC = (  # of transformers: without effect on the output, or of training
  'architectures', 'attention_dropout', 'bos_token_id', 'dropout', 'dtype', 'initializer_factor', 'initializer_range',
  'model_type', 'pad_token_id', 'torch_dtype', 'transformers_version', 'gradient_checkpointing', 'eos_token_id',
  'use_cache', 'projection_dim', 'output_attentions', 'output_hidden_states', 'return_dict', 'tie_word_embeddings',
  'is_decoder', 'add_cross_attention', 'chunk_size_feed_forward', 'problem_type', 'id2label', 'label2id',
  'is_encoder_decoder')
KINDS = dict(
  UNet2DModel=Kind(
    unet2d.UNet2D, 'unet2d', _unconditional, dict(time_embedding_type='positional', num_train_timesteps=None,
                                                  class_embed_type=None), rename=attention_names),
  UNet2DConditionModel=Kind(
    unet2d.UNet2DCondition, 'unet2d_condition', _conditional, dict(
      reverse_transformer_layers_per_block=None, encoder_hid_dim=None, encoder_hid_dim_type=None,
      num_attention_heads=None, dual_cross_attention=False, resnet_skip_time_act=False, resnet_out_scale_factor=1.,
      time_embedding_type='positional', time_embedding_act_fn=None, timestep_post_act=None, time_cond_proj_dim=None,
      attention_type='default', class_embeddings_concat=False, mid_block_only_cross_attention=None,
      cross_attention_norm=None, addition_embed_type=(None, 'text_time'),
      mid_block_type=('UNetMidBlock2DCrossAttn', None)),
    inert=('addition_embed_type_num_heads',), rename=attention_names),
  AutoencoderKL=Kind(
    autoencoder.AutoencoderKL, '', lambda m: (jnp.zeros((1, 2 * m.factor, 2 * m.factor, m.in_channels)),),
    dict(latents_mean=None, latents_std=None), inert=('sample_size', 'force_upcast'), rename=attention_names),
  VQModel=Kind(
    autoencoder.VQModel, '', lambda m: (jnp.zeros((1, 2 * m.factor, 2 * m.factor, m.in_channels)),),
    dict(norm_type='group', lookup_from_codebook=False), inert=('sample_size', 'force_upcast'), rename=attention_names),
  DiTTransformer2DModel=Kind(
    dit.Dit, 'dit', lambda m: (jnp.zeros((1, m.sample_size, m.sample_size, m.in_channels or 4)), jnp.zeros(1),
                               jnp.zeros((1, m.num_embeds_ada_norm or 1000))),
    dict(norm_type='ada_norm_zero', norm_elementwise_affine=False, dropout=0.),
    inert=('norm_num_groups', 'upcast_attention')),
  PriorTransformer=Kind(
    dit.Prior, '', lambda m: (jnp.zeros((1, m.embedding_dim)), jnp.zeros(1), dict(
      pooled=jnp.zeros((1, m.embedding_proj_dim or m.embedding_dim)),
      context=jnp.zeros((1, m.num_embeddings, m.embedding_dim)))),
    dict(norm_in_type=None, embedding_proj_norm_type=None, encoder_hid_proj_type='linear', added_emb_type='prd',
         dropout=0.)),
  **_towers(clip.ClipText, lambda m: (jnp.zeros((1, 2), int),), 'text_model.', 'CLIPTextModel',
            'CLIPTextModelWithProjection'),
  **_towers(clip.ClipVision, lambda m: (jnp.zeros((1, m.image_size, m.image_size, m.num_channels)),), 'vision_model.',
            'CLIPVisionModel', 'CLIPVisionModelWithProjection'))


def read(folder, variant='', kinds=None, expected=None):
  """The Model in a folder.

  Args:
    expected: {name: shape} of its parameters, where they are known; None: as its config says.
  Raises:
    InputError: files that cannot be read; a class or field that has no meaning here; tensors that are missing, not
      expected or of another shape, with the field of the config that they tell of.
  """
  config = folders.read_json(f'{folder}/config.json')
  name, kind, module = describe(config, str(folder), kinds)
  found = folders.stored(folder, variant)
  return Model(name, config, module, parameters(kind, expected or shapes(kind, module), found))


def describe(config, where, kinds=None):
  """(class, its Kind, the Flax module) of a config.json."""
  kinds = kinds or KINDS
  name = config.get('_class_name') or (config.get('architectures') or [None])[0]
  if name not in kinds:
    raise InputError(f'{where}: _class_name={name!r}: {unknown(str(name), kinds)}')
  check_version(config)
  return name, kinds[name], module_of(kinds[name], name, config)


def module_of(kind, name, config):
  """The Flax module of a config."""
  fields = {f.name: f.default for f in dataclasses.fields(kind.module) if f.name not in OURS}
  taken = {}
  for key, value in config.items():
    value = _tuples(value)
    if key in kind.fixed:
      offered = kind.fixed[key] if isinstance(kind.fixed[key], tuple) else (kind.fixed[key],)
      if value not in offered:
        raise InputError(f'{name}: {key}={value!r} is not offered here; expected {" or ".join(map(repr, offered))}')
    if key in fields:
      _check_type(name, key, value, fields[key])
      taken[key] = value
    elif not (key.startswith('_') or key in kind.inert or key in kind.fixed or value is None):
      raise InputError(f'{name}: field {key}={value!r} has no meaning here; remove it if it has no effect')
  return kind.module(**taken, **kind.more)


def _check_type(name, key, value, default):
  """Raises InputError for a number where a name belongs, and the like; None and a default of None tell nothing."""
  wanted = {_sort(leaf) for leaf in _leaves(default)}
  wrong = [leaf for leaf in _leaves(value) if leaf is not None and _sort(leaf) not in wanted]
  if wrong and None not in wanted:
    raise InputError(f'{name}: {key}={value!r}: expected {" or ".join(sorted(wanted))}, or a list of such, as '
                     f'{default!r}')


def _leaves(value):
  return [leaf for part in value for leaf in _leaves(part)] if isinstance(value, tuple) else [value]


def _sort(value):
  sorts = ((bool, 'true or false'), ((int, float), 'a number'), (str, 'a name'))
  return next((word for kind, word in sorts if isinstance(value, kind)), None)


def _tuples(value):
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def shapes(kind, module):
  """{name: shape} of all parameters; nothing is computed."""
  try:
    found = jax.eval_shape(module.init, jax.random.key(0), *jax.eval_shape(lambda: kind.example(module)))
  except InputError:
    raise
  except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:  # of sizes that no network has
    told = ' '.join(str(error).split())[:200]
    raise InputError(f'{type(module).__name__}: the fields of its config.json make no network ({told}): '
                     f'{fields_of(module)}; expected those that diffusers saved') from error
  return {name: a.shape for name, a in found['params'].items()}


def fields_of(module):
  """'name=value, ..' of the fields that are not at their defaults."""
  fields = [f for f in dataclasses.fields(module) if f.name not in OURS]
  return ', '.join(f'{f.name}={getattr(module, f.name)!r}' for f in fields if getattr(module, f.name) != f.default)


def parameters(kind, expected, found):
  """{name: float32 array on the device}: the tensors of Stored, one after the other, of the expected shapes."""
  names = {kind.rename(name): name for name in found.shapes}
  names.pop(None, None)
  fits = lambda name: _squeezed(found.shapes[names[name]]) == _squeezed(expected[name])
  refuse_mismatch(found.where, expected, {
    name: expected[name] if name in expected and fits(name) else found.shapes[old] for name, old in names.items()})
  return {name: jnp.asarray(found.get(names[name]).reshape(shape)) for name, shape in expected.items()}


def _squeezed(shape):
  """Without the pixels of a 1x1 convolution, which is a dense layer."""
  return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


def write(folder, model):
  """Writes a Model as its library reads it."""
  kind = KINDS[model.kind]
  folders.write(folder, model.config, {kind.save(name): np.asarray(a) for name, a in model.params.items()}, kind.stem)


def config_of(spec_name, module):
  """The config.json of a module of ours."""
  name = next(name for name, kind in KINDS.items() if kind.spec == spec_name)
  fields = [f.name for f in dataclasses.fields(module) if f.name not in OURS]
  return dict(_class_name=name, _diffusers_version='0.35.0') | {key: getattr(module, key) for key in fields}


def spec_of(model):
  """The network as a string of our configs."""
  return f'{KINDS[model.kind].spec}({fields_of(model.module)})'
