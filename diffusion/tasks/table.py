"""Tables: numbers as N(0, 1), categories as they are; any columns may be given, the others are drawn.

A missing number is a flag, a category of two values, beside a number that means nothing. A column that is given enters
the condition, and its entries of x0 are masked out; training gives a random choice of columns, so that one model draws
whole rows, rows with some given values (conditional sampling), and the empty cells of rows (imputation).
"""
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError
from diffusion.system.files import write_atomic, write_npz
from diffusion.tasks import quantiles, table_page, table_text
from diffusion.tasks.base import need, Task
from diffusion.tasks.table_ask import ask_columns, category_sizes, count, TAKES

TARGET_SHARE = .25  # of the rows in training have the target given, and nothing else


def table(*, data=None, facts=None, fitted=None):
  """x0: dict(numbers float32 [Dn] about N(0, 1), categories int32 [Dc']), the flags of missing numbers last.

  The condition: dict(cond float32 [F], the features of given columns; x_mask float32 [Dn + Dc'], 0 where x0 is given).
  """
  if data is not None:
    need(data, 'numbers', 'categories')
    if not data.facts.get('columns'):
      raise InputError('it needs the facts of columns, which the sources csv and patients state')
    facts = {name: data.facts.get(name, empty) for name, empty in
             (('columns', ()), ('target', ''), ('left_out', ()), ('file', {}))}
    fitted = fitted or fit(facts, data.arrays['numbers'], data.arrays['categories'])
  facts = facts or dict(columns=[], target='', left_out=[], file={})
  fitted = fitted or fit(facts, np.zeros((1, 0)), np.zeros((1, 0), np.int32))
  sizes, flags = category_sizes(facts)
  if fitted['step'].shape != (count(facts, 'number'),) or fitted['frequencies'].shape != (sum(sizes),):
    raise InputError(f'the fitted numbers are those of another table, not of one with {len(facts["columns"])} columns '
                     f'such as {", ".join(c["name"] for c in facts["columns"][:3])}')
  condition = _condition(facts)

  def batch(data, indices):
    low, high = quantiles.intervals(fitted, data.arrays['numbers'][indices])
    return dict(low=low.astype(np.float32), high=high.astype(np.float32), categories=data.arrays['categories'][indices])

  def save(folder, outputs, cond, labels):
    """table.csv, with the columns and formats of the source; samples.npz: numbers and categories."""
    write_atomic(folder / 'table.csv', table_text.csv_bytes(facts, outputs['table']))
    write_npz(folder / 'samples.npz', outputs['table'])

  return Task(
    batch, _encode(facts, condition), decode=_decode(facts, fitted), ask=ask_columns(facts, fitted, condition),
    null=lambda cond: cond and dict(cond=jnp.zeros_like(cond['cond']), x_mask=jnp.ones_like(cond['x_mask'])), save=save,
    show=lambda outputs, labels, title: table_page.page(facts, fitted, outputs['table'], labels, title),
    facts=facts, fitted=fitted, takes=TAKES, gives='rows',
    result=lambda outputs: table_text.as_columns(facts, outputs['table']), categories=sizes,
    evaluators=('loss', 'tables'))


def _encode(facts, condition):
  """The `encode` of the task: a batch {low, high [B, Dn]: the z of both ends of each number's interval, NaN where
  missing; categories [B, Dc]} -> (x0, cond)."""
  (sizes, flags), numbers = category_sizes(facts), count(facts, 'number')

  def encode(frozen, key, batch):
    low, gone = batch['low'], jnp.isnan(batch['low'])
    u, free, given = .5, 0., jnp.zeros((len(low), numbers + len(sizes)), bool)
    if key is not None:
      keys = jax.random.split(key, 3)
      u, free = jax.random.uniform(keys[0], low.shape), jax.random.normal(keys[1], low.shape)
      given = _choose(facts, keys[2], gone)
    z = jnp.where(gone, free, quantiles.normal(jnp.nan_to_num(low), jnp.nan_to_num(batch['high']), u))
    flagged = gone[:, np.array(flags, np.int32)].astype(jnp.int32)
    categories = jnp.concatenate([batch['categories'], flagged], 1)
    return dict(numbers=z, categories=categories), condition(z, categories, given)
  return encode


