"""The contents of a work directory of trials: their states, results, and ranks as far as intervals allow."""
import json
import math
from typing import Any, NamedTuple

from etils import epath

from diffusion.errors import InputError
from diffusion.evaluation.metrics import record
from diffusion.setup.config import default
from diffusion.system.log import read_metrics
from experiments.sweep import local, sweep_file, trials

NOT_FINISHED = ('running', 'waiting', 'stopped', 'failed', 'pruned')
QUIET = ('config.evaluate.folder', 'config.evaluate.at_end', 'config.edit.')  # irrelevant to the result of a trial


class Row(NamedTuple):
  """A trial in its current state."""
  name: str
  label: str      # short, its differences from the others
  settings: dict  # every setting
  status: str     # finished, or one of NOT_FINISHED
  reason: str     # of a failure
  seconds: Any    # of its last attempt, or None
  record: Any     # of a finished trial, or None
  folder: epath.Path


class Place(NamedTuple):
  """The place of a finished trial among those measured in the same way."""
  ranks: str    # all that its interval allows: '1', or '2-4' if intervals overlap
  row: Row
  estimate: record.Estimate
  tied: bool    # is the best, or cannot be told apart from it


class Group(NamedTuple):
  """Records that were measured in the same way."""
  ranked: list       # Places, best first
  differences: list  # in protocol from the first group, as texts


class Results(NamedTuple):
  """A sweep in its current state."""
  title: str
  metric: str
  about: dict       # sweep.json, or {}
  rows: list        # every trial
  varied: list      # settings that differ between trials
  common: dict      # settings shared by all trials
  groups: list      # Groups, largest first
  unmeasured: list  # finished Rows without the metric


def collect(workdir, metric=None):
  """The Results of a work directory.

  Args:
    workdir: of a sweep; it may be running.
    metric: metric to rank by; None: that of the sweep.
  Raises:
    InputError: no trials in the work directory, or an unknown metric.
  """
  workdir = epath.Path(workdir)
  parent = workdir / 'trials'
  paths = sorted(parent.glob('*/trial.json')) if parent.exists() else []
  if not paths:
    raise InputError(f'--workdir={workdir} holds no trials; run a sweep first, with python -m experiments.run')
  about = _json(workdir / 'sweep.json')
  metric = sweep_file.known_metric(metric or about.get('metric', 'fd_infinity'))
  texts = [(path.parent, _json(path)) for path in paths]
  settings = [text['config'] | {'base': text['base']} | _model(text) for _, text in texts]
  chosen = [key for _, text in texts for key in text['overrides']]  # in the order of the sweep file
  keys = dict.fromkeys(chosen + [key for one in settings for key in one])
  keys = [key for key in keys if not key.startswith(QUIET)]
  varied = [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]
  common = {key: settings[0].get(key) for key in keys if key not in varied}
  shown = varied or list(texts[0][1]['overrides'])
  rows = [_row(folder, text['name'], one, shown) for (folder, text), one in zip(texts, settings)]
  groups = grouped([row for row in rows if row.record], metric)
  measured = [place.row for group in groups for place in group.ranked]
  unmeasured = [row for row in rows if row.record and row not in measured]
  return Results(about.get('title', workdir.name), metric, about, rows, shown, common, groups, unmeasured)


def _model(text):
  """The evaluated checkpoint as a setting: the model may have been trained further between sweeps in one folder."""
  return {'model': f'step {text["step"]}, {text["weights"][:8]}'} if text.get('step') else {}


def _json(path):
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError):
    return {}


def short(key):
  return key.removeprefix('config.')


def _label(settings, shown):
  values = [(short(key), settings.get(key)) for key in shown]
  named = lambda key, value: str(value) if isinstance(value, str) and value else f'{key}={value}'
  return ', '.join(named(key, value) for key, value in values) or 'the base'


def _row(folder, name, settings, shown):
  state, measured = local.state(folder), trials.finished(folder)
  status, reason = ('finished', '') if measured else (state.get('status', 'waiting'), state.get('reason', ''))
  if not measured and status in ('waiting', 'running', 'finished'):  # its end was not recorded
    begun = (folder / 'log.txt').exists()
    status = 'running' if local.alive(folder) else 'stopped' if begun else 'waiting'
    reason = f'ended without an evaluation; {local.why_unfinished(folder)}' if status == 'stopped' else ''
  if status == 'running':
    reason = f'step {lines[-1]["step"]} of {settings["config.steps"]}' if (lines := curve(folder)) else ''
  return Row(name, _label(settings, shown), settings, status, reason, state.get('seconds'), measured, folder)


def alike(rows, metric):
  """Lists of rows whose records are comparable by a metric, largest first; without rows that lack the metric."""
  groups = []
  for row in rows:
    if row.record['metrics'].get(metric, {}).get('value') is None:
      continue
    home = next((group for group in groups if not record.differences(group[0].record, row.record, metric)), None)
    if home is None:
      groups.append(home := [])
    home.append(row)
  return sorted(groups, key=len, reverse=True)


def grouped(rows, metric):
  """Groups of rows whose records are comparable, largest first."""
  groups = alike(rows, metric)
  difference = lambda group: record.differences(groups[0][0].record, group[0].record, metric)
  return [Group(ranks(group, metric), difference(group)) for group in groups]


def ranks(rows, metric):
  """Places of rows, best first.

  The ranks of a trial go from 1 + the number of trials whose whole interval is better, to the number of those whose
  interval is not entirely worse, so that they claim no order among overlapping intervals.
  """
  order = record.ranked({row.name: row.record for row in rows}, metric)
  sign, named = -1 if metric in record.HIGHER else 1, {row.name: row for row in rows}
  known = lambda e: e.low is not None and e.high is not None
  ends = [sorted((sign * e.low, sign * e.high)) if known(e) else (-math.inf, math.inf) for _, e, _ in order]
  places = []
  for i, (name, estimate, tied) in enumerate(order):
    first = 1 + sum(high < ends[i][0] for _, high in ends)
    last = len(order) - sum(low > ends[i][1] for low, _ in ends)
    places.append(Place(str(first) if first == last else f'{first}-{last}', named[name], estimate, tied or i == 0))
  return places


def curve(folder):
  """The lines of a trial's training curve; [] if there is none."""
  try:
    return read_metrics(folder / 'run' / 'metrics.jsonl')
  except (OSError, InputError):
    return []


def unusual(common):
  """The common settings that differ from their defaults."""
  plain = trials.flat(default())
  return {key: value for key, value in common.items() if key == 'base' or plain.get(key) != value}
