"""From a sweep file to trials. A trial is one process of diffusion.main with a folder of its own:

  WORKDIR/trials/NAME/
    trial.json    its settings and its command        state.json  how it went, as far as the runner knows (see local.py)
    log.txt       what the process printed            lock        held while a process of it lives
    run/          the run, where the trial trains     evaluation/ evaluation.json, once it is finished; samples.npz, ..

A sweep file is Python: a docstring (its first line says what is asked), BASE (a recipe; default configs/cosine_ddim.py),
MODE ('train', or 'evaluate' for trials on one trained model), METRIC (what the report goes by), sweep() which yields the
overrides of each trial, {'config.schedule': 'linear', ..}, and perhaps space(trial) for --search=optuna.
"""
import ast
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import sys
from typing import Any, Callable, NamedTuple

from etils import epath

from diffusion.errors import InputError
from diffusion.evaluation.metrics import record
from diffusion.setup import specs
from diffusion.setup.config import default, filled
from diffusion.setup.migrate import answer
from diffusion.system.files import write_atomic

MODES = ('train', 'evaluate')


class Sweep(NamedTuple):
  """A sweep file, loaded."""
  file: str
  title: str
  base: str         # recipe, or the work directory of the model that is evaluated
  mode: str         # train or evaluate
  metric: str
  points: Callable  # () -> iterable of overrides
  space: Any        # (optuna's trial) -> overrides, or None
  prune: str        # the column of metrics.jsonl by which a search gives up a trial; '' none
  config: Any       # the base's ConfigDict
  step: int         # of the model's checkpoint; 0 where trials train
  weights: str      # a hash of that checkpoint's arrays; '' where trials train


class Trial(NamedTuple):
  name: str
  base: str            # recipe, or work directory of the model
  overrides: dict      # what it sets beside the base
  config: dict         # every setting, flat: {'config.schedule': 'linear', ..}
  command: list        # words
  folder: epath.Path
  step: int = 0        # of the checkpoint that its evaluation is to be of; 0: of what it trains
  weights: str = ''    # a hash of that checkpoint's arrays


# ---- sweep files
def _module(path, what):
  """A Python file as a module."""
  if not (path.endswith('.py') and epath.Path(path).is_file()):
    raise InputError(f'{what} {path!r}: no such file; give the path of one, such as '
                     + ('experiments/schedules.py' if what == 'sweep' else 'configs/cosine_ddim.py'))
  spec = importlib.util.spec_from_file_location(epath.Path(path).stem, path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except Exception as error:  # whatever a user's file may raise
    raise InputError(f'{what} {path} does not load: {type(error).__name__}: {" ".join(str(error).split())}') from error
  return module


def load(path, model=None):
  """The Sweep of a file.

  Args:
    path: of a sweep file.
    model: work directory of a trained model, where the file's MODE is 'evaluate'.
  Raises:
    InputError: no such file, a broken one, an unknown mode or metric, a model that is missing or not asked for.
  """
  module = _module(str(path), 'sweep')
  mode, metric = getattr(module, 'MODE', 'train'), getattr(module, 'METRIC', 'fd_infinity')
  if not callable(getattr(module, 'sweep', None)):
    raise InputError(f'sweep {path} has no function sweep() that yields overrides, such as {{"config.schedule": "linear"}}')
  if mode not in MODES:
    raise InputError(f'sweep {path}: MODE={mode!r}; valid: {", ".join(MODES)}')
  known_metric(metric)
  if (mode == 'evaluate') != bool(model):
    raise InputError(f'sweep {path} evaluates one trained model: give its work directory, --model=runs/cosine_ddim' if mode == 'evaluate' else
                     f'sweep {path} trains its models: leave out --model={model}')
  base = str(model or getattr(module, 'BASE', 'configs/cosine_ddim.py'))
  config, step, weights = _trained(base) if model else (_recipe(base), 0, '')
  title = (module.__doc__ or epath.Path(path).stem).strip().partition('\n')[0]
  return Sweep(str(path), title, base, mode, metric, module.sweep, getattr(module, 'space', None),
               getattr(module, 'PRUNE', 'heldout_loss'), config, step, weights)


def known_metric(metric):
  """The metric, if there is one of that name; else InputError."""
  if metric not in record.LOWER + record.HIGHER:
    raise InputError(f'metric {metric!r}: {specs.unknown(metric, record.LOWER + record.HIGHER)}')
  return metric


def installed(module, what, extra):
  """Raises InputError where a package of an extra is not installed."""
  if importlib.util.find_spec(module) is None:
    raise InputError(f"{what}: {module} is not installed; pip install 'diffusion-jax[{extra}]', or leave it out")


def _recipe(spec):
  path, _, variant = spec.partition(':')
  module = _module(path, 'recipe')
  if not callable(getattr(module, 'get_config', None)):
    raise InputError(f'recipe {path} has no function get_config(variant)')
  return module.get_config(variant)


def _trained(workdir):
  """(config, step, hash of the arrays) of a work directory's newest checkpoint. Two trainings to one step are two models; a copy is none."""
  import orbax.checkpoint as ocp
  from diffusion.system.checkpoint import open_checkpoints
  root = epath.Path(workdir if '://' in str(workdir) else os.path.abspath(workdir)) / 'checkpoints'
  found = open_checkpoints(root).latest_meta()
  if found is None:
    raise InputError(f'--model={workdir} holds no checkpoint yet; train first, with --config=configs/cosine_ddim.py --workdir={workdir}')
  step, meta = found
  sums = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(root / str(step) / 'meta')['checksums']
  return filled(meta['config']), step, hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16]


