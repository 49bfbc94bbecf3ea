"""From a work directory to a model: used by sampling, editing, evaluation, export and `diffusion.load`."""
import json
import math
import sys
from typing import Any, NamedTuple

from etils import epath
import flax
import jax
from ml_collections import ConfigDict
import optax

from diffusion import __version__
from diffusion.errors import InputError
from diffusion.objectives import vdm
from diffusion.setup import build, specs
from diffusion.setup.choices import parse_emas
from diffusion.setup.config import filled
from diffusion.setup.validate import learns_schedule
from diffusion.system import sharding
from diffusion.system.checkpoint import open_checkpoints
from diffusion.training import posthoc
from diffusion.training.state import abstract_state

# Settings that the weights depend on: they cannot change within a work directory.
FIXED = ('net', 'schedule', 'predict', 'variance', 'self_condition', 'logvar_channels')
FREE = {'dtype', 'remat', 'fast', 'dropout', 'strength', 'levels'}  # arguments of these that may change
# Any other setting may change; a resumed run reports changes of these.
NOTED = ('seed', 'data', 'task', 'timesteps', 'loss_weight', 'loss_type', 'noise_type', 'condition_dropout', 'batch',
         'steps', 'optimizer', 'learning_rate', 'lr_schedule', 'grad_clip', 'ema_decay')


class Loaded(NamedTuple):
  """A trained model."""
  run: build.Experiment
  params: Any  # averaged parameters, or those that config.sample.params names
  step: int  # number of updates


def load(workdir, step=None, **settings):
  """The model of a work directory, ready to sample from.

  Use `run.denoise(params, cond)`, or diffusion.generation.sampling.make_draw.

  Args:
    workdir: of a training run.
    step: of one of its checkpoints; None: the newest.
    settings: config keys to change for sampling, such as sampler='ddpm', grid='trailing(200)', guide='cfg(3)'.
  Returns:
    Loaded(run, params, step).
  Raises:
    InputError: no checkpoint, no such step, an unknown or invalid setting.
  """
  workdir = epath.Path(workdir).expanduser()
  meta = stored_meta(workdir)
  config = filled(meta['config'])
  for key, value in settings.items():
    if key not in config:
      raise InputError(f'load({key}=..): {specs.unknown(key, list(config))}')
    config[key] = value
  run, checkpoints, _ = open_run(config, workdir)
  state = restore(run, checkpoints, step)
  run, params = with_guide_model(run, choose_params(run, state, workdir))
  return Loaded(run, params, int(state.step))


def stored_meta(workdir):
  """The record in the newest checkpoint of a work directory. Raises InputError if there is none."""
  newest = open_checkpoints(workdir / 'checkpoints').latest_meta()
  if newest is None:
    raise InputError(f'{workdir} holds no checkpoint yet; train first, with --config=configs/cosine_ddim.py')
  return newest[1]


