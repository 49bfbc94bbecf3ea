r"""Train a diffusion model, sample from it, look at it.

  python -m diffusion.main --config=configs/cosine_ddim.py                       train, then sample
  python -m diffusion.main --config=configs/cosine_ddim.py                       again: goes on where it stopped
  python -m diffusion.main --config=configs/cosine_ddim.py:tiny                  the same in seconds
  python -m diffusion.main --config=configs/cosine_ddim.py --config.data='folder(/my/pictures, size=32)' --workdir=runs/mine
  python -m diffusion.main --mode=sample --workdir=runs/cosine_ddim --config.guidance=2 --config.sample.show=all
  python -m diffusion.main --mode=evaluate --workdir=runs/cosine_ddim            held-out loss by log-SNR
  python -m diffusion.main --mode=edit --workdir=runs/cosine_ddim --config.edit.task=repaint --config.edit.picture=my.png --config.edit.mask=mask.png

Every setting is --config.NAME=VALUE; diffusion/config.py lists them with their defaults. With --workdir alone, the config
and the weights come from its checkpoint.
"""
import contextlib
import json
import sys

from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from diffusion import platform
from diffusion.config import default, filled
from diffusion.errors import InputError

MODES = ('train', 'sample', 'evaluate', 'edit')
# What the weights mean: these cannot change within a work directory.
FIXED = ('net', 'schedule', 'predict', 'variance', 'self_condition', 'uncertainty')
FREE = {'dtype', 'remat', 'fast', 'dropout', 'strength', 'levels'}  # arguments that may change: the weights stay what they are
# What a resumed run may change, but says so.
NOTED = ('seed', 'data', 'task', 'draw', 'weight', 'error', 'noise', 'condition_dropout', 'batch', 'steps', 'learning_rate', 'warmup', 'decay',
         'weight_decay', 'clip_norm', 'beta2', 'ema')


def say(label, text):
  for i, line in enumerate(str(text).split('\n')):
    print(f'{label if i == 0 else "":<12}{line}', flush=True)


# ---- the config, from a file or from a checkpoint
def argument(argv, name):
  """The last value of --name=value or --name value in the command line, or None."""
  value = None
  for i, word in enumerate(argv):
    word = word.lstrip('-') if word.startswith('-') else ''
    if word.startswith(f'{name}='):
      value = word[len(name) + 1:]
    elif word == name and i + 1 < len(argv):
      value = argv[i + 1]
  return value


def stored(workdir):
  """The record in the newest checkpoint of a work directory, or None."""
  from diffusion.checkpoint import open_checkpoints
  found = open_checkpoints(epath.Path(workdir) / 'checkpoints').latest_meta()
  return found[1] if found else None


def define_flags(argv):
  """Defines the flags; with --workdir and no --config, the config is the one in the checkpoint."""
  flags.DEFINE_enum('mode', 'train', MODES, 'train: train, then sample; sample: draw pictures; evaluate: held-out loss; '
                    'edit: your own picture, painted anew in part or whole.')
  flags.DEFINE_string('workdir', None, 'Where everything is written; runs/NAME_OF_THE_CONFIG if not given.')
  workdir = argument(argv, 'workdir')
  if argument(argv, 'config') is not None:
    config_flags.DEFINE_config_file('config', None, 'Recipe, such as configs/cosine_ddim.py or configs/cosine_ddim.py:tiny.')
  elif workdir is None:
    config_flags.DEFINE_config_dict('config', default(), 'Recipe, such as configs/cosine_ddim.py or configs/cosine_ddim.py:tiny.')
    if not any(word in argv for word in ('--help', '-help', '--helpfull', '--helpshort', '-h')):
      raise InputError('nothing to do: give --config=configs/cosine_ddim.py to train, or --workdir=DIR to go on with a trained model '
                       '(--help tells more)')
  else:
    meta = stored(workdir)
    if meta is None:
      raise InputError(f'--workdir={workdir} holds no checkpoint yet; train first, with --config=configs/cosine_ddim.py')
    try:
      config_flags.DEFINE_config_dict('config', filled(meta['config']), 'Settings of the checkpoint.')
    except (AttributeError, KeyError) as error:
      inner = error.args[0].args[0] if isinstance(error.args[0], KeyError) else error.args[0]
      raise InputError(f'unknown setting {" ".join(str(inner).split())} (diffusion/config.py lists them all)') from error


def default_workdir(argv):
  """configs/cosine_ddim.py:tiny -> runs/cosine_ddim_tiny."""
  path, _, variant = argument(argv, 'config').partition(':')
  return f'runs/{epath.Path(path).stem}' + (f'_{variant}' if variant else '')


