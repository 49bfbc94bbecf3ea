"""Agreement between processes, over jax's coordination service instead of their devices.

If one process is late, or at another point of the program, a device collective hangs or mixes up the values of another
collective; here it is a one-line error that names the missing process. A single process agrees with itself.
"""
import itertools
import re

import jax

from diffusion.errors import InputError
from diffusion.system import jax_internals

LIMIT = 600  # seconds; longer than orbax's timeout for a write, see checkpoint_writing.py
_numbers = itertools.count()
_lost = []  # why no agreement is possible any more: a process that missed one may be anywhere by now


def all_gather_text(text='', seconds=LIMIT) -> list:
  """The texts of all processes, in order. All must call this the same number of times, each from a single thread.

  Raises:
    InputError: not all processes came within `seconds`. Every later call raises the same error at once.
  """
  if not jax.distributed.is_initialized() or jax.process_count() == 1:
    return [text]
  if _lost:
    raise InputError(_lost[0])
  client, number = jax_internals.coordination_client(), next(_numbers)
  own, count = jax.process_index(), jax.process_count()
  received = lambda: {int(key.rpartition('/')[2]): value for key, value in client.key_value_dir_get(f'agree/{number}')}
  try:
    client.key_value_set(f'agree/{number}/{own}', f'={text}')
    client.wait_at_barrier(f'agree/{number}', int(seconds * 1000))
    texts = received()
    if number:  # all processes are here, so all have read the previous texts
      client.key_value_delete(f'agree/{number - 1}/{own}')
    return [texts[k][1:] for k in range(count)]
  except jax.errors.JaxRuntimeError as error:
    _lost.append(f'the processes have lost sync: {_missing(received, own, count, seconds)}; '
                 'check the end of its output, and restart all of them')
    raise InputError(_lost[0]) from error


def _missing(received, own, count, seconds) -> str:
  try:
    missing = [str(k) for k in range(count) if k not in received()]
  except jax.errors.JaxRuntimeError:
    return 'process 0, which runs the coordination service, does not answer'
  if missing:
    return f'process {", ".join(missing)} of {count} did not come within {seconds:g} s'
  return f'process {own} of {count}, or another one, came later than {seconds:g} s'


def run_together(act):
  """The result of act() in this process, if it succeeded in all of them. Every process calls it.

  Args:
    act: () -> anything. If it waits for other processes itself, it must give up before LIMIT.
  Raises:
    InputError: one of the processes raised it, or see all_gather_text.
    Exception: that of this process; OSError if only others failed.
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
  """Raises InputError, in all processes, if the text of one differs from that of process 0; `name` says what it is."""
  texts = all_gather_text(text)
  others = [str(k) for k, other in enumerate(texts) if other != texts[0]]
  if others:
    raise InputError(f'process {", ".join(others)} has another {name} than process 0: start the same command on all '
                     'hosts, with the same data and a shared --workdir')


def reason(error) -> str:
  """The message of an error in one line, without the specifications that tensorstore appends in brackets."""
  text = ' '.join(re.split(r' \[(?!Errno)', str(error))[0].split()) or type(error).__name__
  return text if len(text) <= 240 else f'{text[:100]} ... {text[-130:]}'
