"""--mode=evaluate: everything that can be measured of a model, each number with its error, in one folder."""
import io
import json

import jax
import numpy as np

from diffusion.errors import InputError
from diffusion.evaluation import bits, sample_metrics, validation
from diffusion.evaluation.metrics import frechet, gaussian_stats, make_features, measure, record
from diffusion.evaluation.metrics.trained_features import digest
from diffusion.generation import sample_report
from diffusion.setup.specs import unknown
from diffusion.setup.validate import learns_schedule, spec_name
from diffusion.system import sharding
from diffusion.system.files import write_atomic
from diffusion.training.open_model import with_guide_model

WHAT = ('loss', 'samples', 'bound', 'ode')


def check(config):
  """Raises InputError where config.evaluate does not hold together: before anything is computed."""
  options = config.evaluate
  make_features(config)
  parts(options.parts)
  for field, least in (('num_samples', measure.ENOUGH), ('likelihood_samples', 1), ('curve_samples', measure.ENOUGH), ('every', 0), ('seed', 0)):
    if options[field] < least:
      raise InputError(f'config.evaluate.{field}={options[field]}: expected at least {least}')
  if options.split not in ('train', 'heldout'):
    raise InputError(f"config.evaluate.split={options.split!r}: expected 'train' or 'heldout'")


def parts(text):
  """'loss, samples' -> ['loss', 'samples']."""
  names = [part.strip() for part in text.split(',') if part.strip()]
  for part in names:
    if part not in WHAT:
      raise InputError(f'config.evaluate.parts: {unknown(part, WHAT)}')
  if not names:
    raise InputError(f'config.evaluate.parts is empty: name some of {", ".join(WHAT)}')
  return names


def prepare(run, config, data):
  """What is asked for, less what the model cannot have; raises InputError for what the data cannot give, before anything is drawn.

  Returns:
    (what, notes): the parts, and a line for each that was left out.
  """
  options, what, notes = config.evaluate, parts(config.evaluate.parts), []
  def without(some, why):
    nonlocal what
    gone = [part for part in what if part in some]
    what = [part for part in what if part not in some]
    notes.extend([f'{", ".join(gone)} left out: {why}'] * bool(gone))
  if run.denoise is None:
    without(('samples', 'bound', 'ode'), 'a classifier draws nothing')
  if run.self_condition:
    without(('bound', 'ode'), 'a self-conditioned model has no likelihood by one evaluation a level')
  if not len(data.heldout.images):
    without(('loss', 'bound', 'ode'), 'this data set has no held-out pictures')
  if not what:
    raise InputError(f'config.evaluate.parts={options.parts!r}: nothing is left to measure ({"; ".join(notes)})')
  if options.split == 'heldout' and len(data.heldout.images) < measure.ENOUGH:
    raise InputError(f"config.evaluate.split='heldout' needs at least {measure.ENOUGH} held-out pictures, there are {len(data.heldout.images)}; use 'train'")
  if config.sample.class_mix:
    raise InputError(f'config.sample.class_mix={config.sample.class_mix!r} is not in the data, so that it cannot be compared with it; leave it empty')
  if options.every and learns_schedule(config):
    raise InputError("config.evaluate.every: with config.schedule='learned' the samples on the way are drawn on the initial schedule; set it to 0")
  if options.statistics:
    gaussian_stats.read(options.statistics)
  if 'samples' in what or options.every:
    make_features(config)(data.train, sharding.local_mesh(run.mesh))  # weights that cannot be read stop here; features are trained here
  return what, notes


def subject(run, config, params, step, workdir, versions):
  """What is measured, for the record."""
  told = ('sampler', 'grid', 'guide', 'clip_x0')
  evaluations = len(run.sampler.plan(run.levels).h) if run.denoise and spec_name(config, 'sampler') != 'adaptive' else None
  calls = None if run.guide.model or evaluations is None else evaluations * (2 if run.guide.doubles and run.classes else 1)
  return dict(checkpoint=str(workdir), step=step, weights=config.sample.params, weights_hash=digest(*jax.tree.leaves(sharding.fetch(params))),
              **{key: config[key] for key in told}, evaluations=evaluations, network_calls=calls, seed=config.evaluate.seed,
              config=json.loads(config.to_json()), versions=versions)


def plot_bits(curve, estimate, facts, folder):
  """bits.png: bits per dimension and unit of log-SNR, whose area is the diffusion's share of the bound."""
  from matplotlib.figure import Figure
  logsnr = np.clip(curve['logsnr'], -20, 20)  # a level without signal has none
  edges = np.quantile(logsnr, np.linspace(0, 1, 41))
  place = np.clip(np.searchsorted(edges, logsnr, side='right') - 1, 0, 39)
  mean = [curve['rate'][place == k].mean() if (place == k).any() else np.nan for k in range(40)]
  figure = Figure(figsize=(6, 3.6), layout='constrained')
  axes = figure.subplots()
  axes.stairs(mean, edges, fill=True, alpha=.5)
  axes.set(xlabel='log-SNR (noisy on the left)', ylabel='bits per dimension and unit of log-SNR',
           title=f'bound {estimate.value:.3f} ± {estimate.error:.3f} bits = {facts["diffusion"]:.3f} (the area)\n'
                 f'+ {facts["decoder"]:.3f} below the cleanest level + {facts["prior"]:.3f} prior')
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=130)
  write_atomic(folder / 'bits.png', buffer.getvalue())


