"""The exception for errors that the user can fix: the command line prints it as a single line, without a traceback."""
import difflib
import numbers

MANY = 100  # names beyond which a message does not list them all


class InputError(ValueError):
  """Invalid input. The message is one line: the value, what was expected, what to do."""


def check_positive(name, **arguments):
  """Raises InputError for the first argument of the function `name` that is not a finite number above 0."""
  for argument, value in arguments.items():
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float('inf'):
      raise InputError(f'{name}({argument}={value!r}): expected a number above 0')


def unknown(name, names):
  """'unknown x; did you mean y? Valid: y, z': the end of an error message. Of very many names it lists the first."""
  names = list(names)
  close, few = difflib.get_close_matches(name, names, 1, .5), names if len(names) <= MANY else names[:MANY // 2]
  rest = f', .. ({len(names)} in all)' if len(few) < len(names) else ''
  return (f'unknown {name!r}' + (f'; did you mean {close[0]!r}? Valid: ' if close else '; valid: ') + ', '.join(few) +
          rest)


def shown(text):
  """A name as it is written in a message: as it is, or escaped where it has line ends, control or broken characters."""
  return text if text.isprintable() else ascii(text)


def check_seed(name, seed):
  """Raises InputError unless the seed is a whole number of 32 bits: beyond them, seeds repeat each other."""
  if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= seed < 2 ** 32:
    raise InputError(f'{name}={seed!r}: expected a whole number from 0 to {2 ** 32 - 1}')