# ---- settings
def flat(config):
  """A ConfigDict as {'config.sample.seed': 0, ..}."""
  found = {}
  for key, value in config.items():
    found |= ({f'config.{key}.{inner[7:]}': v for inner, v in flat(value).items()} if hasattr(value, 'items') else
              {f'config.{key}': list(value) if isinstance(value, tuple) else value})
  return found


def put(config, key, value):
  """Sets 'config.sample.seed' of a ConfigDict, as --config.sample.seed=VALUE would.

  Raises:
    InputError: a setting that does not exist, or a value of another type.
  """
  names = flat(config)
  if key not in names:
    old = answer(key)
    raise InputError(f'setting {key!r}: {old or specs.unknown(key, list(names))[:300]}; diffusion/setup/config.py lists all settings')
  *sections, last = key.split('.')[1:]
  for section in sections:
    config = config[section]
  try:
    if isinstance(value, str) and not isinstance(config[last], str):
      value = ast.literal_eval(value.title() if value in ('true', 'false') else value)
    if isinstance(value, bool) != isinstance(config[last], bool):
      raise TypeError
    config[last] = value
  except (TypeError, ValueError, SyntaxError) as error:
    raise InputError(f'{key}={value!r}: expected a value such as {config[last]!r}') from error


def _settle(sweep, overrides):
  """The ConfigDict of a trial, checked."""
  from diffusion.evaluation import report
  from diffusion.setup import validate
  config = sweep.config.copy_and_resolve_references()
  for key, value in overrides.items():
    put(config, key, value)
  if sweep.mode == 'evaluate':
    from diffusion.training.open_model import FIXED, weights_signature
    fixed = [f'config.{key}' for key in FIXED if weights_signature(config[key]) != weights_signature(sweep.config[key])]
    if fixed:
      raise InputError(f'{", ".join(fixed)} cannot change in a trained model, {sweep.base}; train one for each instead (MODE = "train")')
  validate.check(config)
  report.check(config)
  return config


def _digest(sweep, config):
  """A short hash of all settings: of what differs from the defaults, so that settings which come later change no hash."""
  plain, ours = flat(default()), ('config.evaluate.folder', 'config.evaluate.at_end')
  differs = {key: value for key, value in flat(config).items() if plain.get(key) != value and key not in ours}
  model = [sweep.step, sweep.weights] if sweep.mode == 'evaluate' else []
  return hashlib.sha256(json.dumps([sweep.mode, model, differs], sort_keys=True).encode()).hexdigest()[:8]


# ---- trials
def command(sweep, folder, overrides):
  """The words of a trial's command."""
  words = [sys.executable, '-m', 'diffusion.main']
  words += ([f'--config={sweep.base}', f'--workdir={folder / "run"}', '--config.evaluate.at_end=True'] if sweep.mode == 'train' else
            ['--mode=evaluate', f'--workdir={sweep.base}'])
  return words + [f'--config.evaluate.folder={folder / "evaluation"}'] + [f'--{key}={value}' for key, value in overrides.items()]


