"""What tensors that do not fit say of a config: a tree of them, and the fields to look at."""
import re

from diffusion.errors import InputError

MOST = 12  # entries of the tree
# (pattern of a name, fields of the config that decide on it); the first that fits
SHAPES = (  # of a tensor of another shape
  (r'^conv_in\.weight', 'in_channels, block_out_channels'), (r'^conv_out\.', 'out_channels'),
  (r'(encoder|decoder)\.conv_(in|out)', 'latent_channels, in_channels, out_channels, block_out_channels'),
  (r'quant_conv', 'latent_channels, vq_embed_dim'), (r'quantize\.embedding', 'num_vq_embeddings, vq_embed_dim'),
  (r'attn2\.to_[kv]\.weight', 'cross_attention_dim'), (r'attn1\.to_[kv]\.weight', 'only_cross_attention'),
  (r'time_emb_proj', 'resnet_time_scale_shift, time_embedding_dim'), (r'time_embedding', 'time_embedding_dim'),
  (r'add_embedding', 'projection_class_embeddings_input_dim, addition_time_embed_dim'),
  (r'class_embedding', 'num_class_embeds, projection_class_embeddings_input_dim'),
  (r'resnets\.', 'block_out_channels'), (r'(down|up)samplers', 'block_out_channels'),
  (r'position_embedding', 'max_position_embeddings, image_size, patch_size'), (r'token_embedding', 'vocab_size'),
  (r'mlp\.fc', 'intermediate_size'), (r'projection', 'projection_dim'), (r'class_embedder', 'num_embeds_ada_norm'),
  (r'pos_embed|proj_out', 'patch_size, in_channels, out_channels'))
PRESENCE = (  # of one that is missing or not expected
  (r'post_quant_conv', 'use_post_quant_conv'), (r'quant_conv', 'use_quant_conv'),
  (r'attentions\.0\.transformer_blocks\.0', 'down_block_types, up_block_types'),
  (r'attentions\.\d+\.transformer_blocks\.[1-9]', 'transformer_layers_per_block'),
  (r'mid_block\.attentions', 'mid_block_type, add_attention, mid_block_add_attention'),
  (r'attentions\.[1-9]', 'layers_per_block'), (r'attentions\.', 'down_block_types, up_block_types'),
  (r'resnets\.\d+\.conv_shortcut', 'block_out_channels'), (r'resnets\.\d+\.time_emb', 'resnet_time_scale_shift'),
  (r'resnets\.', 'layers_per_block'), (r'(down|up)samplers', 'block_out_channels, downsample_type, upsample_type'),
  (r'add_embedding', 'addition_embed_type'), (r'class_embedding', 'class_embed_type, num_class_embeds'),
  (r'^transformer_blocks', 'num_layers'), (r'layers\.\d+', 'num_hidden_layers'), (r'projection', 'architectures'))


def refuse_mismatch(where, expected, found):
  """Raises InputError unless both, {name: shape}, are equal.

  The message has a tree of the names that differ, with how many there are below each branch, and the fields of the
  config that decide on them.
  """
  told = {}
  for name, shape in expected.items():
    if name not in found:
      told[name] = f'{list(shape)} is missing'
    elif found[name] != shape:
      told[name] = f'{list(found[name])} in the file, {list(shape)} by the config'
  told |= {name: f'{list(found[name])} is not expected' for name in found if name not in expected}
  if told:
    fields = dict.fromkeys(field for name in told for field in _hint(name, name in expected and name in found))
    raise InputError(f'{where}: {len(told)} tensors do not fit config.json: {_tree(told)}; look at '
                     + (', '.join(list(fields)[:8]) or 'its _class_name'))


def _hint(name, there):
  hints = SHAPES if there else PRESENCE
  return next((fields.split(', ') for pattern, fields in hints if re.search(pattern, name)), [])


def _tree(told):
  """'down_blocks.0 (12): resnets.0.conv1.weight [..] is missing, ..; mid_block (3): ..'."""
  branches = {}
  for name, text in told.items():
    parts = name.split('.')
    depth = 2 if len(parts) > 2 and parts[1].isdigit() else 1
    branches.setdefault('.'.join(parts[:depth]), []).append(f'{".".join(parts[depth:])} {text}'.strip())
  lines, left = [], MOST
  for branch, leaves in branches.items():
    shown = leaves[:max(1, min(3, left))]
    left -= len(shown)
    more = f', and {len(leaves) - len(shown)} more' if len(leaves) > len(shown) else ''
    lines.append(f'{branch} ({len(leaves)}): {", ".join(shown)}{more}')
    if left <= 0:
      break
  rest = len(branches) - len(lines)
  return '; '.join(lines) + (f'; and {rest} more branches' if rest else '')
