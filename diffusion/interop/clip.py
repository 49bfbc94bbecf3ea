"""Files of CLIP and SigLIP, as Hugging Face and open_clip write them, to the parameters of nets/clip.py and back.

What the tensors do not say, the activation and the numbers of heads, is in the JSON beside them, or must be given. What
is read is written again bit for bit.
"""
import json
from typing import NamedTuple

from flax import traverse_util
import numpy as np
import safetensors.numpy

from diffusion.errors import InputError, unknown
from diffusion.interop.clip_names import DIALECTS, FORM, IMAGE, MARKS, rules, TEXT, to_ours, to_theirs
from diffusion.nets.sequence import ACTIVATIONS
from diffusion.system import tensors
from diffusion.system.files import user_path, write_atomic

EXPECTED = ("model.safetensors of Hugging Face's CLIPModel or SiglipModel, or open_clip_model.safetensors of a ViT, or "
            "a folder with one of them and its JSON (not OpenAI's own .pt, which is TorchScript)")
FILES = ('model.safetensors', 'open_clip_model.safetensors')
THEIRS = dict(gelu='gelu', quick_gelu='quick_gelu', gelu_pytorch_tanh='gelu_tanh')  # names of activations
EPS = dict(clip=1e-5, siglip=1e-6)


class Opened(NamedTuple):
  """A published model."""
  net: str         # what config.net is for it
  params: dict     # of nets/clip.py, with logit_scale and, of SigLIP, logit_bias: NumPy arrays
  dialect: str     # of the file: hf_clip, hf_siglip, open_clip, open_clip_siglip
  facts: dict      # vocabulary, length: number of tokens and of places; pixels: side of an image


def load(path, heads=0, text_heads=0, activation=''):
  """The model in a file or folder, Opened.

  Args:
    path: of the .safetensors, or of a folder with it and config.json (Hugging Face) or open_clip_config.json.
    heads, text_heads: attention heads; 0: as the JSON says, or one for 64 channels, as all published have.
    activation: gelu, quick_gelu or gelu_tanh; '': as the JSON says; SigLIP has gelu_tanh.
  Raises:
    InputError: a file that is no CLIP or SigLIP, is damaged, lacks tensors or has others; an activation that is neither
      given nor known; an architecture that nets/clip.py does not have.
  """
  where = user_path(str(path))
  file = where
  if where.is_dir():
    file = next((where / name for name in FILES if (where / name).exists()), where / FILES[0])
  weights = tensors.read(str(file), EXPECTED)
  dialect = next((name for name, mark in MARKS.items() if mark in weights.tensors), None)
  if dialect is None:
    tensors.refuse(weights, 'has none of the names ' + ', '.join(MARKS.values()))
  told = _told(file.parent, dialect)
  activation = activation or told.get('activation') or ('gelu_tanh' if FORM[dialect] == 'siglip' else '')
  if activation not in ACTIVATIONS:
    known = ', '.join(sorted(ACTIVATIONS))
    raise InputError(f'{file}: activation={activation!r}: the tensors do not say which, and no JSON beside them does; '
                     f'give one of {known} (quick_gelu: those of OpenAI, and those trained from them)')
  rows = [name for name in weights.tensors if not name.endswith('position_ids')]
  flat = _flat(weights, rows, dialect)
  net, facts = _spec(flat, dialect, activation, heads or told.get('heads'), text_heads or told.get('text_heads'))
  return Opened(net, traverse_util.unflatten_dict(flat, sep='/'), dialect, facts)


def _flat(weights, names, dialect):
  """Our parameters by path; refuses tensors that are missing or left over, of another kind, or not finite."""
  _, (_, at_image), (_, at_text) = DIALECTS[dialect]()
  blocks = [tensors.depth(weights, f'{at}.') for at in (at_image, at_text)]
  found = rules(dialect, *blocks)
  expected = {name: '' for rule in found for name, _ in rule.theirs}
  tensors.check(weights, expected, {name: '' for name in names})
  bad = tensors.not_finite({name: weights.tensors[name] for name in expected})
  if bad:
    tensors.refuse(weights, f'has values that are not finite floating-point numbers in {", ".join(bad[:3])}')
  wide = {name: np.asarray(weights.tensors[name], np.float32) for name in expected}
  flat = {}
  for rule in found:
    flat |= to_ours(rule, wide)
  return {path: np.array(array, order='C') for path, array in flat.items()}


