"""The progress of a sweep in one line: updated in place on a terminal, written from time to time to a file."""
import collections
import contextlib
import shutil
import sys
import time

from diffusion.errors import InputError
from diffusion.evaluation.metrics import record
from diffusion.system.log import duration, read_metrics
from experiments.sweep.local import state
from experiments.sweep.trials import finished


def steps(running):
  """(step, steps of the whole run, seconds left or None) of a trial that trains; None before its first metrics."""
  path = running.trial.folder / 'run' / 'metrics.jsonl'
  with contextlib.suppress(OSError, InputError, KeyError):
    lines = read_metrics(path)
    if lines:
      total = running.trial.config['config.steps']
      new = [line for line in lines if line['time'] >= running.started]  # of this attempt
      seconds = None
      if len(new) > 1 and new[-1]['step'] > new[0]['step']:
        rate = (new[-1]['time'] - new[0]['time']) / (new[-1]['step'] - new[0]['step'])
        seconds = max(0, (total - lines[-1]['step']) * rate - (time.time() - new[-1]['time']))
      return lines[-1]['step'], total, seconds
  return None


def activity(running):
  """'schedule-linear_8f0c step 350/600, 4:10 left'."""
  now, passed = steps(running), duration(time.time() - running.started)
  if now is None:
    text = f'for {passed}'
  elif now[0] >= now[1]:
    text = f'measuring, {passed} since its start'
  else:
    text = f'step {now[0]}/{now[1]}' + (f', {duration(now[2])} left' if now[2] is not None else '')
  attempt = f' (attempt {running.attempt})' if running.attempt > 1 else ''
  return f'{running.trial.name.rpartition("_")[0]} {text}{attempt}'


def best(records, metric):
  """'best so far fd_infinity 12.3 [11.8, 12.9] of NAME' from {name: record}; '' if none has the metric.

  Only records measured in the same way as the first are compared.
  """
  known = {name: one for name, one in records.items() if one['metrics'].get(metric, {}).get('value') is not None}
  if not known:
    return ''
  first = next(iter(known.values()))
  alike = {name: one for name, one in known.items() if not record.differences(first, one, metric)}
  name, estimate, _ = record.ranked(alike, metric)[0]
  known_interval = estimate.low is not None and estimate.high is not None
  interval = f' [{estimate.low:.4g}, {estimate.high:.4g}]' if known_interval else ''
  others = f' ({len(known) - len(alike)} measured in another way)' if len(alike) < len(known) else ''
  return f'best so far {metric} {estimate.value:.4g}{interval} of {name.rpartition("_")[0]}{others}'


class Line:
  """The progress line of a sweep.

  Args:
    total: number of trials.
    jobs: trials at a time.
    metric: of the sweep.
    done: folders of the trials that are already finished.
    every: seconds between two lines in a file; a terminal is updated every second.
  """

  def __init__(self, total, jobs, metric, done, stream=None, every=30.):
    self.total, self.jobs, self.metric, self.stream = total, jobs, metric, stream or sys.stderr
    self.records, self.others, self.seconds, self.last = {}, collections.Counter(), [], 0.
    self.terminal, self.width = self.stream.isatty(), 0
    self.every = 1. if self.terminal else every
    for folder in done:
      self._count(folder)

  def _count(self, folder):
    self.records[folder.name] = finished(folder)
    self.seconds += [seconds] if (seconds := state(folder).get('seconds')) else []

  def text(self, at_work):
    ended = [f'{number} {status}' for status, number in self.others.items()]
    parts = [f'{len(self.records)}/{self.total} done', *ended]
    parts += [f'running {"; ".join(map(activity, at_work))}'] * bool(at_work)
    rest = self.total - len(self.records) - sum(self.others.values())
    if self.seconds and rest:
      mean = sum(self.seconds) / len(self.seconds)
      passed = sum(min(mean, time.time() - running.started) for running in at_work)
      parts.append(f'all in about {duration(max(0., rest * mean - passed) / self.jobs)}')
    return ' · '.join(parts + [text for text in [best(self.records, self.metric)] if text])

  def show(self, at_work, now=False):
    """Writes the line if it is due."""
    if not now and time.monotonic() - self.last < self.every:
      return
    self.last = time.monotonic()
    self._write(self.text(at_work), end='' if self.terminal else '\n')

  def say(self, text):
    """Writes a permanent line."""
    self._write(text, end='\n')

  def _write(self, text, end):
    if self.terminal:
      if not end:
        text = text[:shutil.get_terminal_size().columns - 1]
      text, self.width = '\r' + text.ljust(self.width), len(text) if not end else 0
    print(text, end=end, file=self.stream, flush=True)

  def ended(self, trial, status, reason):
    """Counts and reports a trial that has ended."""
    if status == 'finished':
      self._count(trial.folder)
    else:
      self.others[status] += 1
    self.say(f'{trial.name}: {status}' + (f' ({reason})' if reason else ''))
    self.last = 0. if self.terminal else self.last
