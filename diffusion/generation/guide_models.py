"""What sampling takes from weights: a learned schedule, and a second model, the worse one of autoguidance or a classifier."""
from functools import partial

from etils import epath
from ml_collections import ConfigDict

from diffusion.core import guidance
from diffusion.errors import InputError
from diffusion.objectives import vdm
from diffusion.setup import build, specs
from diffusion.setup.config import filled
from diffusion.setup.validate import guides as named, learns_schedule
from diffusion.system import sharding
from diffusion.system.checkpoint import open_checkpoints
from diffusion.training.loop import abstract_state


def helped(run, config, params, wanted):
  """(run, params) with the second model that config.sample.bad or config.sample.classifier names, and a learned schedule as it has become.

  Autoguidance (arXiv:2406.02507) leads from the prediction of worse weights to that of the model, both with the condition. A
  classifier leads the model without condition to the class (arXiv:2105.05233), or with it where the stack has cfg or apg too.

  Args:
    wanted: the classes asked for, as in config.sample.classes.
  Raises:
    InputError: a model that is missing, of another shape or other classes, or a stack that has no use for it.
  """
  options, guides = config.sample, named(config)
  if learns_schedule(config):
    run = build.on_schedule(run, config, vdm.schedule(sharding.fetch(params['curve'])))
  if options.bad and options.classifier:
    raise InputError('config.sample.bad and config.sample.classifier: give one of them')
  if ('classifier' in guides) != bool(options.classifier):
    raise InputError(f"config.guide={config.guide!r}, config.sample.classifier={options.classifier!r}: for classifier guidance set both, "
                     "config.guide='classifier' and the work directory of a run of configs/noisy_classifier.py")
  if options.bad:
    if config.guidance == 1:
      raise InputError('config.sample.bad: autoguidance needs a scale above 1; set config.guidance=2')
    other, weights = _open(run, config, options.bad, 'config.sample.bad')
    if other.denoise is None:
      raise InputError(f'config.sample.bad={options.bad!r} is a classifier; it belongs in config.sample.classifier')
    def denoise(both, cond):
      good, bad = run.plain(both[0], cond), other.plain(both[1], cond)
      def pair(previous):
        return guidance.separate_pair(partial(good, previous=previous), partial(bad, previous=previous))
      return lambda x, noise, previous=None: run.guided(pair(previous))(x, noise)
    return run._replace(denoise=denoise), (params, weights)
  if options.classifier:
    other, weights = _open(run, config, options.classifier, 'config.sample.classifier')
    if other.denoise is not None or not run.classes:
      raise InputError(f'config.sample.classifier={options.classifier!r}: expected a run of configs/noisy_classifier.py, and a model with classes')
    if wanted == 'none':
      raise InputError("config.guide='classifier' leads to a class, and 'none' is asked for; name one")
    # A classifier alone leads the unconditional model; a model that does not know that one, the conditional.
    alone = not {'cfg', 'apg'} & set(guides)
    def denoise(both, label):
      told, untold = (run.plain(both[0], c) for c in (label, run.task.null(label)))
      if alone:
        told = untold = untold if config.condition_dropout else told
      def pair(previous):
        return guidance.separate_pair(partial(told, previous=previous), partial(untold, previous=previous))
      return lambda x, noise, previous=None: run.guided(pair(previous), other.plain(both[1], label))(x, noise)
    return run._replace(denoise=denoise), (params, weights)
  return run, params


def _open(run, config, path, field):
  """(Experiment, EMA weights) of 'WORKDIR' or 'WORKDIR@STEP'."""
  workdir, at, step = path.partition('@')
  if at and not step.isdigit():
    raise InputError(f'{field}={path!r}: expected a work directory, or one with a step, such as {workdir}@600')
  checkpoints = open_checkpoints(epath.Path(workdir) / 'checkpoints')
  found = checkpoints.latest_meta()
  if found is None:
    raise InputError(f'{field}={path!r}: {workdir} holds no checkpoint')
  meta = found[1]
  facts = dict(shape=list(run.shape), classes=list(run.classes))
  gaps = [f'{key} {meta[key]} there, {value} here' for key, value in facts.items() if list(meta[key]) != value]
  if gaps:
    raise InputError(f'{field}={path!r} is of other data: {"; ".join(gaps)}')
  there = filled(ConfigDict(meta['config']))
  if specs.parse(there.schedule) != specs.parse(config.schedule):  # its times would mean other levels
    raise InputError(f'{field}={path!r} was trained on config.schedule={there.schedule!r}, the model on {config.schedule!r}; use one of the same')
  other = build.build(there, run.shape, run.classes, run.mesh)
  return other, checkpoints.restore(abstract_state(other), int(step) if at else None).state.ema
