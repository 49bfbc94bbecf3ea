"""What sampling takes from weights: a learned schedule, and a second model, the worse one of autoguidance or a classifier."""
import jax
from etils import epath
from ml_collections import ConfigDict

from diffusion import build, guidance, learned
from diffusion.checkpoint import open_checkpoints
from diffusion.config import filled
from diffusion.errors import InputError
from diffusion.train import abstract_state


def helped(run, config, params):
  """(run, params) with the second model that config.sample.bad or config.sample.classifier names, and a learned schedule as it has become.

  Autoguidance (arXiv:2406.02507) leads from the prediction of worse weights to that of the model, both with the condition. A
  classifier leads the model without condition to the class (arXiv:2105.05233), or with it where the stack has cfg or apg too.

  Raises:
    InputError: a model that is missing, of another shape or other classes, or a stack that has no use for it.
  """
  options, guides = config.sample, build.guides(config)
  if build.learns_schedule(config):
    run = build.on_schedule(run, config, learned.schedule(jax.device_get(params['curve'])))
  if options.bad and options.classifier:
    raise InputError('config.sample.bad and config.sample.classifier: give one of them')
  if ('classifier' in guides) != bool(options.classifier):
    raise InputError(f"config.guide={config.guide!r}, config.sample.classifier={options.classifier!r}: the stack names 'classifier' where "
                     'a classifier is given, and only there')
  if options.bad:
    if config.guidance == 1:
      raise InputError('config.sample.bad: autoguidance needs a scale above 1; set config.guidance=2')
    other, weights = _open(run, options.bad, 'config.sample.bad')
    def denoise(both, cond):
      return run.guided(guidance.two_calls(run.plain(both[0], cond), other.plain(both[1], cond)))
    return run._replace(denoise=denoise), (params, weights)
  if options.classifier:
    other, weights = _open(run, options.classifier, 'config.sample.classifier')
    if other.denoise is not None or not run.classes:
      raise InputError(f'config.sample.classifier={options.classifier!r}: expected a run of configs/noisy_classifier.py, and a model with classes')
    with_null = {'cfg', 'apg'} & set(guides)
    def denoise(both, label):
      plain, null = (run.plain(both[0], c) for c in (label, run.task.null(label)))
      pair = guidance.two_calls(plain, null) if with_null else guidance.two_calls(null, null)
      return run.guided(pair, other.plain(both[1], label))
    return run._replace(denoise=denoise), (params, weights)
  return run, params


def _open(run, path, field):
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
  other = build.build(filled(ConfigDict(meta['config'])), run.shape, run.classes, run.mesh)
  return other, checkpoints.restore(abstract_state(other), int(step) if at else None).state.ema
