"""The modes of the program. Each opens a work directory and reports what it wrote."""
import contextlib
import json
import shlex
import sys
import time

import jax
import numpy as np

from diffusion.data.dataset import captions, describe, first_captions, size
from diffusion.errors import InputError
from diffusion.evaluation import EVALUATORS, report as evaluation, sample_metrics, text as text_evaluation
from diffusion.evaluation.metrics import record
from diffusion.generation import edit_inputs, edits, export as exporting, requests, sample_report, suggestions
from diffusion.generation.sampling import make_draw
from diffusion.setup import build
from diffusion.setup.build import require
from diffusion.setup.config import filled
from diffusion.setup.validate import check
from diffusion.system import consensus, multihost, sharding
from diffusion.system.checkpoint import open_checkpoints
from diffusion.system.files import user_path
from diffusion.system.lock import hold
from diffusion.system.log import no_log, open_log, read_metrics, warn_only
from diffusion.training import timing
from diffusion.training.heldout import make_heldout_loss
from diffusion.training.loop import fit, Hooks
from diffusion.tasks import pages
from diffusion.tasks.classes import quoted
from diffusion.training.import_folder import export_folder
from diffusion.training.init_from import start_from
from diffusion.training.open_model import choose_weights, Loaded, open_run, placed_frozen, restore, with_guide_model
from diffusion.training.record import to_meta, versions
from diffusion.training.resources import forecast
from diffusion.training.state import make_state, whole


def report(label, text):
  """Prints a labelled line, or several; on the main process only."""
  if not multihost.is_main():
    return
  for i, line in enumerate(str(text).split('\n')):
    print(f'{label if i == 0 else "":<12}{line}', flush=True)


def report_files(folder):
  """Reports every file of a folder, and of the folders of a chain in it."""
  for path in sorted(folder.iterdir()) if multihost.is_main() else ():
    if path.is_dir():
      report_files(path)
    else:
      report('wrote', path)


def train(config, workdir, profile=None, started=None):
  """Trains to config.steps, from a checkpoint if there is one, then samples.

  profile: see run_control.trace.   started: time.monotonic() of the command, from which config.minutes count.
  """
  started = time.monotonic() if started is None else started
  consensus.require_same('config', f'{workdir} {config.to_json()}')
  with contextlib.ExitStack() as stack:
    consensus.run_together(lambda: stack.enter_context(hold(workdir)) if multihost.is_main() else None)
    run, checkpoints, meta, data = prepare_training(config, workdir)
    state = restore(run, checkpoints, report=report)
    if state is None:
      state = start_from(run, make_state(run, jax.random.key(config.seed)), report)
    state = whole(run, state)
    if int(state.step) >= config.steps:
      report('training', f'complete after {int(state.step)} steps; set a larger --config.steps to continue')
    else:
      state, complete = train_steps(run, data, state, checkpoints, meta, workdir, profile, started)
      if not complete:
        report('stopped', f'at step {int(state.step)}, which is saved; the same command resumes from there')
        return
    if run.draws:
      write_samples(run, workdir, state, data)
    if config.evaluate.at_end:
      write_evaluation(run, workdir, state, data)
    report_next_steps(run, workdir, int(state.step))


def prepare_training(config, workdir):
  """The work directory, Opened, after every check that needs no training."""
  newest = open_checkpoints(workdir / 'checkpoints').latest_meta() if config.minutes else None
  if newest:
    config.steps = timing.stored_steps(config, filled(newest[1]['config']))
  parts = check(config)
  evaluation.check(config)
  if parts.guide.model:
    raise InputError(f'config.guide={config.guide!r} names a second model: train without it; it is for --mode=sample')
  sharding.check_batch('config.batch', config.batch, sharding.make_mesh(config.fsdp), config.grad_accumulation)
  sample_report.parse_show(config.sample.show)
  report('data', config.data)
  data = build.load_data(config)
  report('', describe(data))
  odd = [name for name in data.train.facts.get('classes', ()) if quoted(name) != name]
  if odd:
    report('note', 'names of classes to be written in quotes, as in --config.sample.classes="'
           f'{", ".join(map(quoted, odd[:3]))}"')
  opened = open_run(config, workdir, data, config.fsdp, parts, report)
  run, data = opened.run, opened.data
  sample_report.check(run)
  first = run.task.batch(data.train, np.arange(min(64, size(data.train))))
  consensus.require_same('data', f'{size(data.train)} {[a.sum(dtype=float) for a in jax.tree.leaves(first)]}')
  consensus.run_together(lambda: write_examples(run, workdir, data.train))
  if config.evaluate.at_end:
    evaluation.prepare(run, data)
  if config.evaluate.every:
    EVALUATORS['samples'].prepare(run, data)
  if text_evaluation.watched(run, data):
    EVALUATORS['text'].prepare(run, data)
  return opened


