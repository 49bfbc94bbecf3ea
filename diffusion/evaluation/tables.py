"""How good drawn tables are, and how near to the rows trained on; beside simple models and real rows."""
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion.data.dataset import size
from diffusion.evaluation import table_pages
from diffusion.evaluation.base import columns, Evaluator, first, Measured
from diffusion.evaluation.metrics import record
from diffusion.evaluation.metrics import table_models as models
from diffusion.evaluation.metrics import table_privacy as privacy
from diffusion.evaluation.metrics import tables
from diffusion.evaluation.metrics.table_baselines import gaussian_copula, independent
from diffusion.evaluation.metrics.tables import count, some, Table
from diffusion.evaluation.metrics.trained_features import digest
from diffusion.generation import requests, sampling
from diffusion.system import sharding
from diffusion.system.files import write_atomic
from diffusion.training.heldout import heldout_measurement

ENOUGH = 20      # rows of either side
DRAWS = 16       # of times and noise, over which the loss of a row is averaged
ATTACKED = 4096  # rows of either side whose loss is measured
PROBED = 2000    # rows whose closest training row is looked for
BY_CHANCE = .05  # share of rows with equal ones, above which a split by content holds out no fair sample
PASSING = 'passing is no proof that a table is private, or that a model is'


class Side(NamedTuple):
  """What one table was measured to be."""
  metrics: dict      # name -> Estimate
  details: dict = {}
  notes: tuple = ()


# ---- figures of one table
def likeness(table, heldout, seed):
  """The Side of how far a table is from the rows held out."""
  estimated = partial(tables.estimated, a=table, b=heldout, seed=seed)
  each = tables.column_distances(table, heldout)
  found = dict(column_distance=estimated(lambda a, b: tables.column_distances(a, b).mean()),
               worst_column_distance=estimated(lambda a, b: tables.column_distances(a, b).max()))
  if np.isnan(table.numbers).any() or np.isnan(heldout.numbers).any():
    found['missing_distance'] = estimated(lambda a, b: tables.missing_gaps(a, b).max())
  if len(table.columns) > 1:
    found['pair_distance'] = estimated(tables.pair_distance, high=2.)
  found['two_sample_auc'] = models.two_sample_auc(table, heldout, seed)
  return Side(found, dict(columns={c['name']: float(d) for c, d in zip(table.columns, each)}))


def usefulness(table, target, best, heldout, seed):
  """(the Side of what a table is worth for predicting a column of real rows, the Worth of training rows).

  Args:
    target: the column, one of `columns`.
    best: the Worth of as many training rows, or None, where the table is these rows.
  """
  own, name = models.worth(table, heldout, target, seed), target['name']
  best = best or own
  found, notes = dict(tstr=models.resampled(own.score, own.number)), ()
  limit, guess = models.resampled(best.score, best.number), 0. if target['kind'] == 'number' else .5
  if limit.low > guess:
    found['tstr_ratio'] = models.resampled(own.score / best.score, own.number)
  else:
    notes += (f'tstr_ratio left out: real rows do not predict {name} either ({limit.value:.3f})',)
  if own.absent:
    notes += (f'tstr: no row drawn has {name} = {_listed(own.absent)}, whose area counts as .5',)
  return Side(found, dict(tstr=own.each, trtr=best.each), notes), best


def faithfulness(table, train, seed):
  """The Side of what does not depend on the rows held out: categories that vanished, and copies of training rows."""
  found, notes = dict(copied_rows=privacy.copied_rows(table, train)), ()
  kept, missing = tables.rare_categories(table, train)
  if np.isfinite(kept):
    found['rare_categories'] = tables.estimated(lambda a, b: tables.rare_categories(a, train)[0], table, train, seed)
  if missing:
    notes = (f'categories of more than {tables.COMMON:.0%} of the training rows that were never drawn: '
             + _listed([f'{column} = {name!r}' for column, name in missing]),)
  return Side(found, dict(missing_categories=missing), notes)


def nearness(table, train, heldout, seed):
  """The Side of how near rows are to training rows; its details hold the share that is expected."""
  metric = privacy.metric_of(train, heldout)
  found, expected = privacy.nearer_to_train(some(table, PROBED, seed), train, heldout, metric)
  return Side(dict(nearer_to_train=found), dict(nearer_expected=expected._asdict()))


def _listed(names, most=8):
  return ', '.join(map(str, names[:most])) + (f', .. ({len(names)})' if len(names) > most else '')


# ---- all figures
class Compared(NamedTuple):
  """What was measured of a table, beside simple models and real rows."""
  sides: dict     # 'ours' | 'independent' | 'copula' | 'real' -> {name: Estimate}
  details: dict
  notes: tuple


