"""The metrics of a run: TensorBoard, the same in metrics.jsonl, and a progress bar on stderr."""
import json
import logging as stdlib_logging
import math
import sys
import time
from typing import Any, Callable, NamedTuple
import warnings

from absl import logging
from etils import epath
import numpy as np

from diffusion.errors import InputError
from diffusion.system.files import write_atomic

_NOT_FINITE = {'NaN': math.nan, 'Infinity': math.inf, '-Infinity': -math.inf}


class Log(NamedTuple):
  """Where a run writes its metrics.

  scalars(step, values): values {name: number} become one line in metrics.jsonl, {"step", "time" (Unix seconds),
    **values}, and one TensorBoard curve each. NaN and infinities are written as the strings "NaN", "Infinity" and
    "-Infinity", because JSON has no such numbers. Raises InputError if the file cannot be written.
  image(step, name, image): a PIL image or uint8 [H, W, C], C from 1 to 4, to TensorBoard.
  text(name, text): Markdown, such as the config, to TensorBoard.
  close(): everything is on disk afterwards.
  """
  scalars: Callable[[int, dict], None]
  image: Callable[[int, str, Any], None]
  text: Callable[[str, str], None]
  close: Callable[[], None]


def open_log(workdir, step) -> Log:
  """Opens `workdir`/metrics.jsonl and `workdir`/tensorboard for a run that resumes after `step` steps.

  Metrics of later steps, written by a run that was killed, are removed from the file and hidden in TensorBoard, since
  they will be written again; so is an incomplete last line.
  """
  workdir = epath.Path(workdir)
  path = workdir / 'metrics.jsonl'
  kept = [line for line in read_metrics(path) if line['step'] <= step] if path.exists() else []
  write_atomic(path, ''.join(_line(line) for line in kept).encode())
  file = path.open('a')
  board = open_board(workdir / 'tensorboard', step)

  def scalars(step, values):
    values = {name: float(value) for name, value in values.items()}
    try:
      file.write(_line({'step': int(step), 'time': round(time.time(), 3), **values}))
      file.flush()
    except OSError as error:
      raise InputError(f'cannot write {path}: {error}; free disk space or check permissions') from error
    for name, value in values.items():
      board.add_scalar(name, value, step)

  def image(step, name, image):
    array = np.asarray(image)
    array = array[..., None] if array.ndim == 2 else array
    if array.dtype != np.uint8 or array.ndim != 3:
      raise InputError(f'image {name!r} must be uint8 [H, W, C], got {array.dtype} {list(array.shape)}')
    board.add_image(name, array, step, dataformats='HWC')

  def text(name, text):
    board.add_text(name, text, step)

  def close():
    file.close()
    board.close()

  return Log(scalars, image, text, close)


def open_board(directory, step):
  """A tensorboardX writer that hides what earlier runs wrote after `step`.

  It imports neither TensorFlow nor PyTorch: tensorboardX imports PyTorch if installed, which takes seconds, but works
  without it.
  """
  absent = 'torch' not in sys.modules
  if absent:
    sys.modules['torch'] = None
  try:
    from tensorboardX import SummaryWriter
  finally:
    if absent:
      del sys.modules['torch']
  return SummaryWriter(str(directory), purge_step=step + 1, filename_suffix=f'.{step}')


def warn_only(write):
  """Wraps a writer so that an InputError is logged as a warning instead of ending the run (config.on_save_error)."""
  def attempt(*args):
    try:
      return write(*args)
    except InputError as error:
      logging.warning('%s; training continues', error)
  return attempt


def no_log() -> Log:
  """A Log that writes nothing: for all processes but the first."""
  return Log(*[lambda *_: None] * 4)


