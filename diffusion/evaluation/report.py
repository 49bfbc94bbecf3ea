"""--mode=evaluate: measures a model, each number with its error, and writes a folder."""
import io
import json
from typing import NamedTuple

import jax
import numpy as np

from diffusion.errors import InputError
from diffusion.evaluation import bits, sample_metrics, validation
from diffusion.evaluation.metrics import frechet, gaussian_stats, make_features, measure, record
from diffusion.evaluation.metrics.trained_features import digest
from diffusion.generation import sample_report
from diffusion.generation.sampling import split_names
from diffusion.setup.specs import unknown
from diffusion.setup.validate import learns_schedule
from diffusion.system import sharding
from diffusion.system.files import write_atomic
from diffusion.training.open_model import with_guide_model

PARTS = ('loss', 'samples', 'bound', 'ode')
LEAST = dict(num_samples=measure.ENOUGH, likelihood_samples=1, curve_samples=measure.ENOUGH, every=0, seed=0)
SUBJECT = ('sampler', 'grid', 'guide', 'clip_x0')  # settings that the record shows by themselves


class Measured(NamedTuple):
  """What a part of an evaluation has measured."""
  metrics: dict        # name -> Estimate
  protocol: dict       # how, for the record
  details: dict = {}   # more of the record
  heldout: dict = {}   # name -> Estimate of held-out images in place of samples
  notes: tuple = ()    # lines for the user


def check(config):
  """Raises InputError for what is wrong with config.evaluate: before anything is computed."""
  options = config.evaluate
  make_features(config)
  parse_parts(options.parts)
  for field, least in LEAST.items():
    if options[field] < least:
      raise InputError(f'config.evaluate.{field}={options[field]}: expected at least {least}')
  if options.split not in ('train', 'heldout'):
    raise InputError(f"config.evaluate.split={options.split!r}: expected 'train' or 'heldout'")


def parse_parts(text):
  """'loss, samples' -> ['loss', 'samples']."""
  parts = split_names(text)
  for part in parts:
    if part not in PARTS:
      raise InputError(f'config.evaluate.parts={text!r}: {unknown(part, PARTS)}')
  if not parts:
    raise InputError(f'config.evaluate.parts={text!r} is empty: give some of {", ".join(PARTS)}')
  return parts


def prepare(run, data):
  """The parts of an evaluation, without those that the model or its data do not allow.

  Returns:
    (parts, notes): a note for each reason to leave some out.
  Raises:
    InputError: nothing is left, or an option that the data does not allow: before anything is drawn.
  """
  options, heldout = run.config.evaluate, len(data.heldout.images)
  parts, notes = parse_parts(options.parts), []
  for reason, excluded, applies in (
      ('a classifier draws nothing', ('samples', 'bound', 'ode'), run.denoise is None),
      ('the likelihood takes a model without self-conditioning', ('bound', 'ode'), run.self_condition),
      ('this data set has no held-out images', ('loss', 'bound', 'ode'), not heldout)):
    dropped = [part for part in parts if applies and part in excluded]
    parts = [part for part in parts if part not in dropped]
    notes += [f'{", ".join(dropped)} left out: {reason}'] * bool(dropped)
  if not parts:
    raise InputError(f'config.evaluate.parts={options.parts!r}: nothing is left to measure ({"; ".join(notes)})')
  _check_samples(run, heldout)
  if 'samples' in parts or options.every:
    make_features(run.config)(data.train, sharding.local_mesh(run.mesh))  # reads their weights, or trains them, now
  return parts, notes


def _check_samples(run, heldout):
  """Raises InputError for options of the sample metrics that fit neither the model nor the held-out images."""
  options, mix = run.config.evaluate, run.config.sample.class_mix
  if options.split == 'heldout' and heldout < measure.ENOUGH:
    raise InputError(f"config.evaluate.split='heldout' needs at least {measure.ENOUGH} held-out images, and "
                     f"config.data has {heldout}; use 'train'")
  if mix:
    raise InputError(f'config.sample.class_mix={mix!r}: the data has no mixes to compare samples with; leave it empty')
  if options.every and learns_schedule(run.config):
    raise InputError(f"config.evaluate.every={options.every}: with config.schedule='learned', samples during training "
                     'are drawn on the initial schedule; set it to 0')
  if options.statistics:
    gaussian_stats.read(options.statistics)