def compare(train, heldout, drawn, losses, target, seed):
  """The Compared of a drawn table.

  Figures that depend on the number of rows take as many of each table: distances no more drawn rows than there are
  for training, and what is trained on real rows no more of them than were drawn.

  Args:
    train, heldout, drawn: Tables, as_written.
    losses: (of training rows [n], of held-out rows [n]), or None.
    target: name of a column to predict, or ''.
    seed: of all resamples, groups, folds and models.
  """
  rng, number = np.random.default_rng(seed), count(drawn)
  real, (column, note) = some(train, number, seed), _predictable(train, heldout, target)
  useful, best = usefulness(real, column, None, heldout, seed) if column else (Side({}, notes=(note,)), None)

  def judged(table):
    table = tables.as_written(table)
    return [likeness(some(table, count(train), seed), heldout, seed),
            usefulness(table, column, best, heldout, seed)[0] if column else useful,
            faithfulness(table, train, seed), nearness(table, train, heldout, seed)]
  ours = judged(drawn)
  found = dict(ours=ours, independent=judged(independent(train, number, rng)),
               copula=judged(gaussian_copula(train, number, rng)),
               real=[likeness(real, heldout, seed), useful, _fresh(train, heldout, ours[3], seed)])
  sides = {name: {key: e for part in parts for key, e in part.metrics.items()} for name, parts in found.items()}
  attacked = {} if losses is None else privacy.membership_attack(*losses, seed)
  sides['ours'] |= attacked
  details = {key: value for part in ours for key, value in part.details.items()}
  notes = [note for part in ours for note in part.notes]
  return Compared(sides, details, (*notes, *_findings(sides, train, heldout), _tested(attacked)))


def _predictable(train, heldout, target):
  """(the column to predict or None, why there is none)."""
  column = next((c for c in train.columns if c['name'] == target), None)
  if column is None or len(train.columns) < 2:
    return None, 'tstr left out: it needs a target, and other columns to predict it from'
  found = [tables.values(t, column).astype(float) for t in (train, heldout)]
  kinds = min(len(np.unique(x[~np.isnan(x)])) for x in found)
  return (column, '') if kinds > 1 else (None, f'tstr left out: {target} has fewer than two values in real rows')


def _fresh(train, heldout, ours, seed):
  """What new real rows are expected to have."""
  faithful = faithfulness(heldout, train, seed).metrics
  return Side(faithful | dict(copied_rows=privacy.natural_copies(train, heldout),
                              nearer_to_train=record.Estimate(**ours.details['nearer_expected'])))


def _findings(sides, train, heldout):
  """Lines on what the figures of privacy say."""
  ours, natural, found = sides['ours'], sides['real']['copied_rows'], []
  copied, near, attack = ours['copied_rows'], ours['nearer_to_train'], ours.get('attack_auc')
  shared = set(privacy.identities(train)) & set(privacy.identities(heldout))
  if natural.value > BY_CHANCE and not shared:
    found.append(f'{natural.value:.0%} of real rows would equal a training row by chance, but all equal rows are on '
                 'one side: the rows held out are no fair sample, and distances to them are too large')
  if privacy.is_alarming(copied, natural):
    number = f'{round(copied.value * copied.n)} of {copied.n}'
    found.append(f'WARNING: {copied.value:.2%} of the rows drawn ({number}) equal a training row, and '
                 f'{natural.value:.2%} of real rows would')
  if near.low > sides['real']['nearer_to_train'].value:
    found.append(f'WARNING: {near.value:.1%} of the rows drawn are nearer to a training row than to one held out; '
                 f'{sides["real"]["nearer_to_train"].value:.1%} are expected')
  if attack and attack.low > .5:
    found.append(f'WARNING: the loss tells training rows from others: attack_auc is {attack.value:.3f} '
                 f'({attack.low:.3f} to {attack.high:.3f}), and .5 is a guess')
  return found


def _tested(attacked):
  loss = ', a membership attack by the loss of the model' if attacked else ''
  more = '' if attacked else 'a membership attack by the loss, '
  return (f'tested were exact copies, nearness to training rows{loss}; not tested: {more}attribute inference, linkage '
          f'with other data, single outliers, stronger attacks; {PASSING}')