def _spec(flat, dialect, activation, heads, text_heads):
  """(config.net, facts) of parameters by path."""
  size = lambda path, axis=-1: flat[path].shape[axis]
  blocks = lambda at: sum(path.startswith(f'{at}/qkv_') and path.endswith('kernel') for path in flat)
  form, width, text_width = FORM[dialect], size('image/places'), size('text/encoder/places')
  patch = round((size('image/patches/kernel', 0) / 3) ** .5)
  fields = dict(
    form=form, activation=activation, size=size('text/out/kernel'), patch=patch, width=width, blocks=blocks(IMAGE),
    heads=heads or max(width // 64, 1), hidden=size(f'{IMAGE}/hidden_0/kernel'), text_width=text_width,
    text_blocks=blocks(TEXT), text_heads=text_heads or max(text_width // 64, 1),
    text_hidden=size(f'{TEXT}/hidden_0/kernel'), openai_pixels=form == 'clip')
  side = round((size('image/places', 0) - (form == 'clip')) ** .5)
  facts = dict(vocabulary=size('text/encoder/tokens', 0), length=size('text/encoder/places', 0), pixels=side * patch)
  return f'clip({", ".join(f"{name}={value}" for name, value in fields.items())})', facts


def _told(folder, dialect):
  """{'activation', 'heads', 'text_heads'} of the JSON in a folder, as far as there is one."""
  name = 'config.json' if dialect.startswith('hf') else 'open_clip_config.json'
  if not (folder / name).exists():
    return {}
  try:
    told = json.loads((folder / name).read_text())
    return _of_hf(told, FORM[dialect]) if dialect.startswith('hf') else _of_open_clip(told['model_cfg'], dialect)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(f'{folder / name} is not the JSON of a CLIP ({error!r}); get it again') from error


def _of_hf(told, form):
  """What config.json says; what it leaves out is at the default of its class."""
  image, text = told.get('vision_config') or {}, told.get('text_config') or {}
  usual = 'quick_gelu' if form == 'clip' else 'gelu_pytorch_tanh'
  kinds = {part.get('hidden_act', usual) for part in (image, text)}
  eps = {part.get('layer_norm_eps', EPS[form]) for part in (image, text)}
  if len(kinds) > 1 or not kinds <= set(THEIRS) or eps != {EPS[form]}:
    raise InputError(f'config.json has hidden_act {sorted(kinds)} and layer_norm_eps {sorted(eps)}: expected one of '
                     f'{", ".join(THEIRS)} in both towers, and {EPS[form]}')
  return dict(activation=THEIRS[kinds.pop()], heads=image.get('num_attention_heads', 12),
              text_heads=text.get('num_attention_heads', 8 if form == 'clip' else 12))


def _of_open_clip(told, dialect):
  """What open_clip_config.json says."""
  text = told['text_cfg']
  if dialect == 'open_clip_siglip':
    return dict(text_heads=text['heads'])
  image = told['vision_cfg']
  return dict(activation='quick_gelu' if told.get('quick_gelu') else 'gelu', text_heads=text['heads'],
              heads=image['width'] // image.get('head_width', 64))


def save(path, params, dialect):
  """Writes parameters of nets/clip.py as a .safetensors of a dialect: the inverse of load, bit for bit.

  Args:
    params: nested or flat by path, with logit_scale; others than float32 are written as they are.
    dialect: hf_clip or open_clip for form=clip, hf_siglip or open_clip_siglip for form=siglip.
  Raises:
    InputError: an unknown dialect, or parameters that it has no names for, such as a time embedding.
  """
  if dialect not in DIALECTS:
    raise InputError(f'dialect={dialect!r}: {unknown(dialect, DIALECTS)}')
  flat = {name: np.asarray(a) for name, a in traverse_util.flatten_dict(dict(params), sep='/').items()}
  blocks = [sum(path.startswith(f'{at}/qkv_') and path.endswith('kernel') for path in flat) for at in (IMAGE, TEXT)]
  found = rules(dialect, *blocks)
  ours = {path for rule in found for path, _ in rule.ours}
  odd = sorted(ours ^ set(flat))
  if odd:
    raise InputError(f'dialect={dialect!r} has other parameters than this model ({", ".join(odd[:3])}): it must '
                     'be of the form of the dialect, siglip or not, and not noised, which has no published form')
  made = {}
  for rule in found:
    made |= to_theirs(rule, flat)
  made = {name: np.ascontiguousarray(a) if a.ndim else a for name, a in made.items()}  # NumPy makes a scalar [1]
  write_atomic(user_path(str(path)), safetensors.numpy.save(made))