def open_run(config, workdir, data=None, fsdp=None, parts=None, report=lambda label, text: None):
  """(Experiment, checkpoints, meta) of a work directory.

  The shape and the classes are those of the data if given, otherwise of the checkpoint.

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
  newest = checkpoints.latest_meta()
  old = newest[1] if newest else None
  if old is None and data is None:
    raise InputError(f'{workdir} holds no checkpoint yet; train first')
  shape, classes = (data.train.images.shape[1:], data.train.classes) if data else (old['shape'], old['classes'])
  facts = dict(shape=list(shape), classes=list(classes))
  if old:
    require_same_model(workdir, config, filled(old['config']), facts, old, report)
  mesh = sharding.make_mesh(fsdp or math.gcd(config.fsdp, jax.device_count()))
  run = build.build(config, tuple(shape), tuple(classes), mesh, parts)
  kept = config.copy_and_resolve_references()
  kept.evaluate.folder = ''  # of this evaluation, not of the next one
  return run, checkpoints, dict(config=json.loads(kept.to_json()), **facts, versions=versions())


def require_same_model(workdir, config, old, facts, old_facts, report):
  """Raises InputError if this config cannot continue the checkpoint; reports the other settings that have changed."""
  gaps = [key for key in FIXED if weights_signature(config[key]) != weights_signature(old[key])]
  # The memory of loss-aware timesteps is part of the checkpoint.
  if old.timesteps != config.timesteps and 'loss_aware' in old.timesteps + config.timesteps:
    gaps.append('timesteps')
  if [name for name, _ in parse_emas(old.extra_emas)] != [name for name, _ in parse_emas(config.extra_emas)]:
    gaps.append('extra_emas')
  if specs.parse(old.optimizer)[0] != specs.parse(config.optimizer)[0]:  # its state too
    gaps.append('optimizer')
  gaps = [f'config.{key}: {config[key]!r} here, {old[key]!r} in the checkpoint' for key in gaps]
  gaps += [f'{key}: {facts[key]} here, {old_facts[key]} in the checkpoint'
           for key in facts if facts[key] != old_facts[key]]
  if gaps:
    raise InputError(f'{workdir} holds a checkpoint of another model or optimizer ({"; ".join(gaps)}); '
                     'use another --workdir')
  changed = [f'{key} {old[key]!r} -> {config[key]!r}' for key in NOTED if config[key] != old[key]]
  if changed:
    report('changed', '; '.join(changed))


def weights_signature(spec):
  """A spec without spaces and without the arguments that do not change the meaning of the weights."""
  name, args, kwargs = specs.parse(str(spec))
  return name, args, {key: value for key, value in kwargs.items() if key not in FREE}


def versions():
  """The versions of this software, as stored in checkpoints."""
  return dict(diffusion=__version__, python=sys.version.split()[0], jax=jax.__version__, flax=flax.__version__,
              optax=optax.__version__)


def restore(run, checkpoints, step=None, report=lambda label, text: None):
  """The newest intact state, or that of a step; None without a checkpoint. report: receives notes on damaged ones."""
  restored = checkpoints.restore(abstract_state(run), step)
  for note in restored.notes if restored else ():
    report('note', note)
  return restored and restored.state


def choose_params(run, state, workdir):
  """The parameters of a state that config.sample.params names, or a power average from the snapshots."""
  name = run.config.sample.params
  if name in ('ema', 'raw'):
    return state.ema if name == 'ema' else state.params
  kind, args, kwargs = specs.parse(name)
  if kind == 'posthoc':
    abstract = abstract_state(run).params
    return posthoc.posthoc(workdir, abstract, run.config.extra_emas, *args, *kwargs.values(), step=int(state.step))
  return state.averages[[key for key, _ in run.averages].index(parse_emas(name)[0][0])]


def with_guide_model(run, params, classes=''):
  """(run, params) with the learned schedule of the parameters, if any, and with the second model of config.guide.

  Autoguidance (arXiv:2406.02507) extrapolates from the prediction of a weaker model to that of the model, both
  conditional. A classifier guides the unconditional model to the class (arXiv:2105.05233), or the guided one if the
  stack starts with cfg or apg.

  Args:
    run: the Experiment.
    params: its parameters.
    classes: the requested classes, as in config.sample.classes.
  Raises:
    InputError: a second model that is missing, of the wrong kind, of another shape or other classes.
  """
  guide = run.guide
  if learns_schedule(run.config):
    run = build.on_schedule(run, vdm.schedule(sharding.fetch(params['curve'])))
  if not guide.model:
    return run, params
  second, weights = _open_second(run, guide)
  if 'classifier' in guide.names:
    if second.log_prob is None or not run.classes:
      raise InputError(f'config.guide={guide.text!r}: expected the work directory of configs/noisy_classifier.py, '
                       'and a model with classes')
    if classes == 'none':
      raise InputError(f"config.guide={guide.text!r} guides to a class, but 'none' was requested; name one")
  elif second.denoise is None:
    raise InputError(f'config.guide={guide.text!r} names a classifier; guide by classifier({guide.model}) instead')
  return run._replace(denoise=run.guided(second)), (params, weights)


def _open_second(run, guide):
  """(Experiment, averaged parameters) of 'WORKDIR' or 'WORKDIR@STEP'."""
  workdir, at, step = guide.model.partition('@')
  field = f'config.guide={guide.text!r}'
  if at and not step.isdigit():
    raise InputError(f'{field}: expected a work directory, or one with a step, such as {workdir}@600')
  checkpoints = open_checkpoints(epath.Path(workdir).expanduser() / 'checkpoints')
  newest = checkpoints.latest_meta()
  if newest is None:
    raise InputError(f'{field}: {workdir} holds no checkpoint')
  meta = newest[1]
  facts = dict(shape=list(run.shape), classes=list(run.classes))
  gaps = [f'{key} {meta[key]} there, {value} here' for key, value in facts.items() if list(meta[key]) != value]
  if gaps:
    raise InputError(f'{field}: {workdir} was trained on other data: {"; ".join(gaps)}')
  config = filled(ConfigDict(meta['config']))
  if specs.parse(config.schedule) != specs.parse(run.config.schedule):  # its times would be other noise levels
    raise InputError(f'{field}: {workdir} was trained on config.schedule={config.schedule!r}, the model on '
                     f'{run.config.schedule!r}; use one with the same schedule')
  second = build.build(config, run.shape, run.classes, run.mesh)
  return second, checkpoints.restore(abstract_state(second), int(step) if at else None).state.ema
