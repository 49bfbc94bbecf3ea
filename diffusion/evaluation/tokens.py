"""The bound on the likelihood of held-out tokens, with its error, beside tokens drawn one by one."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import samplers
from diffusion.core import categorical
from diffusion.core.schedules import evaluate
from diffusion.data.dataset import padded_batches, size
from diffusion.evaluation.base import columns, Evaluator, first, Measured, needs_heldout
from diffusion.evaluation.metrics import record
from diffusion.evaluation.metrics.trained_features import digest
from diffusion.objectives import timesteps
from diffusion.system import sharding

DRAWS = 64  # levels at which each example is measured, evenly spaced with one offset
LEVELS = 1000  # steps of a curve at whose ends the bound is closed


def bounds(run, weights, data, number, seed, draws=DRAWS, batch=256):
  """Draws of the bound on -log p(x0 | cond), in nats, float64 [number, draws]; their mean over draws is unbiased.

  The three parts are those of a variational bound: what is lost at the noisiest level, the loss of the objective at
  one uniform time a draw, and, of a curve, the tokens that are lost at its cleanest level.
  """
  schedule, index = run.schedule, np.arange(min(number, size(data)))
  term, level = categorical.bound(schedule), timesteps.levels_at(schedule)
  ends = jax.tree.map(np.float32, (evaluate(schedule, 1.), evaluate(schedule, 1e-5)))

  @partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
  def measure(weights, batch, ids, draw):
    x0, cond = run.encode(weights.frozen, None, batch)
    predict = run.plain(weights, cond)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, draw))(samplers.sample_keys(seed, ids))
    offset = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, draws)))(samplers.sample_keys(seed, ids))
    noise, made = level((draw + offset) / draws), predict(x0, ends[0])
    lost = lambda key, x0: categorical.noise_draws(key, x0, made.kernel)
    shuffled, uniforms = jax.vmap(lost)(keys, x0)[::-1]
    noised = lambda noise: categorical.noised(x0, noise, uniforms, shuffled)
    x = noised(noise)
    nats = term(x, x0, predict(x, noise), noise)
    empty = noised(ends[0]._replace(logsnr=np.float32(-np.inf)))
    nats += categorical.prior_divergence(x0, predict(empty, ends[0]), ends[0])
    if callable(schedule):
      x = noised(ends[1])
      clean = ends[1]._replace(logsnr=np.float32(np.inf))
      nats += categorical.step_divergence(x, x0, predict(x, ends[1]), ends[1], clean, np.float32(1))
    return jnp.sum(nats, tuple(range(1, nats.ndim)))

  values = np.empty((len(index), draws))
  batch = -(-min(batch, len(index)) // run.mesh.size) * run.mesh.size
  for padded, count in padded_batches(len(index), batch):
    rows = sharding.put_batch(run.task.batch(data, padded), run.mesh)
    for draw in range(draws):
      values[padded[:count], draw] = jax.device_get(measure(weights, rows, padded, draw))[:count]
  return values


def independent(train, heldout, categories):
  """-log p(x0) of held-out tokens [N, ...] with the frequencies of each place in training, in nats, [N].

  Each value counts half an example more (Krichevsky & Trofimov 1981), so that none has probability 0.
  """
  flat = lambda tokens: np.asarray(tokens).reshape(len(tokens), -1)
  train, heldout = flat(train), flat(heldout)
  count = np.stack([np.bincount(column, minlength=categories) for column in train.T]) + .5
  log_p = np.log(count / count.sum(1, keepdims=True))
  return -log_p[np.arange(heldout.shape[1]), heldout].sum(1)


def _measure(run, weights, data, folder, report):
  options = run.config.evaluate
  number = min(options.num_samples, size(data.heldout))
  report('nelbo', f'{number} held-out examples, {DRAWS} levels each')
  values = bounds(run, weights, data.heldout, number, options.seed)
  tokens = lambda side, n: run.encode(run.frozen, None, run.task.batch(side, np.arange(n)))[0]
  alone = independent(tokens(data.train, size(data.train)), tokens(data.heldout, number), run.task.categories)
  places = int(np.prod(run.shape))
  metrics = dict(nelbo=record.mean(values.mean(1)), nelbo_token=record.mean(values.mean(1) / places))
  common = dict(data_hash=digest(*columns(data.heldout)), draws=DRAWS, seed=options.seed, schedule=run.config.schedule)
  within = float(np.sqrt(values.var(1, ddof=1).mean() / DRAWS / number))
  notes = (f'nelbo bounds -log p(x0) in nats from above ({metrics["nelbo"].value / np.log(2) / places:.4f} bits per '
           f'token); of its error {within:.2g} is that of the levels and lost tokens that were drawn',
           f'tokens drawn one by one, each place by its frequencies in training: {alone.mean():.4g} nats')
  return Measured(metrics, {name: common for name in metrics}, dict(independent_nats=float(alone.mean())), notes=notes)


def _needs(run, data):
  return first('' if 'logits' in run.can else f'the objective {run.objective.name} has no logits', needs_heldout(data))


EVALUATOR = Evaluator(_needs, _measure)