def subject(run, params, step, workdir, versions):
  """What is measured, for the record."""
  config, evaluations = run.config, _evaluations(run)
  doubled = 2 if run.guide.doubles and run.classes else 1
  calls = None if run.guide.model or evaluations is None else evaluations * doubled
  return dict(checkpoint=str(workdir), step=step, weights=config.sample.params,
              weights_hash=digest(*jax.tree.leaves(sharding.fetch(params))), **{key: config[key] for key in SUBJECT},
              evaluations=evaluations, network_calls=calls, seed=config.evaluate.seed,
              config=json.loads(config.to_json()), versions=versions)


def _evaluations(run):
  """Evaluations of the denoiser per sample; None for an adaptive sampler, which counts them in its state."""
  if run.denoise is None:
    return None
  state = jax.eval_shape(run.sampler.init, jax.ShapeDtypeStruct((1, *run.shape), np.float32))
  return None if hasattr(state, 'evaluations') else len(run.sampler.plan(run.levels).h)


def plot_bits(curve, estimate, facts, folder):
  """Writes bits.png: bits per dimension and unit of log-SNR; the area is the diffusion term of the bound."""
  from matplotlib.figure import Figure  # a second to import, and only needed here
  logsnr = np.clip(curve['logsnr'], -20, 20)  # infinite at a level without signal
  edges = np.quantile(logsnr, np.linspace(0, 1, 41))
  bin = np.clip(np.searchsorted(edges, logsnr, side='right') - 1, 0, 39)
  mean = [curve['rate'][bin == k].mean() if (bin == k).any() else np.nan for k in range(40)]
  figure = Figure(figsize=(6, 3.6), layout='constrained')
  axes = figure.subplots()
  axes.stairs(mean, edges, fill=True, alpha=.5)
  axes.set(xlabel='log-SNR (noisy on the left)', ylabel='bits per dimension and unit of log-SNR',
           title=f'bound {estimate.value:.3f} ± {estimate.error:.3f} bits = {facts["diffusion"]:.3f} (the area)\n'
                 f'+ {facts["decoder"]:.3f} below the cleanest level + {facts["prior"]:.3f} prior')
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=130)
  write_atomic(folder / 'bits.png', buffer.getvalue())


def evaluate(run, params, step, data, workdir, versions, report):
  """Measures what config.evaluate asks for and writes it into a folder.

  Args:
    run: the Experiment.
    params: parameters, of `step`.
    data: the Source.
    workdir, versions: of the model and of the software, for the record.
    report: (label, text) -> None, shows progress.
  Returns:
    The folder.
  Raises:
    InputError: what does not fit the model or the data, before anything is drawn.
  """
  parts, notes = prepare(run, data)
  run, guided_params = with_guide_model(run, params, run.config.sample.classes) if run.denoise else (run, params)
  folder = run.config.evaluate.folder
  folder = type(workdir)(folder) if folder else sample_report.new_folder(workdir / 'evaluations', step)
  results = []
  if 'loss' in parts:
    results.append(_loss(run, params, data, folder, report))
  if 'samples' in parts:
    results.append(_samples(run, guided_params, data, folder, report))
  if {'bound', 'ode'} & set(parts):
    results.append(_likelihood(run, params, data, parts, folder, report))
  merged = lambda field: {key: value for result in results for key, value in getattr(result, field).items()}
  made = record.make(merged('protocol'), subject(run, params, step, workdir, versions), merged('metrics'))
  heldout = {key: estimate._asdict() for key, estimate in merged('heldout').items()}
  notes += [note for result in results for note in result.notes]
  made |= record.plain(dict(heldout=heldout, details=merged('details'), notes=notes))
  text = table(made)
  write_atomic(folder / 'evaluation.md', text.encode())
  write_atomic(folder / 'evaluation.json', json.dumps(made, indent=2).encode())  # last: it marks a complete evaluation
  report('', text)
  return folder


