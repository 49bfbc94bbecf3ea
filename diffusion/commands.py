"""The modes of the program. Each opens a work directory and reports what it wrote."""
import contextlib
import json
import sys

import jax
from etils import epath

from diffusion.data.dataset import describe
from diffusion.errors import InputError
from diffusion.evaluation import report as evaluation, sample_metrics
from diffusion.evaluation.metrics import record
from diffusion.generation import edit_inputs, edits, export as exporting, pages, sample_report
from diffusion.generation.sampling import class_conditions, make_draw
from diffusion.setup import build
from diffusion.setup.validate import check
from diffusion.system import consensus, multihost, sharding
from diffusion.system.checkpoint import open_checkpoints
from diffusion.system.lock import hold
from diffusion.system.log import no_log, open_log, read_metrics, warn_only
from diffusion.training.heldout import make_heldout_loss
from diffusion.training.loop import fit, Hooks
from diffusion.training.open_model import choose_params, open_run, restore, versions, with_guide_model
from diffusion.training.resources import forecast
from diffusion.training.state import make_state


def report(label, text):
  """Prints a labelled line, or several; on the main process only."""
  if not multihost.is_main():
    return
  for i, line in enumerate(str(text).split('\n')):
    print(f'{label if i == 0 else "":<12}{line}', flush=True)


def report_files(folder):
  """Reports every file of a folder."""
  for path in sorted(folder.iterdir()) if multihost.is_main() else ():
    report('wrote', path)


def train(config, workdir, profile=None):
  """Trains to config.steps, from a checkpoint if there is one, then samples. profile: see run_control.trace."""
  consensus.require_same('config', f'{workdir} {config.to_json()}')
  with contextlib.ExitStack() as stack:
    consensus.run_together(lambda: stack.enter_context(hold(workdir)) if multihost.is_main() else None)
    run, data, checkpoints, meta = prepare_training(config, workdir)
    state = restore(run, checkpoints, report=report)
    if state is None:
      state = make_state(run, jax.random.key(config.seed))
    if int(state.step) >= config.steps:
      report('training', f'complete after {int(state.step)} steps; set a larger --config.steps to continue')
    else:
      state, complete = train_steps(run, data, state, checkpoints, meta, workdir, profile)
      if not complete:
        report('stopped', f'at step {int(state.step)}, which is saved; the same command resumes from there')
        return
    if run.denoise is None:
      guide = f"--config.guide='classifier({workdir}, 2)'"
      report('try next', f'python -m diffusion.main --mode=sample --workdir=RUN_OF_A_MODEL {guide}')
      return
    write_samples(run, workdir, state, data)
    if config.evaluate.at_end:
      write_evaluation(run, workdir, state, data)
    report_next_steps(run, workdir, int(state.step))


def prepare_training(config, workdir):
  """(Experiment, data, checkpoints, meta), after every check that needs no training."""
  parts = check(config)
  evaluation.check(config)
  if parts.guide.model:
    raise InputError(f'config.guide={config.guide!r} names a second model: train without it; it is for --mode=sample')
  sharding.check_batch('config.batch', config.batch, sharding.make_mesh(config.fsdp), config.grad_accumulation)
  sample_report.parse_show(config.sample.show)
  report('data', config.data)
  data = build.load_data(config)
  report('', describe(data))
  run, checkpoints, meta = open_run(config, workdir, data, config.fsdp, parts, report)
  sample_report.check(run)
  consensus.require_same('data', f'{data.train.images.shape} {data.train.labels[:64].tolist()}')
  consensus.run_together(lambda: write_examples(run, workdir, data.train))
  if config.evaluate.at_end or config.evaluate.every:
    evaluation.prepare(run, data)
  return run, data, checkpoints, meta


def train_steps(run, data, state, checkpoints, meta, workdir, profile):
  """Trains from the state's step to config.steps: (state, whether it got there)."""
  config, step = run.config, int(state.step)
  report('training', f'steps {step} to {config.steps}, batch {config.batch}')
  lines, usage, step_fn = forecast(run, config, data.train)
  for label, text in lines.items():
    report(label, text)
  consensus.all_gather_text()
  snapshots = None
  if config.snapshot_every:
    snapshots = open_checkpoints(workdir / 'snapshots', sys.maxsize, None, config.on_save_error)
    snapshots.set_aside_after(step)
  log = open_log(workdir, step) if multihost.is_main() else no_log()
  log.text('config', f'```\n{config}\n```')
  tolerant = warn_only if config.on_save_error == 'continue' else lambda write: write
  with contextlib.closing(log):
    show = tolerant(progress_images(run, workdir, log))
    hooks = Hooks(checkpoints, tolerant(log.scalars), meta, show, measures(run, workdir, data), snapshots, usage,
                  (profile, workdir / 'tensorboard'))
    state, complete = fit(run, data.train, state, hooks, step_fn)
  first, last = (max(profile[0], step + 1), min(profile[1], int(state.step))) if profile else (1, 0)
  if first <= last:
    report('profile', f'of steps {first} to {last}: see TensorBoard, Profile (pip install tensorboard-plugin-profile)')
  return state, complete


def write_examples(run, workdir, data):
  """data.png: examples of the training data."""
  first = slice(0, 64)
  labels = [run.classes[i] for i in data.labels[first]] if run.classes and data.labels.ndim == 1 else None
  pages.save_png(pages.grid(data.images[first], 8, labels, run.config.data), workdir / 'data.png')
  report('examples', workdir / 'data.png')


