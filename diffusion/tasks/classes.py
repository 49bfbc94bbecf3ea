"""Requests for classes: the conditions of models whose condition is a vector with one entry per class.

Names are separated by commas, in a mix by + and *; one that holds such a sign, or is none, is written in quotes.
"""
import re
import unicodedata

import numpy as np

from diffusion.errors import InputError, unknown
from diffusion.tasks.base import Asked

TAKES = ('classes', 'class_mix')
NAME = r"""\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<plain>[^{end}]*?))\s*(?:[{end}]|$)"""
NAMES = re.compile(NAME.format(end=','))
TERMS = re.compile(r"""\s*(?:(?P<weight>[^+*'"]*)\*)?""" + NAME.format(end='+'))


def class_facts(data):
  """The facts of a task with classes: their names, and those without an example to train on, if any."""
  untrained = data.facts.get('untrained')
  return dict(classes=list(data.facts.get('classes', ()))) | (dict(untrained=list(untrained)) if untrained else {})


def ask_classes(facts):
  """The `ask` of a task with class_facts: cond float32 [N, K], one-hot or a weighted sum, or None without classes.

  request: 'classes', '' for all that were trained in turn, names separated by commas, or 'none' for unconditional; or
  'class_mix', one condition for all, such as '0.5 * hero + 0.5 * food'.
  """
  classes = tuple(facts.get('classes', ()))
  def ask(request, ids, seed):
    for name in TAKES:
      if not isinstance(request.get(name, ''), str):
        raise InputError(f'{name}={request[name]!r}: expected text, such as {name}={"hero, food"!r}')
    if request.get('class_mix') and request.get('classes'):
      raise InputError(f'class_mix={request["class_mix"]!r} and classes={request["classes"]!r}: use one of them')
    if request.get('class_mix'):
      mix = parse_mix(classes, request['class_mix'])
      return Asked(np.tile(mix_condition(classes, mix), (len(ids), 1)), None)
    text = request.get('classes', '').strip()
    if not classes:
      if text not in ('', 'none'):
        raise InputError(f'classes={text!r}: this model was trained without classes; leave it empty')
      return Asked(None, None)
    if text == 'none':
      return Asked(np.zeros((len(ids), len(classes)), np.float32), None)
    names = split_names(text) or drawn_classes(facts)
    index = np.array([class_index(classes, name, f'classes={text!r}') for name in names])
    index = index[np.asarray(ids) % len(index)]  # example k has the same class for any number
    return Asked(np.eye(len(classes), dtype=np.float32)[index], [classes[i] for i in index])
  return ask


def drawn_classes(facts):
  """The classes that are drawn in turn unless others are asked for: those with examples to train on."""
  classes, untrained = facts.get('classes', ()), facts.get('untrained', ())
  return [name for name in classes if name not in untrained] or list(classes)


def split_names(text):
  """'hero, "a, b"' -> ['hero', 'a, b']."""
  return [_name(match) for match in NAMES.finditer(text) if match['plain'] != '']


def _name(match):
  return next(match[kind] for kind in ('double', 'single', 'plain') if match[kind] is not None)


def quoted(name):
  """A name as it is written in a list or a mix."""
  plain = name not in ('', 'none') and name == name.strip() and not re.search(r'[,+*|:()\[\]{}]|^[\'"]', name)
  return name if plain else f"'{name}'" if "'" not in name else f'"{name}"'


def class_index(classes, name, setting):
  """The number of a class; raises InputError, starting with `setting`, for one that the model does not have."""
  form = unicodedata.normalize('NFC', name)  # keyboards and file systems differ in how they write é
  found = next((k for k, known in enumerate(classes) if form == unicodedata.normalize('NFC', known)), None)
  if found is None:
    raise InputError(f'{setting}: {unknown(name, list(map(quoted, classes)))}')
  return found


def parse_mix(classes, text):
  """'0.7 * hero + 0.3 * food' -> [(0.7, 'hero'), (0.3, 'food')]; a missing weight is 1 over the number of terms."""
  setting = f'class_mix={text!r}'
  if not classes:
    raise InputError(f'{setting}: this model was trained without classes; leave it empty')
  terms = parse_terms(text, 'class_mix', quoted(classes[0]), quoted(classes[-1]))
  return [(weight, classes[class_index(classes, name, setting)]) for weight, name in terms]


def parse_terms(text, name, *examples):
  """'0.7 * a + 0.3 * b' -> [(0.7, 'a'), (0.3, 'b')]; a missing weight is 1 over the number of terms.

  Raises:
    InputError: starts with `name`, and shows the examples; no term, or a weight that is no number of at least 0.
  """
  setting = f'{name}={text!r}'
  terms = [match for match in TERMS.finditer(text) if match[0]]
  found = []
  if text.rstrip().endswith('+'):
    raise InputError(f'{setting}: a term is missing after the last +')
  for term in terms:
    try:
      value = 1 / len(terms) if term['weight'] is None else float(term['weight'])
    except ValueError:
      value = float('nan')
    if not np.isfinite(value):
      raise InputError(f'{setting}: the weight {term["weight"].strip()!r} is not a number; '
                       f'write 0.5 * {examples[0]} + 0.5 * {examples[-1]}')
    found.append((value, _name(term)))
  return found


def mix_condition(classes, mix):
  """The weighted sum of one-hot conditions, float32 [K]."""
  return sum(weight * np.eye(len(classes), dtype=np.float32)[classes.index(name)] for weight, name in mix)