# ---- modes
def open_run(config, workdir, data=None):
  """(Experiment, checkpoints, meta). The shape and the classes come from the data where there is some, else from the checkpoint."""
  from diffusion import build, samples, sharding
  from diffusion.checkpoint import open_checkpoints
  checkpoints = open_checkpoints(workdir / 'checkpoints', config.keep, config.keep_every or None)
  found = checkpoints.latest_meta()
  old = found[1] if found else None
  if old is None and data is None:
    raise InputError(f'{workdir} holds no checkpoint yet; train first')
  shape, classes = (data.train.images.shape[1:], data.train.classes) if data else (old['shape'], old['classes'])
  if old:
    same_model(workdir, config, filled(old['config']), dict(shape=list(shape), classes=list(classes)), old)
  run = build.build(config, tuple(shape), tuple(classes), sharding.make_mesh())
  samples.check(run, config.sample)
  meta = dict(config=json.loads(config.to_json()), shape=list(shape), classes=list(classes), versions=versions())
  return run, checkpoints, meta


def same_model(workdir, config, old, facts, old_facts):
  """Raises InputError where the work directory's checkpoint is of another model; says what else has changed."""
  gaps = [f'config.{key}: {config[key]!r} here, {old[key]!r} in the checkpoint' for key in FIXED
          if essence(config[key]) != essence(old[key])]
  if old.draw != config.draw and 'loss_aware' in old.draw + config.draw:  # what its times remember is part of the checkpoint
    gaps.append(f'config.draw: {config.draw!r} here, {old.draw!r} in the checkpoint')
  gaps += [f'{key}: {facts[key]} here, {old_facts[key]} in the checkpoint' for key in facts if facts[key] != old_facts[key]]
  if gaps:
    raise InputError(f'{workdir} holds a checkpoint of another model ({"; ".join(gaps)}); use another --workdir')
  changed = [f'{key} {old[key]!r} -> {config[key]!r}' for key in NOTED if config[key] != old[key]]
  if changed:
    say('changed', '; '.join(changed))


def essence(spec):
  """A spec without spaces and without what does not change the meaning of the weights."""
  from diffusion.specs import parse
  name, args, kwargs = parse(str(spec))
  return name, args, {key: value for key, value in kwargs.items() if key not in FREE}


def versions():
  import flax
  import jax
  import optax
  from diffusion import __version__
  return dict(diffusion=__version__, python=sys.version.split()[0], jax=jax.__version__, flax=flax.__version__, optax=optax.__version__)


def restore(run, checkpoints):
  """The newest whole state, or None."""
  from diffusion.train import abstract_state
  restored = checkpoints.restore(abstract_state(run))
  for note in restored.notes if restored else ():
    say('note', note)
  return restored and restored.state


def train(config, workdir):
  """Trains to config.steps, resuming where a checkpoint is, then samples."""
  import jax
  from diffusion import build, pictures, samples, sharding
  from diffusion.data.dataset import describe
  from diffusion.log import open_log
  from diffusion.train import fit, make_state
  build.check(config)
  if 'classifier' in build.guides(config):
    raise InputError("config.guide='classifier' is for --mode=sample: train without it, then sample with config.sample.classifier")
  sharding.check_batch('config.batch', config.batch, sharding.make_mesh())
  samples.wanted_shows(config.sample.show)
  say('data', config.data)
  data = build.load_data(config)
  say('', describe(data))
  run, checkpoints, meta = open_run(config, workdir, data)
  example = slice(0, 64)
  labels = None
  if run.classes and data.train.labels.ndim == 1:
    labels = [run.classes[i] for i in data.train.labels[example]]
  pictures.save_png(pictures.grid(data.train.images[example], 8, labels, config.data), workdir / 'data.png')
  say('examples', workdir / 'data.png')
  state = restore(run, checkpoints)
  if state is None:
    state = make_state(run, jax.random.key(config.seed))
  step = int(state.step)
  number = sum(a.size for a in jax.tree.leaves(state.params))
  say('network', f'{number / 1e6:.2f} million parameters on {run.mesh.size} {jax.default_backend()} devices')
  say('training', f'steps {step} to {config.steps}, {config.batch} pictures each' if step < config.steps else
      f'complete: {step} steps are done; give a larger --config.steps to train on')
  if step < config.steps:
    log = open_log(workdir, step)
    log.text('config', f'```\n{config}\n```')
    with contextlib.closing(log):
      state, complete = fit(run, data, state, checkpoints, log, meta, look(run, config, workdir, log))
    if not complete:
      say('stopped', f'at step {int(state.step)}, which is saved; the same command goes on from there')
      return
  if run.denoise is None:
    say('try next', f'python -m diffusion.main --mode=sample --workdir=MODEL --config.guide=classifier --config.sample.classifier={workdir}')
    return
  write_samples(run, config, workdir, state, data)
  closing(config, workdir, int(state.step), run.classes)


def look(run, config, workdir, log):
  """Draws and keeps the grid that is followed during training: always the same noises and conditions."""
  from diffusion import generate, pictures, samples
  if run.denoise is None:
    return lambda step, params: None
  draw, number, _ = samples.make_draw(run, config.sample)
  cond, labels = generate.class_conditions(run.classes, '', number)
  def show(step, params):
    page = samples.page(draw(params, range(number), cond)[0], labels, f'step {step}')
    pictures.save_png(page, workdir / 'training' / f'step_{step:07d}.png')
    log.image(step, 'samples', page)
  return show