def train_steps(run, data, state, checkpoints, meta, workdir, profile, started):
  """Trains from the state's step to config.steps: (state, whether it got there)."""
  config, step = run.config, int(state.step)
  chosen = not config.minutes or step > 0
  end = config.steps if chosen else f'as many as fit into {config.minutes:g} minutes'
  report('training', f'steps {step} to {end}, batch {config.batch}')
  lines, usage, step_fn = forecast(run, config, data.train)
  for label, text in lines.items():
    report(label, text)
  consensus.all_gather_text()
  frozen = placed_frozen(run)
  if not chosen:
    state, config.steps = timing.choose(run, data.train, state, step_fn, frozen, lambda: time.monotonic() - started)
    run, step = run._replace(plan=run.plan._replace(steps=config.steps)), int(state.step)
    meta = meta | dict(config=to_meta(config, run)['config'])
    report('steps', f'{config.steps:,} in all')
  snapshots = None
  if config.snapshot_every:
    snapshots = open_checkpoints(workdir / 'snapshots', sys.maxsize, None, config.on_save_error)
    snapshots.set_aside_after(step)
  log = open_log(workdir, step) if multihost.is_main() else no_log()
  log.text('config', f'```\n{config}\n```')
  tolerant = warn_only if config.on_save_error == 'continue' else lambda write: write
  with contextlib.closing(log):
    show = tolerant(progress_page(run, workdir, log))
    hooks = Hooks(checkpoints, tolerant(log.scalars), meta, show, measures(run, workdir, data), snapshots, usage,
                  (profile, workdir / 'tensorboard'))
    state, complete = fit(run, data.train, state, hooks, frozen, step_fn)
  first, last = (max(profile[0], step + 1), min(profile[1], int(state.step))) if profile else (1, 0)
  if first <= last:
    report('profile', f'of steps {first} to {last}: see TensorBoard, Profile (pip install tensorboard-plugin-profile)')
  return state, complete


