"""Sweep files. A sweep file is Python with

  a docstring   whose first line asks the question of the sweep
  BASE          a recipe (default: configs/cosine_ddim.py)
  MODE          'train', or 'evaluate' for trials on one trained model
  METRIC        the metric of the report
  sweep()       yields the overrides of each trial, {'config.schedule': 'linear', ..}
  space(trial)  optional: the overrides that --search=optuna tries; PRUNE: the column by which it gives up trials
"""
import hashlib
import importlib.util
import json
import os
from typing import Any, Callable, NamedTuple

from etils import epath

from diffusion.errors import InputError
from diffusion.evaluation.metrics import record
from diffusion.setup import specs
from diffusion.setup.config import filled

MODES = ('train', 'evaluate')


class Sweep(NamedTuple):
  """A loaded sweep file."""
  file: str
  title: str
  base: str         # recipe, or the work directory of the evaluated model
  mode: str         # train or evaluate
  metric: str
  points: Callable  # () -> iterable of overrides
  space: Any        # (optuna's trial) -> overrides, or None
  prune: str        # the column of metrics.jsonl by which a search gives up a trial; '': none
  config: Any       # the ConfigDict of the base
  step: int         # of the model's checkpoint; 0 if trials train
  weights: str      # a hash of that checkpoint's arrays; '' if trials train


def _module(path, what):
  """Imports a Python file."""
  if not (path.endswith('.py') and epath.Path(path).is_file()):
    raise InputError(f'{what} {path!r}: no such file; give a path such as '
                     + ('experiments/schedules.py' if what == 'sweep' else 'configs/cosine_ddim.py'))
  spec = importlib.util.spec_from_file_location(epath.Path(path).stem, path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except Exception as error:  # a user's file may raise anything
    raise InputError(f'{what} {path} does not load: {type(error).__name__}: {" ".join(str(error).split())}') from error
  return module


def load(path, model=None):
  """The Sweep of a file.

  Args:
    path: of a sweep file.
    model: work directory of a trained model, if the MODE of the file is 'evaluate'.
  Raises:
    InputError: no such file, a broken one, an unknown mode or metric, a model that is missing or not needed.
  """
  module = _module(str(path), 'sweep')
  mode, metric = getattr(module, 'MODE', 'train'), getattr(module, 'METRIC', 'fd_infinity')
  if not callable(getattr(module, 'sweep', None)):
    raise InputError(f'sweep {path} has no function sweep() that yields overrides, such as '
                     '{"config.schedule": "linear"}')
  if mode not in MODES:
    raise InputError(f'sweep {path}: MODE={mode!r}; valid: {", ".join(MODES)}')
  known_metric(metric)
  if mode == 'evaluate' and not model:
    raise InputError(f'sweep {path} evaluates one trained model: give its work directory, --model=runs/cosine_ddim')
  if mode == 'train' and model:
    raise InputError(f'sweep {path} trains its models: leave out --model={model}')
  base = str(model or getattr(module, 'BASE', 'configs/cosine_ddim.py'))
  config, step, weights = trained_model(base) if model else (recipe_config(base), 0, '')
  title = (module.__doc__ or epath.Path(path).stem).strip().partition('\n')[0]
  return Sweep(str(path), title, base, mode, metric, module.sweep, getattr(module, 'space', None),
               getattr(module, 'PRUNE', 'heldout_loss'), config, step, weights)


def known_metric(metric):
  """Returns the metric; raises InputError if it is unknown."""
  if not record.is_metric(metric):
    raise InputError(f'metric {metric!r}: {specs.unknown(metric, record.LOWER + record.HIGHER)}')
  return metric


def recipe_config(spec):
  """The ConfigDict of 'configs/cosine_ddim.py' or 'configs/cosine_ddim.py:tiny'."""
  path, _, variant = spec.partition(':')
  module = _module(path, 'recipe')
  if not callable(getattr(module, 'get_config', None)):
    raise InputError(f'recipe {path} has no function get_config(variant)')
  return module.get_config(variant)


def trained_model(workdir):
  """(config, step, hash of the arrays) of the newest checkpoint of a work directory.

  Two trainings to the same step are different models; a copy is the same model.
  """
  import orbax.checkpoint as ocp
  from diffusion.system.checkpoint import open_checkpoints
  root = epath.Path(workdir if '://' in str(workdir) else os.path.abspath(workdir)) / 'checkpoints'
  newest = open_checkpoints(root).latest_meta()
  if newest is None:
    raise InputError(f'--model={workdir} holds no checkpoint yet; train first, with --config=configs/cosine_ddim.py '
                     f'--workdir={workdir}')
  step, meta = newest
  sums = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(root / str(step) / 'meta')['checksums']
  return filled(meta['config']), step, hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16]
