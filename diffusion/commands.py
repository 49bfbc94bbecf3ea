"""What the program does in each mode: train, sample, evaluate, edit. Each opens a work directory, and says what it wrote."""
import contextlib
import json
import math
import sys

import flax
import jax
import optax
from etils import epath

from diffusion import __version__
from diffusion.data.dataset import describe
from diffusion.errors import InputError
from diffusion.evaluation import report as evaluation, sample_metrics
from diffusion.evaluation.metrics import record
from diffusion.generation import edits, export as exporting, pages, sample_report
from diffusion.generation.guide_models import helped
from diffusion.generation.sampling import class_conditions
from diffusion.setup import build
from diffusion.setup.choices import parse_averages
from diffusion.setup.config import filled
from diffusion.setup.specs import parse
from diffusion.system import consensus, multihost, sharding
from diffusion.system.checkpoint import open_checkpoints
from diffusion.system.lock import hold
from diffusion.system.log import no_log, open_log, read_metrics, warn_only
from diffusion.training import posthoc
from diffusion.training.loop import abstract_state, fit, make_state
from diffusion.training.resources import forecast

# What the weights mean: these cannot change within a work directory.
FIXED = ('net', 'schedule', 'predict', 'variance', 'self_condition', 'uncertainty')
FREE = {'dtype', 'remat', 'fast', 'dropout', 'strength', 'levels'}  # arguments that may change: the weights stay what they are
# What a resumed run may change, but says so.
NOTED = ('seed', 'data', 'task', 'draw', 'weight', 'error', 'noise', 'condition_dropout', 'batch', 'steps', 'learning_rate', 'warmup', 'decay',
         'weight_decay', 'clip_norm', 'beta2', 'ema')


def report(label, text):
  if not multihost.is_main():
    return
  for i, line in enumerate(str(text).split('\n')):
    print(f'{label if i == 0 else "":<12}{line}', flush=True)


def report_files(folder):
  for path in sorted(folder.iterdir()) if multihost.is_main() else ():
    report('wrote', path)


def open_run(config, workdir, data=None, fsdp=None):
  """(Experiment, checkpoints, meta) with parameters divided over `fsdp` devices; None: over as many as there are for it.

  The shape and the classes come from the data where there is some, else from the checkpoint.
  """
  checkpoints = open_checkpoints(workdir / 'checkpoints', config.keep, config.keep_every or None, config.save_failure)
  found = checkpoints.latest_meta()
  old = found[1] if found else None
  if old is None and data is None:
    raise InputError(f'{workdir} holds no checkpoint yet; train first')
  shape, classes = (data.train.images.shape[1:], data.train.classes) if data else (old['shape'], old['classes'])
  if old:
    same_model(workdir, config, filled(old['config']), dict(shape=list(shape), classes=list(classes)), old)
  run = build.build(config, tuple(shape), tuple(classes), sharding.make_mesh(fsdp or math.gcd(config.fsdp, jax.device_count())))
  sample_report.check(run, config.sample)
  kept = config.copy_and_resolve_references()
  kept.evaluate.folder = ''  # of this evaluation, not of the next one
  meta = dict(config=json.loads(kept.to_json()), shape=list(shape), classes=list(classes), versions=versions())
  return run, checkpoints, meta


def same_model(workdir, config, old, facts, old_facts):
  """Raises InputError where the work directory's checkpoint is of another model; says what else has changed."""
  gaps = [f'config.{key}: {config[key]!r} here, {old[key]!r} in the checkpoint' for key in FIXED
          if weights_signature(config[key]) != weights_signature(old[key])]
  if old.draw != config.draw and 'loss_aware' in old.draw + config.draw:  # what its times remember is part of the checkpoint
    gaps.append(f'config.draw: {config.draw!r} here, {old.draw!r} in the checkpoint')
  if [name for name, _ in parse_averages(old.averages)] != [name for name, _ in parse_averages(config.averages)]:
    gaps.append(f'config.averages: {config.averages!r} here, {old.averages!r} in the checkpoint')
  gaps += [f'{key}: {facts[key]} here, {old_facts[key]} in the checkpoint' for key in facts if facts[key] != old_facts[key]]
  if gaps:
    raise InputError(f'{workdir} holds a checkpoint of another model ({"; ".join(gaps)}); use another --workdir')
  changed = [f'{key} {old[key]!r} -> {config[key]!r}' for key in NOTED if config[key] != old[key]]
  if changed:
    report('changed', '; '.join(changed))


def weights_signature(spec):
  """A spec without spaces and without what does not change the meaning of the weights."""
  name, args, kwargs = parse(str(spec))
  return name, args, {key: value for key, value in kwargs.items() if key not in FREE}


