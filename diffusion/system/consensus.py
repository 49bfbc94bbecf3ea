"""Agreement of several processes, over the service by which they found each other and not over their devices.

A collective of devices where one process is late, or somewhere else in the program, waits for ever or takes the
values of another one; here it is an error in one line that names who is missing. One process agrees with itself.
"""
import itertools
import re

import jax

from diffusion.errors import InputError
from diffusion.system import jax_internals

LIMIT = 600  # seconds; more than a write may take until orbax gives it up, see checkpoint.py
_numbers = itertools.count()
_lost = []  # why no agreement is possible any more: who missed one may be anywhere by now


def all_gather_text(text='', seconds=LIMIT) -> list:
  """The texts of all processes, in their order. All must call this the same number of times, each from one thread.

  Raises:
    InputError: not all came within `seconds`; from then on at every call, at once.
  """
  if not jax.distributed.is_initialized() or jax.process_count() == 1:
    return [text]
  if _lost:
    raise InputError(_lost[0])
  client, number = jax_internals.coordination_client(), next(_numbers)
  mine, count = jax.process_index(), jax.process_count()
  told = lambda: {int(key.rpartition('/')[2]): value for key, value in client.key_value_dir_get(f'agree/{number}')}
  try:
    client.key_value_set(f'agree/{number}/{mine}', f'={text}')
    client.wait_at_barrier(f'agree/{number}', int(seconds * 1000))
    texts = told()
    if number:  # all have read the last one, for all are here
      client.key_value_delete(f'agree/{number - 1}/{mine}')
    return [texts[k][1:] for k in range(count)]
  except jax.errors.JaxRuntimeError as error:
    _lost.append(f'the processes cannot agree any more: {_missing(told, mine, count, seconds)}; '
                 'see the end of its output, and start all again')
    raise InputError(_lost[0]) from error


def _missing(told, mine, count, seconds) -> str:
  try:
    missing = [str(k) for k in range(count) if k not in told()]
  except jax.errors.JaxRuntimeError:
    return 'process 0, which keeps the service, does not answer'
  if missing:
    return f'process {", ".join(missing)} of {count} did not come within {seconds:g} s'
  return f'process {mine} of {count}, or another, came later than {seconds:g} s'


def run_together(act):
  """What act() gives in this process, if it went well in all of them.

  Args:
    act: where it waits for other processes itself, it must give that up before LIMIT.
  Raises:
    InputError: it was raised in one of them, or see `everyone`.
    Exception: the one of this process; OSError where only others failed.
  """
  result = failure = None
  try:
    result = act()
  except Exception as error:
    failure = error
  is_input = isinstance(failure, InputError)
  kind, text = ('!', str(failure)) if is_input else ('?', reason(failure))
  texts = all_gather_text('' if failure is None else kind + text)
  if is_input:
    raise failure
  for text in texts:
    if text[:1] == '!':
      raise InputError(text[1:])
  if failure is not None:
    raise failure
  for process, text in enumerate(texts):
    if text:
      raise OSError(f'process {process}: {text[1:]}')
  return result


def require_same(name, text):
  """Raises InputError, in all processes, where one has another text than process 0."""
  texts = all_gather_text(text)
  others = [str(k) for k, other in enumerate(texts) if other != texts[0]]
  if others:
    raise InputError(f'process {", ".join(others)} has another {name} than process 0: start the same command on all hosts, with '
                     'the same data and a --workdir that they share')


def reason(error) -> str:
  """What went wrong in one line, without the specifications that tensorstore adds in brackets."""
  text = ' '.join(re.split(r' \[(?!Errno)', str(error))[0].split()) or type(error).__name__
  return text if len(text) <= 240 else f'{text[:100]} ... {text[-130:]}'