def read_metrics(path) -> list:
  """The lines of a metrics.jsonl as dicts, NaN and infinities as floats again.

  An incomplete last line is skipped; any other line that is not JSON raises InputError.
  """
  lines = epath.Path(path).read_text().splitlines(keepends=True)
  metrics = []
  for number, line in enumerate(lines, 1):
    try:
      values = json.loads(line)
      metrics.append({name: _NOT_FINITE.get(value, value) for name, value in values.items()})
    except ValueError as error:
      if number == len(lines) and not line.endswith('\n'):
        break
      raise InputError(f'{path}, line {number} is not JSON: {line[:80]!r}; correct or delete it') from error
  return metrics


def _line(values) -> str:
  def plain(value):
    if isinstance(value, float) and not math.isfinite(value):
      return 'NaN' if math.isnan(value) else 'Infinity' if value > 0 else '-Infinity'
    return value
  return json.dumps({name: plain(value) for name, value in values.items()}, allow_nan=False) + '\n'


class Progress(NamedTuple):
  """update(step, loss=None): call it after each step, with the loss if known.   close(): ends the line."""
  update: Callable[..., None]
  close: Callable[[], None]


def progress(total, initial=0, batch=1, every=30.0, stream=None) -> Progress:
  """Shows steps, images/s, loss and the remaining time on stderr.

  A terminal gets a tqdm bar, a file or a pipe one line every `every` seconds.

  Args:
    total: steps of the whole run.
    initial: steps done before this process.
    batch: images per step.
    every: seconds between lines without a terminal.
    stream: where to write; None is stderr.
  """
  stream = stream or sys.stderr
  return (_bar if stream.isatty() else _lines)(total, initial, batch, every, stream)


def no_progress() -> Progress:
  """A Progress that shows nothing: for all processes but the first."""
  return Progress(lambda *_: None, lambda: None)


def _bar(total, initial, batch, every, stream) -> Progress:
  import tqdm
  shape = '{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed} < {remaining}{postfix}]'
  bar = tqdm.tqdm(total=total, initial=initial, file=stream, dynamic_ncols=True, bar_format=shape)
  last = {'loss': ''}

  def update(step, loss=None):
    last['loss'] = last['loss'] if loss is None else f', loss {loss:.4g}'
    bar.set_postfix_str(f'{(bar.format_dict["rate"] or 0) * batch:.0f} images/s{last["loss"]}', refresh=False)
    bar.update(step - bar.n)

  return Progress(update, bar.close)


def _lines(total, initial, batch, every, stream) -> Progress:
  # The first line comes early, to show how long the run will take.
  last = {'time': time.monotonic(), 'step': initial, 'loss': '', 'every': min(every, 5.)}

  def update(step, loss=None):
    now = time.monotonic()
    last['loss'] = last['loss'] if loss is None else f', loss {loss:.4g}'
    if now - last['time'] < last['every'] and step < total:
      return
    rate = max(step - last['step'], 1e-9) / max(now - last['time'], 1e-9)  # steps/s since the last line
    left = duration((total - step) / rate)
    line = f'step {step}/{total}, {rate * batch:.0f} images/s{last["loss"]}, {left} left'
    print(line, file=stream, flush=True)
    last.update(time=now, step=step, every=every)

  return Progress(update, lambda: None)


def duration(seconds) -> str:
  """75 -> '1:15', 4000 -> '1:06:40'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'


def quiet_orbax() -> None:
  """Keeps off stderr the dozens of tracebacks that orbax's threads print for one failed read or write.

  For programs, once at the start. The failure itself is still raised, and reported in one line.
  """
  def relevant(record):
    text = record.pathname + (record.getMessage() if record.name == 'asyncio' else '')
    return record.levelno < stdlib_logging.WARNING or not ('/orbax/' in text or 'tensorstore' in text)

  def unraisable(event, before=sys.unraisablehook):
    if str(event.exc_value) != 'Event loop is closed':  # the other reads, after the first has failed
      before(event)

  for log in (logging.get_absl_logger(), stdlib_logging.getLogger('asyncio')):
    log.addFilter(relevant)
  sys.unraisablehook = unraisable
  warnings.filterwarnings('ignore', 'coroutine .* was never awaited')  # the rest of a failed write
