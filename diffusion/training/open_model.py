"""From a work directory to a model: used by sampling, editing, evaluation, export and `diffusion.load`."""
import json
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from diffusion.data.dataset import fingerprint, Source
from diffusion.errors import InputError
from diffusion.setup import build, specs
from diffusion.setup.build import Weights
from diffusion.setup.choices import make, parse_emas
from diffusion.setup.config import filled, put
from diffusion.setup.optimizer import merged
from diffusion.system import sharding, tensors
from diffusion.system.checkpoint import open_checkpoints
from diffusion.system.files import user_path
from diffusion.training import posthoc
from diffusion.training.record import OF_DATA, other_data, record_of, require_same_model, require_same_weights, to_meta
from diffusion.training.state import abstract_state, restore_state

class Opened(NamedTuple):
  """A work directory, opened."""
  run: build.Experiment
  checkpoints: Any
  meta: dict        # the record of new checkpoints
  data: Any = None  # the Source, with what the task has prepared


class Loaded(NamedTuple):
  """A trained model."""
  run: build.Experiment
  weights: Weights  # averaged parameters, or those that config.sample.params names, and given weights
  step: int         # number of updates


def load(workdir, step=None, **settings):
  """The model of a work directory, ready to sample from.

  Use `run.denoise(weights, cond)`, or diffusion.draw.

  Args:
    workdir: of a training run.
    step: of one of its checkpoints; None: the newest.
    settings: config keys to change for sampling, such as sampler='ddpm', grid='trailing(200)', guide='cfg(3)',
      or **{'sample.params': 'raw'}.
  Returns:
    Loaded(run, weights, step).
  Raises:
    InputError: no checkpoint, no such step, an unknown or invalid setting.
  """
  workdir = user_path(workdir)
  meta = stored_meta(workdir)
  config = filled(meta['config'])
  for key, value in settings.items():
    put(config, key, value)
  run, checkpoints, *_ = open_run(config, workdir)
  state = restore(run, checkpoints, step)
  run, weights = with_guide_model(run, choose_weights(run, state, workdir))
  return Loaded(run, weights, int(state.step))


def open_at(where, field=''):
  """load(..) of 'WORKDIR' or 'WORKDIR@STEP'; field: the setting that names it, for messages, where it is known."""
  try:
    return load(*split_step(where, 'model'))
  except InputError as error:
    raise InputError(f'{field}: {error}' if field else str(error)) from error


def split_step(where, setting):
  """(work directory, step or None) of 'WORKDIR' or 'WORKDIR@STEP'; the directory may have an @ in its own name.

  Raises:
    InputError: starts with `setting`; what follows the @ is no step, and there is no such directory.
  """
  workdir, at, step = where.rpartition('@')
  if at and step.isdecimal():
    return workdir, int(step)
  if at and not user_path(where).is_dir():
    raise InputError(f'{setting}={where!r}: expected a work directory, or one with a step, such as {workdir}@600')
  return where, None


def stored_meta(workdir):
  """The record in the newest checkpoint of a work directory. Raises InputError if there is none."""
  newest = open_checkpoints(workdir / 'checkpoints').latest_meta()
  if newest is None:
    raise InputError(f'{workdir} holds no checkpoint yet; train first, with --config=RECIPE')
  return newest[1]


def open_run(config, workdir, data=None, fsdp=None, parts=None, report=lambda label, text: None):
  """A work directory, Opened.

  What the task measures on the data comes from the checkpoint, if there is one.

  Args:
    config: of the run.
    workdir: epath.Path.
    data: a Source, for training and evaluation.
    fsdp: number of devices over which parameters are sharded; None: the common divisor of config.fsdp and the number
      of devices.
    parts: the result of validate.check(config), if it was called before.
    report: (label, text) -> None; receives the settings that have changed since the checkpoint.
  Raises:
    InputError: no checkpoint and no data, or a checkpoint of another model.
  """
  checkpoints = open_checkpoints(workdir / 'checkpoints', config.keep_last, config.keep_every or None,
                                 config.on_save_error)
  _, old = checkpoints.latest_meta() or (None, None)
  if old is None and data is None:
    raise InputError(f'{workdir} holds no checkpoint yet; train first')
  record = old and record_of(old)
  fitted = record.fitted if old else fitted_of(config)
  task = make('task', config.task, data=data and data.train, facts=old and record.facts, fitted=fitted or None,
              open_model=open_at)
  mark = data and fingerprint(data)
  changed = other_data(config, old, mark) if old and data else ''
  data = data and Source(*(task.prepare(task.frozen, side) for side in data[:2]), (*data.notes, changed))
  for line in (changed, *data.train.facts.get('lost', ())) if data else ():
    if line:
      report('note', line)
  if old:
    require_same_model(workdir, config, filled(old['config']), task.facts, record.facts, report)
  example = encoded_example(task, data.train) if data else record.example
  mesh = sharding.make_mesh(fsdp or math.gcd(config.fsdp, jax.device_count()))
  run = build.build(config, task, example, mesh, parts, open_at)
  meta = to_meta(config, run) | (dict(data_fingerprint=mark) if data else {})
  if old:
    require_same_weights(workdir, meta['hashes'], record.hashes)
  return Opened(run, checkpoints, meta, data)


