"""The trials of a sweep. A trial is one process of diffusion.main with its own folder:

  WORKDIR/trials/NAME/
    trial.json    its settings and its command       state.json  its status as known to the runner (see local.py)
    log.txt       the output of the process          lock        held while one of its processes is alive
    run/          the run, if the trial trains       evaluation/ evaluation.json once it is finished; samples.npz, ..
"""
import ast
import contextlib
import hashlib
import importlib.util
import json
import re
import sys
from typing import NamedTuple

from etils import epath

from diffusion.errors import InputError
from diffusion.evaluation.metrics import record
from diffusion.setup import specs
from diffusion.setup.config import default
from diffusion.setup.migrate import answer
from diffusion.system.files import write_atomic


class Trial(NamedTuple):
  name: str
  base: str            # recipe, or work directory of the model
  overrides: dict      # settings that differ from the base
  config: dict         # every setting, flat: {'config.schedule': 'linear', ..}
  command: list        # words
  folder: epath.Path
  step: int = 0        # of the checkpoint to evaluate; 0 if the trial trains
  weights: str = ''    # a hash of that checkpoint's arrays


def installed(module, what, extra):
  """Raises InputError if a package of an extra is not installed."""
  if importlib.util.find_spec(module) is None:
    raise InputError(f"{what}: {module} is not installed; pip install 'diffusion-jax[{extra}]', or leave it out")


# ---- settings
def flat(config):
  """A ConfigDict as {'config.sample.seed': 0, ..}."""
  settings = {}
  for key, value in config.items():
    if hasattr(value, 'items'):
      settings |= {f'config.{key}.{inner[7:]}': v for inner, v in flat(value).items()}
    else:
      settings[f'config.{key}'] = list(value) if isinstance(value, tuple) else value
  return settings


def put(config, key, value):
  """Sets 'config.sample.seed' of a ConfigDict, as --config.sample.seed=VALUE would.

  Raises:
    InputError: a setting that does not exist, or a value of another type.
  """
  names = flat(config)
  if key not in names:
    hint = answer(key) or specs.unknown(key, list(names))[:300]
    raise InputError(f'setting {key!r}: {hint}; diffusion/setup/config.py lists all settings')
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
  """The validated ConfigDict of a trial."""
  from diffusion.evaluation import report
  from diffusion.setup import validate
  config = sweep.config.copy_and_resolve_references()
  for key, value in overrides.items():
    put(config, key, value)
  if sweep.mode == 'evaluate':
    from diffusion.training.record import FIXED, weights_signature
    changed = lambda key: weights_signature(config[key]) != weights_signature(sweep.config[key])
    fixed = [f'config.{key}' for key in FIXED if changed(key)]
    if fixed:
      raise InputError(f'{", ".join(fixed)} cannot change in a trained model, {sweep.base}; '
                       'train one model for each value instead (MODE = "train")')
  validate.check(config)
  report.check(config)
  return config


def _digest(sweep, config):
  """A short hash of the settings that differ from their defaults, so that settings added later do not change it."""
  plain, ours = flat(default()), ('config.evaluate.folder', 'config.evaluate.at_end')
  differs = {key: value for key, value in flat(config).items() if plain.get(key) != value and key not in ours}
  model = [sweep.step, sweep.weights] if sweep.mode == 'evaluate' else []
  return hashlib.sha256(json.dumps([sweep.mode, model, differs], sort_keys=True).encode()).hexdigest()[:8]


# ---- trials
def command(sweep, folder, overrides):
  """The words of a trial's command."""
  words = ['--mode=evaluate', f'--workdir={sweep.base}']
  if sweep.mode == 'train':
    words = [f'--config={sweep.base}', f'--workdir={folder / "run"}', '--config.evaluate.at_end=True']
  words.append(f'--config.evaluate.folder={folder / "evaluation"}')
  words += [f'--{key}={value}' for key, value in overrides.items()]
  return [sys.executable, '-m', 'diffusion.main', *words]


