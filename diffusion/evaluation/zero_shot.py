"""Zero-shot classification by a model of two towers: the class whose name is nearest to the image.

Two rules for a class that config.evaluate.templates describe in several texts:

* zero_shot: the mean of their unit vectors, scaled to length 1 again (CLIP, arXiv:2103.00020, section 3.1.4), which
  suits templates that say the same in other words;
* zero_shot_mixture: the sum over texts of exp(scale * cosine), which suits templates that exclude each other, as of
  colours. The softmax loss makes exp(scale * cosine) proportional to p(image | text) / p(image) (arXiv:1807.03748,
  section 2.3), so the sum is that of an image whose text is any of them.

Captions of sprites never name their six classes, so there the classes are the kinds of creatures, food, spells and
weapons, which they do name.
"""
import re

import jax
import numpy as np
from scipy.special import logsumexp

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
  """Unit vectors [K, T, D] of the texts of classes."""
  each = text_vectors(run, weights, [template.replace('{}', name) for name in names for template in templates])
  return each.reshape(len(names), len(templates), -1)


def found_by_mean(images, texts):
  """The class of each image, int [N]: the nearest mean. images: unit vectors [N, D]; texts: [K, T, D]."""
  mean = texts.mean(1)
  return np.argmax(images @ (mean / np.linalg.norm(mean, axis=1, keepdims=True)).T, 1)


def found_by_mixture(images, texts, scale):
  """The class of each image, int [N]: the largest sum over texts of exp(scale * cosine). Arguments as above."""
  return np.argmax(logsumexp(scale * np.einsum('nd,ktd->nkt', images, texts), axis=2), 1)


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
  texts, scale = class_vectors(run, weights, names, templates), np.exp(np.asarray(weights.params['logit_scale']))
  found = dict(zero_shot=found_by_mean(images, texts), zero_shot_mixture=found_by_mixture(images, texts, scale))
  protocol = dict(classes=len(names), templates=run.config.evaluate.templates, data_hash=digest(*columns(examples)))
  shares = {name: record.share(int(np.sum(classes == labels)), size(examples)) for name, classes in found.items()}
  mistakes = {name: dict(mistakes=_mistakes(names, labels, classes)) for name, classes in found.items()}
  return Measured(shares, dict.fromkeys(shares, protocol), mistakes)


def _mistakes(names, labels, found):
  """{'a as b': how often} of the ten most frequent."""
  wrong, counts = np.unique(np.stack([labels, found])[:, labels != found], axis=1, return_counts=True)
  often = sorted(zip(wrong.T, counts), key=lambda pair: -pair[1])[:10]
  return {f'{names[a]} as {names[b]}': int(n) for (a, b), n in often}


EVALUATOR = Evaluator(_needs, _measure)
