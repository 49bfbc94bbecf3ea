"""What a user asks for: from a config or from Python, to the conditions that a model takes."""
import jax
import numpy as np

from diffusion.errors import InputError, unknown
from diffusion.setup import specs
from diffusion.tasks.classes import parse_terms, quoted

NAMED = ('classes', 'class_mix', 'prompt')  # requests with a setting of their own in config.sample


def of_config(run):
  """The request {name: text} of config.sample."""
  options = run.config.sample
  own, more = {name: options[name] for name in NAMED if options[name]}, parse(options.ask, run.task.takes)
  twice = [name for name in own if name in more]
  if twice:
    raise InputError(f'config.sample.ask={options.ask!r} and config.sample.{twice[0]}={own[twice[0]]!r} both ask for '
                     f'{twice[0]}; use one')
  return own | more


def parse(text, takes):
  """'length: 128 | prompt: a hero' -> {'length': '128', 'prompt': 'a hero'}; a part without a name is for takes[0]."""
  request = {}
  for part in specs.split(text, '|'):
    name, colon, value = part.partition(':')
    name = name.strip()
    if not colon or not name.isidentifier():
      name, value = next((take for take in takes if take not in request), ''), part
    if name in request:
      raise InputError(f'config.sample.ask={text!r}: {name} is asked for twice')
    request[name] = value.strip()
  return request


def ask(run, request, ids, seed, setting='config.sample.'):
  """The Asked of a request {name: text or array}; entry k depends on (seed, ids[k]) and the request alone.

  Args:
    setting: before the names of requests in messages.
  Raises:
    InputError: a request that the task does not take, or cannot understand.
  """
  takes = run.task.takes
  for name in request:
    if name not in takes:
      own = setting + name if name in NAMED else f'{setting}ask: {name}' if setting else name
      task = f'config.task={run.config.task!r}'
      raise InputError(f'{own}: {task} takes nothing' if not takes else f'{own}: {task}: {unknown(name, takes)}')
  try:
    return run.task.ask(request, np.asarray(ids), seed)
  except InputError as error:
    named = str(error).startswith(NAMED) or not setting
    raise InputError(f'{setting}{error}' if named else f'{setting}ask: {error}') from error


def mixed(run):
  """(name, cond [1, ...]) of the two classes or prompts that config.sample mixes; () if it mixes none, or others."""
  request = of_config(run)
  for mix, single, written in (('class_mix', 'classes', quoted), ('prompt_mix', 'prompt', str)):
    names = [name for _, name in parse_terms(request[mix], mix, '')] if mix in request else ()
    if len(names) == 2:
      return [(name, ask(run, {single: written(name)}, np.arange(1), 0).cond) for name in names]
  return ()


def rows(asked, index):
  """The Asked with these entries alone."""
  labels = asked.labels and [asked.labels[i] for i in index]
  return asked._replace(cond=jax.tree.map(lambda a: a[index], asked.cond), labels=labels)