def run_of(config, data, mesh):
  """The Experiment of a config for a Source, without a work directory."""
  task = make('task', config.task, data=data.train, open_model=open_at)
  example = encoded_example(task, task.prepare(task.frozen, data.train))
  return build.build(config, task, example, mesh, open_model=open_at)


def fitted_of(config):
  """The fitted arrays of the model that config.init_from names, or None."""
  if not config.init_from:
    return None
  workdir, _ = split_step(config.init_from, 'config.init_from')
  try:
    return record_of(stored_meta(user_path(workdir))).fitted
  except InputError as error:
    raise InputError(f'config.init_from={config.init_from!r}: {error}') from error


def encoded_example(task, data):
  """(x0, cond) of one example as the task encodes it: NumPy zeros [1, ...]; nothing is computed."""
  batch = task.batch(data, np.zeros(1, np.int64))
  example = jax.eval_shape(task.encode, task.frozen, jax.random.key(0), batch)
  return jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), example)


def restore(run, checkpoints, step=None, report=lambda label, text: None):
  """The newest intact state, or that of a step; None without a checkpoint. report: receives notes on damaged ones."""
  restored = restore_state(run, checkpoints, step)
  for note in restored.notes if restored else ():
    report('note', note)
  return restored and restored.state


def choose_weights(run, state, workdir):
  """The Weights of a state, with the parameters that config.sample.params names. InputError: they are not finite."""
  chosen = merged(_choose_params(run, state, workdir), state.base)
  if not all_finite(chosen):
    raise InputError(f'{workdir}: the parameters at step {int(state.step)} are not finite, as after a diverged '
                     'training; use an earlier checkpoint, or train anew with a lower config.learning_rate')
  return Weights(chosen, state.memory, placed_frozen(run))


@jax.jit
def all_finite(params):
  """Whether all values of all arrays are finite."""
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in jax.tree.leaves(params)]))


def _choose_params(run, state, workdir):
  name = run.config.sample.params
  if name in ('ema', 'raw'):
    return state.ema if name == 'ema' else state.params
  kind, args, kwargs = specs.parse(name)
  if kind == 'posthoc':
    abstract = abstract_state(run).params
    return posthoc.posthoc(workdir, abstract, run.config.extra_emas, *args, *kwargs.values(), step=int(state.step))
  return state.averages[[key for key, _ in run.averages].index(parse_emas(name)[0][0])]


def placed_frozen(run):
  """Given weights by owner on the devices, sharded like parameters; equal arrays are held once."""
  held = {}
  def one(a, place):
    key = tensors.digest(a), str(place)
    if key not in held:
      there = isinstance(a, jax.Array) and a.sharding.device_set == place.device_set  # then without a copy
      held[key] = jax.device_put(a, place) if there else sharding.put(a, place)
    return held[key]
  return jax.tree.map(one, run.frozen, sharding.by_shape(run.mesh, run.frozen))