def versions():
  return dict(diffusion=__version__, python=sys.version.split()[0], jax=jax.__version__, flax=flax.__version__, optax=optax.__version__)


def restore(run, checkpoints):
  """The newest whole state, or None."""
  restored = checkpoints.restore(abstract_state(run))
  for note in restored.notes if restored else ():
    report('note', note)
  return restored and restored.state


def train(config, workdir, profile=None):
  """Trains to config.steps, resuming where a checkpoint is, then samples. profile: see train.trace."""
  consensus.require_same('config', f'{workdir} {config.to_json()}')
  with contextlib.ExitStack() as stack:
    consensus.run_together(lambda: stack.enter_context(hold(workdir)) if multihost.is_main() else None)
    train_alone(config, workdir, profile)


def train_alone(config, workdir, profile):
  """The same in a work directory that is held."""
  build.check(config)
  evaluation.check(config)
  if 'classifier' in build.guides(config):
    raise InputError("config.guide='classifier' is for --mode=sample: train without it, then sample with config.sample.classifier")
  sharding.check_batch('config.batch', config.batch, sharding.make_mesh(config.fsdp), config.accumulate)
  sample_report.wanted_shows(config.sample.show)
  report('data', config.data)
  data = build.load_data(config)
  report('', describe(data))
  run, checkpoints, meta = open_run(config, workdir, data, config.fsdp)
  consensus.require_same('data', f'{data.train.images.shape} {data.train.labels[:64].tolist()}')
  consensus.run_together(lambda: write_examples(run, config, workdir, data.train))
  if config.evaluate.at_end or config.evaluate.every:
    evaluation.prepare(run, config, data)
  state = restore(run, checkpoints)
  if state is None:
    state = make_state(run, jax.random.key(config.seed))
  step = int(state.step)
  report('training', f'steps {step} to {config.steps}, {config.batch} pictures each' if step < config.steps else
      f'complete: {step} steps are done; give a larger --config.steps to train on')
  if step < config.steps:
    lines, usage, step_fn = forecast(run, config)
    for label, text in lines.items():
      report(label, text)
    consensus.all_gather_text()
    snapshots = open_checkpoints(workdir / 'snapshots', sys.maxsize, None, config.save_failure) if config.snapshot_every else None
    if snapshots:
      snapshots.set_aside_after(step)
    log = open_log(workdir, step) if multihost.is_main() else no_log()
    log.text('config', f'```\n{config}\n```')
    show, forgive = progress_images(run, config, workdir, log), warn_only if config.save_failure == 'go on' else lambda write: write
    with contextlib.closing(log):
      state, complete = fit(run, data, state, checkpoints, log._replace(scalars=forgive(log.scalars)), meta, forgive(show),
                            curve(run, config, workdir, data), snapshots, usage, (profile, workdir / 'tensorboard'), step_fn)
    first, last = (max(profile[0], step + 1), min(profile[1], int(state.step))) if profile else (1, 0)
    if first <= last:
      report('profile', f'of steps {first} to {last}: TensorBoard, Profile (pip install tensorboard-plugin-profile)')
    if not complete:
      report('stopped', f'at step {int(state.step)}, which is saved; the same command goes on from there')
      return
  if run.denoise is None:
    report('try next', f'python -m diffusion.main --mode=sample --workdir=MODEL --config.guide=classifier --config.sample.classifier={workdir}')
    return
  write_samples(run, config, workdir, state, data)
  if config.evaluate.at_end:
    write_evaluation(run, config, workdir, state, data)
  closing(config, workdir, int(state.step), run.classes)


def write_examples(run, config, workdir, data):
  """data.png: what the model is shown."""
  some = slice(0, 64)
  labels = [run.classes[i] for i in data.labels[some]] if run.classes and data.labels.ndim == 1 else None
  pages.save_png(pages.grid(data.images[some], 8, labels, config.data), workdir / 'data.png')
  report('examples', workdir / 'data.png')


def progress_images(run, config, workdir, log):
  """Draws and keeps the grid that is followed during training: always the same noises and conditions."""
  if run.denoise is None:
    return lambda step, params: None
  draw, number, _ = sample_report.make_draw(run, config.sample)
  cond, labels = class_conditions(run.classes, '', number)
  def show(step, params):
    page = sample_report.page(draw(params, range(number), cond)[0], labels, f'step {step}')
    pages.save_png(page, workdir / 'training' / f'step_{step:07d}.png')
    log.image(step, 'samples', page)
  return show