def _loss(run, params, data, folder, report):
  """The held-out loss; writes heldout.json and heldout.png."""
  result, config = validation.heldout_by_logsnr(run, params, data.heldout), run.config
  validation.save(result, folder)
  report('', validation.table(result))
  protocol = dict(what=result['what'], predict=config.predict, schedule=config.schedule,
                  data_hash=digest(data.heldout.images))
  error = record.normal(result['loss'], result['loss_error'], result['number'])
  return Measured(dict(heldout_error=error), dict(heldout_error=protocol))


def _samples(run, params, data, folder, report):
  """The distances of samples to the data; writes what sample_metrics.measure_samples writes."""
  options = run.config.evaluate
  report('features', options.features)
  protocol = sample_metrics.make_protocol(run, data)
  report('samples', f'{options.num_samples}, {run.config.sampler}, {run.config.grid}')
  metrics, heldout, details = sample_metrics.measure_samples(run, params, data, protocol, folder)
  warning = frechet.warning(options.num_samples, protocol.extractor.size)
  description = dict(samples=sample_metrics.describe(run, protocol))
  return Measured(metrics, description, dict(samples=details), heldout, (warning,) if warning else ())


def _likelihood(run, params, data, parts, folder, report):
  """Bits per dimension of held-out images, by the bound, the ODE or both; writes bits.png."""
  methods = [part for part in parts if part in ('bound', 'ode')]
  report('likelihood', f'{" and ".join(methods)} of {run.config.evaluate.likelihood_samples} held-out images')
  start = bits.chain_start(run, params, data.train)
  common = dict(data_hash=digest(data.heldout.images), levels=256, conditional=bool(run.classes))
  metrics, protocol, details, notes = {}, {}, {}, ()
  if 'bound' in methods:
    bound, facts, curve = bits.by_bound(run, params, data, start)
    plot_bits(curve, bound, facts, folder)
    metrics['bits_bound'], protocol['bits_bound'], details['bits_bound'] = bound, common, facts
  if 'ode' in methods:
    ode, facts = bits.by_ode(run, params, data, start)
    metrics['bits_ode'], details['bits_ode'] = ode, facts
    protocol['bits_ode'] = common | dict(dequantisation=facts['dequantisation'])
  if len(methods) == 2:
    notes = ('bits_ode is measured on images with uniform noise added and stops at sigma/alpha = '
             f'{facts["sigma_min"]:.3g}; bits_bound has a decoder below that: either may be the smaller one',)
  return Measured(metrics, protocol, details, notes=notes)


def table(made):
  """A record as text: every metric with its interval, and the value of held-out images."""
  lines = ['| metric | better | value | 95 % interval | images | held-out images |', '|---|---|---|---|---|---|']
  show = lambda x: 'unknown' if x is None else f'{x:.4g}'
  for key in (*record.LOWER, *record.HIGHER):
    if key in made['metrics']:
      m, real = made['metrics'][key], made['heldout'].get(key)
      better, interval = 'lower' if key in record.LOWER else 'higher', f'{show(m["low"])} to {show(m["high"])}'
      heldout = show(real['value']) if real else ''
      lines.append(f'| {key} | {better} | {show(m["value"])} | {interval} | {m["n"]} | {heldout} |')
  below = [key for key, m in made['metrics'].items() if m['value'] is not None and m['value'] < 0]
  negative = f'{" and ".join(below)}: an unbiased estimate of a value near 0 may be negative'
  notes = made['notes'] + [negative] * bool(below)
  return '\n'.join([*lines, '', *notes]).rstrip() + '\n'