def trial(sweep, workdir, overrides, shown, program=command):
  """The Trial with the given overrides.

  Args:
    workdir: of the sweep.
    shown: the keys of the overrides that its name contains.
    program: (sweep, folder, overrides) -> words; tests replace it.
  Raises:
    InputError: overrides that do not exist or cannot be combined.
  """
  plain = lambda value: re.sub('[^A-Za-z0-9.]+', '-', str(value)).strip('-')
  title = '_'.join(f'{key[7:]}-{plain(value)}' for key, value in overrides.items() if key in shown)
  try:
    config = _settle(sweep, overrides)
  except InputError as error:
    raise InputError(f'trial {overrides}: {error}') from error
  parent, digest = epath.Path(workdir) / 'trials', _digest(sweep, config)
  name = f'{title[:80] or "base"}_{digest}'
  if parent.exists():  # only the hash counts: with other axes it may have another name
    name = next((path.name for path in parent.iterdir() if path.name.endswith(f'_{digest}')), name)
  return Trial(name, sweep.base, overrides, flat(config), program(sweep, parent / name, overrides), parent / name,
               sweep.step, sweep.weights)


def telling(sweep, overrides):
  """The keys of the overrides that a name should contain if it is not known which of them vary."""
  base = flat(sweep.config)
  return [key for key, value in overrides.items() if base.get(key) != value and not key.startswith('config.evaluate.')]


def every(sweep, workdir, always=(), only='', program=command):
  """The Trials of a sweep's grid.

  Args:
    workdir: of the sweep.
    always: {key: value} set in every trial, overriding the sweep file.
    only: a filter, see `chosen`.
    program: see `trial`.
  Raises:
    InputError: an empty sweep, two trials with the same settings, settings that cannot be combined.
  """
  try:
    points = [dict(point) | dict(always) for point in sweep.points()]
  except InputError as error:
    raise InputError(f'sweep {sweep.file}: {error}') from error
  except Exception as error:  # a user's function may raise anything
    raise InputError(f'sweep {sweep.file}: sweep() stopped with {type(error).__name__}: {error}') from error
  if not points:
    raise InputError(f'sweep {sweep.file} is empty: sweep() yields no overrides')
  keys = dict.fromkeys(key for point in points for key in point)
  varying = [key for key in keys if len({str(point.get(key)) for point in points}) > 1]
  by_hash = {}
  for new in [trial(sweep, workdir, point, varying, program) for point in chosen(points, only)]:
    other = by_hash.setdefault(new.name.rpartition('_')[2], new)
    if other is not new:
      raise InputError(f'sweep {sweep.file}: two trials with the same settings, {other.overrides} and '
                       f'{new.overrides}; leave out one')
  return list(by_hash.values())


def chosen(points, only):
  """The overrides that meet every condition of 'schedule=linear|cosine, predict=eps'.

  A value in a condition also matches a spec of that name with arguments.

  Raises:
    InputError: a condition on a key that no trial sets, or conditions that no trial meets.
  """
  for condition in specs.split(only):
    key, equals, values = (part.strip() for part in condition.partition('='))
    key = key if key.startswith('config.') else f'config.{key}'
    known = dict.fromkeys(str(point[key]) for point in points if key in point)
    if not equals or not known:
      raise InputError(f'--only={only!r}: {condition!r} is not a setting of these trials; write one of '
                       + ', '.join(dict.fromkeys(f'{key[7:]}=..' for point in points for key in point)))
    accepted = {value.strip() for value in values.split('|')}
    points = [point for point in points if accepted & {str(point.get(key)), str(point.get(key)).partition('(')[0]}]
    if not points:
      raise InputError(f'--only={only!r}: no trial has {condition}; valid: {", ".join(known)}')
  return points


def describe(new):
  """Writes trial.json, from which reports read the trial."""
  new.folder.mkdir(parents=True, exist_ok=True)
  if not (new.folder / 'trial.json').exists():
    about = {key: value for key, value in new._asdict().items() if key != 'folder'}
    write_atomic(new.folder / 'trial.json', json.dumps(about, indent=1).encode())


def finished(folder):
  """The record of a finished trial; None if there is none, or only one of another checkpoint."""
  measured = _record(folder)
  return None if measured is None or _moved(folder, measured) else measured


def moved(folder):
  """Why a trial's evaluation does not count, if the model was trained further in the meantime; or ''."""
  measured = _record(folder)
  return _moved(folder, measured) if measured else ''


def _record(folder):
  try:
    return record.read(folder / 'evaluation' / 'evaluation.json')
  except InputError:
    return None


def _moved(folder, measured):
  expected, step = 0, measured.get('subject', {}).get('step')
  with contextlib.suppress(OSError, ValueError):
    expected = json.loads((folder / 'trial.json').read_text()).get('step', 0)
  if expected and step != expected:
    return f'the model was trained further: its newest step was {step}, and {expected} when the sweep began'
  return ''
