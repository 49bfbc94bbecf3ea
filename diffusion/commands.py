"""What the program does in each mode: train, sample, evaluate, edit. Each opens a work directory, and says what it wrote."""
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
  if not multihost.is_main():
    return
  for i, line in enumerate(str(text).split('\n')):
    print(f'{label if i == 0 else "":<12}{line}', flush=True)


def report_files(folder):
  for path in sorted(folder.iterdir()) if multihost.is_main() else ():
    report('wrote', path)


def train(config, workdir, profile=None):
  """Trains to config.steps, resuming where a checkpoint is, then samples. profile: see run_control.trace."""
  consensus.require_same('config', f'{workdir} {config.to_json()}')
  with contextlib.ExitStack() as stack:
    consensus.run_together(lambda: stack.enter_context(hold(workdir)) if multihost.is_main() else None)
    train_alone(config, workdir, profile)


def train_alone(config, workdir, profile):
  """The same in a work directory that is held."""
  parts = check(config)
  evaluation.check(config)
  if parts.guide.model:
    raise InputError(f'config.guide={config.guide!r} names a second model, which is for --mode=sample: train without it')
  sharding.check_batch('config.batch', config.batch, sharding.make_mesh(config.fsdp), config.grad_accumulation)
  sample_report.parse_show(config.sample.show)
  report('data', config.data)
  data = build.load_data(config)
  report('', describe(data))
  run, checkpoints, meta = open_run(config, workdir, data, config.fsdp, parts, report)
  sample_report.check(run)
  consensus.require_same('data', f'{data.train.images.shape} {data.train.labels[:64].tolist()}')
  consensus.run_together(lambda: write_examples(run, config, workdir, data.train))
  if config.evaluate.at_end or config.evaluate.every:
    evaluation.prepare(run, data)
  state = restore(run, checkpoints, report=report)
  if state is None:
    state = make_state(run, jax.random.key(config.seed))
  step = int(state.step)
  report('training', f'steps {step} to {config.steps}, {config.batch} pictures each' if step < config.steps else
      f'complete: {step} steps are done; give a larger --config.steps to train on')
  if step < config.steps:
    lines, usage, step_fn = forecast(run, config, data.train)
    for label, text in lines.items():
      report(label, text)
    consensus.all_gather_text()
    snapshots = open_checkpoints(workdir / 'snapshots', sys.maxsize, None, config.on_save_error) if config.snapshot_every else None
    if snapshots:
      snapshots.set_aside_after(step)
    log = open_log(workdir, step) if multihost.is_main() else no_log()
    log.text('config', f'```\n{config}\n```')
    show, forgive = progress_images(run, config, workdir, log), warn_only if config.on_save_error == 'continue' else lambda write: write
    with contextlib.closing(log):
      hooks = Hooks(checkpoints, forgive(log.scalars), meta, forgive(show), measures(run, config, workdir, data), snapshots, usage,
                    (profile, workdir / 'tensorboard'))
      state, complete = fit(run, data.train, state, hooks, step_fn)
    first, last = (max(profile[0], step + 1), min(profile[1], int(state.step))) if profile else (1, 0)
    if first <= last:
      report('profile', f'of steps {first} to {last}: TensorBoard, Profile (pip install tensorboard-plugin-profile)')
    if not complete:
      report('stopped', f'at step {int(state.step)}, which is saved; the same command goes on from there')
      return
  if run.denoise is None:
    report('try next', f"python -m diffusion.main --mode=sample --workdir=MODEL --config.guide='classifier({workdir}, 2)'")
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
  number = sample_report.batch_size(config.sample)
  draw = make_draw(run, config.sample.seed, number, trace=sample_report.traced(config.sample))  # as sampling compiles it
  cond, labels = class_conditions(run.classes, '', number)
  def show(step, params):
    page = sample_report.page(draw(params, range(number), cond)[0], labels, f'step {step}')
    pages.save_png(page, workdir / 'training' / f'step_{step:07d}.png')
    log.image(step, 'samples', page)
  return show


def measures(run, config, workdir, data):
  """What is measured during training: [(every so many steps, (step, params) -> values)]."""
  entries = []
  if len(data.heldout.images):
    entries.append((config.val_every, make_heldout_loss(run, data.heldout, config.val_samples)))
  if run.denoise is not None and config.evaluate.every:
    entries.append((config.evaluate.every, curve(run, config, workdir, data)))
  return entries


