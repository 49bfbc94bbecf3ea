"""The exception for errors that the user can fix: the command line prints it as a single line, without a traceback."""


class InputError(ValueError):
  """Invalid input. The message is one line: the value, what was expected, what to do."""


def check_positive(name, **arguments):
  """Raises InputError for the first argument of the function `name` that is not a finite number above 0."""
  for argument, value in arguments.items():
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float('inf'):
      raise InputError(f'{name}({argument}={value!r}): expected a number above 0')
