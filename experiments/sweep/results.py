"""What a work directory of trials holds: who is finished, how good, and who can be told apart from whom."""
import json
import math
from typing import Any, NamedTuple

from etils import epath

from diffusion.errors import InputError
from diffusion.evaluation.metrics import record
from diffusion.setup.config import default
from diffusion.system.log import read_metrics
from experiments.sweep import local, trials

NOT_FINISHED = ('running', 'waiting', 'stopped', 'failed', 'pruned')
QUIET = ('config.evaluate.folder', 'config.evaluate.at_end', 'config.edit.')  # say nothing about a trial


class Row(NamedTuple):
  """A trial, as far as it is known now."""
  name: str
  label: str      # what it differs in from the others, short
  settings: dict  # every setting
  status: str     # finished, or one of NOT_FINISHED
  reason: str     # of a failure
  seconds: Any    # of its last attempt, or None
  record: Any     # of a finished one, or None
  folder: epath.Path


class Place(NamedTuple):
  """Where a finished trial stands among those measured in the same way."""
  ranks: str    # all that its interval leaves open: '1', or '2-4' where intervals overlap
  row: Row
  estimate: record.Estimate
  tied: bool    # cannot be told apart from the best, or is it


class Group(NamedTuple):
  """Records that were measured in the same way."""
  ranked: list       # Places, best first
  differences: list  # in protocol from the first group, as texts


class Results(NamedTuple):
  """A sweep as it stands."""
  title: str
  metric: str
  about: dict       # sweep.json, or {}
  rows: list        # every trial
  varied: list      # the settings in which trials differ
  common: dict      # the settings that all share
  groups: list      # the largest first
  unmeasured: list  # finished Rows without the metric


def collect(workdir, metric=None):
  """The Results in a work directory.

  Args:
    workdir: of a sweep; it may be running.
    metric: what to rank by; None: as the sweep says.
  Raises:
    InputError: no trials there, or an unknown metric.
  """
  workdir = epath.Path(workdir)
  parent = workdir / 'trials'
  found = sorted(parent.glob('*/trial.json')) if parent.exists() else []
  if not found:
    raise InputError(f'--workdir={workdir} holds no trials; run a sweep first, with python -m experiments.run')
  about = _json(workdir / 'sweep.json')
  metric = trials.known_metric(metric or about.get('metric', 'fd_infinity'))
  told = [(path.parent, _json(path)) for path in found]
  settings = [text['config'] | {'base': text['base']} | _model(text) for _, text in told]
  chosen = [key for _, text in told for key in text['overrides']]  # in the order of the sweep file
  keys = [key for key in dict.fromkeys(chosen + [key for one in settings for key in one]) if not key.startswith(QUIET)]
  varied = [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]
  common = {key: settings[0].get(key) for key in keys if key not in varied}
  shown = varied or list(told[0][1]['overrides'])
  rows = [_row(folder, text['name'], one, shown) for (folder, text), one in zip(told, settings)]
  groups = grouped([row for row in rows if row.record], metric)
  measured = [place.row for group in groups for place in group.ranked]
  unmeasured = [row for row in rows if row.record and row not in measured]
  return Results(about.get('title', workdir.name), metric, about, rows, shown, common, groups, unmeasured)


def _model(text):
  """Which checkpoint a trial evaluates, as a setting: sweeps of a model that was trained on meanwhile share a folder."""
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
  return ', '.join(str(value) if isinstance(value, str) and value else f'{key}={value}' for key, value in values) or 'the base'


def _row(folder, name, settings, shown):
  state, found = local.state(folder), trials.finished(folder)
  status, reason = ('finished', '') if found else (state.get('status', 'waiting'), state.get('reason', ''))
  if not found and status in ('waiting', 'running', 'finished'):  # nobody wrote how it ended
    begun = (folder / 'log.txt').exists()
    status = 'running' if local.alive(folder) else 'stopped' if begun else 'waiting'
    reason = f'ended without an evaluation; {local.why_unfinished(folder)}' if status == 'stopped' else ''
  if status == 'running':
    reason = f'step {lines[-1]["step"]} of {settings["config.steps"]}' if (lines := curve(folder)) else ''
  return Row(name, _label(settings, shown), settings, status, reason, state.get('seconds'), found, folder)


def alike(rows, metric):
  """Lists of the rows whose records may be compared by a metric, the largest first; of those that have measured it."""
  found = []
  for row in rows:
    if row.record['metrics'].get(metric, {}).get('value') is None:
      continue
    home = next((group for group in found if not record.differences(group[0].record, row.record, metric)), None)
    if home is None:
      found.append(home := [])
    home.append(row)
  return sorted(found, key=len, reverse=True)


def grouped(rows, metric):
  """Groups of the rows whose records may be compared, the largest first."""
  found = alike(rows, metric)
  return [Group(ranks(group, metric), record.differences(found[0][0].record, group[0].record, metric)) for group in found]


def ranks(rows, metric):
  """Places of rows, best first. A trial's ranks go from 1 + those whose whole interval is better to those whose whole interval is not worse,
  so that none claims an order which overlapping intervals leave open."""
  order = record.ranked({row.name: row.record for row in rows}, metric)
  sign, named = 1 if metric in record.LOWER else -1, {row.name: row for row in rows}
  ends = [sorted((sign * e.low, sign * e.high)) if e.low is not None and e.high is not None else (-math.inf, math.inf) for _, e, _ in order]
  places = []
  for i, (name, estimate, tied) in enumerate(order):
    first = 1 + sum(high < ends[i][0] for _, high in ends)
    last = len(order) - sum(low > ends[i][1] for low, _ in ends)
    places.append(Place(str(first) if first == last else f'{first}-{last}', named[name], estimate, tied or i == 0))
  return places


def curve(folder):
  """The lines of a trial's training curve; [] where there is none."""
  try:
    return read_metrics(folder / 'run' / 'metrics.jsonl')
  except (OSError, InputError):
    return []


def unusual(common):
  """Those common settings that are not at their default."""
  plain = trials.flat(default())
  return {key: value for key, value in common.items() if key == 'base' or plain.get(key) != value}
