"""Models one after the other: what one gives, the next one takes, as a base model and its up-samplers do."""
import shlex
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion.errors import InputError
from diffusion.generation import requests, sampling
from diffusion.setup.build import require


class Drawn(NamedTuple):
  """What one model of a chain has drawn."""
  outputs: dict   # of its task
  frames: Any     # of the steps that were traced, or None
  asked: Any      # the Asked of its request
  lost: list      # ids of samples that are not finite


def parse(text):
  """config.sample.then: 'runs/a grid=trailing(20) > runs/b@600' -> [(work directory, {setting: value})].

  Raises:
    InputError: a part without a work directory, or a setting without a value.
  """
  links = []
  for part in text.split('>') if text.strip() else ():
    try:
      where, *words = shlex.split(part)
      links.append((where, dict(word.split('=', 1) for word in words)))
    except ValueError as error:
      raise InputError(f'config.sample.then={text!r}: expected work directories with settings, such as '
                       f"\"runs/up sampler=ddim grid='trailing(20)' > runs/up2\" ({error})") from error
  return links


AGREED = dict(clip='embeddings of the CLIP', tokens='the tokenizer')  # facts of parts that embeddings pass between


def check(models):
  """Raises InputError where a model does not take what the one before it gives, before anything is drawn.

  It is asked with an example of zeros, so that it also refuses what has another size.
  """
  for i, model in enumerate(models):
    require(model.run, 'draws')
    given = models[i - 1].run.task.gives if i else None
    if i and given not in model.run.task.takes:
      takes = ', '.join(model.run.task.takes) or 'nothing'
      raise InputError(f'model {i + 1} of the chain takes {takes}, and the one before it gives {given or "nothing"}: '
                       'choose a model that continues from that')
    if given == 'embedding':
      _check_embeddings(i, *(model.run.task.facts for model in models[i - 1:i + 1]))
    if i:
      try:
        model.run.task.ask({given: example_of(models[i - 1])}, np.arange(1), 0)
      except InputError as error:
        raise InputError(f'model {i + 1} of the chain does not go on from model {i}: {error}') from error


def example_of(model):
  """What a model hands on, one of it, as far as shape and type go."""
  run, frozen = model.run, model.weights.frozen
  outputs = jax.eval_shape(run.decode, frozen, *run.example)
  return run.task.given(jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), outputs))


def _check_embeddings(i, first, second):
  """Raises InputError where a prior draws embeddings of another CLIP than a decoder was trained on."""
  short = lambda value: value[:8] if isinstance(value, str) else value
  for fact, what in AGREED.items():
    if first.get(fact) != second.get(fact):
      raise InputError(f'model {i} of the chain has {what} {short(first.get(fact))}, and model {i + 1} that of '
                       f'{short(second.get(fact))}: train both with the same CLIP')


def draw(models, request, number, seed, batch, trace=None, setting='config.sample.'):
  """Draws from each model in turn; sample k of every part depends on (seed, k) alone.

  Args:
    models: list of Loaded.
    request: {name: text or array}; each model is asked for what its task takes of it.
    number, seed, batch: of the samples.
    trace: as for sampling.make_sample, for the last model.
    setting: before the names of requests in messages.
  Returns:
    A Drawn for each model.
  """
  check(models)
  unknown = {name: value for name, value in request.items() if not any(name in m.run.task.takes for m in models)}
  ids, parts = np.arange(number), []
  for i, (run, weights, _) in enumerate(models):
    own = {name: value for name, value in request.items() if name in run.task.takes}
    own = own | unknown if i == 0 else requests.of_config(run) | own  # a later model has settings of its own
    before = models[i - 1].run.task
    given = {before.gives: before.given(parts[-1].outputs)} if i else {}
    asked = requests.ask(run, own | given, ids, part_seed(seed, i), setting)
    asked = asked._replace(labels=asked.labels or parts[-1].asked.labels) if i else asked
    drawn = sampling.make_draw(run, part_seed(seed, i), batch, trace=trace if i == len(models) - 1 else None,
                               shape=asked.shape)
    lost = []
    parts.append(Drawn(*drawn(weights, ids, asked.cond, lost=lost), asked, lost))
  return parts


def part_seed(seed, i):
  """The seed of the i-th model: its noise must not be that of the first one."""
  return seed if i == 0 else (seed + i * 0x9e3779b1) % 2 ** 31
