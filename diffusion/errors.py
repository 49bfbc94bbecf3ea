"""The one exception for what a user can mend: the command line prints it as a single line, without a traceback."""


class InputError(ValueError):
  """Bad input. The message is one line: the value, what was expected, what to do."""