def sample(config, workdir):
  """Draws pictures from the newest checkpoint."""
  run, checkpoints, _ = open_run(config, workdir)
  if run.denoise is None:
    raise InputError(f'{workdir} holds a classifier, which draws nothing; it guides another model: --config.sample.classifier={workdir}')
  write_samples(run, config, workdir, restore(run, checkpoints))


def evaluate(config, workdir):
  """Held-out loss by log-SNR of the newest checkpoint."""
  from diffusion.build import load_data
  from diffusion.evaluate import heldout_by_logsnr, save, table
  data = load_data(config)
  run, checkpoints, _ = open_run(config, workdir, data)
  state = restore(run, checkpoints)
  result = heldout_by_logsnr(run, weights(config, state), data.heldout)
  print(table(result))
  for path in save(result | dict(step=int(state.step), weights=config.sample.weights, versions=versions()), workdir):
    say('wrote', path)


def edit(config, workdir):
  """Edits the user's picture as config.edit says, with the newest checkpoint."""
  from diffusion import editing
  editing.check(config.edit)
  run, checkpoints, _ = open_run(config, workdir)
  given = editing.read(run, config)
  state = restore(run, checkpoints)
  say('editing', f'{config.edit.picture}: {config.edit.task}, step {int(state.step)}, {config.grid}')
  folder = editing.write(run, config, given, workdir / 'edits', weights(config, state), int(state.step), versions())
  for path in sorted(folder.iterdir()):
    say('wrote', path)


def weights(config, state):
  return state.ema if config.sample.weights == 'ema' else state.params


def write_samples(run, config, workdir, state, data=None):
  """Draws what config.sample asks for into a new folder of the work directory."""
  from diffusion.samples import write
  from diffusion.second import helped
  run, params = helped(run, config, weights(config, state), config.sample.classes)
  steps, options = len(run.levels.logsnr) - 1, config.sample
  say('sampling', f'{options.number} pictures of step {int(state.step)}, {steps} steps of {config.sampler} each')
  folder = write(run, config, workdir / 'samples', params, int(state.step), versions(), data)
  for path in sorted(folder.iterdir()):
    say('wrote', path)


def closing(config, workdir, step, classes):
  command = f'python -m diffusion.main --workdir={workdir}'
  say('checkpoint', workdir / 'checkpoints' / str(step))
  say('TensorBoard', f'tensorboard --logdir={workdir / "tensorboard"}    (pip install tensorboard)')
  say('try next', f"{command} --mode=sample{' --config.guidance=2' if classes else ''} --config.sample.show=all\n"
      f"{command} --mode=sample --config.sampler=ddpm --config.grid='trailing(200)'\n"
      f'{command} --mode=evaluate')


def main(argv):
  if argv[1:]:
    raise InputError(f'unexpected argument {argv[1]!r}; every setting is --config.NAME=VALUE')
  from diffusion.checkpoint import quiet_orbax
  quiet_orbax()
  if argument(sys.argv, 'verbosity') is None:
    logging.set_verbosity(logging.WARNING)
  workdir = epath.Path(flags.FLAGS.workdir or default_workdir(sys.argv))
  dict(train=train, sample=sample, evaluate=evaluate, edit=edit)[flags.FLAGS.mode](flags.FLAGS.config, workdir)


def parse_flags(argv):
  """flags.FLAGS(argv); raises InputError, in one line, for an unknown setting, a bad value or a recipe that does not load."""
  recipe = argument(argv, 'config')
  recipe = recipe and recipe.partition(':')[0]
  if recipe is not None and not (recipe and epath.Path(recipe).is_file()):
    raise InputError(f'--config={recipe}: no such recipe; there are {", ".join(map(str, sorted(epath.Path("configs").glob("*.py"))))}')
  try:
    rest = flags.FLAGS(argv)
    flags.FLAGS.config  # a recipe that failed says so now
    return rest
  except (AttributeError, KeyError) as error:
    if not (error.args and isinstance(error.args[0], KeyError)):
      raise InputError(f'{recipe}: {error}') from error
    inner = error.args[0].args[0]  # 'stepz' and perhaps a suggestion
    raise InputError(f'unknown setting {" ".join(inner.split())} (diffusion/config.py lists them all)') from error
  except (flags.Error, ValueError, TypeError, OSError, ImportError, SyntaxError) as error:
    lines = [line for line in str(error).splitlines() if line.strip()]
    raise InputError(lines[-1].removeprefix('diffusion.errors.InputError: ')) from error


def cli():
  """The command line: bad input is one line on stderr and exit code 2."""
  try:
    platform.start()
    define_flags(sys.argv)
    app.run(main, flags_parser=parse_flags)
  except (InputError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    sys.exit(130)


if __name__ == '__main__':
  cli()
