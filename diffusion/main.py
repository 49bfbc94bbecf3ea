r"""Train a diffusion model, sample from it, look at it.

  python -m diffusion.main --config=configs/cosine_ddim.py                  train, then sample (or --config=cosine_ddim)
  python -m diffusion.main --config=configs/cosine_ddim.py                  again: resumes where it stopped
  python -m diffusion.main --config=configs/cosine_ddim.py:tiny             the same in seconds
  python -m diffusion.main --config=configs/cosine_ddim.py --workdir=runs/x --config.data='folder(/my/images, size=32)'

  W=--workdir=runs/cosine_ddim
  python -m diffusion.main $W --mode=sample --config.guide='cfg(3)' --config.sample.show=all
  python -m diffusion.main $W --mode=sample --prompt='a red dragon with two eyes' --prompt=@prompts.txt    of texts
  python -m diffusion.main --mode=sample --chain='runs/prior, runs/unclip' --prompt='a red dragon'    in turn
  python -m diffusion.main $W --mode=evaluate        held-out loss, distances to the data, copies, likelihood
  python -m diffusion.main $W --mode=export          parameters, and a sampler that runs without this package
  python -m diffusion.main --workdir=runs/sd --mode=import --from=FOLDER        a pipeline of diffusers as a model
  python -m diffusion.main $W --mode=export --format=diffusers                  and back
  python -m diffusion.main $W --mode=edit --config.edit.task=repaint --config.edit.image=my.png --config.edit.mask=m.png

Every setting is --config.NAME=VALUE; diffusion/setup/config.py lists them with their defaults. With --workdir alone,
config and parameters come from its checkpoint.

Several hosts: start the same command on each. TPU pods, SLURM and Open MPI need nothing else; elsewhere add
--coordinator=HOST:PORT --processes=NUMBER_OF_PROCESSES --process=NUMBER_OF_THIS_ONE.
"""
import gc
import re
import sys
import time

STARTED = time.monotonic()  # before the imports, which take seconds: config.minutes count from here

from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from diffusion.errors import InputError, shown, unknown
from diffusion.setup.config import default, filled
from diffusion.setup.migrate import answer
from diffusion.setup.specs import split
from diffusion.system import multihost, platform
from diffusion.system.files import read_text, user_path

RECIPES = next((folder for folder in (epath.Path(__file__).parent.parent / 'configs',
                                      epath.Path(__file__).parent / 'recipes') if folder.is_dir()), None)  # installed
MODES = ('train', 'sample', 'evaluate', 'edit', 'export', 'import')


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
  from diffusion.system.checkpoint import open_checkpoints
  found = open_checkpoints(user_path(workdir) / 'checkpoints').latest_meta()
  return found[1] if found else None


def define_flags(argv):
  """Defines the flags; with --workdir and no --config, the config is the one in the checkpoint."""
  flags.DEFINE_enum('mode', 'train', MODES, 'train: train, then sample; sample: draw images; '
                    'evaluate: measure them; edit: repaint your own image in part or whole; '
                    'export: parameters, and a sampler for programs without this package; '
                    'import: a work directory from a folder of diffusers, which --from names.')
  flags.DEFINE_string('from', None, 'Folder of a pipeline, as diffusers saves it, for --mode=import.')
  flags.DEFINE_string('variant', '', 'Of its weights, for --mode=import: fp16 or non_ema.')
  flags.DEFINE_enum('format', 'ours', ('ours', 'diffusers'), 'Of what --mode=export writes.')
  flags.DEFINE_string('workdir', None, 'Where everything is written; runs/NAME_OF_THE_CONFIG if not given.')
  flags.DEFINE_string('profile', None, 'START:END, steps to profile for TensorBoard (tensorboard-plugin-profile).')
  flags.DEFINE_multi_string('prompt', None, 'What samples or an edit should show, for models of texts; repeat it for '
                            'several, or give @FILE, a file with one prompt on each line.')
  flags.DEFINE_string('chain', None, 'Work directories of models that draw one after the other, for --mode=sample: '
                      "'runs/prior, runs/unclip, runs/up grid=trailing(20)'; in place of --workdir.")
  flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0, where jax does not find the other hosts by itself.')
  flags.DEFINE_integer('processes', None, 'Number of processes, one per host.', 1)
  flags.DEFINE_integer('process', None, 'Number of this process, from 0.', 0)
  if argument(argv, 'mode') == 'import' and not (argument(argv, 'workdir') and argument(argv, 'from')):
    raise InputError('--mode=import needs --from=FOLDER, a pipeline as diffusers saves it, and --workdir=DIR')
  recipe = 'Recipe, such as configs/cosine_ddim.py or configs/cosine_ddim.py:tiny.'
  workdir = first_of_chain(argv) or argument(argv, 'workdir')
  if argument(argv, 'config') is not None:
    config_flags.DEFINE_config_file('config', None, recipe)
  elif workdir is None or argument(argv, 'mode') == 'import':
    config_flags.DEFINE_config_dict('config', default(), recipe)
    if workdir is None and not any(word in argv for word in ('--help', '-help', '--helpfull', '--helpshort', '-h')):
      raise InputError('nothing to do: give --config=configs/cosine_ddim.py to train, or --workdir=DIR for a trained '
                       'model (see --help)')
  else:
    meta = stored(workdir)
    if meta is None:
      raise InputError(f'--workdir={workdir} holds no checkpoint; train first, with --config=configs/cosine_ddim.py')
    try:
      config_flags.DEFINE_config_dict('config', filled(meta['config']), 'Settings of the checkpoint.')
    except (AttributeError, KeyError) as error:
      raise unknown_setting(error.args[0].args[0] if isinstance(error.args[0], KeyError) else error.args[0]) from error