def trial(sweep, workdir, overrides, shown, program=command):
  """The Trial of some overrides.

  Args:
    workdir: of the sweep.
    shown: the keys of the overrides that its name tells.
    program: (sweep, folder, overrides) -> words; tests put another in its place.
  Raises:
    InputError: overrides that do not exist or do not fit together.
  """
  told = '_'.join(f'{key[7:]}-' + re.sub('[^A-Za-z0-9.]+', '-', str(overrides[key])).strip('-') for key in overrides if key in shown)
  try:
    config = _settle(sweep, overrides)
  except InputError as error:
    raise InputError(f'trial {overrides}: {error}') from error
  parent, digest = epath.Path(workdir) / 'trials', _digest(sweep, config)
  name = f'{told[:80] or "base"}_{digest}'
  if parent.exists():  # the hash is what counts: other axes may give it another name
    name = next((path.name for path in parent.iterdir() if path.name.endswith(f'_{digest}')), name)
  return Trial(name, sweep.base, overrides, flat(config), program(sweep, parent / name, overrides), parent / name,
               sweep.step, sweep.weights)


def telling(sweep, overrides):
  """The keys of those overrides that a name should tell, where it is not known which of them vary."""
  base = flat(sweep.config)
  return [key for key, value in overrides.items() if base.get(key) != value and not key.startswith('config.evaluate.')]


def every(sweep, workdir, always=(), only='', program=command):
  """The Trials of a sweep's grid.

  Args:
    workdir: of the sweep.
    always: {key: value} set in every trial, in place of what the sweep file says.
    only: which of them, see `chosen`.
    program: see `trial`.
  Raises:
    InputError: an empty sweep, two trials with the same settings, settings that do not fit.
  """
  try:
    points = [dict(point) | dict(always) for point in sweep.points()]
  except InputError as error:
    raise InputError(f'sweep {sweep.file}: {error}') from error
  except Exception as error:  # whatever a user's function may raise
    raise InputError(f'sweep {sweep.file}: sweep() stopped with {type(error).__name__}: {error}') from error
  if not points:
    raise InputError(f'sweep {sweep.file} is empty: sweep() yields no overrides')
  keys = dict.fromkeys(key for point in points for key in point)
  varying = [key for key in keys if len({str(point.get(key)) for point in points}) > 1]
  found = {}
  for new in [trial(sweep, workdir, point, varying, program) for point in chosen(points, only)]:
    other = found.setdefault(new.name.rpartition('_')[2], new)
    if other is not new:
      raise InputError(f'sweep {sweep.file}: two trials with the same settings, {other.overrides} and {new.overrides}; leave out one')
  return list(found.values())


def chosen(points, only):
  """Those overrides that meet every condition of 'schedule=linear|cosine, predict=eps'; a value without its brackets will do.

  Raises:
    InputError: a condition on a key that no trial sets; none meets them all.
  """
  for condition in specs.split(only):
    key, equals, values = (part.strip() for part in condition.partition('='))
    key = key if key.startswith('config.') else f'config.{key}'
    known = dict.fromkeys(str(point[key]) for point in points if key in point)
    if not equals or not known:
      raise InputError(f'--only={only!r}: {condition!r} is no setting of these trials; write one of '
                       + ', '.join(dict.fromkeys(f'{key[7:]}=..' for point in points for key in point)))
    wanted = [value.strip() for value in values.split('|')]
    points = [point for point in points if {str(point.get(key)), str(point.get(key)).partition('(')[0]} & set(wanted)]
    if not points:
      raise InputError(f'--only={only!r}: no trial has {condition}; valid: {", ".join(known)}')
  return points


def describe(new):
  """Writes trial.json, by which reports know the trial."""
  new.folder.mkdir(parents=True, exist_ok=True)
  if not (new.folder / 'trial.json').exists():
    told = {key: value for key, value in new._asdict().items() if key != 'folder'}
    write_atomic(new.folder / 'trial.json', json.dumps(told, indent=1).encode())


def finished(folder):
  """The record of a trial, or None where it is not finished: where there is none, or one of another checkpoint."""
  found = _record(folder)
  return None if found is None or _moved(folder, found) else found


def moved(folder):
  """Why a trial's evaluation does not count, as the model was trained on meanwhile; or ''."""
  found = _record(folder)
  return _moved(folder, found) if found else ''


def _record(folder):
  try:
    return record.read(folder / 'evaluation' / 'evaluation.json')
  except InputError:
    return None


def _moved(folder, found):
  wanted, step = 0, found.get('subject', {}).get('step')
  with contextlib.suppress(OSError, ValueError):
    wanted = json.loads((folder / 'trial.json').read_text()).get('step', 0)
  return f'the model was trained on: its newest step was {step}, and {wanted} when the sweep began' if wanted and step != wanted else ''
