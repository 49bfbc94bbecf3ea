"""Parts of a config as one string, `name` or `name(argument, key=value)`.

Arguments are Python literals; anything else is a string, so that `folder(/my/images, size=32)` needs no quotes. An
argument called as one of NESTED may be a spec itself, as in `shift(cosine(None), 3)`.
"""
import ast
import inspect

from diffusion.errors import InputError, unknown

PARTS = {'bottleneck', 'likelihood', 'adversarial', 'degradation'}  # arguments that are no settings by themselves
NESTED = {'schedule', 'grid', 'sampler', 'predict', 'net', 'task', *PARTS}
HIDDEN = ('self', 'parent', 'name', 'constrain')  # fields of a Flax module that no spec sets


def split(text, separator=','):
  """The parts of an argument list; separators inside brackets and quotes do not count.

  A quote opens where a value starts, so that a path may hold one, as in folder(/photos/mother's, size=32).
  """
  parts, depth, quote, start, before = [], 0, None, 0, separator
  for i, c in enumerate(text):
    if quote:
      quote = None if c == quote and text[i - 1] != '\\' else quote
    elif c in '\'"' and before in separator + ',=([{:':
      quote = c
    elif c in '([{':
      depth += 1
    elif c in ')]}':
      depth = max(depth - 1, 0)
    elif c == separator and depth == 0:
      parts.append(text[start:i])
      start = i + 1
    before = before if c.isspace() else c
  parts = [part.strip() for part in (*parts, text[start:])] if text.strip() else []
  return [part for part in parts if part] if separator == ',' else parts  # a last comma is Python's habit


def _literal(text):
  if text.lower() in ('true', 'false'):
    return text.lower() == 'true'
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two for deep nesting
    return text


def parse(spec):
  """'name(1, key=value)' -> ('name', [1], {'key': value}).

  Raises:
    InputError: brackets that do not match, or an argument by position after one by name.
  """
  name, bracket, rest = spec.strip().partition('(')
  if bracket and not rest.endswith(')'):
    raise InputError(f'{spec!r}: expected name or name(argument, key=value); the closing bracket is missing')
  args, kwargs = [], {}
  for part in split(rest[:-1]):
    key, equals, value = part.partition('=')
    if equals and key.strip().isidentifier():
      kwargs[key.strip()] = _literal(value.strip())
    elif kwargs:
      raise InputError(f'{spec!r}: {part!r} follows a named argument; give it a name too')
    else:
      args.append(_literal(part))
  return name.strip(), args, kwargs


def usage(name, function, given=()):
  """'name(argument, key=default)' of a function, without what is given to it anyway."""
  hidden = {*given, *(HIDDEN if inspect.isclass(function) else ())}
  fields = [p for p in inspect.signature(function).parameters.values() if p.name not in hidden]
  return f'{name}({", ".join(str(p.replace(annotation=p.empty)) for p in fields)})'


def _nested(choices, key, spec, outer, extra):
  """The object that an argument describes; outer: the setting, for messages."""
  try:
    return resolve(choices, key, spec, **extra)
  except InputError as error:
    if key not in PARTS:
      raise
    raise InputError(f'{outer}: {str(error).removeprefix("config.")}') from error


def _is_switch(parameter):
  """Whether an argument is True or False and nothing else."""
  return type(parameter.default) is bool and parameter.annotation in (parameter.empty, bool)


def resolve(choices, field, spec, **extra):
  """The object that a spec describes.

  Args:
    choices: {field: {name: function}}.
    field: whose functions the spec may name.
    spec: 'name' or 'name(argument, key=value)'. Arguments by position go to the parameters that are not in `extra`.
    extra: arguments that are given to those functions that ask for them by name.
  Raises:
    InputError: an unknown name or argument, with the valid ones.
  """
  name, args, kwargs = parse(spec)
  if name not in choices[field]:
    raise InputError(f'config.{field}={spec!r}: {unknown(name, choices[field])}')
  function = choices[field][name]
  signature = inspect.signature(function)
  given = {key: value for key, value in extra.items() if key in signature.parameters and key not in kwargs}
  hidden = HIDDEN if inspect.isclass(function) else ()
  expected = usage(name, function, given)
  free = [key for key in signature.parameters if key not in given and key not in hidden]
  wrong = [f'unknown argument {key!r}' for key in kwargs if key not in signature.parameters or key in hidden]
  wrong += ['too many positional arguments'] * (len(args) > len(free))
  wrong += [f'{key}={value!r}: expected True or False' for key, value in (dict(zip(free, args)) | kwargs).items()
            if key in signature.parameters and _is_switch(signature.parameters[key]) and type(value) is not bool]
  try:
    bound = signature.bind(**(dict(zip(free, args)) | kwargs | given)) if not wrong else None
    wrong += [f'{key!r} is given twice' for key in kwargs if key in free[:len(args)]]
  except TypeError as error:
    wrong = [str(error)]
  if wrong:
    raise InputError(f'config.{field}={spec!r}: {wrong[0]}; expected {expected}')
  for key in NESTED & bound.arguments.keys():
    if isinstance(bound.arguments[key], str):
      bound.arguments[key] = _nested(choices, key, bound.arguments[key], f'config.{field}={spec!r}', extra)
  return _called(function, bound, f'config.{field}={spec!r}', expected)


def _called(function, bound, spec, expected):
  try:
    return function(*bound.args, **bound.kwargs)
  except InputError as error:
    if str(error).startswith('config.'):  # it names a setting itself
      raise
    raise InputError(f'{spec}: {error}') from error
  except (TypeError, AttributeError, ValueError, ArithmeticError, LookupError) as error:  # as of trailing(ten)
    raise InputError(f'{spec}: {error}; expected {expected}') from error