def progress_images(run, workdir, log):
  """(step, params) -> None: draws and keeps a page during training, always from the same noise and conditions."""
  if run.denoise is None:
    return lambda step, params: None
  options = run.config.sample
  number = sample_report.batch_size(options)
  draw = make_draw(run, options.seed, number, trace=sample_report.traced(options))  # the program that sampling compiles
  cond, labels = class_conditions(run.classes, '', number)
  def show(step, params):
    page = sample_report.page(draw(params, range(number), cond)[0], labels, f'step {step}')
    pages.save_png(page, workdir / 'training' / f'step_{step:07d}.png')
    log.image(step, 'samples', page)
  return show


def measures(run, workdir, data):
  """What is measured during training: [(every so many steps, (step, params) -> values)]."""
  config, entries = run.config, []
  if len(data.heldout.images):
    entries.append((config.val_every, make_heldout_loss(run, data.heldout, config.val_samples)))
  if run.denoise is not None and config.evaluate.every:
    entries.append((config.evaluate.every, curve(run, workdir, data)))
  return entries


def curve(run, workdir, data):
  """The Frechet distance curve, (step, params) -> values, with a notice when it has become flat."""
  point = sample_metrics.make_curve(run, data)
  lines = read_metrics(workdir / 'metrics.jsonl') if multihost.is_main() else ()
  past = [(line['step'], line['fd_infinity'], line['fd_infinity_error']) for line in lines if 'fd_infinity' in line]
  def measure(step, params):
    values, flat = point(params), sample_metrics.plateau(past)
    past.append((step, values['fd_infinity'], values['fd_infinity_error']))
    if sample_metrics.plateau(past) and not flat:
      value, error = values['fd_infinity'], values['fd_infinity_error']
      report('plateau', f'fd_infinity is {value:.3g} +- {error:.2g} at step {step}: no better than before, within the '
             f'error of {run.config.evaluate.curve_samples} samples')
    return values
  return measure


def sample(config, workdir):
  """Draws samples from the newest checkpoint."""
  run, checkpoints, _ = open_run(config, workdir, report=report)
  sample_report.check(run)
  if run.denoise is None:
    raise InputError(f'{workdir} holds a classifier, which draws nothing; it guides another model: '
                     f"--config.guide='classifier({workdir}, 2)'")
  write_samples(run, workdir, restore(run, checkpoints, report=report))


def evaluate(config, workdir):
  """Measures the newest checkpoint."""
  parts = check(config)
  evaluation.check(config)
  data = build.load_data(config)
  run, checkpoints, _ = open_run(config, workdir, data, parts=parts, report=report)
  sample_report.check(run)
  write_evaluation(run, workdir, restore(run, checkpoints, report=report), data)


def write_evaluation(run, workdir, state, data):
  """Writes an evaluation into a new folder of the work directory, or the one that config.evaluate.folder names."""
  config, step = run.config, int(state.step)
  path = config.evaluate.folder and epath.Path(config.evaluate.folder) / 'evaluation.json'
  if path and path.exists():
    subject = record.read(path)['subject']
    if (subject['step'], subject['config']) != (step, json.loads(config.to_json())):
      raise InputError(f'{path} was made with other settings or at another step; name another config.evaluate.folder')
    report('complete', f'{path} exists already; nothing was measured')
    return
  params = choose_params(run, state, workdir)
  report_files(evaluation.evaluate(run, params, step, data, workdir, versions(), report))


def edit(config, workdir):
  """Edits the user's image as config.edit says, with the newest checkpoint."""
  edit_inputs.check(config.edit)
  run, checkpoints, _ = open_run(config, workdir, report=report)
  sample_report.check(run)
  inputs = edit_inputs.read(run)
  state = restore(run, checkpoints, report=report)
  report('editing', f'{config.edit.image}: {config.edit.task}, step {int(state.step)}, {config.grid}')
  params = choose_params(run, state, workdir)
  report_files(edits.write(run, inputs, workdir / 'edits', params, int(state.step), versions()))


def export(config, workdir):
  """Writes the newest checkpoint's parameters and its sampler for programs without this package."""
  run, checkpoints, _ = open_run(config, workdir, report=report)
  sample_report.check(run)
  state = restore(run, checkpoints, report=report)
  step, params = int(state.step), choose_params(run, state, workdir)
  report('exporting', f'step {step}, {config.sampler}, {config.grid}')
  folder = exporting.write(run, params, step, workdir / 'exports' / f'step_{step}', versions())
  report_files(folder)
  report('try next', f'cd {folder} && python sample.py 16    (needs jax, flatbuffers, numpy, safetensors and pillow)')


def write_samples(run, workdir, state, data=None):
  """Draws what config.sample asks for into a new folder of the work directory."""
  config, step = run.config, int(state.step)
  run, params = with_guide_model(run, choose_params(run, state, workdir), config.sample.classes)
  steps = len(run.levels.logsnr) - 1
  report('sampling', f'{config.sample.num_samples} images from checkpoint {step}, {config.sampler}, {steps} steps each')
  report_files(sample_report.write(run, workdir / 'samples', params, step, versions(), data))


def report_next_steps(run, workdir, step):
  """The last lines of a training: where things are, and what to do next."""
  command = f'python -m diffusion.main --workdir={workdir}'
  guide = " --config.guide='cfg(2)'" if run.classes else ''
  report('checkpoint', workdir / 'checkpoints' / str(step))
  report('TensorBoard', f'tensorboard --logdir={workdir / "tensorboard"}    (pip install tensorboard)')
  report('try next', f'{command} --mode=sample{guide} --config.sample.show=all\n'
         f"{command} --mode=sample --config.sampler=ddpm --config.grid='trailing(200)'\n"
         f'{command} --mode=evaluate')
