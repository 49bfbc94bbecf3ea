"""What a checkpoint records of a model beside its arrays, and whether a run may continue it."""
import json
import sys
from typing import NamedTuple

import flax
import jax
import numpy as np
import optax

from diffusion import __version__
from diffusion.errors import InputError
from diffusion.setup import specs
from diffusion.setup.choices import parse_emas
from diffusion.system import tensors

# Settings that the weights depend on: they cannot change within a work directory.
FIXED = ('net', 'objective', 'schedule', 'predict', 'variance', 'self_condition', 'logvar_channels', 'trainable')
FREE = {'dtype', 'remat', 'fast', 'dropout', 'strength', 'levels'}  # arguments of these that may change
# Any other setting may change; a resumed run reports changes of these.
NOTED = ('seed', 'data', 'task', 'timesteps', 'loss_weight', 'loss_type', 'noise_type', 'condition_dropout', 'batch',
         'steps', 'optimizer', 'learning_rate', 'lr_schedule', 'grad_clip', 'ema_decay')
OF_DATA = {'untrained', 'examples'}  # facts of the examples at hand, on which the weights do not depend


class Record(NamedTuple):
  """What a checkpoint says of the task."""
  facts: dict
  fitted: dict    # {name: NumPy array}
  example: tuple  # (x0, cond), NumPy zeros [1, ...]
  hashes: dict    # of given weights by owner


def to_meta(config, run):
  """The record of new checkpoints."""
  kept = config.copy_and_resolve_references()
  kept.evaluate.folder = ''  # of this evaluation, not of the next one
  example = [jax.tree.map(lambda a: [str(a.dtype), list(a.shape)], part) for part in run.example]
  hashes = {owner: tensors.digest(tree) for owner, tree in run.frozen.items()}
  return dict(config=json.loads(kept.to_json()), facts=json.loads(json.dumps(run.task.facts)), example=example,
              fitted=tensors.to_text(run.task.fitted), hashes=hashes, versions=versions())


def record_of(meta):
  """The Record in the meta of a checkpoint, of any version."""
  if 'facts' not in meta:  # images, before there was anything else
    facts = dict(shape=list(meta['shape']), classes=list(meta['classes']))
    cond = np.zeros((1, len(meta['classes'])), np.float32) if meta['classes'] else None
    return Record(facts, {}, (np.zeros((1, *meta['shape']), np.float32), cond), {})
  leaf = lambda a: isinstance(a, list)
  zeros = lambda tree: jax.tree.map(lambda a: np.zeros(a[1], a[0]), tree, is_leaf=leaf)
  return Record(meta['facts'], tensors.from_text(meta['fitted']), tuple(map(zeros, meta['example'])), meta['hashes'])


# ---- whether a run may continue a checkpoint
def require_same_model(workdir, config, old, facts, old_facts, report):
  """Raises InputError if this config cannot continue the checkpoint; reports the other settings that have changed."""
  gaps = [key for key in FIXED if weights_signature(config[key]) != weights_signature(old[key])]
  # The memory of loss-aware timesteps is part of the checkpoint.
  if old.timesteps != config.timesteps and 'loss_aware' in old.timesteps + config.timesteps:
    gaps.append('timesteps')
  if [name for name, _ in parse_emas(old.extra_emas)] != [name for name, _ in parse_emas(config.extra_emas)]:
    gaps.append('extra_emas')
  if _optimizer_names(old) != _optimizer_names(config):  # its state too
    gaps.append('optimizer')
  gaps = [f'config.{key}: {config[key]!r} here, {old[key]!r} in the checkpoint' for key in gaps]
  facts = json.loads(json.dumps(facts))
  gaps += [f'{key}: {facts.get(key)} here, {old_facts.get(key)} in the checkpoint'
           for key in {**facts, **old_facts} if key not in OF_DATA and facts.get(key) != old_facts.get(key)]
  if gaps:
    raise InputError(f'{workdir} holds a checkpoint of another model or optimizer ({"; ".join(gaps)}); '
                     'use another --workdir')
  changed = [f'{key} {old[key]!r} -> {config[key]!r}' for key in NOTED if config[key] != old[key]]
  if changed:
    report('changed', '; '.join(changed))


def other_data(config, old, fingerprint):
  """A note if the data are not those of the checkpoint whose record is `old`, though they have the same name; or ''."""
  known = old.get('data_fingerprint')
  if known in (None, fingerprint) or old['config'].get('data') != config.data:  # another name is reported as such
    return ''
  return (f'{config.data} holds other data than at the checkpoint (fingerprint {fingerprint[:8]}, then {known[:8]}): '
          'the held-out side may hold what was trained on')


def _optimizer_names(config):
  """{group: name of its optimizer}."""
  parts = [part.rpartition(':') for part in config.optimizer.split('|')]
  return {group.strip(): specs.parse(spec)[0] for group, _, spec in parts}


def require_same_weights(workdir, hashes, old):
  """Raises InputError if the given weights are not those that the model was trained with."""
  gaps = [f'{owner}: {hashes.get(owner, "none")} here, {old.get(owner, "none")} in the checkpoint'
          for owner in {**hashes, **old} if hashes.get(owner) != old.get(owner)]
  if gaps:
    raise InputError(f'{workdir} was trained with other given weights ({"; ".join(gaps)}); restore those files or '
                     'directories, or train anew in another --workdir')


def weights_signature(spec):
  """A spec without spaces and without the arguments that do not change the meaning of the weights."""
  name, args, kwargs = specs.parse(str(spec))
  return name, args, {key: value for key, value in kwargs.items() if key not in FREE}


def versions():
  """The versions of this software, as stored in checkpoints."""
  return dict(diffusion=__version__, python=sys.version.split()[0], jax=jax.__version__, flax=flax.__version__,
              optax=optax.__version__)
