"""Zero-shot classification by a model of two towers: the class whose name is nearest to the image.

A class is the mean of the unit vectors of config.evaluate.templates with its name, scaled to length 1 again (CLIP,
arXiv:2103.00020, section 3.1.4). Captions of sprites never name their six classes, so there the classes are the kinds
of creatures, food, spells and weapons, which they do name.
"""
import re

import jax
import numpy as np

from diffusion.data.dataset import size, take
from diffusion.errors import InputError
from diffusion.evaluation import retrieval
from diffusion.evaluation.base import columns, Evaluator, first, Measured
from diffusion.evaluation.metrics import record
from diffusion.evaluation.metrics.judge import said, values_of, wanted
from diffusion.evaluation.metrics.trained_features import digest


def classes_of(data):
  """(names, int [N]: the class of each example, -1 where it has none) of a Dataset; ((), None) without classes."""
  texts = said(data)
  kinds = {'kind': values_of(texts).get('kind', ())}
  if kinds['kind']:
    return kinds['kind'], wanted(texts, kinds)[:, 0]
  labels, names = data.arrays.get('labels'), tuple(data.facts.get('classes', ()))
  return (names, labels) if names and labels is not None and labels.ndim == 1 else ((), None)


def templates_of(text):
  """'a {} | a red {}' -> ['a {}', 'a red {}']. Raises InputError where one has no place for the name."""
  found = [part.strip() for part in text.split('|')]
  odd = [part for part in found if part.count('{}') != 1]
  if odd:
    raise InputError(f"config.evaluate.templates={text!r}: {odd[0]!r} has not one {{}} for the name of the class, as "
                     "in 'a {} | a red {}'")
  return found


def literal(text):
  r"""A text in which brackets are no weights, for a prompt: ( as \(."""
  return re.sub(r'([()\\])', r'\\\1', text)


def text_vectors(run, weights, texts):
  """Unit vectors [N, D] of texts."""
  asked = run.task.ask(dict(prompt=[literal(text) for text in texts]), np.arange(len(texts)), 0)
  return jax.device_get(jax.jit(lambda weights, cond: run.model(weights).embed_text(cond))(weights, asked.cond))


def class_vectors(run, weights, names, templates):
  """Unit vectors [K, D] of classes: the mean over templates."""
  each = text_vectors(run, weights, [template.replace('{}', name) for name in names for template in templates])
  mean = each.reshape(len(names), len(templates), -1).mean(1)
  return mean / np.linalg.norm(mean, axis=1, keepdims=True)


# ---- the evaluator
def _needs(run, data):
  return first(retrieval.needs(run, data), '' if len(classes_of(data.heldout)[0]) > 1 else 'the data have no classes')


def _measure(run, weights, data, folder, report):
  """The share of held-out images whose class is found, and the most frequent mistakes."""
  templates = templates_of(run.config.evaluate.templates)
  names, labels = classes_of(data.heldout)
  rows = np.flatnonzero(labels >= 0)
  examples, labels = take(data.heldout, rows), labels[rows]
  report('zero-shot', f'{len(names)} classes, {len(rows)} held-out images, {len(templates)} templates')
  images, *_ = retrieval.vectors(run, weights, examples)
  found = np.argmax(images @ class_vectors(run, weights, names, templates).T, 1)
  wrong, counts = np.unique(np.stack([labels, found])[:, labels != found], axis=1, return_counts=True)
  often = sorted(zip(wrong.T, counts), key=lambda pair: -pair[1])[:10]
  mistakes = {f'{names[a]} as {names[b]}': int(n) for (a, b), n in often}
  protocol = dict(classes=len(names), templates=run.config.evaluate.templates, data_hash=digest(*columns(examples)))
  share = record.share(int(np.sum(found == labels)), size(examples))
  return Measured(dict(zero_shot=share), dict(zero_shot=protocol), dict(zero_shot=dict(mistakes=mistakes)))


EVALUATOR = Evaluator(_needs, _measure)
