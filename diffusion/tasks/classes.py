"""Requests for classes: the conditions of models whose condition is a vector with one entry per class."""
import numpy as np

from diffusion.errors import InputError, unknown
from diffusion.tasks.base import Asked

TAKES = ('classes', 'class_mix')


def ask_classes(classes):
  """The `ask` of a task with these classes: cond float32 [N, K], one-hot or a weighted sum, or None without classes.

  request: 'classes', '' for all in turn, names separated by commas, or 'none' for unconditional; or 'class_mix', one
  condition for all, such as '0.5 * hero + 0.5 * food'.
  """
  def ask(request, ids, seed):
    if request.get('class_mix'):
      mix = parse_mix(classes, request['class_mix'])
      return Asked(np.tile(mix_condition(classes, mix), (len(ids), 1)), None)
    text = request.get('classes', '')
    if not classes:
      if text not in ('', 'none'):
        raise InputError(f'classes={text!r}: this model was trained without classes; leave it empty')
      return Asked(None, None)
    if text == 'none':
      return Asked(np.zeros((len(ids), len(classes)), np.float32), None)
    index = np.array([class_index(classes, name, f'classes={text!r}') for name in split_names(text) or classes])
    index = index[np.asarray(ids) % len(index)]  # example k has the same class for any number
    return Asked(np.eye(len(classes), dtype=np.float32)[index], [classes[i] for i in index])
  return ask


def split_names(text):
  """'hero, food' -> ['hero', 'food']."""
  return [name.strip() for name in text.split(',') if name.strip()]


def class_index(classes, name, setting):
  """The number of a class; raises InputError, starting with `setting`, for one that the model does not have."""
  if name not in classes:
    raise InputError(f'{setting}: {unknown(name, classes)}')
  return classes.index(name)


def parse_mix(classes, text):
  """'0.7 * hero + 0.3 * food' -> [(0.7, 'hero'), (0.3, 'food')]; a missing weight is 1 over the number of terms."""
  setting = f'class_mix={text!r}'
  if not classes:
    raise InputError(f'{setting}: this model was trained without classes; leave it empty')
  terms, mix = text.split('+'), []
  for term in terms:
    weight, star, name = term.strip().rpartition('*')
    try:
      value = float(weight) if star else 1 / len(terms)
    except ValueError:
      value = float('nan')
    if not np.isfinite(value):
      raise InputError(f'{setting}: the weight {weight.strip()!r} is not a number; '
                       f'write 0.5 * {classes[0]} + 0.5 * {classes[-1]}')
    class_index(classes, name.strip(), setting)
    mix.append((value, name.strip()))
  return mix


def mix_condition(classes, mix):
  """The weighted sum of one-hot conditions, float32 [K]."""
  return sum(weight * np.eye(len(classes), dtype=np.float32)[classes.index(name)] for weight, name in mix)