def write_examples(run, workdir, data):
  """data.png: examples of the training data, as the model's samples will look."""
  index = np.arange(min(64, size(data)))
  shown = jax.jit(lambda frozen, batch: run.decode(frozen, *run.encode(frozen, None, batch)))
  parts = [shown(run.frozen, run.task.batch(data, part)) for part in np.resize(index, (-(-len(index) // 8), 8))]
  outputs = jax.tree.map(lambda *some: np.concatenate(some)[:len(index)], *jax.device_get(parts))
  labels = captions(data, index)
  if 'prompt' in run.task.takes:
    labels = [str(text) for text in first_captions(data)[index]]
  pages.save_png(run.task.show(outputs, labels, run.config.data), workdir / 'data.png')
  report('examples', workdir / 'data.png')


def progress_page(run, workdir, log):
  """(step, weights) -> None: draws and keeps a page during training, always from the same noise and conditions."""
  if not run.draws:
    return lambda step, weights: None
  options = run.config.sample
  number = sample_report.batch_size(options)
  draw = make_draw(run, options.seed, number, trace=sample_report.traced(options))  # the program that sampling compiles
  asked = requests.ask(run, {}, np.arange(number), options.seed)
  def show(step, weights):
    lost = []
    outputs, _ = draw(weights, np.arange(number), asked.cond, lost=lost)
    title = f'step {step}' + (f', {len(lost)} samples are not finite' if lost else '')
    page = sample_report.page(run.task, outputs, asked.labels, title)
    pages.save_png(page, workdir / 'training' / f'step_{step:07d}.png')
    log.image(step, 'samples', page)
  return show


def measures(run, workdir, data):
  """What is measured during training: [(every so many steps, (step, weights) -> values)]."""
  config, entries = run.config, []
  if size(data.heldout):
    entries.append((config.val_every, make_heldout_loss(run, data.heldout, config.val_samples)))
  if config.evaluate.every and not EVALUATORS['samples'].needs(run, data):
    entries.append((config.evaluate.every, curve(run, workdir, data)))
  if text_evaluation.watched(run, data):
    entries.append((config.evaluate.every or -(-config.steps // 4), text_evaluation.watch(run, data, report)))
  return entries


def curve(run, workdir, data):
  """The Frechet distance curve, (step, weights) -> values, with a notice when it has become flat."""
  point = sample_metrics.make_curve(run, data)
  lines = read_metrics(workdir / 'metrics.jsonl') if multihost.is_main() else ()
  past = [(line['step'], line['fd_infinity'], line['fd_infinity_error']) for line in lines if 'fd_infinity' in line]
  def measure(step, weights):
    values, flat = point(weights), sample_metrics.plateau(past)
    if not values:
      report('note', 'no point of the fd_infinity curve at this step: some samples are not finite')
      return values
    past.append((step, values['fd_infinity'], values['fd_infinity_error']))
    if sample_metrics.plateau(past) and not flat:
      value, error = values['fd_infinity'], values['fd_infinity_error']
      report('plateau', f'fd_infinity is {value:.3g} +- {error:.2g} at step {step}: no better than before, within the '
             f'error of {run.config.evaluate.curve_samples} samples')
    return values
  return measure


def sample(config, workdir):
  """Draws samples from the newest checkpoint."""
  run, checkpoints, *_ = open_run(config, workdir, report=report)
  sample_report.check(run)
  guides = f"; it guides another model: --config.guide='classifier({workdir}, 2)'" if 'log_prob' in run.can else ''
  require(run, 'draws', guides)
  write_samples(run, workdir, restore(run, checkpoints, report=report))


def evaluate(config, workdir):
  """Measures the newest checkpoint."""
  parts = check(config)
  evaluation.check(config)
  data = build.load_data(config)
  run, checkpoints, _, data = open_run(config, workdir, data, parts=parts, report=report)
  sample_report.check(run)
  write_evaluation(run, workdir, restore(run, checkpoints, report=report), data)


def write_evaluation(run, workdir, state, data):
  """Writes an evaluation into a new folder of the work directory, or the one that config.evaluate.folder names."""
  config, step = run.config, int(state.step)
  path = config.evaluate.folder and user_path(config.evaluate.folder) / 'evaluation.json'
  if path and path.exists():
    subject = record.read(path)['subject']
    if (subject['step'], subject['config']) != (step, json.loads(config.to_json())):
      raise InputError(f'{path} was made with other settings or at another step; name another config.evaluate.folder')
    report('complete', f'{path} exists already; nothing was measured')
    return
  weights = choose_weights(run, state, workdir)
  report_files(evaluation.evaluate(run, weights, step, data, workdir, versions(), report))


def edit(config, workdir):
  """Edits the user's image as config.edit says, with the newest checkpoint."""
  edit_inputs.check(config.edit)
  run, checkpoints, *_ = open_run(config, workdir, report=report)
  sample_report.check(run)
  inputs = edit_inputs.read(run)
  state = restore(run, checkpoints, report=report)
  for note in inputs.notes:
    report('note', note)
  report('editing', f'{config.edit.image}: {config.edit.task}, step {int(state.step)}, {config.grid}')
  weights = choose_weights(run, state, workdir)
  report_files(edits.write(run, inputs, workdir / 'edits', weights, int(state.step), versions()))


def export(config, workdir, format='ours'):
  """Writes the newest checkpoint's parameters and its sampler for programs without this package, or for diffusers."""
  run, checkpoints, *_ = open_run(config, workdir, report=report)
  sample_report.check(run)
  state = restore(run, checkpoints, report=report)
  step, weights = int(state.step), choose_weights(run, state, workdir)
  if format == 'diffusers':
    return report('wrote', export_folder(run, weights.params, workdir, workdir / 'exports' / f'step_{step}_diffusers'))
  report('exporting', f'step {step}, {config.sampler}, {config.grid}')
  folder = exporting.write(run, weights, step, workdir / 'exports' / f'step_{step}', versions())
  report_files(folder)
  needs = '(needs jax, flatbuffers, numpy, safetensors and pillow)'
  report('try next', f'cd {shlex.quote(str(folder))} && python sample.py 16    {needs}')


def write_samples(run, workdir, state, data=None):
  """Draws what config.sample asks for into a new folder of the work directory."""
  config, step = run.config, int(state.step)
  asked = config.sample.classes or config.sample.prompt
  run, weights = with_guide_model(run, choose_weights(run, state, workdir), asked)
  for note in requests.ask(run, requests.of_config(run), np.arange(config.sample.num_samples), 0).notes:
    report('note', note)
  how = f', {config.sampler}, {len(run.levels.logsnr) - 1} steps each' if run.levels else ''
  report('sampling', f'{config.sample.num_samples} {run.task.gives or "samples"} from checkpoint {step}{how}')
  report_files(sample_report.write(Loaded(run, weights, step), workdir / 'samples', versions(), data))


def report_next_steps(run, workdir, step):
  """The last lines of a training: where things are, and what to do next."""
  report('checkpoint', workdir / 'checkpoints' / str(step))
  logs = shlex.quote(str(workdir / 'tensorboard'))
  report('TensorBoard', f'tensorboard --logdir={logs}    (pip install tensorboard)')
  tries = suggestions.commands(run, workdir)
  if tries:
    report('try next', '\n'.join(tries))
