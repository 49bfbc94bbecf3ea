"""The one exception for what a user can mend: the command line prints it as a single line, without a traceback."""


class InputError(ValueError):
  """Bad input. The message is one line: the value, what was expected, what to do."""


def check_positive(name, **arguments):
  """Raises InputError for the first argument that is not a number above 0."""
  for argument, value in arguments.items():
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float('inf'):
      raise InputError(f'{name}({argument}={value!r}): expected a number above 0')