def markdown(sides):
  """baselines.md: a row for each figure, a column for each table, with 95 % intervals."""
  show = lambda e: '' if e is None else f'{e.value:.3f} ({e.low:.3f} to {e.high:.3f})'
  lines = ['| figure | better | ' + ' | '.join(sides) + ' |', '|---' * (len(sides) + 2) + '|']
  for name in dict.fromkeys(name for side in sides.values() for name in side):
    better = 'higher' if name in record.HIGHER else 'lower'
    lines.append(f'| {name} | {better} | ' + ' | '.join(show(side.get(name)) for side in sides.values()) + ' |')
  return '\n'.join([*lines, '', 'real: training rows in place of drawn ones; of tstr, what is trained on real rows; of '
                    'copied_rows, nearer_to_train and rare_categories, what is expected of new real rows', ''])


# ---- the evaluator
def table_of(arrays, facts):
  """The Table, as_written, of a Dataset's arrays or a task's output."""
  return tables.as_written(Table(arrays['numbers'], arrays['categories'], tuple(facts['columns'])))


def row_losses(run, weights, data, rows, seed):
  """The loss of rows of a Dataset, each the mean of DRAWS times and noises, float64 [len(rows)]; None if the objective
  does not report that of each example.

  The k-th row of any data gets the same times and noises.
  """
  @partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
  def measure(weights, batch, key):
    x0, cond = run.encode(weights.frozen, None, batch)
    return heldout_measurement(run, weights, key, x0, cond)[1].get('each')

  number, step = len(rows), -(-run.plan.batch // run.mesh.size) * run.mesh.size
  losses = np.zeros(number)
  for start in range(0, number, step):
    batch = sharding.put_batch(run.task.batch(data, rows[np.arange(start, start + step) % number]), run.mesh)
    for draw in range(DRAWS):
      key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), draw), start)
      each = jax.device_get(measure(weights, batch, key))
      if each is None:
        return None
      losses[start:start + step] += each[:number - start] / DRAWS
  return losses


def _losses(run, weights, data, seed):
  """Losses of as many training rows as held-out ones, or None."""
  number = min(size(data.train), size(data.heldout), ATTACKED)
  rng, sides = np.random.default_rng(seed), (data.train, data.heldout)
  losses = [row_losses(run, weights, side, rng.permutation(size(side))[:number], seed) for side in sides]
  return None if losses[0] is None else losses


def _measure(run, weights, data, folder, report):
  options, facts = run.config.evaluate, data.train.facts
  report('tables', f'{options.num_samples} rows, {run.config.sampler}, {run.config.grid}')
  # Classes in turn would be more even than those of independent rows.
  turns = np.random.default_rng(options.seed).integers(0, 2 ** 31, options.num_samples)
  asked = requests.ask(run, requests.of_config(run), turns, options.seed)
  draw = sampling.make_draw(run, options.seed, min(run.config.sample.batch, options.num_samples))
  drawn = table_of(draw(weights, np.arange(options.num_samples), asked.cond)[0]['table'], facts)
  train, heldout = (table_of(side.arrays, facts) for side in data[:2])
  losses = _losses(run, weights, data, options.seed)
  found = compare(train, heldout, drawn, losses, facts.get('target', ''), options.seed)
  write_pages(folder, train, heldout, drawn, losses, found, options.seed)
  protocol = dict(data_hash=digest(*columns(data.heldout)), train_hash=digest(*columns(data.train)), draws=DRAWS)
  baselines = {name: {key: e._asdict() for key, e in side.items()} for name, side in found.sides.items()}
  ours = found.sides['ours']
  return Measured(ours, {name: protocol for name in ours}, dict(tables=found.details | dict(baselines=baselines)),
                  {name: e for name, e in found.sides['real'].items() if name in ours}, found.notes)


def write_pages(folder, train, heldout, drawn, losses, found, seed):
  """columns.png, pairs.png, privacy.png and baselines.md."""
  metric = privacy.metric_of(train, heldout)
  distances = [privacy.closest(some(table, PROBED, seed), train, metric) for table in (drawn, heldout)]
  write_atomic(folder / 'columns.png', table_pages.columns(drawn, heldout, found.details['columns']))
  write_atomic(folder / 'pairs.png', table_pages.pairs(drawn, heldout))
  write_atomic(folder / 'privacy.png', table_pages.privacy(*distances, losses))
  write_atomic(folder / 'baselines.md', markdown(found.sides).encode())


def _needs(run, data):
  return first('' if run.draws else f'the objective {run.objective.name} draws nothing',
               '' if run.task.gives == 'rows' else f'the samples are {run.task.gives}, not tables',
               '' if size(data.heldout) >= ENOUGH else f'it needs at least {ENOUGH} held-out rows',
               '' if size(data.train) >= ENOUGH else f'it needs at least {ENOUGH} training rows')


EVALUATOR = Evaluator(_needs, _measure)