def with_guide_model(run, weights, asked=''):
  """(run, weights) with the learned schedule of the parameters, if any, and with the second model of config.guide.

  Autoguidance (arXiv:2406.02507) extrapolates from the prediction of a weaker model to that of the model, both
  conditional. A classifier guides the unconditional model to the class (arXiv:2105.05233), or the guided one if the
  stack starts with cfg or apg.

  Args:
    run: the Experiment.
    weights: its Weights.
    asked: the requested classes or prompts, as in config.sample.classes and config.sample.prompt.
  Raises:
    InputError: a second model that is missing, of the wrong kind, or of other data.
  """
  guide, schedule = run.guide, run.objective.schedule(weights.params)
  if schedule is not run.schedule:
    run = build.on_schedule(run, schedule)
  if not guide.model or not run.guided:
    return run, weights
  if guide.scored == 'clip_guidance':
    if 'none' in asked.split('\n'):
      raise InputError(f"config.guide={guide.text!r} guides to a text, but 'none' was requested; give "
                       '--prompt=TEXT')
    second, params = _open_clip(run, guide)
    return run._replace(denoise=run.guided(second)), weights._replace(frozen=weights.frozen | dict(guide=params))
  second, params = _open_second(run, guide)
  if 'classifier' in guide.names:
    if 'log_prob' not in second.can or run.example[1] is None:
      raise InputError(f'config.guide={guide.text!r}: expected the work directory of configs/noisy_classifier.py, '
                       'and a model with classes')
    if asked == 'none':
      raise InputError(f"config.guide={guide.text!r} guides to a class, but 'none' was requested; name one")
  elif 'log_prob' in second.can:
    raise InputError(f'config.guide={guide.text!r} names a classifier; guide by classifier({guide.model}) instead')
  elif second.predicts != run.predicts:
    raise InputError(f'config.guide={guide.text!r}: the objective {second.objective.name} there, {run.objective.name} '
                     'here; use a model of the same objective')
  weights = weights._replace(frozen=weights.frozen | dict(guide=params))
  return run._replace(denoise=run.guided(second)), weights


def _open_clip(run, guide):
  """(Experiment, Weights) of the CLIP that guides a run."""
  field = f'config.guide={guide.text!r}'
  if 'tokens' not in run.task.facts:
    raise InputError(f'{field}: a CLIP guides to a text, and config.task={run.config.task!r} takes none')
  second, params, _ = open_at(guide.model, field)
  if 'embed_text' not in second.can:
    raise InputError(f'{field}: expected the work directory of configs/clip.py, siglip.py or noised_clip.py, and '
                     f'{guide.model} has the objective {second.objective.name}')
  _require_facts(field, guide.model, second.task.facts, run.task.facts, ('shape', 'tokens'))
  if second.schedule is not None:
    _require_schedule(field, guide.model, second.config, run.config)
  return second, params


def _require_facts(field, where, there, here, names):
  """Raises InputError where facts of two models differ."""
  short = lambda value: str(value) if len(str(value)) <= 80 else str(value)[:80] + ' ..'
  there, here = (json.loads(json.dumps(facts)) for facts in (there, here))
  gaps = [f'{key} {short(there.get(key))} there, {short(here.get(key))} here' for key in names
          if there.get(key) != here.get(key)]
  if gaps:
    raise InputError(f'{field}: {where} was trained on other data: {"; ".join(gaps)}')


def _require_schedule(field, where, there, here):
  """Raises InputError unless two configs have the same schedule: its times would be other noise levels."""
  if specs.parse(there.schedule) != specs.parse(here.schedule):
    raise InputError(f'{field}: {where} was trained on config.schedule={there.schedule!r}, the model on '
                     f'{here.schedule!r}; use one with the same schedule')


def _open_second(run, guide):
  """(Experiment, Weights) of 'WORKDIR' or 'WORKDIR@STEP'."""
  field = f'config.guide={guide.text!r}'
  workdir, step = split_step(guide.model, 'config.guide')
  checkpoints = open_checkpoints(user_path(workdir) / 'checkpoints')
  newest = checkpoints.latest_meta()
  if newest is None:
    raise InputError(f'{field}: {workdir} holds no checkpoint')
  here = run.task.facts
  _require_facts(field, workdir, record_of(newest[1]).facts, here, [key for key in here if key not in OF_DATA])
  config = filled(ConfigDict(newest[1]['config']))
  if specs.parse(config.objective)[0] == 'contrastive':
    raise InputError(f'{field}: {workdir} is a CLIP; guide by clip_guidance({guide.model}, 50) instead')
  _require_schedule(field, workdir, config, run.config)
  second = build.build(config, run.task, run.example, run.mesh, open_model=open_at)
  state = restore_state(second, checkpoints, step).state
  return second, Weights(merged(state.ema, state.base), state.memory, placed_frozen(second))