def curve(run, config, workdir, data):
  """The Frechet distance curve, (step, params) -> values, with a notice when it has become flat."""
  point = sample_metrics.make_curve(run, data)
  lines = read_metrics(workdir / 'metrics.jsonl') if multihost.is_main() else ()
  past = [(line['step'], line['fd_infinity'], line['fd_infinity_error']) for line in lines if 'fd_infinity' in line]
  def measure(step, params):
    values, flat = point(params), sample_metrics.plateau(past)
    past.append((step, values['fd_infinity'], values['fd_infinity_error']))
    if sample_metrics.plateau(past) and not flat:
      report('plateau', f'fd_infinity is {values["fd_infinity"]:.3g} +- {values["fd_infinity_error"]:.2g} at step {step}; no better than before, as far as '
          f'{config.evaluate.curve_samples} samples tell')
    return values
  return measure


def sample(config, workdir):
  """Draws pictures from the newest checkpoint."""
  run, checkpoints, _ = open_run(config, workdir, report=report)
  sample_report.check(run)
  if run.denoise is None:
    raise InputError(f'{workdir} holds a classifier, which draws nothing; it guides another model: "--config.guide=classifier({workdir}, 2)"')
  write_samples(run, config, workdir, restore(run, checkpoints, report=report))


def evaluate(config, workdir):
  """Measures the newest checkpoint."""
  parts = check(config)
  evaluation.check(config)
  data = build.load_data(config)
  run, checkpoints, _ = open_run(config, workdir, data, parts=parts, report=report)
  sample_report.check(run)
  write_evaluation(run, config, workdir, restore(run, checkpoints, report=report), data)


def write_evaluation(run, config, workdir, state, data):
  """Measures what config.evaluate asks for into a new folder of the work directory, or the one that config.evaluate.folder names."""
  there = config.evaluate.folder and epath.Path(config.evaluate.folder) / 'evaluation.json'
  if there and there.exists():
    made = record.read(there)['subject']
    if (made['step'], made['config']) != (int(state.step), json.loads(config.to_json())):
      raise InputError(f'{there} is of other settings or another step; name another config.evaluate.folder')
    report('complete', f'{there} is there already')
    return
  report_files(evaluation.evaluate(run, choose_params(run, state, workdir), int(state.step), data, workdir, versions(), report))


def edit(config, workdir):
  """Edits the user's picture as config.edit says, with the newest checkpoint."""
  edit_inputs.check(config.edit)
  run, checkpoints, _ = open_run(config, workdir, report=report)
  sample_report.check(run)
  inputs = edit_inputs.read(run)
  state = restore(run, checkpoints, report=report)
  report('editing', f'{config.edit.image}: {config.edit.task}, step {int(state.step)}, {config.grid}')
  report_files(edits.write(run, inputs, workdir / 'edits', choose_params(run, state, workdir), int(state.step), versions()))


def export(config, workdir):
  """Writes the newest checkpoint's weights and its sampler for programs without this package."""
  run, checkpoints, _ = open_run(config, workdir, report=report)
  sample_report.check(run)
  state = restore(run, checkpoints, report=report)
  step = int(state.step)
  report('exporting', f'step {step}, {config.sampler}, {config.grid}')
  folder = exporting.write(run, choose_params(run, state, workdir), step, workdir / 'exports' / f'step_{step}', versions())
  report_files(folder)
  report('try next', f'cd {folder} && python sample.py 16    (needs only jax, numpy, safetensors and pillow)')


def write_samples(run, config, workdir, state, data=None):
  """Draws what config.sample asks for into a new folder of the work directory."""
  run, params = with_guide_model(run, choose_params(run, state, workdir), config.sample.classes)
  steps, options = len(run.levels.logsnr) - 1, config.sample
  report('sampling', f'{options.num_samples} pictures of step {int(state.step)}, {steps} steps of {config.sampler} each')
  report_files(sample_report.write(run, workdir / 'samples', params, int(state.step), versions(), data))


def closing(config, workdir, step, classes):
  command, guide = f'python -m diffusion.main --workdir={workdir}', " --config.guide='cfg(2)'" if classes else ''
  report('checkpoint', workdir / 'checkpoints' / str(step))
  report('TensorBoard', f'tensorboard --logdir={workdir / "tensorboard"}    (pip install tensorboard)')
  report('try next', f"{command} --mode=sample{guide} --config.sample.show=all\n"
      f"{command} --mode=sample --config.sampler=ddpm --config.grid='trailing(200)'\n"
      f'{command} --mode=evaluate')
