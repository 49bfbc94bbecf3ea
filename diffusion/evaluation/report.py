"""--mode=evaluate: measures a model, each number with its error, and writes a folder."""
import contextlib
import json

import jax
import numpy as np

from diffusion.errors import InputError, unknown
from diffusion.evaluation import EVALUATORS, zero_shot
from diffusion.evaluation.metrics import make_features, measure, record
from diffusion.evaluation.metrics.trained_features import digest
from diffusion.system import sharding
from diffusion.system.files import numbered_folder, user_path, writable, write_atomic
from diffusion.tasks.classes import split_names
from diffusion.training.open_model import with_guide_model

LEAST = dict(num_samples=measure.ENOUGH, likelihood_samples=1, curve_samples=measure.ENOUGH, every=0)
MAY_BE_NAN = 'copies'  # unknown with few held-out images
SUBJECT = ('sampler', 'grid', 'guide', 'clip_x0')  # settings that the record shows by themselves


def check(config):
  """Raises InputError for what is wrong with config.evaluate: before anything is computed."""
  options = config.evaluate
  make_features(config)
  for part in split_names(options.parts):
    if part not in EVALUATORS:
      raise InputError(f'config.evaluate.parts={options.parts!r}: {unknown(part, EVALUATORS)}')
  for field, least in LEAST.items():
    if options[field] < least:
      raise InputError(f'config.evaluate.{field}={options[field]}: expected at least {least}')
  zero_shot.templates_of(options.templates)
  if options.split not in ('train', 'heldout'):
    raise InputError(f"config.evaluate.split={options.split!r}: expected 'train' or 'heldout'")


def prepare(run, data):
  """The evaluators, without those that the model or its data do not allow.

  Returns:
    (names, notes): a note for each reason to leave some out.
  Raises:
    InputError: nothing is left, one that config.evaluate.parts names does not fit, or an option that the data does
      not allow: before anything is drawn.
  """
  options = run.config.evaluate
  named = split_names(options.parts)
  names, reasons = [], {}
  for name in named or (*run.objective.evaluators, *run.task.evaluators):
    reason = EVALUATORS[name].needs(run, data)
    if reason:
      reasons.setdefault(reason, []).append(name)
    else:
      names.append(name)
  notes = [f'{", ".join(left)} left out: {reason}' for reason, left in reasons.items()]
  if notes and (named or not names):
    raise InputError(f'config.evaluate.parts={options.parts!r}: {"; ".join(notes)}' if named else
                     f'nothing can be measured of this model ({"; ".join(notes)})')
  for name in names:
    EVALUATORS[name].prepare(run, data)
  return names, notes


def subject(run, weights, step, workdir, versions):
  """What is measured, for the record."""
  config, evaluations = run.config, _evaluations(run)
  doubled = 2 if run.guide.doubles and run.example[1] is not None else 1
  calls = None if run.guide.model or evaluations is None else evaluations * doubled
  return dict(checkpoint=str(workdir), step=step, weights=config.sample.params,
              weights_hash=digest(*jax.tree.leaves(sharding.fetch(weights.params))),
              **{key: config[key] for key in SUBJECT}, evaluations=evaluations, network_calls=calls,
              seed=config.evaluate.seed, config=json.loads(config.to_json()), versions=versions)


def _evaluations(run):
  """Evaluations of the denoiser per sample; None for an adaptive sampler, which counts them in its state."""
  if not run.sampler or not run.predicts:
    return None
  state = jax.eval_shape(run.sampler.init, run.example[0])
  return None if hasattr(state, 'evaluations') else len(run.sampler.plan(run.levels).h)


def evaluate(run, weights, step, data, workdir, versions, report):
  """Measures what config.evaluate asks for and writes it into a folder.

  Args:
    run: the Experiment.
    weights: its Weights, of `step`.
    data: the Source.
    workdir, versions: of the model and of the software, for the record.
    report: (label, text) -> None, shows progress.
  Returns:
    The folder.
  Raises:
    InputError: what does not fit the model or the data, before anything is drawn.
  """
  names, notes = prepare(run, data)
  run, weights = with_guide_model(run, weights, run.config.sample.classes)
  named = run.config.evaluate.folder and user_path(run.config.evaluate.folder)
  if named:
    writable(named)
  place = contextlib.nullcontext(named) if named else numbered_folder(workdir / 'evaluations', step)
  with place as folder:
    results, failures = _measure_all(names, run, weights, data, folder, report)
    made = _record(results, subject(run, weights, step, workdir, versions), (*notes, *data.notes, *failures))
    text = table(made)
    write_atomic(folder / 'evaluation.md', text.encode())
    if failures:
      raise InputError(f'{folder}: {"; ".join(failures)}')
    write_atomic(folder / 'evaluation.json', json.dumps(made, indent=2).encode())  # last: marks a complete evaluation
  report('', text)
  return folder


def _measure_all(names, run, weights, data, folder, report):
  """(what the evaluators measured, why some did not): one that fails does not take the others with it."""
  results, failures = [], []
  for name in names:
    try:
      results.append(EVALUATORS[name].measure(run, weights, data, folder, report))
    except InputError as error:
      failures.append(f'{name}: {error}')
      continue
    values = {key: estimate.value for key, estimate in results[-1].metrics.items() if key != MAY_BE_NAN}
    odd = [key for key, value in values.items() if not np.isfinite(value)]
    failures += [f'{name}: {" and ".join(odd)} is not finite'] * bool(odd)
  return results, failures


def _record(results, subject, notes):
  """The record of an evaluation."""
  merged = lambda field: {key: value for result in results for key, value in getattr(result, field).items()}
  made = record.make(merged('protocol'), subject, merged('metrics'))
  heldout = {key: estimate._asdict() for key, estimate in merged('heldout').items()}
  notes = [note for part in (notes, *(result.notes for result in results)) for note in part if note]
  return made | record.plain(dict(heldout=heldout, details=merged('details'), notes=notes))


def table(made):
  """A record as text: every metric with its interval, and the value of held-out data."""
  lines = ['| metric | better | value | 95 % interval | number | held-out data |', '|---|---|---|---|---|---|']
  show = lambda x: 'unknown' if x is None else f'{x:.4g}'
  for key in dict.fromkeys((*record.LOWER, *record.HIGHER, *made['metrics'])):
    if key in made['metrics']:
      m, real = made['metrics'][key], made['heldout'].get(key)
      better, interval = 'higher' if key in record.HIGHER else 'lower', f'{show(m["low"])} to {show(m["high"])}'
      heldout = show(real['value']) if real else ''
      lines.append(f'| {key} | {better} | {show(m["value"])} | {interval} | {m["n"]} | {heldout} |')
  below = [key for key, m in made['metrics'].items() if m['value'] is not None and m['value'] < 0
           and not key.endswith('_gain')]
  negative = f'{" and ".join(below)}: an unbiased estimate of a value near 0 may be negative'
  notes = made['notes'] + [negative] * bool(below)
  return '\n'.join([*lines, '', *notes]).rstrip() + '\n'