def evaluate(run, config, params, step, data, workdir, versions, say):
  """Measures what config.evaluate asks for and writes it into a folder of its own.

  Args:
    run: the Experiment.   config: its config.   params: its weights.   step: of the weights.
    data: the Source.
    workdir: of the model.   versions: of the software; both for the record.
    say: (label, text) -> None, tells the user what is done.
  Returns:
    The folder.
  Raises:
    InputError: before anything is drawn, what does not fit the model or the data.
  """
  what, notes = prepare(run, config, data)
  plain, (run, both) = params, with_guide_model(run, params, config.sample.classes) if run.denoise else (run, params)
  folder = type(workdir)(config.evaluate.folder) if config.evaluate.folder else sample_report.new_folder(workdir / 'evaluations', step)
  metrics, how, details, real = {}, {}, {}, {}
  if 'loss' in what:
    result = validation.heldout_by_logsnr(run, plain, data.heldout)
    validation.save(result, folder)
    say('', validation.table(result))
    metrics['heldout_error'] = record.normal(result['loss'], result['loss_error'], result['number'])
    how['heldout_error'] = dict(what=result['what'], predict=config.predict, schedule=config.schedule, data_hash=digest(data.heldout.images))
  if 'samples' in what:
    say('features', config.evaluate.features)
    fixed = sample_metrics.make_protocol(run, config, data)
    how['samples'] = sample_metrics.protocol(config, fixed)
    notes += [note for note in [frechet.warning(config.evaluate.num_samples, fixed.extractor.size)] if note]
    say('samples', f'{config.evaluate.num_samples}, {config.sampler}, {config.grid}')
    found, real, details['samples'] = sample_metrics.of_samples(run, config, both, data, fixed, folder)
    metrics |= found
  if {'bound', 'ode'} & set(what):
    likelihood(run, config, plain, data, what, folder, metrics, how, details, notes, say)
  made = record.make(how, subject(run, config, plain, step, workdir, versions), metrics)
  made |= record.plain(dict(heldout={key: estimate._asdict() for key, estimate in real.items()}, details=details, notes=notes))
  text = table(made)
  write_atomic(folder / 'evaluation.md', text.encode())
  write_atomic(folder / 'evaluation.json', json.dumps(made, indent=2).encode())  # last: where it is, the evaluation is complete
  say('', text)
  return folder


def likelihood(run, config, params, data, what, folder, metrics, how, details, notes, say):
  """Adds bits_bound and bits_ode to metrics, how, details and notes; writes bits.png."""
  say('likelihood', f'{" and ".join(part for part in what if part in ("bound", "ode"))} of {config.evaluate.likelihood_samples} held-out pictures')
  cut = bits.chain_start(run, config, params, data.train)
  same = dict(data_hash=digest(data.heldout.images), levels=256, conditional=bool(run.classes))
  if 'bound' in what:
    metrics['bits_bound'], details['bits_bound'], curve = bits.by_bound(run, config, params, data, cut)
    how['bits_bound'] = same
    plot_bits(curve, metrics['bits_bound'], details['bits_bound'], folder)
  if 'ode' in what:
    metrics['bits_ode'], details['bits_ode'] = bits.by_ode(run, config, params, data, cut)
    how['bits_ode'] = same | dict(dequantisation=details['bits_ode']['dequantisation'])
  if {'bound', 'ode'} <= set(what):
    notes.append('bits_ode is of pictures with uniform noise added, and goes down to sigma/alpha = '
                 f'{details["bits_ode"]["sigma_min"]:.3g}; bits_bound has a decoder below that, so neither has to be the smaller one')


def table(made):
  """A record as text: every metric with its interval, and what pictures held out from training have."""
  lines = ['| metric | better | value | 95 % interval | pictures | held-out pictures have |', '|---|---|---|---|---|---|']
  show = lambda x: 'unknown' if x is None else f'{x:.4g}'
  for key in (*record.LOWER, *record.HIGHER):
    if key in made['metrics']:
      m, real = made['metrics'][key], made['heldout'].get(key)
      lines.append(f'| {key} | {"lower" if key in record.LOWER else "higher"} | {show(m["value"])} | {show(m["low"])} to {show(m["high"])} | '
                   f'{m["n"]} | {show(real["value"]) if real else ""} |')
  below = [key for key, m in made['metrics'].items() if m['value'] is not None and m['value'] < 0]
  notes = made['notes'] + [f'{" and ".join(below)}: estimates without bias fall below 0 when the truth is near it'] * bool(below)
  return '\n'.join([*lines, '', *notes]).rstrip() + '\n'