def _decode(facts, fitted):
  """The `decode` of the task: what is given stands in place of what was drawn; a flagged number is NaN."""
  (sizes, flags), texts, split = category_sizes(facts), count(facts, 'category'), count(facts, 'number')
  inverse = quantiles.inverse(fitted)

  def decode(frozen, x0, cond):
    z, categories, given = x0['numbers'], x0['categories'], jnp.zeros(x0['numbers'].shape, bool)
    if cond is not None:
      known_z, known_categories = _known(sizes, split, cond['cond'])
      given, fixed = cond['x_mask'][:, :split] == 0, cond['x_mask'][:, split:] == 0
      z, categories = jnp.where(given, known_z, z), jnp.where(fixed, known_categories, categories)
    categories = jnp.clip(categories, 0, np.array(sizes, np.int32) - 1).astype(jnp.int32)
    gone = jnp.zeros(z.shape, bool).at[:, np.array(flags, np.int32)].set(categories[:, texts:] == 1)
    numbers = jnp.where(gone, jnp.nan, inverse(z, given))
    return dict(table=dict(numbers=numbers, categories=categories[:, :texts]))
  return decode


def fit(facts, numbers, categories):
  """What is measured on training data: the knots of numbers (quantiles.py), and `frequencies` float64 [sum of sizes] of
  categories, missing ones and flags among them, one column after the other."""
  described = [c for c in facts['columns'] if c['kind'] == 'number']
  sizes, flags = category_sizes(facts)
  every = np.concatenate([categories, np.isnan(numbers[:, flags])], 1).astype(np.int64)
  counts = [np.bincount(column, minlength=size) / len(numbers) for column, size in zip(every.T, sizes)]
  return quantiles.fit(numbers, [c['decimals'] for c in described]) | dict(frequencies=np.concatenate([[], *counts]))


def _condition(facts):
  """(z [B, Dn], categories [B, Dc'], given bool [B, Dn + Dc']) -> the condition.

  Features: z of given numbers, whether each is given and not missing, one-hot categories and flags that are given.
  """
  (sizes, flags), split = category_sizes(facts), count(facts, 'number')
  starts = np.cumsum((0, *sizes))[:-1].astype(np.int32)

  def condition(z, categories, given):
    B = z.shape[0]
    flagged = categories[:, len(sizes) - len(flags):] == 1
    gone = jnp.zeros(z.shape, bool).at[:, np.array(flags, np.int32)].set(flagged)
    present = (given[:, :split] & ~gone).astype(jnp.float32)
    rows = jnp.arange(B)[:, None]
    one_hot = jnp.zeros((B, sum(sizes))).at[rows, starts + categories].set(given[:, split:].astype(jnp.float32))
    return dict(cond=jnp.concatenate([z * present, present, one_hot], 1), x_mask=1 - given.astype(jnp.float32))
  return condition


def _known(sizes, split, cond):
  """(z [B, Dn], categories [B, Dc']) of the features of a condition; 0 where nothing is given."""
  column = np.repeat(np.arange(len(sizes)), sizes)
  index = np.concatenate([[], *map(np.arange, sizes)]).astype(np.float32)
  categories = jnp.zeros((cond.shape[0], len(sizes))).at[:, column].add(cond[:, 2 * split:] * index)
  return cond[:, :split], categories.astype(jnp.int32)


def _choose(facts, key, gone):
  """Which entries of x0 are given in training, bool [B, Dn + Dc'].

  Each column with a probability that is drawn for the row, or, where there is one, the target alone. Of some other
  numbers only that they are not missing is given, as for imputation. Never is everything given.
  """
  flags, split = category_sizes(facts)[1], count(facts, 'number')
  width, (a, b, c, d) = split + count(facts, 'category'), jax.random.split(key, 4)
  rate = jax.random.uniform(a, (len(gone), 1))
  given = jax.random.uniform(b, (len(gone), width)) < rate
  flagged = jax.random.uniform(d, (len(gone), len(flags))) < rate
  target = [c['place'] + split * (c['kind'] == 'category') for c in facts['columns'] if c['name'] == facts['target']]
  if target:
    alone = jax.random.uniform(c, (len(gone), 1)) < TARGET_SHARE
    given = jnp.where(alone, np.arange(width) == target[0], given)
    flagged &= ~alone
  given &= ~given.all(1, keepdims=True)
  flagged = given[:, np.array(flags, np.int32)] | (flagged & ~gone[:, np.array(flags, np.int32)])
  return jnp.concatenate([given, flagged], 1)