def curve(run, config, workdir, data):
  """None, or the curve that config.evaluate.every asks for, with a notice when it has become flat."""
  if run.denoise is None or not config.evaluate.every:
    return None
  point = sample_metrics.make_curve(run, config, data)
  lines = read_metrics(workdir / 'metrics.jsonl') if multihost.is_main() else ()
  past = [(line['step'], line['fd_infinity'], line['fd_infinity_error']) for line in lines if 'fd_infinity' in line]
  def measure(step, params):
    values, flat = point(params), sample_metrics.plateau(past)
    past.append((step, values['fd_infinity'], values['fd_infinity_error']))
    if sample_metrics.plateau(past) and not flat:
      report('plateau', f'fd_infinity is {values["fd_infinity"]:.3g} +- {values["fd_infinity_error"]:.2g} at step {step}; no better than before, as far as '
          f'{config.evaluate.curve_number} samples tell')
    return values
  return config.evaluate.every, measure


def sample(config, workdir):
  """Draws pictures from the newest checkpoint."""
  run, checkpoints, _ = open_run(config, workdir)
  if run.denoise is None:
    raise InputError(f'{workdir} holds a classifier, which draws nothing; it guides another model: --config.sample.classifier={workdir}')
  write_samples(run, config, workdir, restore(run, checkpoints))


def evaluate(config, workdir):
  """Measures the newest checkpoint."""
  build.check(config)
  evaluation.check(config)
  data = build.load_data(config)
  run, checkpoints, _ = open_run(config, workdir, data)
  write_evaluation(run, config, workdir, restore(run, checkpoints), data)


def write_evaluation(run, config, workdir, state, data):
  """Measures what config.evaluate asks for into a new folder of the work directory, or the one that config.evaluate.folder names."""
  there = config.evaluate.folder and epath.Path(config.evaluate.folder) / 'evaluation.json'
  if there and there.exists():
    made = record.read(there)['subject']
    if (made['step'], made['config']) != (int(state.step), json.loads(config.to_json())):
      raise InputError(f'{there} is of other settings or another step; name another config.evaluate.folder')
    report('complete', f'{there} is there already')
    return
  report_files(evaluation.evaluate(run, config, weights(run, config, state, workdir), int(state.step), data, workdir, versions(), report))


def edit(config, workdir):
  """Edits the user's picture as config.edit says, with the newest checkpoint."""
  edits.check(config.edit)
  run, checkpoints, _ = open_run(config, workdir)
  given = edits.read(run, config)
  state = restore(run, checkpoints)
  report('editing', f'{config.edit.picture}: {config.edit.task}, step {int(state.step)}, {config.grid}')
  report_files(edits.write(run, config, given, workdir / 'edits', weights(run, config, state, workdir), int(state.step), versions()))


def export(config, workdir):
  """Writes the newest checkpoint's weights and its sampler for programs without this package."""
  run, checkpoints, _ = open_run(config, workdir)
  state = restore(run, checkpoints)
  step = int(state.step)
  report('exporting', f'step {step}, {config.sampler}, {config.grid}')
  folder = exporting.write(run, config, weights(run, config, state, workdir), step, workdir / 'exports' / f'step_{step}', versions())
  report_files(folder)
  report('try next', f'cd {folder} && python sample.py 16    (needs only jax, numpy, safetensors and pillow)')


def weights(run, config, state, workdir):
  """Those of a state that config.sample.weights names, or a power average from the snapshots."""
  wanted = config.sample.weights
  if wanted in ('ema', 'raw'):
    return state.ema if wanted == 'ema' else state.params
  name, args, kwargs = parse(wanted)
  if name == 'posthoc':
    return posthoc.posthoc(workdir, abstract_state(run).params, config.averages, *args, *kwargs.values(), step=int(state.step))
  return state.averages[[name for name, _ in run.averages].index(parse_averages(wanted)[0][0])]


def write_samples(run, config, workdir, state, data=None):
  """Draws what config.sample asks for into a new folder of the work directory."""
  run, params = helped(run, config, weights(run, config, state, workdir), config.sample.classes)
  steps, options = len(run.levels.logsnr) - 1, config.sample
  report('sampling', f'{options.number} pictures of step {int(state.step)}, {steps} steps of {config.sampler} each')
  report_files(sample_report.write(run, config, workdir / 'samples', params, int(state.step), versions(), data))


def closing(config, workdir, step, classes):
  command = f'python -m diffusion.main --workdir={workdir}'
  report('checkpoint', workdir / 'checkpoints' / str(step))
  report('TensorBoard', f'tensorboard --logdir={workdir / "tensorboard"}    (pip install tensorboard)')
  report('try next', f"{command} --mode=sample{' --config.guidance=2' if classes else ''} --config.sample.show=all\n"
      f"{command} --mode=sample --config.sampler=ddpm --config.grid='trailing(200)'\n"
      f'{command} --mode=evaluate')