def first_of_chain(argv):
  """The work directory of the first model of --chain, or None."""
  text = argument(argv, 'chain')
  if text is None:
    return None
  if argument(argv, 'mode') != 'sample' or argument(argv, 'workdir') or argument(argv, 'config'):
    raise InputError(f'--chain={text}: it goes with --mode=sample, and without --workdir and --config, as its first '
                     'model is the one that --config.NAME=VALUE concerns')
  models = split(text, ',')
  if len(models) < 2 or not all(models) or len(models[0].split()) > 1:
    raise InputError(f"--chain={text}: expected two or more work directories, such as 'runs/prior, runs/unclip'; "
                     'settings may follow those after the first')
  return models[0]


def unknown_setting(message):
  """The InputError for a key that does not exist, or no longer does, from the message of ml_collections."""
  text = ' '.join(str(message).split())
  locked = re.match(r'Key "([\w.]+)" does not exist', text)  # what a recipe sets, or a stored config
  key = locked[1] if locked else text.split()[0].strip('\'"')
  old = answer(key)
  if old:
    return InputError(f'{old}; docs/names.md lists all old and new names')
  hint = re.search(r'Did you mean "\w+"', text)
  text = f'{key!r}' + (f'; d{hint[0][1:]}?' if hint else '') if locked else text
  return InputError(f'unknown setting {text} (diffusion/setup/config.py lists all settings)')


def with_recipe(argv):
  """The command line with the path of the recipe in place of its name: 'cosine_ddim' is one that ships with this."""
  text = argument(argv, 'config')
  if text is None:
    return argv
  name, colon, variant = text.partition(':')
  path = user_path(name)
  if not (name and path.is_file()):
    shipped = RECIPES and RECIPES / f'{path.stem}.py'
    if not (shipped and shipped.is_file() and path.parent in (epath.Path('.'), epath.Path('configs'))):
      known = sorted(recipe.stem for recipe in RECIPES.glob('*.py')) if RECIPES else []
      raise InputError(f'--config={shown(name)}: no such recipe; give the path of one, or a name: '
                       f'{unknown(path.stem, known)}')
    path = shipped
  found = f'{path}{colon}{variant}'
  joined = [word.replace(f'config={text}', f'config={found}') if word.lstrip('-') == f'config={text}' else word
            for word in argv]
  return [found if word == text and before.lstrip('-') == 'config' else word
          for before, word in zip(['', *joined], joined)]


def default_workdir(argv):
  """configs/cosine_ddim.py:tiny -> runs/cosine_ddim_tiny."""
  path, _, variant = argument(argv, 'config').partition(':')
  return f'runs/{epath.Path(path).stem}' + (f'_{variant}' if variant else '')


def main(argv):
  if argv[1:]:
    raise InputError(f'unexpected argument {argv[1]!r}; every setting is --config.NAME=VALUE')
  from diffusion.system.log import quiet_orbax
  quiet_orbax()
  if argument(sys.argv, 'verbosity') is None:
    logging.set_verbosity(logging.WARNING)
  workdir = user_path(flags.FLAGS.workdir or first_of_chain(sys.argv) or default_workdir(sys.argv))
  from diffusion import commands
  from diffusion.system import consensus  # after the flags are read: its imports take seconds
  gc.freeze()  # what was imported stays, and to trace makes so many objects that the collector would search it often
  if argument(sys.argv, 'config.steps'):
    if float(argument(sys.argv, 'config.minutes') or 0):
      raise InputError('--config.minutes and --config.steps both say how long to train: give one of them')
    flags.FLAGS.config.minutes = 0.  # of the recipe or the checkpoint
  if flags.FLAGS.chain:
    flags.FLAGS.config.sample.then = ' > '.join(split(flags.FLAGS.chain, ',')[1:])
  if flags.FLAGS.prompt:
    section = flags.FLAGS.config.edit if flags.FLAGS.mode == 'edit' else flags.FLAGS.config.sample
    section.prompt = prompts(flags.FLAGS.prompt)
  more = dict(profile=span(flags.FLAGS.profile), started=STARTED) if flags.FLAGS.mode == 'train' else {}
  if flags.FLAGS.profile and not more:
    raise InputError(f'--profile works only with --mode=train, not with --mode={flags.FLAGS.mode}')
  if flags.FLAGS.mode == 'import':
    from diffusion.training.import_folder import import_folder
    run = import_folder(flags.FLAGS.config, flags.FLAGS['from'].value, workdir, commands.report, flags.FLAGS.variant)
    commands.report('try next', '\n'.join(commands.suggestions.after_import(run, workdir)))
  else:
    more |= dict(format=flags.FLAGS.format) if flags.FLAGS.mode == 'export' else {}
    getattr(commands, flags.FLAGS.mode)(flags.FLAGS.config, workdir, **more)
  consensus.all_gather_text(seconds=3600)  # jax ends those that still work a minute after the first has left


def prompts(given):
  """The texts of --prompt, @FILE among them, one on each line."""
  lines = []
  for text in given:
    if text.startswith('@'):
      try:
        found = [line for line in read_text(user_path(text[1:])).splitlines() if line.strip()]
      except InputError as error:
        raise InputError(f'--prompt={text}: expected a file with one prompt on each line; {error}') from error
      if not found:
        raise InputError(f'--prompt={text}: the file holds no prompt; write one on each line')
      lines += found
    else:
      lines.append(' '.join(text.split()) or 'none')
  return '\n'.join(lines)


def span(text):
  """'100:110' -> (100, 110); None stays None."""
  first, _, last = (text or '').partition(':')
  if text is None:
    return None
  if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
    raise InputError(f'--profile={text}: expected the first and the last step, such as 100:110')
  return int(first), int(last)


def join(argv):
  """Joins the other processes, where there are some: before anything asks jax for its devices."""
  numbers = {name: argument(argv, name) for name in ('processes', 'process')}
  for name, text in numbers.items():
    if text is not None and not text.isdecimal():
      raise InputError(f'--{name}={text}: expected a whole number')
  numbers = {name: text if text is None else int(text) for name, text in numbers.items()}
  multihost.start(argument(argv, 'coordinator'), **numbers)


def parse_flags(argv):
  """flags.FLAGS(argv); raises InputError for an unknown setting, a bad value or a recipe that does not load."""
  recipe = argument(argv, 'config')
  recipe = recipe and recipe.partition(':')[0]
  try:
    rest = flags.FLAGS(argv)
    flags.FLAGS.config  # a recipe that failed says so now
    return rest
  except (AttributeError, KeyError) as error:
    if error.args and isinstance(error.args[0], KeyError):
      raise unknown_setting(error.args[0].args[0]) from error  # 'stepz' and perhaps a suggestion
    raise InputError(f'{recipe}: {error}') from error
  except ModuleNotFoundError as error:
    moved = error.name == 'diffusion.config'
    raise InputError(f'{recipe}: {error}' + ('; it is now diffusion.setup.config' if moved else '')) from error
  except (flags.Error, ValueError, TypeError, OSError, ImportError, SyntaxError) as error:
    wrong = re.match(r'flag --config\.([\w.]+)=(.*?): ', str(error), re.S)
    if wrong and isinstance(error, flags.IllegalFlagValueError):
      usual = default()
      for key in wrong[1].split('.'):
        usual = usual[key]
      raise InputError(f'--config.{wrong[1]}={wrong[2]}: expected a value such as {usual!r}') from error
    lines = [line for line in str(error).splitlines() if line.strip()]
    raise InputError(lines[-1].removeprefix('diffusion.errors.InputError: ')) from error


def cli():
  """The command line: bad input is one line on stderr and exit code 2."""
  try:
    for out in (sys.stdout, sys.stderr):
      out.reconfigure(errors='backslashreplace')  # names of files need not be valid text, nor fit the terminal
    platform.start()
    sys.argv = with_recipe(sys.argv)
    join(sys.argv)
    define_flags(sys.argv)
    app.run(main, flags_parser=parse_flags)
  except (InputError, OSError) as error:
    print('error:', str(error).replace('\n', ' '), file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    sys.exit(130)


if __name__ == '__main__':
  cli()
